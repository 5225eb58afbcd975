//! An application that writes in every way there is, as a role that may touch nothing of Carveout's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::scene::{DATABASE, Scene, connect};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error};

const ORDERS: &str = "\"Or\"\"ders\"";
/// Errors that an application tries again: deadlock, serialization, a row that is there already or gone.
const AGAIN: [&str; 4] = ["40P01", "40001", "23505", "23503"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Autocommit,
    Long,
    RepeatableRead,
    Serializable,
    Savepoint,
    Replica,
    Prepared,
    Partitioned,
    Mixed,
    Child,
    Hands,
}

impl Kind {
    pub const ALL: [Kind; 11] = [
        Kind::Autocommit,
        Kind::Long,
        Kind::RepeatableRead,
        Kind::Serializable,
        Kind::Savepoint,
        Kind::Replica,
        Kind::Prepared,
        Kind::Partitioned,
        Kind::Mixed,
        Kind::Child,
        Kind::Hands,
    ];
}

/// What the writers were told.
#[derive(Debug, Default)]
pub struct Tally {
    /// Orders whose COMMIT was answered.
    pub acknowledged: Vec<i64>,
    /// Writes that the fence refused.
    pub refused: usize,
    pub by_kind: BTreeMap<Kind, usize>,
}

pub struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Result<Tally>>>,
}

impl Writers {
    pub async fn start(scene: &Scene, count: usize, rng: &mut StdRng) -> Result<Writers> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        let own = scene.source.url(DATABASE);
        for n in 0..count {
            let kind = Kind::ALL[n % Kind::ALL.len()];
            let role = if kind == Kind::Replica { "postgres" } else { "app" };
            let client = connect(&own).await?;
            client
                .batch_execute(&format!("SET SESSION AUTHORIZATION {role}"))
                .await
                .context("become the application")?;
            if n % 3 == 0 {
                client.batch_execute("SET synchronous_commit = off").await?;
            }
            let (stop, rng) = (Arc::clone(&stop), StdRng::seed_from_u64(rng.random()));
            tasks.push(tokio::spawn(write(client, kind, n, rng, stop)));
        }
        Ok(Writers { stop, tasks })
    }

    pub async fn stop(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for task in self.tasks {
            let tally = task.await.context("join a writer")??;
            all.acknowledged.extend(tally.acknowledged);
            all.refused += tally.refused;
            for (kind, count) in tally.by_kind {
                *all.by_kind.entry(kind).or_default() += count;
            }
        }
        Ok(all)
    }
}

async fn write(client: Client, kind: Kind, n: usize, mut rng: StdRng, stop: Arc<AtomicBool>) -> Result<Tally> {
    let mut tally = Tally::default();
    if kind == Kind::Replica {
        client.batch_execute("SET session_replication_role = replica").await.context("become a replica")?;
    }
    while !stop.load(Ordering::Relaxed) {
        match transaction(&client, kind, n, &mut rng).await {
            Ok(made) => {
                tally.acknowledged.extend(made);
                *tally.by_kind.entry(kind).or_default() += 1;
            }
            Err(error) => {
                let code = error.code().map(|code| code.code().to_owned()).unwrap_or_default();
                // Whatever state the session was left in.
                let _ = client.batch_execute("ROLLBACK").await;
                match code.as_str() {
                    connectors::postgres::fence::REFUSED => tally.refused += 1,
                    code if AGAIN.contains(&code) => {}
                    _ => bail!("{kind:?}: {error:?}"),
                }
            }
        }
        pause(&mut rng, 8).await;
    }
    Ok(tally)
}

async fn pause(rng: &mut StdRng, most: u64) {
    tokio::time::sleep(Duration::from_millis(rng.random_range(0..most))).await;
}

/// One transaction; returns the orders that it made.
async fn transaction(client: &Client, kind: Kind, n: usize, rng: &mut StdRng) -> Result<Option<i64>, Error> {
    let id: i64 = client.query_one("SELECT nextval('ids')", &[]).await?.get(0);
    let tenant = if rng.random_range(0..3) > 0 { 7 } else { rng.random_range(5..9) };
    let insert = format!("INSERT INTO {ORDERS} VALUES ({tenant}, {id}, 0)");
    let update = format!("UPDATE {ORDERS} SET v = v + 1 WHERE id = {id}");
    let begin = match kind {
        Kind::RepeatableRead => "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1",
        Kind::Serializable => "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT 1",
        _ => "BEGIN",
    };
    match kind {
        Kind::Autocommit => client.batch_execute(&insert).await?,
        Kind::Long | Kind::Replica | Kind::RepeatableRead | Kind::Serializable => {
            client.batch_execute(begin).await?;
            pause(rng, 30).await;
            client.batch_execute(&insert).await?;
            pause(rng, 60).await;
            client.batch_execute(&update).await?;
            client.batch_execute("COMMIT").await?;
        }
        Kind::Savepoint => {
            client.batch_execute(&format!("BEGIN; SAVEPOINT s; {insert}; ROLLBACK TO s")).await?;
            pause(rng, 10).await;
            client.batch_execute(&format!("{insert}; COMMIT")).await?;
        }
        Kind::Prepared => {
            client.batch_execute(&format!("BEGIN; {insert}; PREPARE TRANSACTION 'w{n}'")).await?;
            pause(rng, 30).await;
            client.batch_execute(&format!("COMMIT PREPARED 'w{n}'")).await?;
        }
        Kind::Partitioned => {
            let sql = format!("INSERT INTO events VALUES ({tenant}, {id}, 0); UPDATE events SET v = 1 WHERE id = {id}");
            client.batch_execute(&format!("BEGIN; {sql}; DELETE FROM events WHERE id = {id} - 100; COMMIT")).await?;
            return Ok(None);
        }
        Kind::Mixed => {
            let sql = "INSERT INTO events SELECT 5 + n % 4, nextval('ids'), 0 FROM generate_series(1, 20) n";
            client.batch_execute(sql).await?;
            return Ok(None);
        }
        Kind::Child => {
            let order = rng.random_range(1..=200);
            let below = format!("INSERT INTO item VALUES ({id}, {order}, 0)");
            client.batch_execute(&format!("BEGIN; {below}")).await?;
            pause(rng, 40).await;
            client.batch_execute(&format!("INSERT INTO piece VALUES ({id}, {id}, 0); COMMIT")).await?;
            return Ok(None);
        }
        Kind::Hands => {
            let order = rng.random_range(1..=200);
            let sql = format!("UPDATE {ORDERS} SET \"Tenant\" = {tenant} WHERE id = {order}");
            client.batch_execute(&format!("BEGIN; {sql}")).await?;
            pause(rng, 20).await;
            client.batch_execute("COMMIT").await?;
            return Ok(None);
        }
    }
    Ok(Some(id))
}

/// Every order whose COMMIT was answered is there.
pub async fn assert_there(scene: &Scene, orders: &[i64]) -> Result<()> {
    let client = scene.source_client().await?;
    let sql = format!(
        "SELECT count(*) FROM unnest($1::bigint[]) id WHERE NOT EXISTS (SELECT FROM {ORDERS} o WHERE o.id = id)"
    );
    let missing: i64 = client.query_one(&sql, &[&orders]).await?.get(0);
    ensure!(missing == 0 && orders.len() > 1_000, "{missing} of {} acknowledged orders are missing", orders.len());
    Ok(())
}

//! Clients that write where the route says, and write down what they were told: a transaction is acknowledged, refused, or
//! its answer was lost.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use schemas::url::PgUrl;
use tests::scene::Scene;
use tests::wait::until;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

const SOON: Duration = Duration::from_secs(60);
/// Between two looks at the route by a client that was refused.
/// Three times `wal_writer_delay`, and some more.
const ASYNCHRONOUS: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(1);

/// Where a client has written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    isolation: String,
    database: String,
    schema: String,
}

/// One acknowledged write.
struct Written {
    client: i32,
    number: i64,
    place: Place,
    sent: Instant,
    told: Instant,
}

/// What the clients were told.
#[derive(Default)]
pub struct Ledger {
    written: Vec<Written>,
    /// Whose answer was lost: they are there, or they are not.
    unknown: Vec<(i32, i64)>,
    refused: u64,
}

/// Clients of one tenant.
pub struct Clients {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<Result<Ledger>>>,
}

struct Follower {
    urls: Urls,
    tenant: String,
    client: i32,
}

/// How to reach the sides.
#[derive(Clone)]
struct Urls {
    source: PgUrl,
    target: PgUrl,
}

impl Clients {
    /// Starts `count` of them.
    pub async fn start(scene: &Scene, tenant: &str, count: i32) -> Result<Clients> {
        let urls = Urls { source: scene.source.url("shop").parse()?, target: scene.target.url("postgres").parse()? };
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..count).map(|client| {
            let follower = Follower { urls: urls.clone(), tenant: tenant.to_owned(), client };
            tokio::spawn(follower.run(Arc::clone(&stop), Arc::clone(&done)))
        });
        Ok(Clients { tasks: tasks.collect(), stop, done })
    }

    /// Waits until so many more writes were acknowledged.
    pub async fn progress(&self, writes: u64) -> Result<()> {
        let wanted = self.done.load(Ordering::Relaxed) + writes;
        until("acknowledged writes", SOON, async || {
            let done = self.done.load(Ordering::Relaxed);
            ensure!(done >= wanted, "{done} of {wanted}");
            Ok(())
        })
        .await
    }

    /// Ends them.
    pub async fn stop(self) -> Result<Ledger> {
        self.stop.store(true, Ordering::Relaxed);
        let mut ledger = Ledger::default();
        for task in self.tasks {
            let Ledger { written, unknown, refused } = task.await??;
            ledger.written.extend(written);
            ledger.unknown.extend(unknown);
            ledger.refused += refused;
        }
        Ok(ledger)
    }
}

impl Follower {
    async fn run(self, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) -> Result<Ledger> {
        let mut ledger = Ledger::default();
        let mut number = 0;
        let mut here: Option<(Client, Place)> = None;
        while !stop.load(Ordering::Relaxed) {
            let Some((client, place)) = &here else {
                here = self.look_up().await;
                if here.is_none() {
                    tokio::time::sleep(LOOK).await;
                }
                continue;
            };
            number += 1;
            let sent = Instant::now();
            let error = match self.write(client, place, number).await {
                Ok(()) => {
                    let told = Instant::now();
                    ledger.written.push(Written { client: self.client, number, place: place.clone(), sent, told });
                    done.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                Err(error) => error,
            };
            match error.code().map(|code| code.code().to_owned()).as_deref() {
                Some("TM001") => {
                    ledger.refused += 1;
                    ensure!(
                        error
                            .as_db_error()
                            .and_then(|error| error.hint())
                            .is_some_and(|hint| hint.contains("tenant_routes")),
                        "no hint: {error:?}"
                    );
                }
                // Too late, and nothing was begun.
                Some("57P03") => {}
                // The server ended.
                Some("57P01" | "57P02") => ledger.unknown.push((self.client, number)),
                Some(_) => return Err(error).context("a write failed in a way that no client expects"),
                None => ledger.unknown.push((self.client, number)),
            }
            here = None;
        }
        Ok(ledger)
    }

    /// As docs/ teaches: the route says where; without one the tenant is where it always was.
    async fn look_up(&self) -> Option<(Client, Place)> {
        let source = tests::scene::connect(&self.urls.source.to_string()).await.ok()?;
        let sql =
            "SELECT isolation, database, coalesce(schema, 'public') FROM carveout.tenant_routes WHERE tenant = $1";
        let row = source.query_opt(sql, &[&self.tenant]).await.ok()?;
        let place = match row {
            Some(row) => Place { isolation: row.get(0), database: row.get(1), schema: row.get(2) },
            None => Place { isolation: "shared".into(), database: "shop".into(), schema: "public".into() },
        };
        let url = match place.isolation.as_str() {
            "database" => self.urls.target.with_dbname(&place.database),
            _ => self.urls.source.clone(),
        };
        let client = tests::scene::connect(&url.to_string()).await.ok()?;
        client.batch_execute(&format!("SET search_path = {}", place.schema)).await.ok()?;
        Some((client, place))
    }

    async fn write(&self, client: &Client, place: &Place, number: i64) -> Result<(), tokio_postgres::Error> {
        let (tenant, who, schema) = (&self.tenant, self.client, &place.schema);
        let account = (number * 7 + i64::from(who)) % 100;
        let sql = format!(
            "BEGIN;
             INSERT INTO {schema}.writes (bid, client, number, body) VALUES ({tenant}, {who}, {number}, repeat('x', {}));
             UPDATE {schema}.accounts SET balance = balance + 1
              WHERE id = (SELECT id FROM {schema}.accounts WHERE bid = {tenant} ORDER BY id OFFSET {account} LIMIT 1);
             UPDATE {schema}.notes SET note = '{who}.{number}'
              WHERE account = (SELECT id FROM {schema}.accounts WHERE bid = {tenant} ORDER BY id OFFSET {account} LIMIT 1) AND number = 1;
             COMMIT",
            number % 50
        );
        let done = client.batch_execute(&sql).await;
        if done.is_err() {
            // The transaction that failed is open.
            drop(client.batch_execute("ROLLBACK").await);
        }
        done
    }
}

impl Ledger {
    /// Every acknowledged write is there once, and no other but those whose answer was lost.
    pub async fn assert_held_by(&self, client: &Client, schema: &str, tenant: &str) -> Result<()> {
        let rows = client
            .query(&format!("SELECT client, number FROM {schema}.writes WHERE bid = {tenant}"), &[])
            .await
            .context("read the writes")?;
        let mut there: HashMap<(i32, i64), u32> = HashMap::new();
        for row in &rows {
            *there.entry((row.get(0), row.get(1))).or_default() += 1;
        }
        for write in &self.written {
            let found = there.remove(&(write.client, write.number));
            ensure!(found == Some(1), "write {}.{} is there {found:?} times", write.client, write.number);
        }
        there.retain(|write, _| !self.unknown.contains(write));
        ensure!(there.is_empty(), "{} writes are there that nobody was told of", there.len());
        let sum = format!("SELECT coalesce(sum(balance), 0)::bigint FROM {schema}.accounts WHERE bid = {tenant}");
        let sum: i64 = client.query_one(&sum, &[]).await?.get(0);
        ensure!(sum == rows.len() as i64, "{} writes make a balance of {sum}", rows.len());
        Ok(())
    }

    /// A server that commits asynchronously, for it was told to, loses what it acknowledged last when it crashes.
    pub fn forget_around(&mut self, began: Instant, ended: Instant) {
        let lost = |write: &Written| {
            write.place.isolation != "database" && write.told <= ended && write.told + ASYNCHRONOUS > began
        };
        let (lost, kept) = std::mem::take(&mut self.written).into_iter().partition(lost);
        self.written = kept;
        self.unknown.extend(Vec::into_iter(lost).map(|write: Written| (write.client, write.number)));
    }

    /// No write met a fence.
    pub fn was_never_refused(&self) -> bool {
        self.refused == 0 && self.unknown.is_empty()
    }

    /// While a write was under way on one side, none was on the other.
    pub fn assert_never_on_both_sides(&self) -> Result<()> {
        let mut spans: Vec<&Written> = self.written.iter().collect();
        spans.sort_by_key(|write| write.sent);
        let mut last: HashMap<&str, Instant> = HashMap::new();
        for write in spans {
            for (isolation, told) in &last {
                let elsewhere = *isolation != write.place.isolation;
                ensure!(!elsewhere || *told <= write.sent, "a write was under way on both sides: {:?}", write.place);
            }
            let told = last.entry(&write.place.isolation).or_insert(write.told);
            *told = (*told).max(write.told);
        }
        Ok(())
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let there = self.written.iter().filter(|write| write.place.isolation != "shared").count();
        let (all, unknown) = (self.written.len(), self.unknown.len());
        write!(
            f,
            "{all} writes acknowledged ({there} in the target), {} refused, {unknown} without an answer",
            self.refused
        )
    }
}

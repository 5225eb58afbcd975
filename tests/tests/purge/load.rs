//! A big table, and others who write to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::scene::Scene;
use tokio::task::JoinHandle;

use super::Rig;

/// No index on the tenant's key, so that nothing but the cursor keeps it from reading the table again and again.
const SETUP: &str = "
    CREATE TABLE big (shop integer NOT NULL, id bigint PRIMARY KEY, v integer, filler text);
    CREATE TABLE part (id bigint PRIMARY KEY, big_id bigint NOT NULL REFERENCES big);
    INSERT INTO big SELECT 1 + n % 5, n, 0, 'some text of a row' FROM generate_series(1, 1000000) n;
    INSERT INTO part SELECT n, n * 5 + n % 5 FROM generate_series(1, 190000) n;
    CREATE INDEX ON part (big_id);
    ANALYZE big, part; CHECKPOINT";

/// Writers of another tenant until they are stopped; how long each transaction took, in order.
struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Result<Vec<Duration>>>>,
}

impl Writers {
    async fn start(scene: &Scene, base: i64) -> Result<Writers> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for n in 0..4_i64 {
            let (client, stop) = (scene.source_client().await?, Arc::clone(&stop));
            tasks.push(tokio::spawn(async move {
                let mut took = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    // Rows of shop 1 are those that 5 divides.
                    let turn = took.len() as i64;
                    let (old, new) = ((turn * 97 + n * 13) % 199_000 * 5 + 5, base + n * 1_000_000 + turn);
                    let sql = format!(
                        "BEGIN; UPDATE big SET v = v + 1 WHERE id = {old}; INSERT INTO big VALUES (1, {new}, 0, 'new');
                         INSERT INTO part VALUES ({new}, {old}); DELETE FROM part WHERE id = {new} AND id % 2 = 0; COMMIT"
                    );
                    let began = Instant::now();
                    client.batch_execute(&sql).await.context("write as another tenant")?;
                    took.push(began.elapsed());
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Ok(took)
            }));
        }
        Ok(Writers { stop, tasks })
    }

    async fn stop(self) -> Result<Vec<Duration>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for task in self.tasks {
            all.extend(task.await??);
        }
        all.sort_unstable();
        Ok(all)
    }
}

/// 200,000 of 1,000,000 rows: a batch at the end takes no longer than one at the beginning; others notice little.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "campaign: half a minute of load"]
async fn a_big_table_is_purged_in_linear_time_beside_its_writers() -> Result<()> {
    let rig = Rig::of(SETUP, &[("part", "{via: big_id}")]).await?;
    let wanted = rig.rows("2").await?;
    ensure!(wanted["big"] == 200_000 && wanted["part"] == 38_000, "{wanted:?}");
    let covered = rig.covered("2").await?;
    let alone = Writers::start(&rig.scene, 2_000_000).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let alone = alone.stop().await?;
    let writers = Writers::start(&rig.scene, 7_000_000).await?;
    let began = Instant::now();
    let mut purge = rig.purge("postgres", rig.work("2", &covered, 1000)).await?;
    let (mut times, mut deleted) = (Vec::new(), 0);
    loop {
        let began = Instant::now();
        let Some(batch) = purge.next().await? else { break };
        deleted += batch.rows;
        if batch.table.name == "big" {
            times.push(began.elapsed());
        }
    }
    let took = began.elapsed();
    let beside = writers.stop().await?;
    // The first one finds the rows.
    let middle = |some: &[Duration]| {
        let mut some = some.to_vec();
        some.sort_unstable();
        some[some.len() / 2]
    };
    let (first, last) = (middle(&times[1..21]), middle(&times[times.len() - 20..]));
    let p99 = |all: &[Duration]| all[all.len() * 99 / 100];
    println!(
        "{deleted} rows in {took:?}: {:.0} rows/s; finding the rows {:?}, a batch {first:?} at the beginning, {last:?} at the end; \
         others' p99 {:?} of {} alone, {:?} of {} beside it, at most {:?}",
        deleted as f64 / took.as_secs_f64(),
        times[0],
        p99(&alone),
        alone.len(),
        p99(&beside),
        beside.len(),
        beside[beside.len() - 1],
    );
    ensure!(deleted == 238_000 && rig.residue("2").await?.is_empty(), "{deleted} rows");
    ensure!(times.len() == 200, "{} batches", times.len());
    ensure!(
        last < first * 3 + Duration::from_millis(10),
        "a batch takes {last:?} at the end, {first:?} at the beginning"
    );
    rig.assert_foreign_keys().await
}

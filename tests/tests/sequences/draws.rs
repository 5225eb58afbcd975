//! An application that draws values in every way there is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::scene::{DATABASE, Scene, connect};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error};

use super::Draw;

pub const SEQUENCES: [&str; 3] = ["cached", "down", "plain"];
/// A session of CACHE 50 has fifty values that others do not get.
pub const TABLES: &str = "
    CREATE SEQUENCE plain;
    CREATE SEQUENCE cached CACHE 50;
    CREATE SEQUENCE down INCREMENT -3;
    CREATE TABLE drawn (a bigint DEFAULT nextval('cached'), b bigint DEFAULT nextval('down'),
                        c bigint DEFAULT nextval('plain'))";
pub const GUEST: &str = "guest";

/// What the guest may still draw of each sequence.
#[derive(Default)]
pub struct Budget([AtomicI64; SEQUENCES.len()]);

impl Budget {
    pub fn set(&self, n: usize, values: i64) {
        self.0[n].store(values, Ordering::SeqCst);
    }

    fn take(&self, n: usize, values: i64) -> bool {
        self.0[n].fetch_sub(values, Ordering::SeqCst) > 0
    }
}

/// What they drew.
#[derive(Default)]
pub struct Tally {
    pub draws: Vec<Draw>,
    /// Those of transactions that wrote, and whose COMMIT was answered: others may come again after a crash.
    pub kept: Vec<Draw>,
    pub errors: usize,
}

pub struct Drawers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Result<Tally>>>,
}

impl Drawers {
    /// Every eighth keeps its transactions open for long.
    pub async fn at_home(scene: &Scene, count: usize, rng: &mut StdRng) -> Result<Drawers> {
        let (stop, mut tasks) = (Arc::new(AtomicBool::new(false)), Vec::new());
        for n in 0..count {
            let (url, stop, rng) = (scene.source.url(DATABASE), Arc::clone(&stop), StdRng::seed_from_u64(rng.random()));
            tasks.push(tokio::spawn(write(url, n % 8 == 0, rng, stop)));
        }
        Ok(Drawers { stop, tasks })
    }

    pub async fn at_guest(scene: &Scene, count: usize, budget: Arc<Budget>, rng: &mut StdRng) -> Result<Drawers> {
        let (stop, mut tasks) = (Arc::new(AtomicBool::new(false)), Vec::new());
        for _ in 0..count {
            let client = connect(&scene.source.url(GUEST)).await?;
            let (stop, budget, rng) = (Arc::clone(&stop), Arc::clone(&budget), StdRng::seed_from_u64(rng.random()));
            tasks.push(tokio::spawn(draw(client, budget, rng, stop)));
        }
        Ok(Drawers { stop, tasks })
    }

    pub async fn stop(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for task in self.tasks {
            let tally = task.await.context("join a drawer")??;
            all.draws.extend(tally.draws);
            all.kept.extend(tally.kept);
            all.errors += tally.errors;
        }
        Ok(all)
    }
}

/// The next value.
pub async fn next(client: &Client, n: usize) -> Result<i64, Error> {
    Ok(client.query_one(&format!("SELECT nextval('public.{}')", SEQUENCES[n]), &[]).await?.get(0))
}

async fn write(url: String, long: bool, mut rng: StdRng, stop: Arc<AtomicBool>) -> Result<Tally> {
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        let Ok(client) = connect(&url).await else {
            // The server is about to start again.
            pause(&mut rng, 40).await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            if transaction(&client, long, &mut rng, &mut tally).await.is_err() {
                tally.errors += 1;
                break;
            }
            pause(&mut rng, if long { 150 } else { 4 }).await;
        }
    }
    Ok(tally)
}

async fn transaction(client: &Client, long: bool, rng: &mut StdRng, tally: &mut Tally) -> Result<(), Error> {
    let n = rng.random_range(0..SEQUENCES.len());
    if !long && rng.random_bool(0.5) {
        tally.draws.push((n, next(client, n).await?));
        return Ok(());
    }
    let mut drawn = Vec::new();
    client.batch_execute("BEGIN").await?;
    for _ in 0..rng.random_range(1..5) {
        drawn.push((n, next(client, n).await?));
        tally.draws.extend(drawn.last());
        pause(rng, if long { 60 } else { 5 }).await;
    }
    if rng.random_bool(0.8) {
        client.batch_execute("SELECT pg_logical_emit_message(true, 'test', ''); COMMIT").await?;
        tally.kept.extend(drawn);
        return Ok(());
    }
    client.batch_execute("ROLLBACK").await
}

async fn draw(client: Client, budget: Arc<Budget>, mut rng: StdRng, stop: Arc<AtomicBool>) -> Result<Tally> {
    const AT_ONCE: i64 = 25;
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        let n = rng.random_range(0..SEQUENCES.len());
        if !budget.take(n, AT_ONCE) {
            // Waits to be refilled.
            pause(&mut rng, 3).await;
            continue;
        }
        let sql = format!("SELECT nextval('{}') FROM generate_series(1, {AT_ONCE})", SEQUENCES[n]);
        for row in client.query(&sql, &[]).await? {
            tally.draws.push((n, row.get(0)));
        }
    }
    Ok(tally)
}

async fn pause(rng: &mut StdRng, most: u64) {
    tokio::time::sleep(Duration::from_millis(rng.random_range(0..most))).await;
}

//! A load that makes snapshots and positions disagree: long and short transactions, commits that do
//! not wait for the disk, savepoints rolled back, whole rollbacks, keys moved, rows re-created.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::scene::Scene;
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

pub const TABLE: &str = "
CREATE TABLE item (id bigint PRIMARY KEY, bid integer NOT NULL, v bigint NOT NULL, note text);
INSERT INTO item SELECT n, 1 + (n % 10) / 9, 0, repeat('x', (n % 50)::int) FROM generate_series(1, 300) n;
ALTER TABLE item REPLICA IDENTITY FULL;";

const WRITERS: u64 = 6;
const KEYS: i64 = 400;

pub struct Load {
    stop: Arc<AtomicBool>,
    writers: JoinSet<Result<()>>,
}

impl Load {
    pub async fn start(scene: &Scene, seed: u64) -> Result<Load> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for n in 0..WRITERS {
            let client = scene.source_client().await?;
            let rng = StdRng::seed_from_u64(seed.wrapping_add(n));
            writers.spawn(write(client, rng, Arc::clone(&stop)));
        }
        Ok(Load { stop, writers })
    }

    /// No writer may have ended by itself.
    pub async fn check(&mut self) -> Result<()> {
        if let Some(ended) = self.writers.try_join_next() {
            ended??;
            anyhow::bail!("a writer ended by itself");
        }
        Ok(())
    }

    pub async fn stop(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let mut ended = 0;
        while let Some(writer) = self.writers.join_next().await {
            writer??;
            ended += 1;
        }
        ensure!(ended == WRITERS, "{ended} writers");
        Ok(())
    }
}

async fn write(client: Client, mut rng: StdRng, stop: Arc<AtomicBool>) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let statements = transaction(&mut rng);
        let pause = rng.random_bool(0.1).then(|| Duration::from_millis(30));
        match run(&client, &statements, pause).await {
            Ok(()) => {}
            // Writers get in each other's way; that is part of the load.
            Err(error) if error.code().is_some_and(expected) => client.batch_execute("ROLLBACK").await?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn expected(code: &SqlState) -> bool {
    [SqlState::T_R_DEADLOCK_DETECTED, SqlState::UNIQUE_VIOLATION, SqlState::IN_FAILED_SQL_TRANSACTION].contains(code)
}

async fn run(client: &Client, statements: &[String], pause: Option<Duration>) -> Result<(), tokio_postgres::Error> {
    for (n, statement) in statements.iter().enumerate() {
        client.batch_execute(statement).await?;
        if let (1, Some(pause)) = (n, pause) {
            tokio::time::sleep(pause).await;
        }
    }
    Ok(())
}

fn transaction(rng: &mut StdRng) -> Vec<String> {
    let lazy = if rng.random_bool(0.5) { "off" } else { "on" };
    let mut statements = vec![format!("BEGIN; SET LOCAL synchronous_commit = {lazy}")];
    for _ in 0..rng.random_range(1..5) {
        statements.push(change(rng));
        if rng.random_bool(0.15) {
            let (kept, undone) = (change(rng), change(rng));
            statements.push(format!("SAVEPOINT s; {kept}; SAVEPOINT r; {undone}; ROLLBACK TO r; RELEASE s"));
        }
    }
    statements.push(if rng.random_bool(0.1) { "ROLLBACK" } else { "COMMIT" }.to_owned());
    statements
}

fn change(rng: &mut StdRng) -> String {
    let (id, other, v) = (rng.random_range(1..=KEYS), rng.random_range(1..=KEYS), rng.random_range(0..1_i64 << 40));
    match rng.random_range(0..10) {
        0..=3 => format!("UPDATE item SET v = {v} WHERE id = {id}"),
        4 => format!("UPDATE item SET note = repeat('y', {}) WHERE id = {id}", v % 60),
        5 => format!("DELETE FROM item WHERE id = {id}"),
        6 => {
            format!("UPDATE item SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM item WHERE id = {other})")
        }
        7 => format!("UPDATE item SET bid = 3 - bid WHERE id = {id}"),
        _ => format!(
            "INSERT INTO item VALUES ({id}, {}, {v}, NULL) ON CONFLICT (id) DO UPDATE SET v = excluded.v",
            if v % 10 == 0 { 2 } else { 1 }
        ),
    }
}

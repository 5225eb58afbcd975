//! An application that is hard to compare with: hot rows, rows that go from tenant to tenant with what hangs on them, keys that are
//! deleted and made again, large values, equal rows, rows that change their partition. It leaves items below 1000 alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::scene::Scene;
use tests::wait::until;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::Client;

use crate::settle::SOON;

/// What an application brings about that writes what others write: integrity, deadlock, a row that has just changed its partition.
const EXPECTED: [&str; 4] = ["23503", "23505", "40P01", "40001"];

/// Sessions that write.
pub struct Writers {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<Result<u64>>>,
}

impl Writers {
    /// Starts `count` of them, each with at most `rate` transactions a second.
    pub async fn start(scene: &Scene, rng: &mut StdRng, count: u32, rate: u32) -> Result<Writers> {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = Vec::new();
        for _ in 0..count {
            let client = scene.source_client().await?;
            client.batch_execute("SET deadlock_timeout = '50ms'").await?;
            let rng = StdRng::seed_from_u64(rng.random());
            tasks.push(tokio::spawn(write(client, rng, rate, Arc::clone(&stop), Arc::clone(&committed))));
        }
        Ok(Writers { stop, committed, tasks })
    }

    /// Transactions so far.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Waits until so many more have committed.
    pub async fn progress(&self, transactions: u64) -> Result<()> {
        let wanted = self.committed() + transactions;
        until("transactions of the application", SOON, async || {
            ensure!(!self.tasks.iter().any(JoinHandle::is_finished), "a session has ended");
            ensure!(self.committed() >= wanted, "{} of {wanted}", self.committed());
            Ok(())
        })
        .await
    }

    /// Ends them; how many transactions failed.
    pub async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut failed = 0;
        for task in self.tasks {
            failed += task.await.context("join a session")??;
        }
        Ok(failed)
    }
}

async fn write(
    client: Client,
    mut rng: StdRng,
    rate: u32,
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
) -> Result<u64> {
    let mut pace = interval(Duration::from_secs(1) / rate);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed = 0;
    while !stop.load(Ordering::Relaxed) {
        pace.tick().await;
        let sql = transaction(&mut rng);
        let Err(error) = client.batch_execute(&sql).await else {
            committed.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        ensure!(error.code().is_some_and(|code| EXPECTED.contains(&code.code())), "{error:?}: {sql}");
        client.batch_execute("ROLLBACK").await?;
        failed += 1;
    }
    Ok(failed)
}

fn transaction(rng: &mut StdRng) -> String {
    let mut sql = "BEGIN".to_owned();
    for statement in 0..rng.random_range(1..=4) {
        let act = act(rng);
        sql += &match rng.random_range(0..6) {
            0 => format!("; SAVEPOINT s{statement}; {act}; ROLLBACK TO s{statement}"),
            1 => format!("; SAVEPOINT s{statement}; {act}"),
            _ => format!("; {act}"),
        };
    }
    sql + if rng.random_ratio(1, 12) { "; ROLLBACK" } else { "; COMMIT" }
}

fn act(rng: &mut StdRng) -> String {
    match rng.random_range(0..10) {
        0..5 => of_items(rng),
        5 => of_lines(rng),
        6 => of_events(rng),
        7 | 8 => of_days(rng),
        _ => of_others(rng),
    }
}

fn of_items(rng: &mut StdRng) -> String {
    let (hot, id, other) = (rng.random_range(1000..1004), rng.random_range(1000..1040), rng.random_range(1000..1040));
    let (tenant, r) = (rng.random_range(1..=3), rng.random_range(0..1_000_000));
    let made = |id: i32| {
        format!(
            "INSERT INTO items (id, bid, word, f8, j, big) VALUES ({id}, {tenant}, 'made {r}', {r} / 7.0, '{{\"r\": {r}}}', repeat(md5('{r}'), {}))
             ON CONFLICT DO NOTHING; INSERT INTO lines SELECT id, l, 'made {r}' FROM items, generate_series(1, 3) l WHERE id = {id} ON CONFLICT DO NOTHING",
            r % 200
        )
    };
    match rng.random_range(0..12) {
        0..3 => format!("UPDATE items SET n = coalesce(n, 0) + 1, word = 'tick {r}', f8 = -f8 WHERE id = {hot}"),
        3 => format!(
            "UPDATE items SET big = repeat(md5('{r}'), 150), bigraw = decode(repeat(md5('{r}'), 200), 'hex') WHERE id = {id}"
        ),
        4 | 5 => format!("UPDATE items SET v = 'beside what is large {r}' WHERE id IN ({id}, {other})"),
        6 => format!("UPDATE items SET bid = {tenant} WHERE id = {id}"),
        7 => format!("DELETE FROM items WHERE id = {id}; {}", made(id)),
        8 => format!("DELETE FROM items WHERE id = {id}"),
        9 => format!(
            "UPDATE items SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM lines WHERE item = {id})"
        ),
        _ => made(id),
    }
}

fn of_lines(rng: &mut StdRng) -> String {
    let (id, other, no) = (rng.random_range(1000..1040), rng.random_range(1000..1040), rng.random_range(1..4));
    let r = rng.random_range(0..1_000_000);
    match rng.random_range(0..4) {
        0 => format!("DELETE FROM lines WHERE item = {id} AND no = {no}"),
        1 => format!(
            "UPDATE lines SET item = {other} WHERE item = {id} AND no = {no} AND EXISTS (SELECT FROM items WHERE id = {other})"
        ),
        _ => format!("UPDATE lines SET note = 'line {r}', qty = {r} * 0.10 WHERE item = {id}"),
    }
}

/// Equal ones are there several times.
fn of_events(rng: &mut StdRng) -> String {
    let (tenant, number) = (rng.random_range(1..=3), rng.random_range(0..5));
    let one = format!("ctid = (SELECT ctid FROM events WHERE what = 'load {number}' LIMIT 1)");
    match rng.random_range(0..6) {
        0 => format!("DELETE FROM events WHERE {one}"),
        1 => format!("UPDATE events SET n = n + 1.00 WHERE {one}"),
        2 => format!("UPDATE events SET bid = {tenant} WHERE {one}"),
        3 => format!("DELETE FROM events WHERE what = 'load {number}' AND n > 3"),
        _ => format!("INSERT INTO events SELECT {tenant}, 'load {number}', 1.0, 0.1, '[1]' FROM generate_series(1, 2)"),
    }
}

fn of_days(rng: &mut StdRng) -> String {
    let (tenant, id, at) = (rng.random_range(1..=3), rng.random_range(1000..1030), rng.random_range(0..30));
    match rng.random_range(0..6) {
        0 => format!(
            "UPDATE days SET at = {at} WHERE id = {id} AND NOT EXISTS (SELECT FROM days WHERE id = {id} AND at = {at})"
        ),
        1 => format!("UPDATE days SET bid = {tenant} WHERE id = {id}"),
        2 => format!("DELETE FROM days WHERE id = {id}"),
        3 => format!("UPDATE days SET note = 'day {at}', f8 = -f8 WHERE at = {at} AND id >= 1000"),
        _ => format!("INSERT INTO days VALUES ({tenant}, {id}, {at}, 'new', 1.0, '-0') ON CONFLICT DO NOTHING"),
    }
}

fn of_others(rng: &mut StdRng) -> String {
    let (tenant, letter, r) = (rng.random_range(1..=3), rng.random_range(0..8), rng.random_range(0..1_000_000));
    match rng.random_range(0..6) {
        0 => format!("UPDATE countries SET name = 'country {r}' WHERE code = chr(65 + {letter}) || chr(66 + {letter})"),
        1 => format!("UPDATE codes SET body = 'all of them {r}' WHERE bid = {tenant}"),
        2 => format!("UPDATE codes SET code = 'load {r}' WHERE bid = {tenant} AND code LIKE 'load {letter}%'"),
        3 => format!(
            "DELETE FROM codes WHERE bid = {tenant} AND code LIKE 'load%'; INSERT INTO codes VALUES ({tenant}, 'load {letter}', 'again')"
        ),
        _ => format!(
            "DELETE FROM codes WHERE bid = {tenant} AND code = 'b \"quoted\"'; INSERT INTO codes VALUES ({tenant}, 'b \"quoted\"', '{r}')"
        ),
    }
}

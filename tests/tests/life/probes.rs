//! Writers that are bound to one side of a move each, and try a tiny write all the time, whether or not it is refused: what
//! says when a side takes writes.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::scene::Scene;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::Client;

use super::clients::Span;

/// What they write.
pub const TABLE: &str = "CREATE TABLE probes (bid int NOT NULL, side text NOT NULL, number bigint NOT NULL, PRIMARY KEY (bid, side, number))";
/// Between two writes while the writes are being moved, and otherwise.
const BUSY: Duration = Duration::from_millis(1);
const IDLE: Duration = Duration::from_millis(50);

/// The two of a tenant.
pub struct Probes {
    stop: Arc<AtomicBool>,
    busy: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Result<Tally>>>,
}

/// What they were told.
#[derive(Default)]
pub struct Tally {
    written: Vec<Written>,
    pub refused: u64,
    /// The side was not there.
    pub away: u64,
}

struct Written {
    side: &'static str,
    number: i64,
    sent: Instant,
    told: Instant,
}

struct Probe {
    url: String,
    tenant: String,
    side: &'static str,
}

impl Probes {
    /// Starts one at the source and one at the target, which need not be there yet.
    pub fn start(scene: &Scene, tenant: &str) -> Probes {
        let (stop, busy) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let sides = [("shared", scene.source.url("shop")), ("database", scene.target.url(&format!("bid_{tenant}")))];
        let tasks = sides.into_iter().map(|(side, url)| {
            let probe = Probe { url, tenant: tenant.to_owned(), side };
            tokio::spawn(probe.run(Arc::clone(&stop), Arc::clone(&busy)))
        });
        Probes { tasks: tasks.collect(), stop, busy }
    }

    /// Whether they try every millisecond.
    pub fn hurry(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
    }

    /// Ends them.
    pub async fn stop(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for task in self.tasks {
            let tally = task.await??;
            all.written.extend(tally.written);
            all.refused += tally.refused;
            all.away += tally.away;
        }
        Ok(all)
    }
}

impl Probe {
    async fn run(self, stop: Arc<AtomicBool>, busy: Arc<AtomicBool>) -> Result<Tally> {
        let (mut tally, mut number) = (Tally::default(), 0);
        let mut here: Option<Client> = None;
        let mut tick = interval(BUSY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while !stop.load(Ordering::Relaxed) {
            if busy.load(Ordering::Relaxed) {
                tick.tick().await;
            } else {
                tokio::time::sleep(IDLE).await;
            }
            let Some(client) = &here else {
                here = self.connected().await;
                tally.away += u64::from(here.is_none());
                continue;
            };
            number += 1;
            let sql = format!("INSERT INTO public.probes VALUES ({}, '{}', {number})", self.tenant, self.side);
            let sent = Instant::now();
            match client.batch_execute(&sql).await {
                Ok(()) => tally.written.push(Written { side: self.side, number, sent, told: Instant::now() }),
                Err(error) => {
                    let refused = error.code().is_some_and(|code| code.code() == "TM001");
                    ensure!(refused, "a probe of tenant {} at {}: {error:?}", self.tenant, self.side);
                    tally.refused += 1;
                }
            }
        }
        Ok(tally)
    }

    /// The target takes writes as long as it has no fence, which it gets with the first cutover. From then on it is tried.
    async fn connected(&self) -> Option<Client> {
        let client = tests::scene::connect(&self.url).await.ok()?;
        let fenced = "SELECT count(*) FROM pg_trigger
                       WHERE tgrelid = to_regclass('public.probes') AND tgname LIKE 'carveout%insert' AND tgenabled = 'A'";
        let fences: i64 = client.query_one(fenced, &[]).await.ok()?.get(0);
        (self.side == "shared" || fences > 0).then_some(client)
    }
}

impl Tally {
    /// Each write that was acknowledged.
    pub fn spans(&self) -> impl Iterator<Item = Span<'_>> {
        self.written.iter().map(|write| Span { isolation: write.side, sent: write.sent, told: write.told })
    }

    /// How many were acknowledged there.
    pub fn written(&self, side: &str) -> usize {
        self.written.iter().filter(|write| write.side == side).count()
    }

    /// Every write that was acknowledged is there, and none that was refused.
    pub async fn assert_held_by(&self, client: &Client, tenant: &str) -> Result<()> {
        let sql = format!("SELECT side, number FROM public.probes WHERE bid = {tenant}");
        let rows = client.query(&sql, &[]).await.context("read the probes")?;
        let there: HashSet<(&str, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let told: HashSet<(&str, i64)> = self.written.iter().map(|write| (write.side, write.number)).collect();
        let (lost, foreign) = (told.difference(&there).count(), there.difference(&told).count());
        ensure!(lost == 0 && foreign == 0, "of the probes {lost} are lost, and {foreign} there that were refused");
        Ok(())
    }
}

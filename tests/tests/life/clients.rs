//! Clients that write where the route says, and write down what they were told: a transaction is acknowledged, refused, or
//! its answer was lost.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use schemas::url::PgUrl;
use tests::scene::Scene;
use tests::wait::until;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_postgres::Client;

use super::work::{Kind, Work};

const SOON: Duration = Duration::from_secs(60);
/// Three times `wal_writer_delay`, and some more.
const ASYNCHRONOUS: Duration = Duration::from_secs(1);
/// Between two looks at the route by a client that was refused.
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
    place: Arc<Place>,
    sent: Instant,
    told: Instant,
}

/// A write that was acknowledged: where, and from when to when it was under way.
pub struct Span<'a> {
    pub isolation: &'a str,
    pub sent: Instant,
    pub told: Instant,
}

/// What the clients were told.
#[derive(Default)]
pub struct Ledger {
    work: Work,
    written: Vec<Written>,
    /// Whose answer was lost: they are there, or they are not.
    unknown: Vec<(i32, i64)>,
    refused: u64,
}

/// Clients of one tenant.
pub struct Clients {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    /// So many transactions may still be begun, where they are counted.
    gate: Option<Arc<Semaphore>>,
    kind: Kind,
    tasks: Vec<JoinHandle<Result<Ledger>>>,
}

struct Follower {
    urls: Urls,
    tenant: String,
    client: i32,
    work: Work,
    gate: Option<Arc<Semaphore>>,
    rng: StdRng,
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
        let works: Vec<(i32, Work)> = (0..count).map(|client| (client, Work::of(Kind::Writes, 1))).collect();
        Clients::working(scene, tenant, &works, false)
    }

    /// Starts these, each with its number; all of them do the same kind of work. With a gate they write only what is allowed.
    pub fn working(scene: &Scene, tenant: &str, works: &[(i32, Work)], gated: bool) -> Result<Clients> {
        let urls = Urls { source: scene.source.url("shop").parse()?, target: scene.target.url("postgres").parse()? };
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let gate = gated.then(|| Arc::new(Semaphore::new(0)));
        let kind = works.first().map(|(_, work)| work.kind).unwrap_or_default();
        let tasks = works.iter().map(|&(client, work)| {
            let (urls, tenant, gate) = (urls.clone(), tenant.to_owned(), gate.clone());
            let rng = StdRng::seed_from_u64(client.unsigned_abs().into());
            let follower = Follower { urls, tenant, client, work, gate, rng };
            tokio::spawn(follower.run(Arc::clone(&stop), Arc::clone(&done)))
        });
        Ok(Clients { tasks: tasks.collect(), stop, done, gate, kind })
    }

    /// So many writes were acknowledged.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Lets them begin so many transactions more.
    pub fn allow(&self, transactions: usize) {
        self.gate.iter().for_each(|gate| gate.add_permits(transactions));
    }

    /// Waits until so many more writes were acknowledged.
    pub async fn progress(&self, writes: u64) -> Result<()> {
        self.reach(self.done() + writes, SOON).await
    }

    /// Waits until so many writes were acknowledged in all.
    pub async fn reach(&self, wanted: u64, deadline: Duration) -> Result<()> {
        until("acknowledged writes", deadline, async || {
            let done = self.done();
            ensure!(done >= wanted || self.tasks.iter().any(JoinHandle::is_finished), "{done} of {wanted}");
            Ok(())
        })
        .await
    }

    /// Ends them.
    pub async fn stop(self) -> Result<Ledger> {
        self.stop.store(true, Ordering::Relaxed);
        self.gate.iter().for_each(|gate| gate.close());
        let mut ledger = Ledger { work: Work::of(self.kind, 1), ..Ledger::default() };
        for task in self.tasks {
            ledger.extend(task.await??);
        }
        Ok(ledger)
    }
}

/// Begins a transaction so often.
fn pace(every: Duration) -> Option<Interval> {
    let mut pace = (!every.is_zero()).then(|| interval(every))?;
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    Some(pace)
}

impl Follower {
    async fn run(mut self, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) -> Result<Ledger> {
        let mut ledger = Ledger::default();
        let (mut first, rows) = (1, self.work.rows);
        let mut here: Option<(Client, Arc<Place>)> = None;
        let mut pace = pace(self.work.every);
        while !stop.load(Ordering::Relaxed) {
            let Some((client, place)) = &here else {
                here = self.look_up().await;
                if here.is_none() {
                    tokio::time::sleep(LOOK).await;
                }
                continue;
            };
            if let Some(pace) = &mut pace {
                pace.tick().await;
            }
            if let Some(gate) = &self.gate {
                let Ok(allowed) = gate.acquire().await else { break };
                allowed.forget();
            }
            let sql = self.work.sql(&place.schema, &self.tenant, self.client, first, &mut self.rng);
            let numbers = first..first + rows;
            first += rows;
            let sent = Instant::now();
            let error = match write(client, &sql).await {
                Ok(()) => {
                    let (told, place, client) = (Instant::now(), Arc::clone(place), self.client);
                    let written =
                        numbers.map(|number| Written { client, number, place: Arc::clone(&place), sent, told });
                    ledger.written.extend(written);
                    done.fetch_add(rows.unsigned_abs(), Ordering::Relaxed);
                    continue;
                }
                Err(error) => error,
            };
            self.gate.iter().for_each(|gate| gate.add_permits(1));
            let unknown = numbers.map(|number| (self.client, number));
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
                Some("57P01" | "57P02") => ledger.unknown.extend(unknown),
                Some(_) => return Err(error).context("a write failed in a way that no client expects"),
                None => ledger.unknown.extend(unknown),
            }
            here = None;
        }
        Ok(ledger)
    }

    /// As docs/ teaches: the route says where; without one the tenant is where it always was.
    async fn look_up(&self) -> Option<(Client, Arc<Place>)> {
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
        Some((client, Arc::new(place)))
    }
}

async fn write(client: &Client, sql: &str) -> Result<(), tokio_postgres::Error> {
    let done = client.batch_execute(sql).await;
    if done.is_err() {
        // The transaction that failed is open.
        drop(client.batch_execute("ROLLBACK").await);
    }
    done
}

impl Ledger {
    /// Every acknowledged write is there once, and no other but those whose answer was lost.
    pub async fn assert_held_by(&self, client: &Client, schema: &str, tenant: &str) -> Result<()> {
        let rows = client.query(&self.work.written(schema, tenant), &[]).await.context("read the writes")?;
        let mut there: HashMap<(i32, i64), u32> = HashMap::new();
        for row in &rows {
            *there.entry((row.get(0), row.get(1))).or_default() += 1;
        }
        for write in &self.written {
            let found = there.remove(&(write.client, write.number));
            ensure!(found == Some(1), "write {}.{} is there {found:?} times", write.client, write.number);
        }
        let unknown: HashSet<&(i32, i64)> = self.unknown.iter().collect();
        there.retain(|write, count| *count > 1 || !unknown.contains(write));
        ensure!(there.is_empty(), "{} writes are there that nobody was told of", there.len());
        let Some(sums) = self.work.sums(schema, tenant) else { return Ok(()) };
        let sums: Vec<i64> = client.query_one(&sums, &[]).await?.get(0);
        ensure!(sums.iter().all(|sum| *sum == sums[0]), "what was written does not add up: {sums:?}");
        Ok(())
    }

    /// What others of the tenant were told too.
    pub fn extend(&mut self, others: Ledger) {
        self.written.extend(others.written);
        self.unknown.extend(others.unknown);
        self.refused += others.refused;
    }

    /// How many rows were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.written.len()
    }

    /// How many of them in a target.
    pub fn in_target(&self) -> usize {
        self.written.iter().filter(|write| write.place.isolation != "shared").count()
    }

    /// Each write that was acknowledged.
    pub fn spans(&self) -> impl Iterator<Item = Span<'_>> {
        self.written.iter().map(|write| Span { isolation: &write.place.isolation, sent: write.sent, told: write.told })
    }

    /// A server that commits asynchronously, for it was told to, loses what it acknowledged last when it crashes. The source's has
    /// the shared tables, the target's has databases.
    pub fn forget_around(&mut self, is_target: bool, began: Instant, ended: Instant) {
        let lost = |write: &Written| {
            let its = (write.place.isolation == "database") == is_target;
            its && write.told <= ended && write.told + ASYNCHRONOUS > began
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
        assert_never_at_once(self.spans().collect())
    }
}

/// While a write that was acknowledged was under way on one side, none was on the other.
pub fn assert_never_at_once(mut spans: Vec<Span<'_>>) -> Result<()> {
    spans.sort_by_key(|span| span.sent);
    let mut last: HashMap<&str, Instant> = HashMap::new();
    for span in spans {
        for (isolation, told) in &last {
            let both = *isolation != span.isolation && *told > span.sent;
            let early = told.saturating_duration_since(span.sent);
            ensure!(!both, "a write was sent to {} {early:?} before one of {isolation} was told", span.isolation);
        }
        let told = last.entry(span.isolation).or_insert(span.told);
        *told = (*told).max(span.told);
    }
    Ok(())
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, there, unknown) = (self.acknowledged(), self.in_target(), self.unknown.len());
        write!(
            f,
            "{all} writes acknowledged ({there} in the target), {} refused, {unknown} without an answer",
            self.refused
        )
    }
}

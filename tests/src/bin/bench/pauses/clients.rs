//! Clients that write at a steady rate, whatever becomes of their writes: the n-th one is due n intervals after the beginning. As many
//! sessions as there are take the next one when they are done with theirs, and wait until it is due; what could not be sent when it
//! was due is sent as soon as one is free, and its latency counts from when it was due. No write is left out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::route::{Resolver, Route};

/// So many writes later a write's row is deleted, once it was found.
pub const KEPT: u64 = 20_000;

/// What a tenant's clients write.
#[derive(Clone, Copy)]
pub struct Tenant {
    pub id: u32,
    /// Of its accounts, which are numbered from here.
    pub first: u64,
    pub accounts: u64,
    /// Writes a second.
    pub rate: u32,
    pub sessions: usize,
}

/// One acknowledged write.
#[derive(Clone, Copy)]
pub struct Written {
    pub due: Instant,
    pub told: Instant,
    /// Of the route that was followed.
    pub epoch: i64,
}

impl Written {
    /// Since it was due.
    pub fn latency(&self) -> Duration {
        self.told - self.due
    }
}

/// What the sessions were told.
#[derive(Default)]
pub struct Ledger {
    pub written: Vec<Written>,
    pub numbers: Vec<u64>,
    pub refused: u64,
}

/// Sessions of one tenant.
pub struct Clients {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<Result<Ledger>>>,
}

struct Shared {
    tenant: Tenant,
    resolver: Arc<Resolver>,
    began: Instant,
    next: AtomicU64,
    done: AtomicU64,
    stop: AtomicBool,
    /// Whether there is a session on the side where the tenant does not live, too.
    keep: AtomicBool,
    /// Until when nothing is sent, in microseconds since it began.
    stalled: AtomicU64,
}

impl Clients {
    /// Lets them go.
    pub fn start(tenant: Tenant, resolver: &Arc<Resolver>) -> Clients {
        let shared = Arc::new(Shared {
            tenant,
            resolver: Arc::clone(resolver),
            began: Instant::now(),
            next: AtomicU64::new(0),
            done: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            keep: AtomicBool::new(true),
            stalled: AtomicU64::new(0),
        });
        let tasks = (0..tenant.sessions).map(|_| tokio::spawn(Arc::clone(&shared).run())).collect();
        Clients { shared, tasks }
    }

    /// How many writes were acknowledged.
    pub fn done(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// An error when one of them has ended.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.tasks.iter().any(JoinHandle::is_finished), "a client of tenant {} ended", self.shared.tenant.id);
        Ok(())
    }

    /// Whether there are sessions where the tenant does not live, too, as a pool per place has them; once it has lived there.
    pub fn keep_sessions(&self, keep: bool) {
        self.shared.keep.store(keep, Ordering::Relaxed);
    }

    /// Lets them send nothing for so long, and then make their sessions anew unless they are kept: a pause of theirs without a flip.
    pub fn stall(&self, time: Duration) {
        let until = self.shared.began.elapsed() + time;
        self.shared.stalled.store(until.as_micros() as u64, Ordering::Relaxed);
    }

    /// Ends them.
    pub async fn stop(self) -> Result<Ledger> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut ledger = Ledger::default();
        for task in self.tasks {
            let Ledger { written, numbers, refused } = task.await??;
            ledger.written.extend(written);
            ledger.numbers.extend(numbers);
            ledger.refused += refused;
        }
        Ok(ledger)
    }
}

impl Shared {
    async fn run(self: Arc<Self>) -> Result<Ledger> {
        let mut ledger = Ledger::default();
        // In the shared tables, and elsewhere.
        let mut sessions: [Option<Client>; 2] = [None, None];
        let mut routes: [Option<Route>; 2] = [None, None];
        let interval = Duration::from_secs(1) / self.tenant.rate;
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let due = self.began + interval * u32::try_from(number).context("too many writes")?;
            tokio::time::sleep_until(due.into()).await;
            if self.stop.load(Ordering::Relaxed) {
                return Ok(ledger);
            }
            let stalled = Duration::from_micros(self.stalled.load(Ordering::Relaxed));
            if stalled > self.began.elapsed() {
                tokio::time::sleep_until((self.began + stalled).into()).await;
                if !self.keep.load(Ordering::Relaxed) {
                    sessions = [None, None];
                }
            }
            let written = loop {
                let route = self.resolver.route();
                let (here, other) = (usize::from(!route.is_shared()), usize::from(route.is_shared()));
                routes[here] = Some(route.clone());
                match &routes[other] {
                    _ if !self.keep.load(Ordering::Relaxed) => sessions[other] = None,
                    Some(place) if sessions[other].is_none() => {
                        sessions[other] = Some(self.resolver.connect(place).await?)
                    }
                    _ => {}
                }
                if self.write(&mut sessions[here], &route, number).await? {
                    break Written { due, told: Instant::now(), epoch: route.epoch };
                }
                ledger.refused += 1;
                self.resolver.refused(&route).await?;
            };
            self.done.fetch_add(1, Ordering::Relaxed);
            ledger.written.push(written);
            ledger.numbers.push(number);
        }
    }

    /// Whether it was taken; otherwise the tenant does not live there.
    async fn write(&self, session: &mut Option<Client>, route: &Route, number: u64) -> Result<bool> {
        let client = match session {
            Some(client) => client,
            None => session.insert(self.resolver.connect(route).await?),
        };
        match client.simple_query(&self.tenant.transaction(number)).await {
            Ok(answers) => {
                self.tenant.expect(number, &answers)?;
                Ok(true)
            }
            Err(error) if error.code().is_some_and(|code| code.code() == "TM001") => {
                client.batch_execute("ROLLBACK").await.context("roll back what was refused")?;
                Ok(false)
            }
            Err(error) => Err(error).context("a write failed in a way that no client expects"),
        }
    }
}

impl Tenant {
    /// In one message: a row that comes, two that change, one that goes.
    fn transaction(&self, number: u64) -> String {
        let Tenant { id, first, accounts, .. } = self;
        let account = first + number * 7919 % accounts;
        let noted = account - account % 10;
        let gone = number.checked_sub(KEPT);
        let delete =
            gone.map_or(String::new(), |gone| format!("DELETE FROM writes WHERE bid = {id} AND number = {gone};"));
        format!(
            "BEGIN;
             INSERT INTO writes (bid, number, body) VALUES ({id}, {number}, repeat('x', 50));
             UPDATE accounts SET balance = balance + 1 WHERE bid = {id} AND id = {account};
             UPDATE notes SET note = 'write {number}' WHERE account = {noted} AND number = 1;
             {delete}
             COMMIT"
        )
    }

    /// Each statement touched its one row; so the write that is deleted was there.
    fn expect(&self, number: u64, answers: &[SimpleQueryMessage]) -> Result<()> {
        let rows = answers.iter().filter_map(|answer| match answer {
            SimpleQueryMessage::CommandComplete(rows) => Some(*rows),
            _ => None,
        });
        let rows: Vec<u64> = rows.collect();
        // Without BEGIN and COMMIT.
        let touched = rows.get(1..rows.len().saturating_sub(1)).unwrap_or_default();
        let wanted = if number < KEPT { 3 } else { 4 };
        if touched.len() != wanted || touched.iter().any(|rows| *rows != 1) {
            bail!("write {number} of tenant {} touched {touched:?} rows: one that was acknowledged is gone", self.id);
        }
        Ok(())
    }
}

impl Ledger {
    /// Every acknowledged write is there once, and no other.
    pub async fn assert_held_by(&self, client: &Client, schema: &str, tenant: &Tenant) -> Result<()> {
        let (id, all) = (tenant.id, self.numbers.len() as u64);
        let rows =
            client.query(&format!("SELECT number FROM {schema}.writes WHERE bid = {id} ORDER BY number"), &[]).await?;
        let there: Vec<u64> = rows.iter().map(|row| row.get::<_, i64>(0).unsigned_abs()).collect();
        // The last ones may have been done in another order than they were due.
        let mut gone: Vec<u64> = self.numbers.iter().filter_map(|number| number.checked_sub(KEPT)).collect();
        gone.sort_unstable();
        let mut kept = self.numbers.clone();
        kept.sort_unstable();
        kept.retain(|number| gone.binary_search(number).is_err());
        ensure!(
            there == kept,
            "tenant {id}: {} writes are there, and {} were acknowledged and not deleted",
            there.len(),
            kept.len()
        );
        let sum = format!("SELECT coalesce(sum(balance), 0)::bigint FROM {schema}.accounts WHERE bid = {id}");
        let sum: i64 = client.query_one(&sum, &[]).await?.get(0);
        ensure!(sum.unsigned_abs() == all, "tenant {id}: {all} acknowledged writes make a balance of {sum}");
        Ok(())
    }
}

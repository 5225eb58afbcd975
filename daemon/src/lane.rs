//! The ordered way of one tenant into its target: reads sealed transactions from the spool, leaves
//! out what the copy already holds, applies the rest in groups.
//!
//! A group that fails is replayed row by row, then transaction by transaction; what fails even
//! then stops this lane and no other. Everything transient is tried again for ever.

mod arrive;
mod group;
mod hold;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use connectors::postgres::Error;
use connectors::postgres::apply::{Changed, Mode, PostgresSink, Sink, SinkPlan};
use connectors::postgres::control::Copied;
use prometheus_client::metrics::histogram::Histogram;
use schemas::record::{Fault, Published};
use schemas::{Lsn, Snapshot, TableName};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::gently::gently;
use crate::pipeline::Progress;
use crate::spool::{Place, SpoolReader, SpoolState};
use crate::stop;
pub use arrive::Origin;
use arrive::{LOOK_AGAIN, Outlook};
use group::{Group, Limits, Skipped, Stopped};

/// The pause before a failed connection is tried again, doubled up to the longest.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// A lane that has had its connection for this long gives it up when others wait for one.
const SHARE_AFTER: Duration = Duration::from_secs(2);
/// A lane that is in step lets so much time pass between two groups: each costs both servers and the daemon about the same, whether one
/// transaction is in it or ten.
const GATHERS: Duration = Duration::from_millis(10);
/// How often a lane without a connection looks for commands.
const LOOK_FOR_COMMANDS: Duration = Duration::from_millis(500);
/// Transient failures of one group in a row before the operator is told.
const PATIENCE: u32 = 5;

/// What a lane needs to run.
pub struct LanePlan {
    /// The target, with the epoch under which the lane was opened.
    pub sink: SinkPlan,
    /// The spool's folder.
    pub spool_dir: PathBuf,
    /// What it shares with the writing end.
    pub spool: Arc<SpoolState>,
    /// Per table: what its copy holds.
    pub copied: HashMap<TableName, Copied>,
    /// Where rows that come from other tenants are read.
    pub origin: Origin,
    /// The end of the last transaction sealed before the spool's first segment.
    pub prev_end: Lsn,
    /// The acknowledge record says that this was held: a transaction end.
    pub must_hold: Lsn,
    /// The ends of transactions that a person leaves out.
    pub skipped: Vec<Lsn>,
    /// Most rows in a group.
    pub batch_rows: usize,
    /// How long the groups take.
    pub apply_seconds: Histogram,
    /// Where the rows are noted that are changed from the beginning on.
    pub changed: Weak<Changed>,
}

/// What a lane shows of itself.
#[derive(Debug, Default)]
pub struct LaneMeter {
    /// Row changes applied.
    pub changes: AtomicU64,
    /// Source transactions applied.
    pub transactions: AtomicU64,
    /// What failed and is being tried again.
    trouble: Mutex<Option<String>>,
}

impl LaneMeter {
    /// What the move waits for, when something that failed is being tried again.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Something failed and will be tried again; `None`: it went well.
    pub fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

/// What can be asked of a lane.
pub enum LaneCommand {
    /// Commit what is in hand and stand still; answered with what the target holds.
    Hold(oneshot::Sender<Lsn>),
    /// While held: apply exactly what `snapshot` shows of the transactions up to `until`.
    Advance {
        /// The source's snapshot.
        snapshot: Snapshot,
        /// Every transaction it shows ends at or before this position.
        until: Lsn,
        /// The target stands exactly there; or why it does not.
        done: oneshot::Sender<Result<(), &'static str>>,
    },
    /// Apply everything up to `until`, and then nothing more before [`LaneCommand::GoOn`]; answered when the target holds it.
    Drain {
        /// Every transaction that counts ends at or before this position.
        until: Lsn,
        /// The target holds all of them; who is answered lets the lane go on.
        done: oneshot::Sender<Drained>,
        /// The answer: whoever gives up drops it.
        drained: Drained,
    },
    /// From here on, note the rows that are changed there and nowhere else, as long as somebody has it.
    Note {
        /// Where.
        changed: Weak<Changed>,
        /// It is; what was noted elsewhere is closed.
        done: oneshot::Sender<()>,
    },
    /// No longer held.
    Release,
    /// No longer drained.
    GoOn,
}

/// A lane that is drained. Dropped, it goes on.
pub struct Drained(Option<mpsc::Sender<LaneCommand>>);

impl Drained {
    /// Of the lane that takes these commands.
    pub fn of(lane: mpsc::Sender<LaneCommand>) -> Drained {
        Drained(Some(lane))
    }

    /// It never goes on.
    pub fn stay(mut self) {
        self.0 = None;
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let Some(lane) = self.0.take() else { return };
        // It takes one command at a time and few wait; a full queue means that it is gone.
        if lane.try_send(LaneCommand::GoOn).is_err() {
            tracing::debug!("the lane is gone; nothing to let go on");
        }
    }
}

/// How a lane hears of partitions.
pub struct Partitions {
    /// What the source publishes, and how often that has been looked at.
    pub seen: watch::Receiver<(u64, Published)>,
    /// What the move knows of them.
    pub known: Published,
    /// Has that recorded; answered when it is.
    pub record: mpsc::Sender<(Published, oneshot::Sender<()>)>,
}

/// How a lane's task ended.
#[derive(Debug)]
pub enum LaneEnded {
    /// It was told to; up to where it is, it has noted here which rows it changed.
    Stopped(Weak<Changed>),
    /// A person must look; the lane can go on from where it is afterwards. With the end of the transaction that it
    /// is about, where it is about one.
    Fault(Fault, Option<Lsn>),
    /// Its continuity is lost: the rows must be copied again.
    Broken(Fault),
}

/// Why a session with the target ended.
enum End {
    Stopped,
    /// Another lane wants the connection.
    Shared,
    Fault(Fault, Option<Lsn>),
    Broken(Fault),
    Failed(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        End::Failed(error)
    }
}

/// A running lane.
pub struct Lane {
    plan: LanePlan,
    meter: Arc<LaneMeter>,
    connections: Arc<Semaphore>,
    progress: watch::Receiver<Progress>,
    commands: mpsc::Receiver<LaneCommand>,
    partitions: Partitions,
    stop: watch::Receiver<bool>,
    held: bool,
    /// Whether it was drained: the tenant's writes may be moving, and what it wrote then would be written over theirs.
    drained: bool,
    changed: Weak<Changed>,
    outlook: Outlook,
    /// Whether this run has compared target, spool and record.
    compared: bool,
}

impl Lane {
    /// A lane that has not been run yet.
    pub fn new(
        plan: LanePlan,
        meter: Arc<LaneMeter>,
        connections: Arc<Semaphore>,
        progress: watch::Receiver<Progress>,
        commands: mpsc::Receiver<LaneCommand>,
        partitions: Partitions,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let changed = Weak::clone(&plan.changed);
        Lane {
            plan,
            meter,
            connections,
            progress,
            commands,
            partitions,
            stop,
            held: false,
            drained: false,
            changed,
            outlook: Outlook::default(),
            compared: false,
        }
    }

    /// Runs until it is stopped or cannot go on.
    pub async fn run(mut self) -> LaneEnded {
        let mut backoff = FIRST_BACKOFF;
        let mut failures = 0;
        loop {
            let before = self.plan.spool.applied();
            match self.session().await {
                End::Stopped => return LaneEnded::Stopped(self.changed),
                End::Shared => backoff = FIRST_BACKOFF,
                End::Fault(fault, at) => return LaneEnded::Fault(fault, at),
                End::Broken(fault) => return LaneEnded::Broken(fault),
                End::Failed(error) if error.may_pass() => {
                    if self.plan.spool.applied() > before {
                        (backoff, failures) = (FIRST_BACKOFF, 0);
                    }
                    failures += 1;
                    self.meter.set_trouble(Some(error.to_string()));
                    match failures < PATIENCE {
                        true => tracing::info!(%error, "the target failed; trying again"),
                        false => tracing::warn!(%error, failures, "the target keeps failing; trying again"),
                    }
                    let pause = tokio::time::sleep(backoff);
                    tokio::select! {
                        () = pause => {}
                        () = stop::told(&self.stop) => return LaneEnded::Stopped(self.changed),
                    }
                    backoff = (backoff * 2).min(LONGEST_BACKOFF);
                }
                End::Failed(error) => return LaneEnded::Fault(self.fault(&error, None), None),
            }
        }
    }

    /// What a person is told; `transaction` is the end of the one that does not go in.
    fn fault(&self, error: &Error, transaction: Option<Lsn>) -> Fault {
        let code = if error.is_constraint() { "constraint" } else { "apply" };
        let at = self.plan.spool.position();
        let message = format!("after {at}: {error}{}", named(transaction));
        let mend = match error.is_missing_object() {
            true => "make in the target what is missing (the value of a reg* column may name it)",
            false => "mend the target",
        };
        let next = format!("{mend}, then `carveout move` resumes after {at}; or `carveout cancel`");
        Fault::new(code, self.plan.sink.id.to_string(), message, next + &skip_hint(transaction))
    }

    /// One connection to the target.
    async fn session(&mut self) -> End {
        match self.try_session().await {
            Ok(end) | Err(end) => end,
        }
    }

    async fn try_session(&mut self) -> std::result::Result<End, End> {
        self.work().await?;
        let connections = Arc::clone(&self.connections);
        let permit = tokio::select! {
            permit = connections.acquire() => permit,
            () = stop::told(&self.stop) => return Ok(End::Stopped),
        };
        let _permit = permit.map_err(|_| End::Stopped)?;
        let began = Instant::now();
        self.outlook = Outlook::default();
        let opening = PostgresSink::open(&self.plan.sink);
        // A lane that has lost its connection may be waited for.
        let mut sink = if self.compared { opening.await? } else { gently(opening).await? };
        sink.note(Weak::clone(&self.changed));
        let mut lsn = sink.position().await?;
        self.compare(lsn)?;
        self.compared = true;
        // What keeps rows from being read is told until they are.
        if !sink.expects() {
            self.meter.set_trouble(None);
        }
        let mut sealed = self.plan.spool.sealed.subscribe();
        let Some((mut reader, mut group)) = self.behind(lsn).await? else { return Ok(End::Stopped) };
        self.set_lacks_rows(sink.expects(), Lsn(lsn.0.saturating_sub(1)));
        let mut gathered = Instant::now();
        loop {
            self.take_partitions(&mut sink, lsn).await?;
            if !self.stands() && sink.expects() && self.may_look() {
                lsn = self.arrive(&mut sink, &mut reader, &mut group, lsn, false).await?;
            }
            let now = *sealed.borrow_and_update();
            let gathers = gathered.saturating_duration_since(Instant::now());
            if !self.stands() && gathers.is_zero() && reader.place_before(&now) {
                lsn = self.apply(&mut sink, &mut reader, &mut group, usize::MAX).await?;
                gathered = Instant::now() + if group.is_full() { Duration::ZERO } else { GATHERS };
                // Commands and stop are looked at between groups.
                match self.commands.try_recv() {
                    Ok(command) => lsn = self.command(command, &mut sink, &mut reader, &mut group, lsn).await?,
                    Err(_) if *self.stop.borrow() => return Ok(End::Stopped),
                    Err(_) => {}
                }
                if began.elapsed() > SHARE_AFTER && self.is_wanted() {
                    return Ok(End::Shared);
                }
                continue;
            }
            tokio::select! {
                biased;
                () = stop::told(&self.stop) => return Ok(End::Stopped),
                command = self.commands.recv() => {
                    let command = command.ok_or(End::Stopped)?;
                    lsn = self.command(command, &mut sink, &mut reader, &mut group, lsn).await?;
                }
                changed = self.partitions.seen.changed(), if !self.drained && self.partitions.known.is_partitioned() => {
                    changed.map_err(|_| End::Stopped)?;
                }
                () = tokio::time::sleep(gathers), if !gathers.is_zero() => {}
                changed = sealed.changed(), if !self.stands() && gathers.is_zero() => changed.map_err(|_| End::Stopped)?,
                () = tokio::time::sleep(if sink.expects() { LOOK_AGAIN } else { SHARE_AFTER }), if !self.held => {
                    if self.is_wanted() {
                        return Ok(End::Shared);
                    }
                }
            }
        }
    }

    /// The spool from where the target is; `None` when told to stop.
    async fn behind(&self, lsn: Lsn) -> std::result::Result<Option<(SpoolReader, Group)>, End> {
        for again in [false, true] {
            let mut reader = SpoolReader::open(&self.plan.spool_dir).map_err(|error| self.spool_broken(&error))?;
            let mut group = Group::new(&self.plan.copied, &self.plan.skipped, Arc::clone(&self.plan.spool));
            if self.skip_applied(&mut reader, &mut group, lsn)? {
                return Ok(Some((reader, group)));
            }
            // The end of the spool was lost with the machine; it comes again.
            if !again && !self.received(lsn).await? {
                return Ok(None);
            }
        }
        Err(self.not_an_end(lsn))
    }

    /// Whether it applies nothing unless it is told to.
    fn stands(&self) -> bool {
        self.held || self.drained
    }

    /// Whether others may be waiting for this lane's connection.
    fn is_wanted(&self) -> bool {
        !self.held && self.connections.available_permits() == 0
    }

    /// Waits until there is a reason to connect: a first comparison, something to apply, a command.
    async fn work(&self) -> std::result::Result<(), End> {
        let mut sealed = self.plan.spool.sealed.subscribe();
        let spool = &self.plan.spool;
        while self.compared
            && spool.caught_up()
            && !spool.lacks_rows()
            && self.commands.is_empty()
            && !self.partitions.differ()
        {
            tokio::select! {
                changed = sealed.changed() => changed.map_err(|_| End::Stopped)?,
                () = tokio::time::sleep(LOOK_FOR_COMMANDS) => {}
                () = stop::told(&self.stop) => return Err(End::Stopped),
            }
        }
        Ok(())
    }

    /// Nothing may be missing between the target, the spool and what was acknowledged.
    fn compare(&self, target: Lsn) -> std::result::Result<(), End> {
        let spooled = self.plan.spool.sealed.borrow().end;
        let gap = if target < self.plan.prev_end {
            Some((
                self.plan.prev_end,
                "the target's checkpoint is older than the spool: was it restored from a backup?",
            ))
        } else if target < self.plan.spool.known_applied() {
            Some((
                self.plan.spool.known_applied(),
                "the target held more before than its checkpoint says now: was it restored from a backup, or the checkpoint changed?",
            ))
        } else if target.max(spooled) < self.plan.must_hold {
            Some((self.plan.must_hold, "neither target nor spool hold what was acknowledged: was the spool changed?"))
        } else {
            None
        };
        let Some((wanted, why)) = gap else { return Ok(()) };
        let message = format!(
            "{why} The target stands at {target}, the spool ends at {spooled}, {wanted} is needed: {} bytes of log are missing",
            wanted.bytes_since(target.max(spooled.min(target)))
        );
        let next = "`carveout move` copies the tenant again";
        Err(End::Broken(Fault::new("gap", self.plan.sink.id.to_string(), message, next)))
    }

    fn spool_broken(&self, error: &std::io::Error) -> End {
        let message = format!("its spool cannot be read: {error}");
        End::Broken(Fault::new(
            "spool_damaged",
            self.plan.sink.id.to_string(),
            message,
            "`carveout move` copies the tenant again",
        ))
    }

    fn unusable(&self, error: &Error) -> End {
        let message = format!("after {}: {error}", self.plan.spool.position());
        let next = "`carveout move` copies the tenant again";
        End::Broken(Fault::new("type_changed", self.plan.sink.id.to_string(), message, next))
    }

    /// Passes over what the target holds, learning the relations on the way; false when the spool ends before that.
    fn skip_applied(&self, reader: &mut SpoolReader, group: &mut Group, lsn: Lsn) -> std::result::Result<bool, End> {
        let sealed = *self.plan.spool.sealed.borrow();
        let found = group.skip(reader, &sealed, lsn).map_err(|error| self.spool_broken(&error))?;
        match found {
            Skipped::Past => return Err(self.not_an_end(lsn)),
            Skipped::Short => return Ok(false),
            Skipped::Found => self.plan.spool.set_applied(lsn, reader.place()),
        }
        Ok(true)
    }

    /// Waits until the stream has passed `lsn`; false when told to stop. What the source's log does not reach
    /// was never received.
    async fn received(&self, lsn: Lsn) -> std::result::Result<bool, End> {
        let mut progress = self.progress.clone();
        // The log's end is known once the source was asked for it.
        let known = progress.wait_for(|progress| {
            progress.received >= lsn || (progress.retained_bytes.is_some() && progress.wal_end < lsn)
        });
        tokio::select! {
            known = known => {
                let received = known.map_err(|_| End::Stopped)?.received;
                if received < lsn {
                    return Err(self.not_an_end(lsn));
                }
                Ok(true)
            }
            () = stop::told(&self.stop) => Ok(false),
        }
    }

    fn not_an_end(&self, lsn: Lsn) -> End {
        let message = format!(
            "the target's checkpoint {lsn} is not the end of any transaction that was received: was it changed?"
        );
        let next = "`carveout move` copies the tenant again";
        End::Broken(Fault::new("gap", self.plan.sink.id.to_string(), message, next))
    }

    /// Applies the next group, of at most `transactions`; returns what the target holds then.
    async fn apply(
        &mut self,
        sink: &mut PostgresSink,
        reader: &mut SpoolReader,
        group: &mut Group,
        transactions: usize,
    ) -> std::result::Result<Lsn, End> {
        let (start, began, before) = (reader.place(), Instant::now(), self.plan.spool.position());
        let mut limits = Limits { rows: self.plan.batch_rows, transactions };
        let mut mode = Mode::Sets;
        group.begin(limits);
        loop {
            let sealed = *self.plan.spool.sealed.borrow();
            let taken = sink.take(mode, &mut || group.piece(reader, &sealed)).await;
            let error = match taken {
                Ok(end) => {
                    self.set_lacks_rows(sink.expects(), before);
                    self.plan.spool.set_applied(end, reader.place());
                    self.plan.apply_seconds.observe(began.elapsed().as_secs_f64());
                    self.meter.changes.fetch_add(sink.applied(), Ordering::Relaxed);
                    self.meter.transactions.fetch_add(group.transactions() as u64, Ordering::Relaxed);
                    reader.free().map_err(|error| self.spool_broken(&error))?;
                    return Ok(end);
                }
                Err(error) => error,
            };
            match group.take_stopped() {
                Some(Stopped::Damaged(why)) => return Err(self.spool_broken(&why)),
                Some(Stopped::Ordered { fault, after: 0 }) => {
                    let end = self.transaction_at(reader, start)?;
                    let (message, next) = (fault.message + &named(end), fault.next + &skip_hint(end));
                    return Err(End::Fault(Fault { message, next, ..fault }, end));
                }
                // What comes before the order to stop is still good.
                Some(Stopped::Ordered { after, .. }) => limits.transactions = after,
                None if error.may_pass() => return Err(End::Failed(error)),
                None if error.is_unusable() => return Err(self.unusable(&error)),
                None => match (mode, limits.transactions) {
                    (Mode::Sets, _) => mode = Mode::Rows,
                    (Mode::Rows, 1) if self.partitions_changed(sink, before).await? => mode = Mode::Sets,
                    (Mode::Rows, 1) => {
                        let end = self.transaction_at(reader, start)?;
                        return Err(End::Fault(self.fault(&error, end), end));
                    }
                    (Mode::Rows, _) => limits.transactions = 1,
                },
            }
            tracing::debug!(%error, ?mode, "replaying a group");
            reader.seek(start).map_err(|error| self.spool_broken(&error))?;
            group.again(limits);
        }
    }

    /// The end of the first transaction from `start` on.
    fn transaction_at(&self, reader: &mut SpoolReader, start: Place) -> std::result::Result<Option<Lsn>, End> {
        let sealed = *self.plan.spool.sealed.borrow();
        let end = reader.seek(start).and_then(|()| group::next_end(reader, &sealed));
        end.map_err(|error| self.spool_broken(&error))
    }
}

fn named(transaction: Option<Lsn>) -> String {
    transaction.map_or(String::new(), |end| format!(" (in the transaction that ends at {end})"))
}

fn skip_hint(transaction: Option<Lsn>) -> String {
    transaction.map_or(String::new(), |end| {
        format!("; or leave that transaction out of the target: `carveout resume TENANT --skip {end}`")
    })
}

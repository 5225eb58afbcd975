//! The cutover, the rollback, which is the same in the other direction, and the rehearsal, which is the same without the flip.
//! Its steps have the names of the model's (`tests/tests/cutover/steps.rs`).
//!
//! Whether the writes have moved is said by one row, the fence's where they come from. A daemon that comes back reads it, and
//! nothing else, to know how to go on.

mod after;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use connectors::postgres::fence::{self, End, Fence, Held};
use connectors::postgres::policy::{Owned, Path};
use connectors::postgres::{client, control, snapshot};
use schemas::phase::Event;
use schemas::record::{Fault, MoveRecord, Proof};
use schemas::status::{CutoverReport, Route, StepReport};
use schemas::url::PgUrl;
use schemas::{Lsn, Phase};
use tokio::sync::oneshot;

use super::recheck::Recheck;
use super::reverse::{self, Reverse};
use super::{Context, Moving, StepError, driver, hooks, sequences};
use crate::lane::LaneCommand;
use crate::stop;
pub use after::resolve;
pub(super) use after::{clear_up, fence_for_a_return, remove_fence, shut_target, take_away};
use after::{finish, released};

/// How long to try to put the fence around one table.
const FENCE_PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for the tenant's open transactions.
const HOLD_PATIENCE: Duration = Duration::from_secs(5);
/// How long the side that is shut is held beyond the pause.
const MARGIN: Duration = Duration::from_secs(5);
/// How long to wait for another cutover or rehearsal of the move before it is said that there is one.
const TURN_PATIENCE: Duration = Duration::from_millis(500);

/// The code of a refusal that names rows by their keys.
pub const NOT_EQUAL: &str = "not_equal";

/// How long each step takes.
struct Steps {
    since: Instant,
    took: Vec<StepReport>,
}

impl Steps {
    fn begin() -> Steps {
        Steps { since: Instant::now(), took: Vec::new() }
    }

    fn took(&mut self, step: &str) {
        let since = std::mem::replace(&mut self.since, Instant::now());
        self.took.push(StepReport { step: step.to_owned(), ms: millis(since.elapsed()) });
    }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Everything but the flip.
    Rehearse,
    /// To the target.
    CutOver,
    /// Back to the source.
    RollBack,
}

impl Wish {
    /// The phase that it begins.
    fn event(self) -> Option<Event> {
        match self {
            Wish::Rehearse => None,
            Wish::CutOver => Some(Event::CutOver),
            Wish::RollBack => Some(Event::RollBack),
        }
    }

    /// What it is called.
    pub fn word(self) -> &'static str {
        match self {
            Wish::Rehearse => "rehearse",
            Wish::CutOver => "cutover",
            Wish::RollBack => "rollback",
        }
    }

    /// What its hooks are called.
    fn hooks(self) -> (&'static str, &'static str) {
        match self {
            Wish::RollBack => ("before_rollback", "after_rollback"),
            Wish::CutOver | Wish::Rehearse => ("before_cutover", "after_cutover"),
        }
    }
}

/// One end of a move, as the cutover sees it.
struct Side {
    url: PgUrl,
    fence: Fence,
    tables: Vec<Owned>,
    isolation: &'static str,
    database: String,
    schema: Option<String>,
}

impl Side {
    /// The route of a tenant that lives here.
    fn route(&self, record: &MoveRecord, epoch: i64) -> Route {
        Route {
            tenant: record.tenant.clone(),
            isolation: self.isolation.to_owned(),
            database: self.database.clone(),
            schema: self.schema.clone(),
            url: self.url.redacted(),
            state: "open".to_owned(),
            epoch,
        }
    }
}

/// Source and target of a move.
async fn sides(context: &Context, moving: &Moving) -> Result<(Side, Side), StepError> {
    let record = moving.record();
    let (source, target) = ends(context, &record)?;
    let own = reverse::own_tables(context, moving).await?.into_iter().map(|(_, owned)| owned).collect();
    Ok((Side { tables: context.read_by(&record).await?, ..source }, Side { tables: own, ..target }))
}

/// The same without the tables.
fn ends(context: &Context, record: &MoveRecord) -> Result<(Side, Side), StepError> {
    let lives = if record.returning { End::Target } else { End::Source };
    let fence = |end| Fence { id: record.id, owner: context.state.clone(), tenant: record.tenant.clone(), end, lives };
    let (target, url) = (context.target(record)?, context.config.source.url.clone());
    let (isolation, tables) = (if record.schema.is_some() { "schema" } else { "database" }, Vec::new());
    let source = Side {
        database: url.database().unwrap_or_default().to_owned(),
        url,
        fence: fence(End::Source),
        tables: Vec::new(),
        isolation: record.home(),
        schema: record.from.as_ref().map(|stage| stage.schema.clone()),
    };
    let (database, schema) = (target.database, target.schema);
    Ok((source, Side { url: target.url, fence: fence(End::Target), tables, isolation, database, schema }))
}

/// Where the tenant lives, as far as this daemon knows.
pub fn route(context: &Context, moving: &Moving) -> Result<Route, StepError> {
    let record = moving.record();
    let (source, target) = ends(context, &record)?;
    let lives = if record.phase.lives_in_target() { target } else { source };
    let moves = matches!(record.phase, Phase::CuttingOver | Phase::RollingBack);
    Ok(Route { state: if moves { "moving" } else { "open" }.to_owned(), ..lives.route(&record, record.epoch) })
}

/// Moves the tenant's writes, or shows how long that would take. They wait for at most `max_pause`; whatever stands in the way,
/// they go on as if nothing had been.
pub async fn cut_over(
    context: &Arc<Context>,
    moving: &Arc<Moving>,
    wish: Wish,
    max_pause: Duration,
) -> Result<CutoverReport, StepError> {
    let record = moving.record();
    // What an earlier one left may just be taken away.
    let one = tokio::time::timeout(TURN_PATIENCE, moving.cutover.lock()).await;
    let _one =
        one.map_err(|_| not_ready(&record, "it is being cut over or rehearsed already", "wait for that to end"))?;
    allowed(moving, wish)?;
    let _rehearsing = (wish == Wish::Rehearse).then(|| Rehearsing::of(moving));
    let stop = moving.stop.subscribe();
    let done = tokio::select! {
        done = prepared(context, moving, wish, max_pause) => done,
        // What it holds goes with it. Whether the writes have moved is looked at when the move goes on.
        () = stop::told(&stop) => {
            Err(not_ready(&record, "it was paused or cancelled meanwhile, or the daemon stops", "carveout status"))
        }
    };
    if moving.record().phase == Phase::Moved && moving.spool().is_some() && done.is_err() {
        // A rollback that was not.
        driver::close_lane(context, moving).await?;
    }
    if moving.record().phase == Phase::Following
        && !*stop.borrow()
        && let Err(error) = take_away(context, moving, false).await
    {
        // The fence is open, so it only costs; the lane goes on trying.
        tracing::warn!(%error, id = %record.id, "what the cutover made could not be taken away yet");
    }
    done
}

/// What the move itself has to say against it.
fn allowed(moving: &Moving, wish: Wish) -> Result<(), StepError> {
    let record = moving.record();
    match (wish, record.phase) {
        (Wish::RollBack, Phase::Following) if record.rolled_back => {
            return Err(not_ready(&record, "its writes are at the source: they were moved back", "carveout status"));
        }
        (_, Phase::Returning) => {
            return Err(not_ready(&record, "its rows are still being copied home", "carveout status"));
        }
        (Wish::Rehearse, Phase::Moved) if record.returning => {
            return Err(not_ready(&record, "a return cannot be rehearsed by this version", "`carveout cutover`"));
        }
        (Wish::RollBack, phase) if phase != Phase::Moved => {
            return Err(not_ready(&record, "its writes have not moved", "`carveout cutover` moves them"));
        }
        (_, Phase::Completing | Phase::Completed) => {
            return Err(not_ready(&record, "the move has ended: the tenant stays in its target", "carveout status"));
        }
        (Wish::CutOver | Wish::Rehearse, Phase::Moved) => {
            return Err(not_ready(
                &record,
                "its writes are in the target already",
                "`carveout rollback` moves them back",
            ));
        }
        (Wish::CutOver | Wish::Rehearse, phase) if phase != Phase::Following => {
            return Err(not_ready(&record, "it is not in step with the source", "carveout status"));
        }
        _ => {}
    }
    if record.paused || record.fault.is_some() {
        return Err(not_ready(&record, "it is not in step with the source", "carveout status"));
    }
    if let Some(skipped) = record.unproved_skip() {
        let why = format!("transaction {skipped} was left out, and no clean verify has come after it");
        return Err(not_ready(&record, &why, "mend the target, then `carveout verify`"));
    }
    Ok(())
}

/// For the status.
struct Rehearsing<'a>(&'a Moving);

impl Rehearsing<'_> {
    fn of(moving: &Moving) -> Rehearsing<'_> {
        moving.rehearsing.store(true, Ordering::Relaxed);
        Rehearsing(moving)
    }
}

impl Drop for Rehearsing<'_> {
    fn drop(&mut self) {
        self.0.rehearsing.store(false, Ordering::Relaxed);
    }
}

/// What can be done before anybody waits: the lane that will run afterwards is opened, both sides are compared.
async fn prepared(
    context: &Arc<Context>,
    moving: &Arc<Moving>,
    wish: Wish,
    max_pause: Duration,
) -> Result<CutoverReport, StepError> {
    let mut steps = Steps::begin();
    let record = moving.record();
    let config = &context.config.tenant_strategy.migration_config;
    let mut switch = Switch::prepare(context, moving, wish, max_pause).await?;
    steps.took("reverse");
    if config.validation_enabled {
        let (anew, recheck) = Recheck::begin(&switch.lane.0, &switch.lane.1).await?;
        switch.recheck = Some(recheck);
        steps.took(if anew { "verify" } else { "certificate" });
    }
    match wish {
        Wish::RollBack => sequences::refill_schema(context, moving).await?,
        Wish::CutOver | Wish::Rehearse => {
            sequences::give_blocks(context, moving).await?;
            steps.took("sequences");
        }
    }
    let hooks = &context.config.hooks;
    let (before, after) = match wish {
        Wish::Rehearse => (None, None),
        Wish::CutOver => (hooks.before_cutover.as_ref(), hooks.after_cutover.as_ref()),
        Wish::RollBack => (hooks.before_rollback.as_ref(), hooks.after_rollback.as_ref()),
    };
    hooks::run(before, wish.hooks().0, &record.tenant).await.map_err(StepError::Fault)?;
    if before.is_some() {
        steps.took("before");
    }
    let done = switch.run(steps).await;
    match moving.record().phase {
        _ if done.is_ok() => hooks::report(after, wish.hooks().1, &record.tenant).await,
        // Nothing is lost by trying at once; otherwise the move's driver does.
        Phase::CuttingOver | Phase::RollingBack => resolve(context, moving).await?,
        _ => {}
    }
    done
}

/// The lane back, fit to move the writes by.
fn way_back(moving: &Moving, validates: bool) -> Result<Arc<Reverse>, StepError> {
    let record = moving.record();
    let reverse = moving.reverse().ok_or_else(|| no_way_back(&record))?;
    if let Some(fault) = reverse.moving.record().fault {
        return Err(not_ready(
            &record,
            &format!("the lane back stands at {}: {}", fault.object, fault.message),
            &fault.next,
        ));
    }
    if reverse.moving.record().unproved_skip().is_some() && !validates {
        let next = "mend the source, then `carveout verify`";
        return Err(not_ready(
            &record,
            "a transaction was left out of the source, and no clean verify has come after it",
            next,
        ));
    }
    Ok(reverse)
}

/// The forward lane is opened anew: what the lane back has written until the flip, its target has.
async fn forward_again(context: &Arc<Context>, moving: &Arc<Moving>) -> Result<(), StepError> {
    driver::close_lane(context, moving).await?;
    // No record says any more that the lane held anything.
    if !context.pipeline.recorded().await? {
        return Err(not_ready(&moving.record(), "the source does not stream", "carveout status"));
    }

    let tables = context.read_by(&moving.record()).await?;
    driver::open_lane(context, moving, &tables).await
}

/// Moving the writes from one side to the other.
struct Switch<'a> {
    context: &'a Arc<Context>,
    moving: &'a Arc<Moving>,
    wish: Wish,
    max_pause: Duration,
    /// What brings the changes there.
    lane: (Arc<Context>, Arc<Moving>),
    /// The lane back; `None`: it is the move's own, or there will be none.
    next: Option<Arc<Reverse>>,
    from: Side,
    to: Side,
    /// Of a rollback: those that the source goes on with.
    sequences: Option<tokio::sync::Mutex<sequences::Sides>>,
    /// What is compared once more; `None` where nothing is.
    recheck: Option<Recheck>,
}

impl<'a> Switch<'a> {
    /// Opens the lane that runs afterwards.
    async fn prepare(
        context: &'a Arc<Context>,
        moving: &'a Arc<Moving>,
        wish: Wish,
        max_pause: Duration,
    ) -> Result<Switch<'a>, StepError> {
        let (source, target) = sides(context, moving).await?;
        let config = &context.config.tenant_strategy.migration_config;
        if wish == Wish::RollBack {
            let reverse = way_back(moving, config.validation_enabled)?;
            forward_again(context, moving).await?;
            let lane = (Arc::clone(&reverse.context), Arc::clone(&reverse.moving));
            let sequences = Some(tokio::sync::Mutex::new(sequences::sides(context, moving).await?));
            let (from, to) = (target, source);
            return Ok(Switch {
                context,
                moving,
                wish,
                max_pause,
                lane,
                next: None,
                from,
                to,
                sequences,
                recheck: None,
            });
        }
        take_away(context, moving, false).await?;
        moving.update(&context.store, |record| record.fenced = true)?;
        let next = match config.rollback_enabled || moving.record().returning {
            true => Some(reverse::open(context, moving, Phase::Following).await?),
            false => None,
        };
        let (lane, from, to) = ((Arc::clone(context), Arc::clone(moving)), source, target);
        Ok(Switch { context, moving, wish, max_pause, lane, next, from, to, sequences: None, recheck: None })
    }

    async fn run(&mut self, mut steps: Steps) -> Result<CutoverReport, StepError> {
        let (context, moving) = (self.context, self.moving);
        let record = moving.record();
        let mut here = self.fenced(&self.from).await?;
        let there = self.fenced(&self.to).await?;
        if let Some((context, moving)) = self.next() {
            let next = moving.record();
            control::create_checkpoint(&mut here, next.id, &next.tenant, &context.origin()).await?;
        }
        steps.took("fence");
        self.narrow(&mut steps).await?;
        let row = self.from.fence.read(&here).await?.filter(|row| row.open);
        let epoch = row.ok_or_else(|| not_ready(&record, "its fence is shut", "carveout status"))?.epoch;
        // What the flip raises is known before it can be.
        let event = self.wish.event();
        if let Some(event) = event {
            moving.advance_with(&context.store, event, |record| record.epoch = epoch)?;
        }
        let other = self.to.fence.connect(&self.to.url).await?;
        let held = self.from.fence.hold(&self.from.url, self.max_pause, HOLD_PATIENCE).await;
        let held = match held {
            Ok(held) => held,
            Err(error) => {
                // Nobody can have flipped what was never held.
                if event.is_some() {
                    released(context, moving).await?;
                }
                return Err(busy(&record, error));
            }
        };
        steps.took("hold");
        let pause = Instant::now();
        let within = async {
            let guarded = async { self.guarded(self.to.fence.wanting(&there, &self.to.tables).await?) };
            let ((), lsn) = tokio::try_join!(guarded, self.drained(&held, &here, &mut steps))?;
            let rechecked = self.behind_the_fence(&here, &there, &mut steps).await?;
            // Who came there before this was refused, who comes from now on waits: nobody is answered there for what was sent while
            // the others could still hear of what they had written here.
            let other = self.to.fence.hold_by(other, self.max_pause + MARGIN, self.max_pause).await?;
            Ok::<_, StepError>((lsn, rechecked, other))
        };
        let drained = tokio::time::timeout(self.max_pause, within).await;
        let over = || {
            let why = format!(
                "the other side was not there within {} ms; the writers were let go",
                self.max_pause.as_millis()
            );
            not_ready(&record, &why, "try again when the tenant is less busy, or with a longer --max-pause")
        };
        let (lsn, rechecked_keys, route) = match drained {
            Ok(Ok((lsn, rechecked, other))) if event.is_some() => {
                let route = self.to.route(&record, epoch + 1);
                held.turn(false, &route).await?;
                steps.took("flip");
                other.turn(true, &route).await?;
                steps.took("open");
                (lsn, rechecked, route)
            }
            drained => {
                let was_held = held.release().await;
                steps.took("release");
                let (lsn, rechecked, _) = drained.map_err(|_| over())??;
                // Whoever was let go by the server before may have written since.
                was_held.map_err(|_| over())?;
                (lsn, rechecked, self.from.route(&record, epoch))
            }
        };
        let pause_ms = millis(pause.elapsed());
        let verified_s_ago = self.recheck.as_ref().map(|recheck| recheck.age().as_secs());
        if event.is_some() {
            self.flipped(pause.elapsed())?;
        }
        let (tenant, verified, steps) = (record.tenant, verified_s_ago.is_some(), steps.took);
        Ok(CutoverReport { tenant, lsn, pause_ms, verified, verified_s_ago, rechecked_keys, route, steps })
    }

    /// Both sides were equal at the flip, so what was compared goes on to count: the lane that runs now notes what it changes.
    fn flipped(&mut self, pause: Duration) -> Result<(), StepError> {
        *super::lock(&self.lane.1.certificate) = None;
        let proof = self.lane.1.record().verified.map(|proof| Proof { carried: true, ..proof });
        if let Some((context, next)) = self.next() {
            next.update(&context.store, |record| (record.verified, record.noted) = (proof, None))?;
        }
        if let (Some(recheck), Some((_, next))) = (self.recheck.take(), self.next()) {
            next.begin_certified(recheck.carried());
        }
        finish(self.context, self.moving, Some(pause))
    }

    /// Few keys are left for the pause.
    async fn narrow(&mut self, steps: &mut Steps) -> Result<(), StepError> {
        if let Some(recheck) = &mut self.recheck
            && recheck.narrow(&self.lane.0, &self.lane.1).await? > 0
        {
            steps.took("rounds");
        }
        Ok(())
    }

    /// What brings changes the other way afterwards.
    fn next(&self) -> Option<(&Arc<Context>, &Arc<Moving>)> {
        match &self.next {
            Some(reverse) => Some((&reverse.context, &reverse.moving)),
            None => (self.wish == Wish::RollBack).then_some((self.context, self.moving)),
        }
    }

    /// A connection to a side that has its fence.
    async fn fenced(&self, side: &Side) -> Result<connectors::postgres::Client, StepError> {
        let record = self.moving.record();
        let mut client = client::connect(&side.url, &format!("fence {}", record.id)).await?;
        control::setup(&mut client).await?;
        fence::install(&mut client, &side.fence, &side.tables, FENCE_PATIENCE)
            .await
            .map_err(|error| busy(&record, error))?;
        Ok(client)
    }

    /// No trigger of a fence is missing.
    fn guarded(&self, wanting: Vec<String>) -> Result<(), StepError> {
        let Some(table) = wanting.first() else { return Ok(()) };
        let why = format!("a trigger of the fence around {table} is missing or disabled");
        Err(not_ready(&self.moving.record(), &why, "find out who changes triggers, then try again"))
    }

    /// While the writers wait: the other side gets all that they wrote. That the fence was whole is seen before the barrier:
    /// whoever enables a trigger waits for those who wrote without it, so none of them commits behind the barrier.
    async fn drained(
        &self,
        held: &Held,
        here: &connectors::postgres::Client,
        steps: &mut Steps,
    ) -> Result<Lsn, StepError> {
        self.guarded(held.wanting(&self.from.tables).await?)?;
        let lsn = held.barrier(here).await?;
        steps.took("barrier");
        drain(&self.lane.1, lsn).await?;
        steps.took("drain");
        Ok(lsn)
    }

    /// When the other side has all: it is compared, and the lane that runs afterwards gets its beginning.
    async fn behind_the_fence(
        &self,
        here: &connectors::postgres::Client,
        there: &connectors::postgres::Client,
        steps: &mut Steps,
    ) -> Result<u64, StepError> {
        let mut rechecked = 0;
        if let Some(recheck) = &self.recheck {
            rechecked = recheck.last(&self.lane.0, &self.lane.1).await?;
            steps.took("recheck");
        }
        if let Some(sides) = &self.sequences {
            sequences::hand_back(self.moving, &mut *sides.lock().await).await?;
            steps.took("sequences");
        }
        if let Some((_, moving)) = self.next() {
            let (snapshot, wal_insert_lsn) = snapshot::shown(there).await?;
            let next = moving.record();
            let references = self.to.tables.iter().filter(|owned| matches!(owned.path, Path::Reference));
            let begins = control::Beginning {
                id: next.id,
                tables: &next.tables,
                again: references.map(|owned| owned.table.name.clone()).collect(),
                snapshot,
                wal_insert_lsn,
            };
            control::begin_lane(here, begins).await?;
        }
        steps.took("begin");
        Ok(rechecked)
    }
}

/// Waits until the lane's sink holds everything before the barrier.
async fn drain(moving: &Moving, barrier: Lsn) -> Result<(), StepError> {
    let lost = || not_ready(&moving.record(), "its lane is not running", "carveout status");
    let commands = moving.lane().ok_or_else(lost)?;
    let (done, drained) = oneshot::channel();
    commands.send(LaneCommand::Drain { until: barrier, done }).await.map_err(|_| lost())?;
    drained.await.map_err(|_| lost())
}

/// Why the lane back cannot be asked.
pub fn no_way_back(record: &MoveRecord) -> StepError {
    match record.reverse {
        Some(_) => {
            not_ready(record, "the target has not been reached yet, so nothing flows back", "wait for it, or mend it")
        }
        None => {
            let next = "`carveout complete` ends the move";
            not_ready(record, "nothing flows back from the target: rollback_enabled was false", next)
        }
    }
}

pub(super) fn not_ready(record: &MoveRecord, why: &str, next: &str) -> StepError {
    StepError::Fault(Fault::new("not_ready", record.id.to_string(), why, next))
}

/// What stands in the way for now is an answer; the rest is an error.
fn busy(record: &MoveRecord, error: connectors::postgres::Error) -> StepError {
    match error.sqlstate() {
        None if error.may_pass() => not_ready(record, &error.to_string(), "try again"),
        _ => error.into(),
    }
}

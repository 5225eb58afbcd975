//! The cutover, the rollback, which is the same in the other direction, and the rehearsal, which is the same without the flip.
//! Its steps have the names of the model's (`tests/tests/cutover/steps.rs`).
//!
//! Whether the writes have moved is said by one row, the fence's where they come from. A daemon that comes back reads it, and
//! nothing else, to know how to go on.

mod after;
mod sides;
mod switch;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use connectors::postgres::spare::Spare;
use schemas::Phase;
use schemas::phase::Event;
use schemas::record::{Fault, MoveRecord};
use schemas::status::CutoverReport;
use tokio::sync::{Mutex, MutexGuard};

use super::recheck::Recheck;
use super::{Context, Moving, StepError, driver, hooks, sequences};
use crate::stop;
pub use after::resolve;
pub(super) use after::{clear_up, fence_for_a_return, remove_fence, shut_target, take_away};
pub use sides::route;
use switch::{Steps, Switch};

/// How long to try to put the fence around one table.
const FENCE_PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for the tenant's open transactions.
const HOLD_PATIENCE: Duration = Duration::from_secs(5);
/// How long the side that is shut is held beyond the pause.
const MARGIN: Duration = Duration::from_secs(5);
/// How long to wait for another cutover or rehearsal of the move before it is said that there is one: longer than for the end of one
/// whose phase has been told already, unless a hook takes longer.
const TURN_PATIENCE: Duration = Duration::from_secs(2);

/// The code of a refusal that names rows by their keys.
pub const NOT_EQUAL: &str = "not_equal";

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

    /// What runs before anybody waits, and after it was done, each with its name.
    fn hooks(self, context: &Context) -> [(Option<&Vec<String>>, &'static str); 2] {
        let hooks = &context.config.hooks;
        match self {
            Wish::Rehearse => [(None, "before_cutover"), (None, "after_cutover")],
            Wish::CutOver => {
                [(hooks.before_cutover.as_ref(), "before_cutover"), (hooks.after_cutover.as_ref(), "after_cutover")]
            }
            Wish::RollBack => {
                [(hooks.before_rollback.as_ref(), "before_rollback"), (hooks.after_rollback.as_ref(), "after_rollback")]
            }
        }
    }
}

/// Whose turn it is to cut the move over, or to rehearse that, until its driver is at what comes then.
pub async fn turn(moving: &Moving) -> Result<MutexGuard<'_, ()>, StepError> {
    within_reason(moving, &moving.turn).await
}

/// Waits for who is at it, but not for long.
async fn within_reason<'a>(moving: &Moving, one: &'a Mutex<()>) -> Result<MutexGuard<'a, ()>, StepError> {
    let one = tokio::time::timeout(TURN_PATIENCE, one.lock()).await;
    let why = "it is being cut over or rehearsed already";
    one.map_err(|_| not_ready(&moving.record(), why, "wait for that to end"))
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
    let _one = within_reason(moving, &moving.cutover).await?;
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
    let done = match done {
        Ok((report, connections)) => {
            let [_, (hook, name)] = wish.hooks(context);
            let (hook, tenant) = (hook.cloned(), record.tenant.clone());
            // Whoever holds the move meanwhile does not hold that.
            let hook = tokio::spawn(async move { hooks::report(hook.as_ref(), name, &tenant).await });
            tokio::select! {
                _ = async { tokio::join!(hook, after::leave(connections)) } => {}
                () = stop::told(&stop) => {}
            }
            Ok(report)
        }
        Err(error) => Err(error),
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

/// What can be done before anybody waits: the lane that will run afterwards is opened, both sides are compared. Returns the
/// connections of a flip, too.
async fn prepared(
    context: &Arc<Context>,
    moving: &Arc<Moving>,
    wish: Wish,
    max_pause: Duration,
) -> Result<(CutoverReport, Vec<Spare>), StepError> {
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
            sequences::give_blocks(context, moving, &switch.from.tables).await?;
            steps.took("sequences");
        }
    }
    let [(before, name), _] = wish.hooks(context);
    hooks::run(before, name, &record.tenant).await.map_err(StepError::Fault)?;
    if before.is_some() {
        steps.took("before");
    }
    let done = switch.run(steps).await;
    let resolved = match moving.record().phase {
        // Nothing is lost by trying at once; otherwise the move's driver does.
        Phase::CuttingOver | Phase::RollingBack => resolve(context, moving).await,
        _ => Ok(()),
    };
    // In another phase the driver begins anew.
    let connections = if moving.record().phase == record.phase { Vec::new() } else { switch.end() };
    resolved?;
    Ok((done?, connections))
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

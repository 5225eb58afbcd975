//! The cutover: one straight function. This version has it up to the flip, as `rehearse`; its steps have the names of the
//! model's (`tests/tests/cutover/steps.rs`).

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use connectors::postgres::fence::{self, End, Fence};
use connectors::postgres::policy::Owned;
use connectors::postgres::{client, control};
use schemas::record::{Fault, MoveRecord};
use schemas::status::{RehearsalReport, StepReport};
use schemas::{Lsn, Phase};
use tokio::sync::oneshot;

use super::verify::verify;
use super::{Context, Moving, StepError};
use crate::lane::LaneCommand;
use crate::stop;

/// How long to try to put the fence around one table.
const FENCE_PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for the tenant's open transactions.
const HOLD_PATIENCE: Duration = Duration::from_secs(5);

/// How long each step takes.
struct Steps {
    since: Instant,
    took: Vec<StepReport>,
}

impl Steps {
    fn took(&mut self, step: &str) {
        let since = std::mem::replace(&mut self.since, Instant::now());
        self.took.push(StepReport { step: step.to_owned(), ms: millis(since.elapsed()) });
    }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Everything of a cutover but the flip: verifies, holds the tenant's writers for at most `max_pause` until the target has
/// all that they wrote, and lets them go on.
pub async fn rehearse(context: &Context, moving: &Moving, max_pause: Duration) -> Result<RehearsalReport, StepError> {
    let record = moving.record();
    let _one = moving
        .cutover
        .try_lock()
        .map_err(|_| not_ready(&record, "it is being rehearsed already", "wait for that to end"))?;
    if record.phase != Phase::Following || record.paused || record.fault.is_some() {
        return Err(not_ready(&record, "it is not in step with the source", "carveout status"));
    }
    if let Some(skipped) = record.unproved_skip() {
        let why = format!("transaction {skipped} was left out, and no clean verify has come after it");
        return Err(not_ready(&record, &why, "mend the target, then `carveout verify`"));
    }
    let _rehearsing = Rehearsing::of(moving);
    let stop = moving.stop.subscribe();
    let done = tokio::select! {
        done = up_to_the_flip(context, moving, max_pause) => done,
        // What it holds goes with it.
        () = stop::told(&stop) => {
            Err(not_ready(&record, "it was paused or cancelled meanwhile, or the daemon stops", "carveout status"))
        }
    };
    if let Err(error) = take_fence_away(context, moving).await {
        // It is open, so it only costs; the next start, rehearsal or cancel takes it away.
        tracing::warn!(%error, id = %record.id, "the fence could not be taken away yet");
    }
    done
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

async fn up_to_the_flip(context: &Context, moving: &Moving, max_pause: Duration) -> Result<RehearsalReport, StepError> {
    let record = moving.record();
    let mut steps = Steps { since: Instant::now(), took: Vec::new() };
    if !verify(context, moving).await?.equal {
        return Err(not_ready(&record, "source and target are not equal", "`carveout verify` names the rows"));
    }
    steps.took("verify");
    let tables = context.tables(&record.tables).await?;
    moving.update(&context.store, |record| record.fenced = true)?;
    behind_the_fence(context, moving, &tables, max_pause, steps).await
}

async fn behind_the_fence(
    context: &Context,
    moving: &Moving,
    tables: &[Owned],
    max_pause: Duration,
    mut steps: Steps,
) -> Result<RehearsalReport, StepError> {
    let record = moving.record();
    let fence = source_fence(context, &record);
    let mut source = client::connect(&context.config.source.url, &format!("fence {}", record.id)).await?;
    control::setup(&mut source).await?;
    fence::install(&mut source, &fence, tables, FENCE_PATIENCE).await.map_err(|error| busy(&record, error))?;
    steps.took("fence");
    let held =
        fence.hold(&context.config.source.url, max_pause, HOLD_PATIENCE).await.map_err(|error| busy(&record, error))?;
    steps.took("hold");
    let pause = Instant::now();
    let within = tokio::time::timeout(max_pause, async {
        if let Some(table) = held.wanting(tables).await?.first() {
            let why = format!("a trigger of the fence around {table} is missing or disabled");
            return Err(not_ready(&record, &why, "find out who changes triggers, then try again"));
        }
        let lsn = held.barrier(&source).await?;
        steps.took("barrier");
        drain(moving, lsn).await?;
        steps.took("drain");
        Ok(lsn)
    });
    let drained = within.await;
    let was_held = held.release().await;
    let pause_ms = millis(pause.elapsed());
    steps.took("release");
    let over = || {
        let why = format!("the target was not there within {} ms; the writers were let go", max_pause.as_millis());
        not_ready(&record, &why, "try again when the tenant is less busy, or with a longer --max-pause")
    };
    let lsn = drained.map_err(|_| over())??;
    // Whoever was let go by the server before may have written since.
    was_held.map_err(|_| over())?;
    tracing::info!(id = %record.id, tenant = %record.tenant, pause_ms, at = %lsn, "rehearsed");
    Ok(RehearsalReport { tenant: record.tenant, lsn, pause_ms, steps: steps.took })
}

/// Waits until the target holds everything before the barrier.
async fn drain(moving: &Moving, barrier: Lsn) -> Result<(), StepError> {
    let lost = || not_ready(&moving.record(), "its lane is not running", "carveout status");
    let commands = moving.lane().ok_or_else(lost)?;
    let (done, drained) = oneshot::channel();
    commands.send(LaneCommand::Drain { until: barrier, done }).await.map_err(|_| lost())?;
    drained.await.map_err(|_| lost())
}

/// Takes the fence at the source away, where one stands or may stand.
pub(super) async fn take_fence_away(context: &Context, moving: &Moving) -> Result<(), StepError> {
    let record = moving.record();
    if !record.fenced {
        return Ok(());
    }
    let mut source = client::connect(&context.config.source.url, &format!("fence {}", record.id)).await?;
    fence::remove(&mut source, &source_fence(context, &record), FENCE_PATIENCE).await?;
    moving.update(&context.store, |record| record.fenced = false)?;
    Ok(())
}

fn source_fence(context: &Context, record: &MoveRecord) -> Fence {
    Fence { id: record.id, owner: context.state.clone(), tenant: record.tenant.clone(), end: End::Source }
}

fn not_ready(record: &MoveRecord, why: &str, next: &str) -> StepError {
    StepError::Fault(Fault::new("not_ready", record.id.to_string(), why, next))
}

/// What stands in the way for now is an answer; the rest is an error.
fn busy(record: &MoveRecord, error: connectors::postgres::Error) -> StepError {
    match error.sqlstate() {
        None if error.may_pass() => not_ready(record, &error.to_string(), "try again"),
        _ => error.into(),
    }
}

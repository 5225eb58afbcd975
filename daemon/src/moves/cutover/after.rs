//! What comes after a cutover: its result is stored; one that was cut off is resolved; what it leaves is taken away.

use std::sync::Arc;
use std::time::Duration;

use connectors::postgres::fence::{self, End};
use connectors::postgres::spare::Spare;
use connectors::postgres::{client, control};
use schemas::Phase;
use schemas::phase::Event;
use schemas::record::{Fault, MoveRecord};

use super::super::{Context, Moving, StepError, driver, lock, reverse};
use super::sides::{ends, sides};
use super::{FENCE_PATIENCE, HOLD_PATIENCE, MARGIN, not_ready};
use crate::gently::gently;

/// For so long a cutover leaves both servers to the tenant's clients, and so long is between the ends of two connections.
const CLIENTS_FIRST: Duration = Duration::from_millis(250);
const ONE_BY_ONE: Duration = Duration::from_millis(20);
/// How often is looked whether a cutover has left something.
const AGAIN: Duration = Duration::from_secs(5);

/// Closes the connections of a cutover when the tenant's clients have come to the other side. They come at once, and all that they do
/// is new to their sessions; what a server does to end a session takes longer than most of their statements.
pub(super) async fn leave(connections: Vec<Spare>) {
    if connections.is_empty() {
        return;
    }
    tokio::time::sleep(CLIENTS_FIRST).await;
    for connection in connections {
        connection.end().await;
        tokio::time::sleep(ONE_BY_ONE).await;
    }
}

/// The flip is committed, and the other side is open; for so long nobody could write, where that is known.
pub(super) fn finish(context: &Context, moving: &Moving, pause: Option<Duration>) -> Result<(), StepError> {
    let back = moving.record().phase == Phase::RollingBack;
    moving.advance_with(&context.store, Event::Flipped, |record| {
        (record.epoch, record.rolled_back) = (record.epoch + 1, back);
        record.verified.iter_mut().for_each(|proof| proof.carried = true);
        record.noted = None;
        // A clean verify came after what was left out of this lane, or there would have been no cutover.
        record.skipped.clear();
    })?;
    let pause_us = pause.and_then(|pause| u64::try_from(pause.as_micros()).ok());
    Ok(moving.update(&context.store, |record| {
        record.history.last_mut().into_iter().for_each(|last| last.pause_us = pause_us);
    })?)
}

/// There was no flip, and will be none.
pub(super) async fn released(context: &Arc<Context>, moving: &Arc<Moving>) -> Result<(), StepError> {
    moving.advance(&context.store, Event::Released)?;
    match moving.record().phase {
        Phase::Moved => driver::close_lane(context, moving).await,
        _ => still_has_a_lane(context, moving),
    }
}

/// Finds out whether the writes have moved, once nobody is at it any more, and ends what was begun.
pub async fn resolve(context: &Arc<Context>, moving: &Arc<Moving>) -> Result<(), StepError> {
    let record = moving.record();
    let (source, target) = ends(context, &record)?;
    let (from, to) = if record.phase == Phase::CuttingOver { (source, target) } else { (target, source) };
    let client = client::connect(&from.url, &format!("fence {}", record.id)).await?;
    let there = from.fence.read(&client).await?;
    drop(client);
    let mut flipped = false;
    if there.is_some() {
        // The lock is ours only once the connection that may have flipped is gone.
        let held = from.fence.hold(&from.url, MARGIN, HOLD_PATIENCE).await?;
        let row = held.row();
        held.release().await?;
        flipped = !row.open && row.epoch == record.epoch + 1;
        if !row.open && !flipped {
            let why = format!("its fence is shut at epoch {}, and {} was expected", row.epoch, record.epoch + 1);
            return Err(not_ready(&record, &why, "find out who changes carveout.fence; then `carveout resume`"));
        }
    }
    tracing::info!(id = %record.id, tenant = %record.tenant, flipped, "a cutover that was cut off is resolved");
    if !flipped {
        return released(context, moving).await;
    }
    let held = to.fence.hold(&to.url, MARGIN, HOLD_PATIENCE).await?;
    match held.row().open {
        true => held.release().await?,
        false => drop(held.turn(true, &to.route(&record, record.epoch + 1)).await?),
    }
    // Whoever flipped did not come to say what both sides are worth.
    *lock(&moving.certificate) = None;
    moving.update(&context.store, MoveRecord::unproved)?;
    finish(context, moving, None)?;
    if moving.record().phase == Phase::Following { still_has_a_lane(context, moving) } else { Ok(()) }
}

/// A lane that was taken out meanwhile has lost its continuity.
fn still_has_a_lane(context: &Context, moving: &Moving) -> Result<(), StepError> {
    if moving.spool().is_some() {
        return Ok(());
    }
    let record = moving.record();
    let next = "`carveout move` copies the tenant again";
    let fault = Fault::new("gap", record.id.to_string(), "its lane was taken out while it was cut over", next);
    moving.break_off(&context.store, fault)?;
    Ok(())
}

/// Takes away what a cutover left that did not flip, or a rollback; as long as the lane runs, and not while one is under way.
pub(in crate::moves) async fn clear_up(context: &Arc<Context>, moving: &Arc<Moving>) {
    loop {
        if moving.record().leaves_something() {
            let _one = moving.cutover.lock().await;
            let record = moving.record();
            // Whoever had the lock may have moved the writes.
            if record.phase == Phase::Following
                && record.leaves_something()
                && let Err(error) = take_away(context, moving, false).await
            {
                tracing::info!(%error, "what a cutover left could not be taken away yet; trying again");
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Takes the lane back away; and the fences, unless the writes have been in the target: then it stays shut, until the move is
/// cancelled (`all`).
pub(in crate::moves) async fn take_away(
    context: &Arc<Context>,
    moving: &Arc<Moving>,
    all: bool,
) -> Result<(), StepError> {
    gently(reverse::discard(context, moving)).await?;
    if moving.record().rolled_back && !all {
        return Ok(());
    }
    remove_fence(context, moving, End::Source).await?;
    remove_fence(context, moving, End::Target).await?;
    Ok(moving.update(&context.store, |record| record.fenced = false)?)
}

/// Takes one fence away, if there is one.
pub(in crate::moves) async fn remove_fence(context: &Context, moving: &Moving, end: End) -> Result<(), StepError> {
    let record = moving.record();
    if !record.fenced {
        return Ok(());
    }
    let (source, target) = ends(context, &record)?;
    let side = if end == End::Source { source } else { target };
    let mut client = client::connect(&side.url, &format!("fence {}", record.id)).await?;
    if control::access(&client).await? != control::Access::Absent {
        fence::remove(&mut client, &side.fence, FENCE_PATIENCE).await?;
    }
    Ok(())
}

/// A tenant that comes home: nobody else writes for it there, and what is written where it lives is its own.
pub(in crate::moves) async fn fence_for_a_return(
    context: &Arc<Context>,
    moving: &Arc<Moving>,
) -> Result<(), StepError> {
    moving.update(&context.store, |record| record.fenced = true)?;
    let (source, target) = sides(context, moving).await?;
    for side in [source, target] {
        let mut client = client::connect(&side.url, &format!("fence {}", moving.record().id)).await?;
        control::setup(&mut client).await?;
        fence::install(&mut client, &side.fence, &side.tables, FENCE_PATIENCE).await?;
    }
    Ok(())
}

/// The tenant has been in the target, which is made anew: it must not be written there.
pub(in crate::moves) async fn shut_target(context: &Arc<Context>, moving: &Arc<Moving>) -> Result<(), StepError> {
    let record = moving.record();
    if !record.rolled_back {
        return Ok(());
    }
    let (_, target) = sides(context, moving).await?;
    let mut client = client::connect(&target.url, &format!("fence {}", record.id)).await?;
    Ok(fence::install(&mut client, &target.fence, &target.tables, FENCE_PATIENCE).await?)
}

//! Hands a lane's keys over to the pipeline: those of rows that `via` tables refer to, read from its target.
//! Until then the lane decides by its target what is its own.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use connectors::postgres::{control, copy, spare};
use futures_util::{StreamExt, pin_mut};
use schemas::record::MoveRecord;
use schemas::{Lsn, TablePath};

use super::{Context, Moving, StepError};
use crate::pipeline::Added;
use crate::spool::SpoolState;

/// Keys that the pipeline takes at a time: a fraction of a millisecond, in which it reads nothing.
const BATCH: usize = 512;
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Keeps the lane's keys in the pipeline as long as the lane runs; never returns but with the daemon's end.
pub(super) async fn hand_over(context: &Context, moving: &Moving) {
    let record = moving.record();
    if !has_keys(&record) {
        return std::future::pending().await;
    }
    let mut progress = context.pipeline.progress.clone();
    let mut backoff = FIRST_BACKOFF;
    loop {
        let lost = progress.borrow_and_update().keys_lost;
        let complete = read(context, moving).await;
        if let Err(error) = &complete {
            tracing::warn!(%error, "the keys of rows that others refer to could not be read; trying again");
        }
        let Ok(known) = context.pipeline.end_keys(record.id, complete.unwrap_or(false)).await else { return };
        if known {
            backoff = FIRST_BACKOFF;
            if progress.wait_for(|progress| progress.keys_lost != lost).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(LONGEST_BACKOFF);
    }
}

/// The lane has ended: keys that were being read do not count. A lane whose keys are known keeps them.
pub(super) async fn leave_off(context: &Context, moving: &Moving) {
    let record = moving.record();
    // Only a pipeline that has stopped does not answer.
    if has_keys(&record) && context.pipeline.end_keys(record.id, false).await.is_err() {
        tracing::debug!(id = %record.id, "the pipeline has stopped");
    }
}

/// Whether rows of the move are found by others.
fn has_keys(record: &MoveRecord) -> bool {
    record.paths.iter().any(|path| matches!(path, TablePath::Via { .. }))
}

/// Reads the keys once; false when they do not all count.
async fn read(context: &Context, moving: &Moving) -> Result<bool, StepError> {
    let record = moving.record();
    let Some(link) = moving.spool() else { return Ok(false) };
    // What the target holds already must have been received, or it would seem to come later.
    let sealed = link.state.sealed.borrow().end;
    caught_up(&link.state, sealed).await;
    context.pipeline.passed(link.state.applied()).await?;
    let Some(keys) = context.pipeline.begin_keys(record.id).await? else { return Ok(false) };
    caught_up(&link.state, keys.from).await;
    let began = Instant::now();
    let target = context.target(&record)?;
    let plan = moving.sink_plan(&target, 0);
    let moves: HashMap<_, _> = record.tables.iter().map(|table| (table, plan.target_name(table))).collect();
    let _connection = context.target_connections.acquire().await.map_err(|_| StepError::Stopped)?;
    let client = spare::take(&target.url, "read keys").await?;
    // Rows that came to the tenant are not there yet, with what hangs on them.
    if !control::read_arriving(&client, record.id).await?.is_empty() {
        return Ok(false);
    }
    let mut number = 0;
    for (reference, table, columns) in keys.tables {
        let Some(here) = moves.get(&table) else { continue };
        let rows = copy::keys(&client, here, &columns).await?;
        pin_mut!(rows);
        let mut batch: Vec<Bytes> = Vec::with_capacity(BATCH);
        loop {
            let key = rows.next().await.transpose()?;
            let ended = key.is_none();
            batch.extend(key);
            if batch.len() < BATCH && !ended {
                continue;
            }
            number += batch.len();
            match context.pipeline.add_keys(record.id, reference, std::mem::take(&mut batch)).await? {
                Added::Yes => {}
                Added::Lost => return Ok(false),
                Added::Full => {
                    tracing::warn!(
                        "limits.memory is too small for the keys of rows that others refer to; the lane looks them up in its target"
                    );
                    return Ok(false);
                }
            }
            if ended {
                break;
            }
        }
    }
    client.keep();
    tracing::info!(
        keys = number,
        seconds = began.elapsed().as_secs_f64(),
        "read the keys of rows that others refer to"
    );
    Ok(true)
}

/// Waits until the target holds everything up to `lsn`.
pub(super) async fn caught_up(spool: &SpoolState, lsn: Lsn) {
    while spool.applied() < lsn {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

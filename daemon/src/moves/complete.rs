//! The end of a move: nothing flows back any more, what the tenant had at the source is deleted in small batches, both sides
//! are looked at for rows that should not be there, and the fences go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use connectors::postgres::policy::{Owned, Path};
use connectors::postgres::progress::Status;
use connectors::postgres::purge::{self, Covered, Purge, Work};
use connectors::postgres::{Client, client, fence, snapshot};
use schemas::event::Detail;
use schemas::record::{Completion, Fault, MoveRecord};
use schemas::status::{CompletionReport, Happened, Severity, TableRows};
use schemas::{Phase, TableName};

use super::cutover::not_ready;
use super::verify::{Held, verify_and_hold, verify_anew};
use super::{Context, Moving, StepError, cutover, driver, hooks, reverse, stages};

/// Rows that are deleted in one transaction.
const BATCH_ROWS: u32 = 1_000;
/// Between two tries of a batch that somebody was in the way of.
const AGAIN: Duration = Duration::from_millis(500);
/// So many in a row, and a person must look.
const ATTEMPTS: u32 = 60;

/// What is looked at before anything is changed. The lane back stays where both sides were compared as long as what is returned
/// beside it is kept: what it brought after that would not be covered.
pub async fn prepare(
    context: &Context,
    moving: &Moving,
    keep_source: bool,
) -> Result<(Completion, Option<Held>), StepError> {
    let record = moving.record();
    may_keep(&record, keep_source)?;
    let mut completion = Completion { keep_source, ..Completion::default() };
    let mut held = None;
    if record.reverse.is_some() && moving.way_back().is_none() && !keep_source {
        return Err(cutover::no_way_back(&record));
    }
    if let Some(back) = moving.way_back() {
        let lane = back.moving.record();
        if !keep_source && (lane.fault.is_some() || lane.phase != Phase::Following || record.paused) {
            let why = "what is written in the target does not flow back, so both sides cannot be compared";
            let next =
                "`carveout resume`; or `carveout complete --keep-source`, which leaves the tenant's rows at the source";
            return Err(not_ready(&record, why, next));
        }
        if context.config.tenant_strategy.migration_config.validation_enabled && !keep_source {
            let (report, home, lane) = verify_and_hold(&back.context, &back.moving).await?;
            if !report.equal {
                let next = "`carveout verify` names the rows";
                return Err(not_ready(&record, "source and target are not equal", next));
            }
            let snapshot = snapshot::current(&home).await?;
            let tables = context.read_by(&record).await?;
            let Covered { before, shown } = Covered::under(&home, &snapshot, &tables, &record.tenant).await?;
            (completion.certificate, completion.covered, held) = (Some(report), Some((before, shown)), lane);
        }
    }
    if !keep_source {
        let source = client::connect(&context.config.source.url, "complete").await?;
        let found = purge::obstacles(&source, &context.read_by(&record).await?, &record.tenant).await?;
        if let Some(finding) = found.into_iter().find(|finding| finding.severity == Severity::Error) {
            let next = format!("{}; or `carveout complete --keep-source`", finding.remedy);
            return Err(StepError::Fault(Fault::new("in_the_way", finding.object, finding.cause, next)));
        }
    }
    let hook = context.config.hooks.before_complete.as_ref();
    hooks::run(hook, "before_complete", &record.tenant).await.map_err(StepError::Fault)?;
    Ok((completion, held))
}

/// What a tenant leaves that had a schema of its own cannot be kept: its move made it.
pub fn may_keep(record: &MoveRecord, keep_source: bool) -> Result<(), StepError> {
    match keep_source {
        true if record.from.is_some() => {
            Err(not_ready(record, "the schema that the tenant leaves cannot be kept", "`carveout complete` drops it"))
        }
        true if record.returning => {
            let why = "what was copied home of a return that was given up cannot be kept";
            Err(not_ready(record, why, "`carveout complete` deletes it"))
        }
        _ => Ok(()),
    }
}

/// What is looked at before a tenant that came home loses what it had elsewhere.
pub async fn prepare_return(context: &Context, moving: &Moving) -> Result<Completion, StepError> {
    let record = moving.record();
    let mut completion = Completion::default();
    if record.fault.is_some() || record.paused {
        let why = "what is written at the source does not flow on, so both sides cannot be compared";
        return Err(not_ready(&record, why, "`carveout resume`"));
    }
    if context.config.tenant_strategy.migration_config.validation_enabled {
        let report = verify_anew(context, moving).await?;
        if !report.equal {
            return Err(not_ready(&record, "source and target are not equal", "`carveout verify` names the rows"));
        }
        completion.certificate = Some(report);
    }
    let hook = context.config.hooks.before_complete.as_ref();
    hooks::run(hook, "before_complete", &record.tenant).await.map_err(StepError::Fault)?;
    Ok(completion)
}

/// Does it; whatever was done already is not done again.
pub(super) async fn complete(context: &Arc<Context>, moving: &Arc<Moving>) -> Result<(), StepError> {
    // Where it was asked for right after the flip.
    if moving.spool().is_some() {
        driver::close_lane(context, moving).await?;
    }
    reverse::discard(context, moving).await?;
    let record = moving.record();
    let (keep, empty) = record.completion.as_ref().map_or((false, false), |done| (done.keep_source, done.empty));
    // Behind that, what the tenant leaves may be gone.
    if !empty {
        let tables = context.read_by(&record).await?;
        if !keep {
            let covered = covered(context, moving, &tables).await?;
            delete(context, moving, &tables, covered).await?;
        }
        look_for_leaks(context, moving, &tables, keep).await?;
        moving.update(&context.store, |record| record.completion.get_or_insert_default().empty = true)?;
    }
    // Until then the fence refuses who still writes there.
    stages::leave(context, moving).await?;
    cutover::take_away(context, moving, true).await?;

    if !record.returning {
        hooks::report(context.config.hooks.after_complete.as_ref(), "after_complete", &record.tenant).await;
    }
    Ok(())
}

/// The row versions that may be deleted: those that the certificate is about. Without one what is there now, found out once: what
/// comes after that came past the fence.
async fn covered(context: &Context, moving: &Moving, tables: &[Owned]) -> Result<Covered, StepError> {
    let record = moving.record();
    if let Some((before, shown)) = record.completion.and_then(|completion| completion.covered) {
        return Ok(Covered { before, shown });
    }
    let held = snapshot::hold(&context.config.source.url, "complete").await?;
    let covered = Covered::under(&held.client, &held.snapshot, tables, &record.tenant).await?;
    let Covered { before, shown } = covered.clone();
    moving.update(&context.store, |record| {
        record.completion.get_or_insert_default().covered = Some((before, shown));
    })?;
    Ok(covered)
}

async fn delete(context: &Context, moving: &Moving, tables: &[Owned], covered: Covered) -> Result<(), StepError> {
    let record = moving.record();
    let before = record.completion.map(|completion| completion.deleted).unwrap_or_default();
    let mut deleted: BTreeMap<String, u64> = before.into_iter().collect();
    let client = client::connect(&context.config.source.url, "complete").await?;
    let work = Work { tables: tables.to_vec(), tenant: record.tenant.clone(), covered, rows: BATCH_ROWS };
    let settings = [(fence::LANE.to_owned(), record.id.to_string())];
    let mut purge = Purge::open(client, work, &settings).await?;
    let mut failures = 0;
    loop {
        match purge.next().await {
            Ok(None) => return Ok(()),
            Ok(Some(batch)) => {
                failures = 0;
                *deleted.entry(batch.table.to_string()).or_default() += batch.rows;
                let so_far: Vec<(String, u64)> = deleted.clone().into_iter().collect();
                moving.update(&context.store, |record| {
                    record.completion.get_or_insert_default().deleted = so_far;
                })?;
                context.throttle.take(batch.rows).await;
            }
            Err(error) if error.may_pass() && !error.is_transient() && failures < ATTEMPTS => {
                failures += 1;
                tracing::info!(%error, "a batch could not be deleted yet; trying again");
                tokio::time::sleep(AGAIN).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Rows of the tenant where it does not live any more, rows of others where it does.
async fn look_for_leaks(context: &Context, moving: &Moving, tables: &[Owned], keep: bool) -> Result<(), StepError> {
    let record = moving.record();
    let target = context.target(&record)?;
    let source = client::connect(&context.config.source.url, "complete").await?;
    let there = client::connect(&target.url, "complete").await?;
    let residue = counted(purge::residue(&source, tables, &record.tenant).await?);
    // Of a target that is as it was before a return that was given up nothing is said.
    let foreign = if record.returning { Vec::new() } else { foreign(context, moving, &there).await? };
    let left = residue.first().filter(|_| !keep);
    if let Some((table, rows)) = left {
        let why = format!(
            "{rows} rows of the tenant are still there that came or changed after the writes had moved, or that others refer to"
        );
        let next = "look at them: whatever wrote them got round the fence; `carveout complete` goes on, `carveout complete --keep-source` leaves them";
        return Err(StepError::Fault(Fault::new("residue", table.clone(), why, next)));
    }
    if let Some((table, rows)) = foreign.first() {
        let why = format!("{rows} rows in the target are not the tenant's");
        let next = "move them to where they belong, then `carveout complete` again";
        return Err(StepError::Fault(Fault::new("leak", table.clone(), why, next)));
    }
    moving.update(&context.store, |record| record.completion.get_or_insert_default().residue = residue)?;
    Ok(())
}

/// Rows of others where all should be the tenant's.
pub(super) async fn foreign(
    context: &Context,
    moving: &Moving,
    there: &Client,
) -> Result<Vec<(String, u64)>, StepError> {
    let record = moving.record();
    let plan = moving.sink_plan(&context.target(&record)?, 0);
    let models = context.tables(record.models()).await?;
    let own = models.into_iter().filter(|owned| !matches!(owned.path, Path::Reference));
    let places: Vec<(Owned, TableName)> = own
        .map(|owned| {
            let name = plan.target_name(&owned.table.name);
            (owned, name)
        })
        .collect();
    Ok(counted(purge::foreign_rows(there, &places, &record.tenant).await?))
}

fn counted(found: Vec<(TableName, u64)>) -> Vec<(String, u64)> {
    found.into_iter().map(|(table, rows)| (table.to_string(), rows)).collect()
}

/// It is complete.
pub(super) fn tell(moving: &Moving) {
    let deleted = moving.record().completion.map(|completion| completion.deleted).unwrap_or_default();
    let rows_deleted = Some(deleted.iter().map(|(_, rows)| rows).sum());
    moving.tell("complete", Detail { status: Some(Status::Completed.word()), rows_deleted, ..Detail::default() });
}

/// All of the move.
pub async fn report(context: &Context, moving: &Moving) -> Result<CompletionReport, StepError> {
    let record: MoveRecord = moving.record();
    let completion = record.completion.unwrap_or_default();
    let rows =
        |counted: Vec<(String, u64)>| counted.into_iter().map(|(table, rows)| TableRows { table, rows }).collect();
    let happened = record.history.into_iter().map(|event| Happened {
        phase: event.phase,
        at: event.at as f64 / 1e6,
        pause_ms: event.pause_us.map(|pause| pause as f64 / 1e3),
    });
    Ok(CompletionReport {
        route: cutover::route(context, moving)?,
        tenant: record.tenant,
        r#move: record.id,
        timeline: happened.collect(),
        rows_copied: record.rows_copied,
        certificate: completion.certificate,
        keep_source: completion.keep_source,
        deleted: rows(completion.deleted),
        residue: rows(completion.residue),
        foreign: Vec::new(),
    })
}

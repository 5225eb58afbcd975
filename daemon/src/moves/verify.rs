//! Compares both sides at one position: the lane is brought to hold exactly what a snapshot of the
//! source shows, the target's snapshot is taken, the lane goes on, and then both are read.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use connectors::postgres::checksum::{Side, compare};
use connectors::postgres::policy::Owned;
use connectors::postgres::snapshot::{self, HeldSnapshot};
use connectors::postgres::{Client, Doing, client, slot};
use schemas::Phase;
use schemas::config::Target;
use schemas::record::Fault;
use schemas::status::VerifyReport;
use tokio::sync::{mpsc, oneshot};

use super::{Context, Moving, StepError};
use crate::lane::LaneCommand;

/// How long to try for a snapshot at which the lane can stand.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// Releases the lane whatever happens.
struct Held(mpsc::Sender<LaneCommand>);

impl Drop for Held {
    fn drop(&mut self) {
        // The lane takes one command at a time and few wait; a full queue means that it is gone.
        if self.0.try_send(LaneCommand::Release).is_err() {
            tracing::debug!("the lane is gone; nothing to release");
        }
    }
}

/// Marks the move as being verified.
struct Verifying<'a>(&'a Moving);

impl Drop for Verifying<'_> {
    fn drop(&mut self) {
        self.0.verifying.store(false, Ordering::Relaxed);
    }
}

/// Compares every table of the move.
pub async fn verify(context: &Context, moving: &Moving) -> Result<VerifyReport, StepError> {
    let record = moving.record();
    let refuse =
        |message: &str, next: &str| StepError::Fault(Fault::new("not_ready", record.id.to_string(), message, next));
    if record.phase != Phase::Following {
        return Err(refuse("it cannot be verified before its copy is complete", "carveout status"));
    }
    if record.paused {
        return Err(refuse("it is paused", "`carveout resume`, then verify"));
    }
    if moving.verifying.swap(true, Ordering::Relaxed) {
        return Err(refuse("it is being verified already", "wait for that to end"));
    }
    let _verifying = Verifying(moving);
    let target = context.target(&record)?;
    let tables = context.tables(&record.tables).await?;
    let began = Instant::now();
    let report = loop {
        let why = match stand(context, moving, &target.url).await? {
            Ok((source, client)) => match compare_all(context, moving, &target, &tables, &source, &client).await? {
                Some(report) => break report,
                None => "partitions came or went while it was compared",
            },
            Err(why) => why,
        };
        if began.elapsed() > PATIENCE {
            return Err(refuse(
                &format!("no position was found at which both sides can be read; at last {why}"),
                "try again when the tenant is less busy and no partitions come or go, or see whether the target keeps up",
            ));
        }
        tokio::time::sleep(PAUSE).await;
    };
    *super::lock(&moving.differences) = Some(report.tables.iter().map(|table| table.differences).sum());
    moving.update(&context.store, |record| record.verified_at = report.equal.then_some(report.lsn))?;
    tracing::info!(id = %record.id, tenant = %record.tenant, equal = report.equal, at = %report.lsn, "verified");
    Ok(report)
}

/// Compares the tables; `None` when partitions came or went meanwhile: neither side shows them as they were.
async fn compare_all(
    context: &Context,
    moving: &Moving,
    target: &Target,
    tables: &[Owned],
    source: &HeldSnapshot,
    client: &Client,
) -> Result<Option<VerifyReport>, StepError> {
    let record = moving.record();
    let plan = moving.sink_plan(target, 0);
    let mut report =
        VerifyReport { tenant: record.tenant.clone(), lsn: source.wal_insert_lsn, equal: true, tables: Vec::new() };
    for owned in tables {
        let left =
            Side { client: &source.client, table: owned.table.name.clone(), filter: owned.filter(&record.tenant) };
        // No filter on this side: a row that does not belong here is a difference.
        let right = Side { client, table: plan.target_name(&owned.table.name), filter: "true".to_owned() };
        let table = compare(&left, &right, &owned.table).await?;
        report.equal &= table.differences == 0;
        report.tables.push(table);
    }
    let asking = client::connect(&context.config.source.url, "verify").await?;
    let read_again = moving.spool().is_some_and(|link| link.state.lacks_rows());
    let same = !read_again
        && moving.record().published == record.published
        && same_partitions(context, moving, &asking).await?;
    Ok(same.then_some(report))
}

/// Whether the source's partitions, as `client` sees them, are those that the move knows.
async fn same_partitions(context: &Context, moving: &Moving, client: &Client) -> Result<bool, StepError> {
    let record = moving.record();
    if !record.published.is_partitioned() {
        return Ok(true);
    }
    let now = slot::published(client, &context.config.source.publication, &record.tables).await?;
    Ok(record.published.repartitioned(&now).is_empty())
}

/// Brings both sides to one position; or why that did not succeed this time.
async fn stand(
    context: &Context,
    moving: &Moving,
    target: &schemas::url::PgUrl,
) -> Result<Result<(HeldSnapshot, Client), &'static str>, StepError> {
    let id = moving.record().id;
    let lost =
        || StepError::Fault(Fault::new("not_ready", id.to_string(), "its lane is not running", "carveout status"));
    // After a start it may not run yet.
    let Some(commands) = moving.lane() else {
        return if moving.record().fault.is_some() { Err(lost()) } else { Ok(Err("its lane was not running")) };
    };
    let (held, standing) = oneshot::channel();
    commands.send(LaneCommand::Hold(held)).await.map_err(|_| lost())?;
    let _held = Held(commands.clone());
    let Ok(Ok(applied)) = tokio::time::timeout(PATIENCE, standing).await else {
        return Ok(Err("the target was not connected, or had not committed what it was sent"));
    };
    // What the lane has applied must be visible too, and that may come later than its delivery; after a
    // restart it is delivered again first.
    let Ok(passed) = tokio::time::timeout(PATIENCE, context.pipeline.passed(applied)).await else {
        return Ok(Err("the stream had not come to where the target is"));
    };
    passed?;
    let demand = context.pipeline.unseen.lock().unwrap_or_else(PoisonError::into_inner).demand();
    let source = snapshot::hold(&context.config.source.url, "verify").await?;
    if !demand.met_by(&source.snapshot) {
        return Ok(Err("a transaction that was delivered was not visible yet"));
    }
    let ticker = client::connect(&context.config.source.url, "verify").await?;
    snapshot::tick(&ticker).await?;
    let (done, stands) = oneshot::channel();
    let advance = LaneCommand::Advance { snapshot: source.snapshot.clone(), until: source.wal_insert_lsn, done };
    commands.send(advance).await.map_err(|_| lost())?;
    match tokio::time::timeout(PATIENCE, stands).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(why))) => return Ok(Err(why)),
        _ => return Ok(Err("the target did not take what was waiting")),
    }
    // Partitions that came or went since are not in the target yet.
    if !same_partitions(context, moving, &source.client).await? {
        return Ok(Err("the target did not have the source's partitions yet"));
    }
    let client = client::connect(target, "verify").await?;
    client
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT pg_current_snapshot()")
        .await
        .doing("take the target's snapshot")?;
    Ok(Ok((source, client)))
}

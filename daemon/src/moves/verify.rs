//! Compares both sides at one position: the lane is brought to hold exactly what a snapshot of the
//! source shows, the target's snapshot is taken, the lane goes on, and then both are read.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use connectors::postgres::apply::Changed;
use connectors::postgres::catalog::Table;
use connectors::postgres::checksum::{Pace, RESTS, Side, compare};
use connectors::postgres::policy::Path;
use connectors::postgres::snapshot::{self, HeldSnapshot};
use connectors::postgres::spare::{self, Spare};
use connectors::postgres::{Client, Doing, slot};
use schemas::{Phase, TableName};

use schemas::config::Target;
use schemas::event::Detail;
use schemas::record::{Fault, MoveRecord, Proof};
use schemas::status::VerifyReport;
use schemas::url::PgUrl;
use tokio::sync::{mpsc, oneshot};

use super::certificate::{Certificate, Shapes};
use super::{Context, Moving, StepError, recheck};
use crate::lane::LaneCommand;

/// How long to try for a snapshot at which the lane can stand.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// Releases the lane whatever happens.
pub struct Held(mpsc::Sender<LaneCommand>);

impl Drop for Held {
    fn drop(&mut self) {
        // The lane takes one command at a time and few wait; a full queue means that it is gone.
        if self.0.try_send(LaneCommand::Release).is_err() {
            tracing::debug!("the lane is gone; nothing to release");
        }
    }
}

/// Marks the move as being verified.
pub(super) struct Verifying<'a>(&'a Moving);

impl Verifying<'_> {
    /// Nobody else moves the lane meanwhile.
    pub(super) fn begin(moving: &Moving) -> Result<Verifying<'_>, StepError> {
        if moving.verifying.swap(true, Ordering::Relaxed) {
            let (id, next) = (moving.record().id.to_string(), "wait for that to end");
            return Err(StepError::Fault(Fault::new("not_ready", id, "it is being verified already", next)));
        }
        Ok(Verifying(moving))
    }
}

impl Drop for Verifying<'_> {
    fn drop(&mut self) {
        self.0.verifying.store(false, Ordering::Relaxed);
    }
}

/// What a comparison reads, and what becomes of the lane.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// What was read before it was interrupted is not read again.
    GoesOn,
    /// All rows are read.
    Anew,
    /// The same, and the lane stays there.
    Stays,
}

/// Compares every table of the move.
pub async fn verify(context: &Context, moving: &Moving) -> Result<VerifyReport, StepError> {
    Ok(verify_at(context, moving, None, Manner::GoesOn).await?.report)
}

/// The same, and reads all rows.
pub(super) async fn verify_anew(context: &Context, moving: &Moving) -> Result<VerifyReport, StepError> {
    Ok(verify_at(context, moving, None, Manner::Anew).await?.report)
}

/// The same for somebody who goes by it, and knows what the tables look like now; without a certificate the sides are not equal.
pub(super) async fn certify(
    context: &Context,
    moving: &Moving,
    tables: Vec<Compared>,
    shapes: Shapes,
) -> Result<(VerifyReport, Option<Certificate>), StepError> {
    let verified = verify_at(context, moving, Some((tables, shapes)), Manner::GoesOn).await?;
    verified.client.let_go().await;
    Ok((verified.report, verified.certificate))
}

/// What a comparison leaves.
struct Verified {
    report: VerifyReport,
    /// Where the lane notes for it.
    certificate: Option<Certificate>,
    /// The snapshot of the lane's sink.
    client: Spare,
    held: Option<Held>,
}

/// Compares the tables, and leaves the lane where both sides were compared, with the snapshot of its sink there.
pub(super) async fn verify_and_hold(
    context: &Context,
    moving: &Moving,
) -> Result<(VerifyReport, Spare, Option<Held>), StepError> {
    let verified = verify_at(context, moving, None, Manner::Stays).await?;
    Ok((verified.report, verified.client, verified.held))
}

fn refuse(record: &MoveRecord, message: &str, next: &str) -> StepError {
    StepError::Fault(Fault::new("not_ready", record.id.to_string(), message, next))
}

/// Refuses where there are no two sides, or nothing between them flows.
fn can_be_compared(record: &MoveRecord) -> Result<(), StepError> {
    let (message, next) = match record.phase {
        Phase::Following if record.paused => ("it is paused", "`carveout resume`, then verify"),
        Phase::Following => return Ok(()),
        Phase::Moved => return Err(super::cutover::no_way_back(record)),
        Phase::CuttingOver | Phase::RollingBack => ("its writes are being moved", "wait for that to end, then verify"),
        Phase::Completing | Phase::Completed => ("the tenant stays in its target: nothing is left to compare with", ""),
        _ => ("it cannot be verified before its copy is complete", "carveout status"),
    };
    Err(refuse(record, message, next))
}

async fn verify_at(
    context: &Context,
    moving: &Moving,
    known: Option<(Vec<Compared>, Shapes)>,
    manner: Manner,
) -> Result<Verified, StepError> {
    let record = moving.record();
    can_be_compared(&record)?;
    let _verifying = Verifying::begin(moving)?;
    // Whoever is about to move the writes goes by what is noted already.
    let in_use = super::lock(&moving.certificate).as_ref().is_some_and(Certificate::is_in_use);
    let mut begun = super::lock(&moving.certificate).clone().filter(Certificate::is_begun);
    begun.take_if(|_| manner != Manner::GoesOn);
    let target = context.target(&record)?;
    let (tables, mut shapes) = match known {
        Some((tables, shapes)) => (tables, Some(shapes)),
        None => (tables(context, moving, &target).await?, None),
    };
    let began = Instant::now();
    let (mut certificate, report, client, held) = loop {
        let changed = Arc::new(Changed::default());
        let why = match stand(context, moving, &target.url, (!in_use).then_some(&changed)).await? {
            Ok((source, client, held)) => {
                let held = (manner == Manner::Stays).then_some(held);
                // A lane that began anew has not noted everything, nor ended that.
                begun.take_if(|begun| !begun.changed().is_closed());
                let mut certificate = match (begun.take(), shapes.take()) {
                    // Where a table is another one since it was looked at, this counts no more.
                    (None, Some(shapes)) => Certificate::begin(&changed, shapes),
                    (begun, _) => from_here(context, moving, &tables, (&source, &client), (begun, &changed)).await?,
                };
                if !in_use {
                    *super::lock(&moving.certificate) = Some(certificate.clone());
                }
                let report = compare_all(context, moving, &tables, (&source, &client), &mut certificate).await?;
                source.client.let_go().await;
                match report {
                    Some(report) => break (certificate, report, client, held),
                    None => "partitions came or went while it was compared",
                }
            }
            Err(why) => why,
        };
        if began.elapsed() > PATIENCE {
            return Err(refuse(
                &record,
                &format!("no position was found at which both sides can be read; at last {why}"),
                "try again when the tenant is less busy and no partitions come or go, or see whether the target keeps up",
            ));
        }
        tokio::time::sleep(PAUSE).await;
    };
    let differences = report.tables.iter().map(|table| table.differences).sum();
    *super::lock(&moving.differences) = Some(differences);
    let at = certificate.at();
    let certificate = match report.equal {
        false => None,
        // Whoever uses the one that there is has it.
        true if in_use => super::lock(&moving.certificate).clone(),
        true => {
            certificate.end();
            moving.certify(&certificate);
            Some(certificate)
        }
    };
    let proof = report.equal.then(|| Proof { at, report: report.clone(), carried: false });
    moving.update(&context.store, |record| {
        // Where the writes have moved meanwhile, somebody has gone by another one.
        if record.phase != Phase::Moved {
            if proof.is_none() {
                record.unproved();
            }
            record.verified = proof;
        }
    })?;
    // What was kept may have been taken up meanwhile.
    super::lock(&moving.certificate).take_if(|_| !report.equal);
    let (equal, lsn) = (Some(report.equal), Some(report.lsn));
    moving.tell("verify", Detail { equal, lsn, differences: Some(differences), ..Detail::default() });
    Ok(Verified { report, certificate, client, held })
}

/// What a comparison begins with at a position: nothing, or what is still good of one that was interrupted.
async fn from_here(
    context: &Context,
    moving: &Moving,
    tables: &[Compared],
    (source, client): (&HeldSnapshot, &Client),
    (begun, changed): (Option<Certificate>, &Arc<Changed>),
) -> Result<Certificate, StepError> {
    let record = moving.record();
    let back = record.back.is_some();
    // Not there where the snapshots are held: whoever looks at a table's partitions locks it, and what a role may not do would end it.
    let (from, to) = (&context.config.source.url, context.target(&record)?);
    let (from, to) = (spare::take(from, "verify").await?, spare::take(&to.url, "verify").await?);
    let both = recheck::both(&record, tables.to_vec(), in_order(back, &from, &to).1).await?;
    let shapes = recheck::shapes(&both, in_order(back, &from, &to)).await?;
    let unseen = begun.is_some() && recheck::writes_unseen(&both, back, &to).await?;
    from.keep();
    to.keep();
    let Some(begun) = begun else { return Ok(Certificate::begin(changed, shapes)) };
    let (mut certificate, noted) = (begun.go_on(changed, shapes), begun.changed().tables());
    for table in &both {
        let (name, clients) = (table.name(), in_order(back, &source.client, client));
        if certificate.table(&name).is_some() && (unseen || !table.is_still_equal(clients, &noted).await?) {
            certificate.forget(&name);
        }
    }
    Ok(certificate)
}

/// The shared side first: of a lane `back` it is the sink's.
pub(super) fn in_order<'a>(back: bool, source: &'a Client, sink: &'a Client) -> (&'a Client, &'a Client) {
    if back { (sink, source) } else { (source, sink) }
}

/// A table on both sides, each with its name and the condition for the rows that count.
#[derive(Clone)]
pub(super) struct Compared {
    pub shape: Table,
    pub source: (TableName, String),
    pub target: (TableName, String),
    /// The condition on the shared side for who reads all rows there, and rests.
    gently: String,
    /// Whether it is everybody's: no fence holds its writers.
    pub reference: bool,
}

/// What is compared: the tenant's rows at the source with all that is in the target, so that a row that does not belong there
/// is a difference.
pub(super) async fn tables(context: &Context, moving: &Moving, target: &Target) -> Result<Vec<Compared>, StepError> {
    let record = moving.record();
    let all = || "true".to_owned();
    let (homes, here) = match &record.back {
        None => (&record.tables, None),
        Some(back) => (&back.homes, Some(&record.tables)),
    };
    let plan = moving.sink_plan(target, 0);
    let mut compared = Vec::new();
    for owned in context.at_home(&record).await? {
        let (name, filter) = (owned.table.name.clone(), owned.filter(&record.tenant));
        let place = homes.iter().position(|home| *home == name);
        let (source, target) = match (here, place) {
            (Some(here), Some(place)) => ((here[place].clone(), all()), (name, filter)),
            _ => {
                let there = plan.target_name(&name);
                ((name, filter), (there, all()))
            }
        };
        let reference = matches!(owned.path, Path::Reference);
        let gently = owned.filter_and(&record.tenant, RESTS);
        compared.push(Compared { shape: owned.table, source, target, gently, reference });
    }
    Ok(compared)
}

/// Compares the tables that `certificate` does not name; `None` when partitions came or went meanwhile: neither side shows them as they
/// were.
async fn compare_all(
    context: &Context,
    moving: &Moving,
    tables: &[Compared],
    (source, client): (&HeldSnapshot, &Client),
    certificate: &mut Certificate,
) -> Result<Option<VerifyReport>, StepError> {
    let record = moving.record();
    let lsn = source.wal_insert_lsn;
    let mut report = VerifyReport { tenant: record.tenant.clone(), lsn, equal: true, tables: Vec::new() };
    for Compared { shape, source: (left, of_tenant), target: (right, there), gently, .. } in tables {
        if let Some(table) = certificate.table(&shape.name.to_string()) {
            report.tables.push(table.clone());
            continue;
        }

        let left = Side { client: &source.client, table: left.clone(), filter: of_tenant.clone() };
        let right = Side { client, table: right.clone(), filter: there.clone() };
        // The shared side is the source in every report, whichever way the changes flow.
        let (shared, target) = if record.back.is_some() { (right, left) } else { (left, right) };
        let source = Side { filter: gently.clone(), ..shared };
        let mut table = compare(&source, &target, shape, Pace::Gentle).await?;
        table.lsn = Some(lsn);
        report.equal &= table.differences == 0;
        if table.differences == 0 {
            certificate.add(table.clone());
            moving.certify(certificate);
        }
        report.tables.push(table);
    }
    Ok(still(context, moving, &record).await?.then_some(report))
}

/// Whether no partitions came or went since `record` was read.
pub(super) async fn still(context: &Context, moving: &Moving, record: &MoveRecord) -> Result<bool, StepError> {
    let asking = spare::take(&context.config.source.url, "verify").await?;
    let read_again = moving.spool().is_some_and(|link| link.state.lacks_rows());
    let still = !read_again
        && moving.record().published == record.published
        && same_partitions(context, moving, &asking).await?;
    asking.keep();
    Ok(still)
}

/// Whether the source's partitions, as `client` sees them, are those that the move knows.
pub(super) async fn same_partitions(context: &Context, moving: &Moving, client: &Client) -> Result<bool, StepError> {
    let record = moving.record();
    if !record.published.is_partitioned() {
        return Ok(true);
    }
    let now = slot::published(client, &context.config.source.publication, &record.tables).await?;
    Ok(record.published.repartitioned(&now).is_empty())
}

/// Brings both sides to one position, from which on `changed` is noted, and where the lane stays until it is let go; or why that did
/// not succeed this time.
pub(super) async fn stand(
    context: &Context,
    moving: &Moving,
    target: &PgUrl,
    changed: Option<&Arc<Changed>>,
) -> Result<Result<(HeldSnapshot, Spare, Held), &'static str>, StepError> {
    let id = moving.record().id;
    let lost =
        || StepError::Fault(Fault::new("not_ready", id.to_string(), "its lane is not running", "carveout status"));
    // After a start it may not run yet.
    let Some(commands) = moving.lane() else {
        return if moving.record().fault.is_some() { Err(lost()) } else { Ok(Err("its lane was not running")) };
    };
    let (held, standing) = oneshot::channel();
    commands.send(LaneCommand::Hold(held)).await.map_err(|_| lost())?;
    let lane = Held(commands.clone());
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
        source.client.let_go().await;
        return Ok(Err("a transaction that was delivered was not visible yet"));
    }
    let ticker = spare::take(&context.config.source.url, "verify").await?;
    snapshot::tick(&ticker).await?;
    ticker.keep();
    let (done, stands) = oneshot::channel();
    let advance = LaneCommand::Advance { snapshot: source.snapshot.clone(), until: source.wal_insert_lsn, done };
    commands.send(advance).await.map_err(|_| lost())?;
    match tokio::time::timeout(PATIENCE, stands).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(why))) => {
            source.client.let_go().await;
            return Ok(Err(why));
        }
        _ => return Ok(Err("the target did not take what was waiting")),
    }
    // Partitions that came or went since are not in the target yet.
    if !same_partitions(context, moving, &source.client).await? {
        return Ok(Err("the target did not have the source's partitions yet"));
    }
    let client = spare::take(target, "verify").await?;
    client
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT pg_current_snapshot()")
        .await
        .doing("take the target's snapshot")?;
    // Before it goes on: the lane takes its commands in order.
    if let Some(changed) = changed {
        let (done, noting) = oneshot::channel();
        let note = LaneCommand::Note { changed: Arc::downgrade(changed), done };
        commands.send(note).await.map_err(|_| lost())?;
        tokio::time::timeout(PATIENCE, noting).await.ok().and_then(Result::ok).ok_or_else(lost)?;
    }
    Ok(Ok((source, client, lane)))
}

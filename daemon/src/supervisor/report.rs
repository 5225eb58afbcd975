//! What the daemon shows of itself.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use schemas::config::Isolation;
use schemas::event::MoveEvent;
use schemas::record::{MoveRecord, OwnServer, Proof};
use schemas::status::{CertificateStatus, SourceStatus, Status, TenantStatus};
use schemas::{Lsn, Phase};

use super::{Entry, Supervisor, behind};
use crate::clock;
use crate::moves::{Context, Moving};
use crate::pipeline::Progress;

impl Supervisor {
    /// `GET /v1/status`.
    pub fn status(&self) -> Status {
        let progress = self.context.pipeline.progress.borrow().clone();
        let source = SourceStatus {
            state: progress.state.to_owned(),
            slot: self.context.config.source.slot.clone(),
            server_version: Some(self.context.server_version),
            wal_lsn: progress.wal_end,
            received_lsn: progress.received,
            acknowledged_lsn: progress.acknowledged,
            lag_bytes: behind(progress.wal_end, progress.received),
            retained_bytes: progress.retained_bytes,
            fault: progress.fault.clone(),
        };
        let tenants = self.shown().iter().map(|entry| tenant_status(&self.context, &entry.moving, &progress)).collect();
        Status { version: env!("CARGO_PKG_VERSION").to_owned(), source, tenants }
    }

    /// Raised when the daemon stops.
    pub fn stopping(&self) -> tokio::sync::watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// What happens to moves from now on.
    pub fn follow(&self) -> tokio::sync::broadcast::Receiver<MoveEvent> {
        self.context.events.follow()
    }

    /// `GET /metrics`.
    pub fn metrics(&self) -> Result<String, std::fmt::Error> {
        let numbers: Vec<_> = self.shown().iter().map(|entry| entry.moving.numbers()).collect();
        self.context.metrics.text(&self.status(), &numbers)
    }

    /// Of each tenant the newest move that was not cancelled: it may have gone on from an earlier one.
    fn shown(&self) -> Vec<Entry> {
        let moves = self.lock();
        let mut tenants = HashSet::new();
        let newest = moves.values().rev().filter(|entry| {
            let record = entry.moving.record();
            record.phase != Phase::Cancelled && tenants.insert(record.tenant)
        });
        let mut shown: Vec<Entry> = newest.cloned().collect();
        shown.reverse();
        shown
    }

    /// One tenant's move; a cancelled one only when there is no other.
    pub fn tenant(&self, tenant: &str) -> Option<TenantStatus> {
        let progress = self.context.pipeline.progress.borrow().clone();
        self.find(tenant).map(|entry| tenant_status(&self.context, &entry.moving, &progress))
    }

    /// Whether the daemon can work; if not, why.
    pub fn ready(&self) -> Result<(), String> {
        let progress = self.context.pipeline.progress.borrow();
        match (&progress.fault, progress.state) {
            (Some(fault), _) => Err(fault.message.clone()),
            (None, "streaming") => Ok(()),
            (None, state) => Err(format!("the source is not streaming (state: {state})")),
        }
    }

    /// The newest move of the tenant, those that are not cancelled first.
    pub(super) fn find(&self, tenant: &str) -> Option<Entry> {
        let moves = self.lock();
        let of_tenant = || moves.values().rev().filter(|entry| entry.moving.record().tenant.0 == tenant);
        of_tenant()
            .find(|entry| entry.moving.record().phase != Phase::Cancelled)
            .or_else(|| of_tenant().next())
            .cloned()
    }
}

fn tenant_status(context: &Context, moving: &Moving, progress: &Progress) -> TenantStatus {
    let record = moving.record();
    // While the tenant lives in its target, what flows back.
    let reverse = moving.way_back();
    let (progress, lane) = match &reverse {
        Some(reverse) => (&reverse.context.pipeline.progress.borrow().clone(), &*reverse.moving),
        None => (progress, moving),
    };
    let spool = lane.spool().map(|link| link.state);
    let following = lane.record().phase == Phase::Following;
    // A lane that has nothing to apply moves on with the stream.
    let applied_lsn = match &spool {
        Some(spool) if following && spool.oldest().is_none() => progress.received,
        Some(spool) => spool.position(),
        None => Lsn::ZERO,
    };
    let now = clock::unix_micros();
    let age = |since: i64| (now - since).max(0) as f64 / 1e6;
    // The oldest change that waits in the spool; or, where that is newer, what the source has and we have not.
    let waiting =
        spool.as_ref().and_then(|spool| spool.oldest()).map(|oldest| age(oldest - progress.server_clock_offset));
    let unread = progress.behind_since.map(age);
    let lag_seconds = following.then(|| waiting.unwrap_or(0.0).max(unread.unwrap_or(0.0)));
    let mut blocked_by: Vec<String> = Vec::new();
    let in_step = if record.returning { Phase::Moved } else { Phase::Following };
    blocked_by.extend((record.phase != in_step).then(|| not_following(&record).to_owned()));
    blocked_by.extend(lag_seconds.filter(|lag| *lag >= CAUGHT_UP_SECONDS).map(|_| "it is not caught up".to_owned()));
    blocked_by.extend(progress.fault.as_ref().map(|fault| fault.message.clone()));
    blocked_by.extend(record.fault.as_ref().map(|fault| fault.message.clone()));
    let fault_back = reverse.as_ref().and_then(|reverse| reverse.moving.record().fault);
    blocked_by.extend(fault_back.as_ref().map(|fault| fault.message.clone()));
    blocked_by.extend(record.paused.then(|| "it is paused".to_owned()));
    let unproved = |lsn| format!("transaction {lsn} was left out, and no clean verify has come after it");
    blocked_by.extend(record.unproved_skip().map(unproved));
    let waiting_for = moving.meter.trouble().or(lane.meter.trouble());
    blocked_by.extend(waiting_for.clone());
    let own = if record.to == Isolation::Database { "database" } else { "schema" };
    let (to, target) = bound_for(context, &record, own);
    // Of a tenant that comes home, the rows that are copied are the lane's.
    let copying = if record.returning { lane } else { moving };

    let copies = matches!(record.phase, Phase::Copying | Phase::Returning) && !record.paused && record.fault.is_none();
    let throttled_by = context.gate.reason().filter(|_| copies);
    let warnings = kept_too_long(context, &record, now).into_iter().collect();
    TenantStatus {
        server: record.server.as_ref().map(OwnServer::to_string),
        target,
        phase: phase(moving, lane, lag_seconds).to_owned(),
        isolation: if record.phase.lives_in_target() { own } else { record.home() }.to_owned(),
        to: to.to_owned(),
        rows_copied: copying.rows_copied.load(Ordering::Relaxed),
        rows_total: copying.record().rows_total,
        received_lsn: progress.received,
        // Before the copy is complete the tenant has no position.
        lag_bytes: if following { behind(progress.wal_end, applied_lsn) } else { 0 },
        spool_bytes: spool.map_or(0, |spool| spool.bytes()),
        applied_lsn,
        lag_seconds,
        can_cutover: blocked_by.is_empty(),
        blocked_by,
        fault: record.fault.or(fault_back),
        throttled_by,
        paused: record.paused,
        skipped: record.skipped,
        waiting_for,
        warnings,
        left_out: moving.left_out(),
        changes_applied: moving.meter.changes.load(Ordering::Relaxed),
        verified_at_lsn: lane.record().verified_at(),
        certificate: lane.record().verified.filter(|_| following).map(|proof| certificate(&proof, lane.is_certified())),
        route_epoch: u64::try_from(record.epoch).ok().filter(|epoch| *epoch > 0),
        tenant: record.tenant,
        r#move: record.id,
    }
}

fn certificate(proof: &Proof, counts: bool) -> CertificateStatus {
    let tables = &proof.report.tables;
    CertificateStatus {
        at: proof.at as f64 / 1e6,
        lsn: proof.report.lsn,
        counts,
        tables: tables.len() as u64,
        rows: tables.iter().map(|table| table.source_rows).sum(),
    }
}

/// What is going on.
fn phase(moving: &Moving, lane: &Moving, lag_seconds: Option<f64>) -> &'static str {
    if moving.rehearsing.load(Ordering::Relaxed) {
        return "rehearsing";
    }
    match moving.record().word(lag_seconds, lane.verifying.load(Ordering::Relaxed)) {
        "streaming" if lane.is_ready() => "ready",
        word => word,
    }
}

/// Where the tenant goes: the kind, and the name.
fn bound_for(context: &Context, record: &MoveRecord, own: &'static str) -> (&'static str, String) {
    match record.returning {
        true => ("shared", context.config.source.url.database().unwrap_or_default().to_owned()),
        false => (own, record.schema.clone().unwrap_or_else(|| record.database.clone())),
    }
}

/// A lag under this counts as caught up.
const CAUGHT_UP_SECONDS: f64 = 1.0;

/// Why the writes cannot be moved in this phase.
fn not_following(record: &MoveRecord) -> &'static str {
    match record.phase {
        Phase::Following => "its writes are at home already",
        Phase::Moved => "its writes are in the target already",
        Phase::CuttingOver | Phase::RollingBack => "its writes are being moved",
        _ => "it is not in step with the source",
    }
}

/// The way back costs, and nobody has said how the move ends.
fn kept_too_long(context: &Context, record: &MoveRecord, now: i64) -> Option<String> {
    let meant = &context.config.tenant_strategy.migration_config.dual_write_duration;
    let since = record.history.last().filter(|_| record.phase == Phase::Moved && !record.returning)?.at;
    let kept = std::time::Duration::from_micros((now - since).max(0).unsigned_abs());
    (kept > meant.0).then(|| {
        format!("the way back has been kept for longer than dual_write_duration ({meant}): `carveout complete` ends it")
    })
}

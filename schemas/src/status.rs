//! The JSON that `/v1/status` and the commands answer with. Field names are held by other people's
//! scripts: adding is free, changing is not.

use serde::{Deserialize, Serialize};

use crate::record::Fault;
use crate::{Lsn, MoveId, TenantId};

/// `GET /v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// The source and its slot.
    pub source: SourceStatus,
    /// One entry per move that has not been cancelled.
    pub tenants: Vec<TenantStatus>,
}

/// The source, the slot, and how far the pipeline has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceStatus {
    /// `connecting`, `streaming` or `stopped` (a person must look; see `fault`).
    pub state: String,
    /// The slot's name.
    pub slot: String,
    /// As `server_version_num`; null until connected once.
    pub server_version: Option<u32>,
    /// The end of the source's log as last heard.
    pub wal_lsn: Lsn,
    /// Everything up to here has been received.
    pub received_lsn: Lsn,
    /// What the slot has been told: everything up to here is durable with every lane.
    pub acknowledged_lsn: Lsn,
    /// Bytes of log between the source's end and what has been received.
    pub lag_bytes: u64,
    /// Bytes of log that the slot keeps on the source; null when not known.
    pub retained_bytes: Option<u64>,
    /// What stopped the pipeline, when something did.
    pub fault: Option<Fault>,
}

/// One move.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TenantStatus {
    /// The tenant's key as text.
    pub tenant: TenantId,
    /// The move's id (`m7`).
    pub r#move: MoveId,
    /// Where the tenant lives now (`shared` until a cutover).
    pub isolation: String,
    /// Where it goes: `schema` or `database`.
    pub to: String,
    /// The schema's or database's name.
    pub target: String,
    /// Host and port of the server that the tenant has for itself; null where the usual patterns point.
    #[serde(default)]
    pub server: Option<String>,
    /// See INTERFACE: `planned`, `copying`, `streaming`, …
    pub phase: String,
    /// Rows copied so far.
    pub rows_copied: u64,
    /// The planner's estimate while copying, then the exact number.
    pub rows_total: u64,
    /// The pipeline's position.
    pub received_lsn: Lsn,
    /// Everything of the tenant up to here is in the target.
    pub applied_lsn: Lsn,
    /// Log between the source's end and `applied_lsn`.
    pub lag_bytes: u64,
    /// Age of the oldest committed change that is not in the target; null before the copy is done.
    pub lag_seconds: Option<f64>,
    /// Bytes in the lane's spool.
    pub spool_bytes: u64,
    /// Whether `cutover` would begin.
    pub can_cutover: bool,
    /// Why not.
    pub blocked_by: Vec<String>,
    /// What stopped the move, when something did.
    pub fault: Option<Fault>,
    /// Whether a person holds it (`pause`).
    #[serde(default)]
    pub paused: bool,
    /// The ends of the transactions that `resume --skip` left out.
    #[serde(default)]
    pub skipped: Vec<Lsn>,
    /// Which of `limits.source` keeps the copy standing; null when none does.
    #[serde(default)]
    pub throttled_by: Option<String>,
    /// What failed and is being tried again; null when nothing is.
    #[serde(default)]
    pub waiting_for: Option<String>,
    /// What somebody should know, although nothing stands still.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What was not made in the target, and why; as far as the daemon has seen it since it started.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// Row changes applied since the daemon started.
    #[serde(default)]
    pub changes_applied: u64,
    /// The position of the last clean `verify`.
    pub verified_at_lsn: Option<Lsn>,
    /// The last comparison of all rows, if it was clean; null when there was none, or nothing is compared any more.
    #[serde(default)]
    pub certificate: Option<CertificateStatus>,
    /// Raised by each flip; null until there has been a cutover.
    pub route_epoch: Option<u64>,
}

/// Both sides were equal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// When they were compared, as Unix time in seconds.
    pub at: f64,
    /// Both sides were read as of this position, of the server that the tenant lived on then.
    pub lsn: Lsn,
    /// Whether a cutover or rollback goes by it, and compares what has changed since then.
    pub counts: bool,
    /// How many tables were compared.
    pub tables: u64,
    /// And rows at the source, with those of reference tables.
    pub rows: u64,
}

/// The result of `complete`: all of the move.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CompletionReport {
    /// The tenant.
    pub tenant: TenantId,
    /// The move's id.
    pub r#move: MoveId,
    /// Where the tenant lives.
    pub route: Route,
    /// What happened and when.
    pub timeline: Vec<Happened>,
    /// Rows of the first copy.
    pub rows_copied: u64,
    /// The last clean comparison of both sides; null where `validation_enabled` is false.
    pub certificate: Option<VerifyReport>,
    /// Whether the tenant's rows were left at the source.
    pub keep_source: bool,
    /// Rows deleted at the source.
    pub deleted: Vec<TableRows>,
    /// Rows of the tenant that are still at the source: none, unless they were to be kept.
    pub residue: Vec<TableRows>,
    /// Rows in the target that are not the tenant's: none.
    pub foreign: Vec<TableRows>,
}

/// A part of a [`CompletionReport`]'s timeline.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Happened {
    /// The phase that began.
    pub phase: String,
    /// Unix time, in seconds.
    pub at: f64,
    /// For how long the tenant's writers were held, in milliseconds, where they were.
    pub pause_ms: Option<f64>,
}

/// So many rows of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRows {
    /// `schema.table`.
    pub table: String,
    /// How many.
    pub rows: u64,
}

/// The result of `verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// The tenant.
    pub tenant: TenantId,
    /// Both sides were compared as of this position.
    pub lsn: Lsn,
    /// Whether every table is equal.
    pub equal: bool,
    /// One entry per table.
    pub tables: Vec<TableReport>,
}

/// Where a tenant lives: `GET /v1/tenants/{id}/route`, and a row of `carveout.tenant_routes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The tenant's key as text.
    pub tenant: TenantId,
    /// `shared`, `schema` or `database`.
    pub isolation: String,
    /// The database.
    pub database: String,
    /// The tenant's schema; null where it has the schemas of the shared database.
    pub schema: Option<String>,
    /// Where to connect to, without a secret.
    pub url: String,
    /// `open`; `moving` while the writes wait or are being moved.
    pub state: String,
    /// Raised by each flip; zero before there was one.
    pub epoch: i64,
}

/// The result of `cutover` and `rollback`; of `rehearse`, where nothing has changed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CutoverReport {
    /// The tenant.
    pub tenant: TenantId,
    /// The barrier, behind which the tenant had written nothing.
    pub lsn: Lsn,
    /// For how long the tenant's writers were held, in milliseconds.
    pub pause_ms: f64,
    /// Whether both sides were proved equal; false where `validation_enabled` is.
    pub verified: bool,
    /// How many seconds before the end of the pause the comparison of all rows had begun to count; what changed since then was compared
    /// once more.
    pub verified_s_ago: Option<u64>,
    /// How many rows were compared once more during the pause: keys, or all rows of a table where those are not known.
    pub rechecked_keys: u64,
    /// Where the tenant lives now.
    pub route: Route,
    /// The steps in their order; those before `barrier` are outside of the pause.
    pub steps: Vec<StepReport>,
}

/// One step of a cutover.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepReport {
    /// `reverse` (preparing the way back), `verify` (all rows are compared) or `certificate` (they were, within the last hour), `fence`,
    /// `rounds` (where much has changed since they were, that is compared before anybody waits), `hold` (waiting for the tenant's open transactions), `barrier`, `drain`, `recheck`, `begin` (where the lane back begins), `flip`, `open`; of a rehearsal `release` instead of the last two.
    pub step: String,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

/// One table of a [`VerifyReport`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableReport {
    /// `schema.table` on the source.
    pub table: String,
    /// All rows were read as of this position: an earlier one than the report's where the comparison was interrupted, and then what has
    /// changed since was compared once more. `None` where only some rows were read.
    pub lsn: Option<Lsn>,
    /// Rows of the tenant on the source.
    pub source_rows: u64,
    /// Rows in the target.
    pub target_rows: u64,
    /// Sum of the rows' 128-bit hashes on the source, as two numbers.
    pub source_digest: String,
    /// The same of the target.
    pub target_digest: String,
    /// How many rows differ, counted as far as they were looked for.
    pub differences: u64,
    /// The first differing rows, by key.
    pub examples: Vec<Difference>,
}

/// A row that is not the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Difference {
    /// The row's key, as text; of tables without a key the row's hash.
    pub key: String,
    /// `missing` in the target, `extra` there, or `different`.
    pub kind: String,
}

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing can be moved before this is mended.
    Error,
    /// It works, and somebody should know.
    Warning,
    /// Worth knowing.
    Note,
}

/// Something `check` found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The setting, table or object.
    pub object: String,
    /// What is wrong with it.
    pub cause: String,
    /// The SQL or setting that mends it.
    pub remedy: String,
    /// Whether `prepare --apply` mends it.
    pub prepared: bool,
}

impl Finding {
    /// A finding that a person has to mend.
    pub fn new(
        severity: Severity,
        object: impl Into<String>,
        cause: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Finding { severity, object: object.into(), cause: cause.into(), remedy: remedy.into(), prepared: false }
    }

    /// A finding that `prepare --apply` mends with the SQL in `remedy`.
    pub fn prepared(object: impl Into<String>, cause: impl Into<String>, sql: impl Into<String>) -> Self {
        Finding { prepared: true, ..Finding::new(Severity::Error, object, cause, sql) }
    }
}

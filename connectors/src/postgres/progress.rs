//! `carveout.migration_progress` in the source's database: where dashboards read how the moves go. It is told there, and
//! nothing is ever decided by it; the daemon is the only one who writes it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemas::url::PgUrl;
use tokio_postgres::Client;

use super::{Doing, Result, client};

/// How a phase of a move, or the copy of a table, stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It has not begun.
    Pending,
    /// It goes on.
    Running,
    /// A person holds it.
    Paused,
    /// It is over.
    Completed,
    /// It stands, and a person must look; or it came to nothing.
    Failed,
    /// The move was cancelled.
    Cancelled,
}

impl Status {
    /// The word in the table.
    pub fn word(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Completed => "completed",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
        }
    }
}

/// A row: of a phase, or of a table that is copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The tenant.
    pub tenant: String,
    /// The phase; of a table `copying`.
    pub phase: String,
    /// The table at the source, as in `carveout.copied`; `None` for the phase itself.
    pub table: Option<String>,
    /// How it stands.
    pub status: Status,
    /// Unix time in microseconds; where it is not known any more, what the table says is kept.
    pub started_at: Option<i64>,
    /// The same.
    pub completed_at: Option<i64>,
    /// Rows to copy: an estimate until they are copied. What is not known any more is kept.
    pub records_total: Option<u64>,
    /// Rows copied.
    pub records_migrated: Option<u64>,
    /// Why it failed; without values of rows.
    pub error: Option<String>,
}

/// A connection that nobody waits for long: neither for a lock, nor for a standby that is away.
pub async fn connect(url: &PgUrl) -> Result<Client> {
    let settings = "-c synchronous_commit=off -c lock_timeout=1s -c statement_timeout=10s";
    client::connect_with(url, "progress", settings).await
}

/// Rows of moves of the tenants that were before.
const FORGET: &str = "\
DELETE FROM carveout.migration_progress p USING unnest($1::text[], $2::timestamptz[]) begun (tenant, at)
 WHERE p.tenant = begun.tenant AND (p.started_at < begun.at OR p.started_at IS NULL AND p.status <> 'pending')";

/// What is not known any more stays as it is; what begins again has no end, and what waits no beginning.
const WRITE: &str = "\
INSERT INTO carveout.migration_progress AS p
       (tenant, phase, table_name, status, started_at, completed_at, records_total, records_migrated, error_message)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[], $7::bigint[],
                     $8::bigint[], $9::text[])
    ON CONFLICT (tenant, phase, (coalesce(table_name, ''))) DO UPDATE SET
       status = excluded.status, error_message = excluded.error_message,
       started_at = CASE WHEN excluded.status <> 'pending' THEN coalesce(excluded.started_at, p.started_at) END,
       completed_at = CASE WHEN excluded.status = 'completed' THEN coalesce(excluded.completed_at, p.completed_at, now())
                           ELSE excluded.completed_at END,
       records_total = coalesce(excluded.records_total, p.records_total),
       records_migrated = coalesce(excluded.records_migrated, p.records_migrated)";

/// Writes these rows. Of the tenants in `begun`, whose moves began then, what is older is forgotten.
pub async fn write(client: &Client, begun: &[(String, i64)], rows: &[Row]) -> Result<()> {
    let doing = "write carveout.migration_progress";
    if !begun.is_empty() {
        let (tenants, since): (Vec<&str>, Vec<_>) =
            begun.iter().map(|(tenant, at)| (tenant.as_str(), time(*at))).unzip();
        client.execute(FORGET, &[&tenants, &since]).await.doing(doing)?;
    }
    let count = |count: Option<u64>| count.and_then(|count| i64::try_from(count).ok());
    let tenants: Vec<&str> = rows.iter().map(|row| row.tenant.as_str()).collect();
    let phases: Vec<&str> = rows.iter().map(|row| row.phase.as_str()).collect();
    let tables: Vec<Option<&str>> = rows.iter().map(|row| row.table.as_deref()).collect();
    let statuses: Vec<&str> = rows.iter().map(|row| row.status.word()).collect();
    let begins: Vec<Option<SystemTime>> = rows.iter().map(|row| row.started_at.map(time)).collect();
    let ends: Vec<Option<SystemTime>> = rows.iter().map(|row| row.completed_at.map(time)).collect();
    let totals: Vec<Option<i64>> = rows.iter().map(|row| count(row.records_total)).collect();
    let migrated: Vec<Option<i64>> = rows.iter().map(|row| count(row.records_migrated)).collect();
    let errors: Vec<Option<&str>> = rows.iter().map(|row| row.error.as_deref()).collect();
    client
        .execute(WRITE, &[&tenants, &phases, &tables, &statuses, &begins, &ends, &totals, &migrated, &errors])
        .await
        .doing(doing)?;
    Ok(())
}

fn time(micros: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(micros.unsigned_abs())
}

//! Ordinary snapshots of the source: taken on the primary, in REPEATABLE READ, shared over
//! connections by `pg_export_snapshot()`. Never the exported snapshot of a replication slot.

use schemas::url::PgUrl;
use schemas::{Lsn, Snapshot};
use tokio_postgres::Client;

use super::client::connect;
use super::quote::literal;
use super::spare::{self, Spare};
use super::{Doing, Error, Result};

/// A snapshot that is kept open by a transaction of its own; dropping it lets go.
pub struct HeldSnapshot {
    /// The connection whose transaction holds it. It may read.
    pub client: Spare,
    /// Which transactions it shows.
    pub snapshot: Snapshot,
    /// Read after the snapshot: every transaction it shows ends at or before this position.
    pub wal_insert_lsn: Lsn,
    exported: String,
}

/// Takes a snapshot of the database behind `url`.
pub async fn hold(url: &PgUrl, purpose: &str) -> Result<HeldSnapshot> {
    let client = spare::take(url, purpose).await?;
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.doing("begin a snapshot")?;
    // The snapshot is fixed when this statement begins; the position is read while it runs.
    let row = client
        .query_one(
            "SELECT pg_current_snapshot()::text, pg_is_in_recovery(),
                    CASE WHEN pg_is_in_recovery() THEN '0/0' ELSE pg_current_wal_insert_lsn()::text END,
                    CASE WHEN pg_is_in_recovery() THEN '' ELSE pg_export_snapshot() END",
            &[],
        )
        .await
        .doing("take a snapshot")?;
    if row.get::<_, bool>(1) {
        return Err(Error::state(
            format!("take a snapshot of {url}"),
            "the server is a standby, whose snapshots do not name running transactions; use the primary",
        ));
    }
    let snapshot = parse_snapshot(row.get(0))?;
    let wal_insert_lsn = parse_lsn(row.get(2))?;
    Ok(HeldSnapshot { client, snapshot, wal_insert_lsn, exported: row.get(3) })
}

impl HeldSnapshot {
    /// Another connection that reads under the same snapshot.
    pub async fn join(&self, url: &PgUrl, purpose: &str) -> Result<Client> {
        let client = connect(url, purpose).await?;
        let sql = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
            literal(&self.exported)
        );
        client.batch_execute(&sql).await.doing("join the snapshot")?;
        Ok(client)
    }
}

/// What a snapshot taken now would show.
pub async fn current(client: &Client) -> Result<Snapshot> {
    let row = client.query_one("SELECT pg_current_snapshot()::text", &[]).await.doing("poll a snapshot")?;
    parse_snapshot(row.get(0))
}

/// What a snapshot taken now shows, and a position that every transaction of it ends at or before.
pub async fn shown(client: &Client) -> Result<(Snapshot, Lsn)> {
    let doing = "take a snapshot";
    // The snapshot is fixed when the statement begins; the position is read while it runs.
    let sql = "SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text";
    let row = client.query_typed_one(sql, &[]).await.doing(doing)?;
    Ok((parse_snapshot(row.get(0))?, parse_lsn(row.get(1))?))
}

/// A transaction id above every one that has been given out: once a snapshot's xmin reaches it, all
/// of those are finished and shown, or rolled back.
pub async fn next_xid(client: &Client) -> Result<u64> {
    let row = client.query_one("SELECT pg_current_xact_id()::text", &[]).await.doing("take a transaction id")?;
    let text: String = row.get(0);
    text.parse().map_err(|error| Error::protocol("take a transaction id", error))
}

/// Writes a small message into the log and flushes it, so that the stream passes every position
/// read before. Waits for the local flush only, never for a standby.
pub async fn tick(client: &Client) -> Result<()> {
    client
        .batch_execute(
            "BEGIN; SET LOCAL synchronous_commit = local; \
             SELECT pg_logical_emit_message(true, 'carveout.tick', ''); COMMIT",
        )
        .await
        .doing("write a message into the log")
}

pub(super) fn parse_snapshot(text: &str) -> Result<Snapshot> {
    text.parse().map_err(|error| Error::protocol("read a snapshot", error))
}

pub(super) fn parse_lsn(text: &str) -> Result<Lsn> {
    text.parse().map_err(|error| Error::protocol("read a position", error))
}

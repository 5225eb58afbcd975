//! Schema `carveout` of a target (and of the source): the checkpoint as compare-and-set, what has
//! been copied under which snapshot, and which objects Carveout created.

use std::collections::HashMap;

use schemas::{Lsn, MoveId, Snapshot, TableName, TenantId};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Transaction};

use super::snapshot::{parse_lsn, parse_snapshot};
use super::{Doing, Error, Result};

/// Serializes the creation of the control schema within a database.
const SETUP_LOCK: &str = "SELECT pg_advisory_xact_lock(77777, 0)";

/// The control schema; every statement can be run twice.
pub const SETUP: &str = "\
CREATE SCHEMA IF NOT EXISTS carveout;
CREATE TABLE IF NOT EXISTS carveout.checkpoint (
  move text PRIMARY KEY, tenant text NOT NULL, epoch bigint NOT NULL, lsn pg_lsn NOT NULL,
  slot text NOT NULL, system_id text NOT NULL, timeline integer NOT NULL, state text NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now()) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS carveout.copied (
  move text NOT NULL, table_name text NOT NULL, snapshot text NOT NULL, wal_insert_lsn pg_lsn NOT NULL,
  rows bigint NOT NULL, done boolean NOT NULL, PRIMARY KEY (move, table_name));
CREATE TABLE IF NOT EXISTS carveout.arriving (
  move text NOT NULL, table_name text NOT NULL, name bytea[] NOT NULL, PRIMARY KEY (move, table_name, name));
CREATE TABLE IF NOT EXISTS carveout.objects (
  move text NOT NULL, kind text NOT NULL, name text NOT NULL, oid oid,
  created_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (kind, name));
CREATE TABLE IF NOT EXISTS carveout.fence (
  tenant text NOT NULL, side text NOT NULL CHECK (side IN ('source', 'target')), move text NOT NULL, owner text NOT NULL,
  lock_key integer NOT NULL UNIQUE, state text NOT NULL CHECK (state IN ('open', 'shut')),
  epoch bigint NOT NULL DEFAULT 1, changed_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (tenant, side))
    WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS carveout.tenant_routes (
  tenant text PRIMARY KEY, isolation text NOT NULL, database text NOT NULL, schema text,
  state text NOT NULL, epoch bigint NOT NULL, changed_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS carveout.migration_progress (
  tenant text NOT NULL, phase text NOT NULL, table_name text, status text NOT NULL, started_at timestamptz,
  completed_at timestamptz, records_total bigint, records_migrated bigint, error_message text);
CREATE UNIQUE INDEX IF NOT EXISTS migration_progress_key
  ON carveout.migration_progress (tenant, phase, (coalesce(table_name, '')));
ALTER TABLE carveout.migration_progress REPLICA IDENTITY FULL;
REVOKE ALL ON SCHEMA carveout FROM PUBLIC;
";

/// What lets a role that did not make the control schema work with it.
pub fn grants(role: &str) -> String {
    let role = super::quote::ident(role);
    format!(
        "GRANT USAGE, CREATE ON SCHEMA carveout TO {role};\n\
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA carveout TO {role};\n"
    )
}

/// What a role finds of the control schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It is not there.
    Absent,
    /// It is one of an older version, which lacks a table; what there is can be worked with.
    Older,
    /// It is there, and the role may not do with it all that it has to.
    Denied,
    /// It can be worked with.
    Granted,
}

/// Looks for the control schema in the catalogs, which everybody may read.
pub async fn access(client: &Client) -> Result<Access> {
    let row = client
        .query_opt(
            "SELECT has_schema_privilege(n.oid, 'USAGE') AND bool_and(
                        has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT') AND
                        has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE')),
                    bool_or(c.relname = 'migration_progress')
               FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind = 'r'
              WHERE n.nspname = 'carveout' GROUP BY n.oid",
            &[],
        )
        .await
        .doing("look for schema carveout")?;
    Ok(match row.map(|row| (row.get(0), row.get(1))) {
        None => Access::Absent,
        Some((false, _)) => Access::Denied,
        Some((true, false)) => Access::Older,
        Some((true, true)) => Access::Granted,
    })
}

/// Makes the control schema where it is missing.
pub async fn setup(client: &mut Client) -> Result<()> {
    match access(client).await? {
        Access::Granted => return Ok(()),
        Access::Denied => {
            let why = "the role may not use it; `carveout check` says what to grant";
            return Err(Error::state("work with schema carveout", why));
        }
        Access::Absent | Access::Older => {}
    }
    let tx = client.transaction().await.doing("begin")?;
    tx.batch_execute(SETUP_LOCK).await.doing("lock the creation of schema carveout")?;
    tx.batch_execute(SETUP).await.doing("create schema carveout")?;
    tx.commit().await.doing("create schema carveout")
}

/// Whose checkpoint it is, and in which stream it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The slot.
    pub slot: String,
    /// The source's system identifier.
    pub system_id: String,
    /// The source's timeline.
    pub timeline: u32,
    /// The name of the state directory that the move belongs to.
    pub state: String,
}

/// What the target says about a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Raised each time a daemon opens the lane; an older daemon's commits fail from then on.
    pub epoch: i64,
    /// End of the last source transaction that the target holds.
    pub lsn: Lsn,
}

/// Makes the move's checkpoint where it is missing; refuses one that belongs to another tenant, source or
/// state directory. What was copied under a checkpoint that is gone does not count any more.
pub async fn create_checkpoint(client: &mut Client, id: MoveId, tenant: &TenantId, origin: &Origin) -> Result<()> {
    let doing = || format!("make the checkpoint of {id}");
    let timeline = i32::try_from(origin.timeline).map_err(|error| Error::protocol(doing(), error))?;
    let id = id.to_string();
    let tx = client.transaction().await.doing(doing())?;
    let made = tx
        .execute(
            "INSERT INTO carveout.checkpoint (move, tenant, epoch, lsn, slot, system_id, timeline, state)
             VALUES ($1, $2, 0, '0/0', $3, $4, $5, $6) ON CONFLICT (move) DO NOTHING",
            &[&id, &tenant.0, &origin.slot, &origin.system_id, &timeline, &origin.state],
        )
        .await
        .doing(doing())?;
    if made == 1 {
        tx.execute("DELETE FROM carveout.copied WHERE move = $1", &[&id]).await.doing(doing())?;
        return tx.commit().await.doing(doing());
    }
    let row = tx
        .query_one(
            "SELECT (tenant, slot, system_id, timeline, state) = ($2, $3, $4, $5::int, $6), tenant
               FROM carveout.checkpoint WHERE move = $1",
            &[&id, &tenant.0, &origin.slot, &origin.system_id, &timeline, &origin.state],
        )
        .await
        .doing(doing())?;
    match row.get(0) {
        true => Ok(()),
        false => Err(Error::state(
            doing(),
            format!(
                "carveout.checkpoint has a move {id} of tenant \"{}\" that belongs to another state directory or another source. \
                 Cancel it from there; if that is lost, drop what carveout.objects lists for {id} and delete its rows in schema carveout",
                row.get::<_, &str>(1)
            ),
        )),
    }
}

/// Where a lane begins that has nothing to copy.
pub struct Beginning<'a> {
    /// The move.
    pub id: MoveId,
    /// Its tables, as the side that it reads names them.
    pub tables: &'a [TableName],
    /// Those of them that are not the same on both sides: they are read again as a whole.
    pub again: Vec<TableName>,
    /// What is shown on the side that it reads: its sink holds all of that.
    pub snapshot: Snapshot,
    /// Every transaction that is shown ends at or before this position.
    pub wal_insert_lsn: Lsn,
}

/// A lane begins where both sides hold the same: whatever it had held before does not count any more. Its checkpoint is there
/// ([`create_checkpoint`]); somebody waits for this, so it is one statement.
pub async fn begin_lane(client: &Client, lane: Beginning<'_>) -> Result<()> {
    let Beginning { id, tables, again, snapshot, wal_insert_lsn } = lane;
    let sql = "WITH here AS (
                 UPDATE carveout.checkpoint SET lsn = '0/0', epoch = epoch + 1 WHERE move = $1 RETURNING move),
               again AS (
                 INSERT INTO carveout.arriving (move, table_name, name) SELECT move, unnest($3::text[]), '{}' FROM here
                     ON CONFLICT DO NOTHING)
               INSERT INTO carveout.copied (move, table_name, snapshot, wal_insert_lsn, rows, done)
               SELECT move, unnest($2::text[]), $4, $5::text::pg_lsn, 0, true FROM here
                   ON CONFLICT (move, table_name) DO UPDATE SET (snapshot, wal_insert_lsn) = (excluded.snapshot, excluded.wal_insert_lsn)";
    let doing = || format!("begin the lane of {id}");
    let names = |tables: &[TableName]| tables.iter().map(copied_name).collect::<Vec<_>>();
    let (all, again) = (names(tables), names(&again));
    let (id, snapshot, lsn) = (id.to_string(), snapshot.to_string(), wal_insert_lsn.to_string());
    let values: [(&(dyn ToSql + Sync), Type); 5] = [
        (&id, Type::TEXT),
        (&all, Type::TEXT_ARRAY),
        (&again, Type::TEXT_ARRAY),
        (&snapshot, Type::TEXT),
        (&lsn, Type::TEXT),
    ];
    let begun = client.execute_typed(sql, &values).await.doing(doing())?;
    match begun == all.len() as u64 {
        true => Ok(()),
        false => Err(Error::state(doing(), "its row in carveout.checkpoint is gone")),
    }
}

/// Forgets a lane: where it stood, and what it held.
pub async fn forget_lane(client: &mut Client, id: MoveId) -> Result<()> {
    let doing = || format!("forget the lane of {id}");
    let tx = client.transaction().await.doing(doing())?;
    for table in ["checkpoint", "copied", "arriving"] {
        let sql = format!("DELETE FROM carveout.{table} WHERE move = $1");
        tx.execute(&sql, &[&id.to_string()]).await.doing(doing())?;
    }
    tx.commit().await.doing(doing())
}

/// Opens the lane's checkpoint: raises its epoch. `None` when the row is gone or no longer this move's.
pub async fn open_checkpoint(
    client: &Client,
    id: MoveId,
    tenant: &TenantId,
    origin: &Origin,
) -> Result<Option<Checkpoint>> {
    let doing = || format!("open the checkpoint of {id}");
    let timeline = i32::try_from(origin.timeline).map_err(|error| Error::protocol(doing(), error))?;
    let row = client
        .query_opt(
            "UPDATE carveout.checkpoint SET epoch = epoch + 1, updated_at = now()
              WHERE move = $1 AND (tenant, slot, system_id, timeline, state) = ($2, $3, $4, $5::int, $6)
             RETURNING epoch, lsn::text",
            &[&id.to_string(), &tenant.0, &origin.slot, &origin.system_id, &timeline, &origin.state],
        )
        .await
        .doing(doing())?;
    row.map(|row| Ok(Checkpoint { epoch: row.get(0), lsn: parse_lsn(row.get(1))? })).transpose()
}

/// The checkpoint as it stands, for `epoch`; an error when another daemon has opened the lane.
pub async fn read_checkpoint(client: &Client, id: MoveId, epoch: i64) -> Result<Lsn> {
    let doing = || format!("read the checkpoint of {id}");
    let row = client
        .query_opt("SELECT epoch, lsn::text FROM carveout.checkpoint WHERE move = $1", &[&id.to_string()])
        .await
        .doing(doing())?;
    match row {
        None => Err(Error::state(doing(), "the row in carveout.checkpoint is gone")),
        Some(row) if row.get::<_, i64>(0) != epoch => Err(Error::state(
            doing(),
            format!("another daemon has opened this lane (epoch {}, ours is {epoch})", row.get::<_, i64>(0)),
        )),
        Some(row) => parse_lsn(row.get(1)),
    }
}

/// Moves the checkpoint inside the transaction that holds the rows: one row, or an error.
pub async fn advance_checkpoint(tx: &Client, id: MoveId, epoch: i64, from: Lsn, to: Lsn) -> Result<()> {
    let doing = || format!("advance the checkpoint of {id}");
    let (id, from, to) = (id.to_string(), from.to_string(), to.to_string());
    let sql = "UPDATE carveout.checkpoint SET lsn = $4::text::pg_lsn, updated_at = now()
                WHERE move = $1 AND epoch = $2 AND lsn = $3::text::pg_lsn";
    let values: [(&(dyn ToSql + Sync), Type); 4] =
        [(&id, Type::TEXT), (&epoch, Type::INT8), (&from, Type::TEXT), (&to, Type::TEXT)];
    let moved = tx.execute_typed(sql, &values).await.doing(doing())?;
    match moved {
        1 => Ok(()),
        _ => Err(Error::connection(doing(), "it no longer stands where this daemon left it; reading it again")),
    }
}

/// Refuses to go on when another daemon has opened the lane; holds the row against that until commit.
pub async fn hold_epoch(tx: &Transaction<'_>, id: MoveId, epoch: i64) -> Result<()> {
    let held = tx
        .query_opt(
            "SELECT FROM carveout.checkpoint WHERE move = $1 AND epoch = $2 FOR SHARE",
            &[&id.to_string(), &epoch],
        )
        .await
        .doing(format!("hold the checkpoint of {id}"))?;
    match held {
        Some(_) => Ok(()),
        None => Err(Error::state(format!("copy for {id}"), "another daemon has opened this lane")),
    }
}

/// A copied table: its snapshot decides which transactions of the stream it already holds.
#[derive(Clone, Debug)]
pub struct Copied {
    /// The snapshot it was read under.
    pub snapshot: Snapshot,
    /// Every transaction that the snapshot shows ends at or before this position.
    pub wal_insert_lsn: Lsn,
    /// Rows copied.
    pub rows: u64,
}

impl Copied {
    /// Whether the copy already holds the effects of the transaction `xid` whose commit record
    /// begins at `commit_lsn`.
    pub fn holds(&self, xid: u32, commit_lsn: Lsn) -> bool {
        commit_lsn < self.wal_insert_lsn && self.snapshot.shows_xid(xid)
    }
}

/// Which of `tables` the move has copied completely.
pub async fn read_copied(client: &Client, id: MoveId, tables: &[TableName]) -> Result<HashMap<TableName, Copied>> {
    let rows = client
        .query(
            "SELECT table_name, snapshot, wal_insert_lsn::text, rows FROM carveout.copied WHERE move = $1 AND done",
            &[&id.to_string()],
        )
        .await
        .doing(format!("read what {id} has copied"))?;
    let mut copied = HashMap::new();
    for row in &rows {
        let Some(table) = tables.iter().find(|table| copied_name(table) == row.get::<_, &str>(0)) else { continue };
        let snapshot = parse_snapshot(row.get(1))?;
        let wal_insert_lsn = parse_lsn(row.get(2))?;
        let rows = row.get::<_, i64>(3).unsigned_abs();
        copied.insert(table.clone(), Copied { snapshot, wal_insert_lsn, rows });
    }
    Ok(copied)
}

/// How a table is written down in `carveout.copied`: `schema.table`, in quotes where that could be read
/// in two ways.
pub fn copied_name(table: &TableName) -> String {
    let plain = |name: &String| !name.contains(['.', '"']);
    if plain(&table.schema) && plain(&table.name) { table.to_string() } else { super::quote::table(table) }
}

/// Rows that came to the tenant and are not in the target yet: table as in `carveout.copied`, and the values that name
/// the row.
pub async fn read_arriving(client: &Client, id: MoveId) -> Result<Vec<(String, Vec<Vec<u8>>)>> {
    let sql = "SELECT table_name, name FROM carveout.arriving WHERE move = $1";
    let rows = client.query(sql, &[&id.to_string()]).await.doing(format!("read what comes to {id}"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Writes down, in the transaction that passes over it, that a row came to the tenant.
pub async fn write_arriving(tx: &Client, id: MoveId, table: &TableName, name: &[Vec<u8>]) -> Result<()> {
    let sql = "INSERT INTO carveout.arriving (move, table_name, name) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    tx.execute(sql, &[&id.to_string(), &copied_name(table), &name])
        .await
        .doing(format!("write down what comes to {id}"))?;
    Ok(())
}

/// The rows that came are there.
pub async fn forget_arriving(tx: &Client, id: MoveId) -> Result<()> {
    let sql = "DELETE FROM carveout.arriving WHERE move = $1";
    tx.execute(sql, &[&id.to_string()]).await.doing(format!("forget what came to {id}"))?;
    Ok(())
}

/// Forgets what a move has copied and where it stood, so that it can be copied again.
pub async fn reset(tx: &Transaction<'_>, id: MoveId) -> Result<()> {
    let doing = || format!("reset {id}");
    let id = id.to_string();
    for table in ["copied", "arriving"] {
        let sql = format!("DELETE FROM carveout.{table} WHERE move = $1");
        tx.execute(&sql, &[&id]).await.doing(doing())?;
    }
    let reset = "UPDATE carveout.checkpoint SET lsn = '0/0', epoch = epoch + 1 WHERE move = $1";
    tx.execute(reset, &[&id]).await.doing(doing())?;
    Ok(())
}

/// What Carveout created for tenants in this database: (schemas, tables as [`object_name`]). A role that may not
/// see it sees nothing, which `prepare::wanted` refuses to go on from.
pub async fn created(client: &Client) -> Result<(Vec<String>, Vec<String>)> {
    if !matches!(access(client).await?, Access::Granted | Access::Older) {
        return Ok((Vec::new(), Vec::new()));
    }
    let rows = client
        .query("SELECT kind, name FROM carveout.objects WHERE kind IN ('schema', 'table')", &[])
        .await
        .doing("list what Carveout created")?;
    let (schemas, tables): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.get::<_, &str>(0) == "schema");
    let names = |rows: Vec<&tokio_postgres::Row>| rows.iter().map(|row| row.get(1)).collect();
    Ok((names(schemas), names(tables)))
}

/// How a table is written down in `carveout.objects`.
pub fn object_name(table: &TableName) -> String {
    super::quote::table(table)
}

/// Claims the slot for a state directory; false when it belongs to another one. Two directories on
/// one slot would each acknowledge what the other has not seen.
pub async fn claim_slot(client: &mut Client, slot: &str, state: &str) -> Result<bool> {
    let doing = || format!("claim slot {slot}");
    let owner = "SELECT move FROM carveout.objects WHERE kind = 'slot' AND name = $1";
    if let Some(row) = client.query_opt(owner, &[&slot]).await.doing(doing())? {
        return Ok(row.get::<_, &str>(0) == state);
    }
    let tx = client.transaction().await.doing(doing())?;
    tx.batch_execute("SET LOCAL synchronous_commit = local").await.doing(doing())?;
    let row = tx
        .query_one(
            "INSERT INTO carveout.objects AS o (move, kind, name) VALUES ($1, 'slot', $2)
             ON CONFLICT (kind, name) DO UPDATE SET move = o.move RETURNING move",
            &[&state, &slot],
        )
        .await
        .doing(doing())?;
    tx.commit().await.doing(doing())?;
    Ok(row.get::<_, &str>(0) == state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_tables_are_never_written_down_alike() {
        let names = [("a.b", "c"), ("a", "b.c"), ("a", "b"), ("\"a\"", "b")].map(|(s, n)| TableName::new(s, n));
        let written = names.map(|name| copied_name(&name));
        assert_eq!(written, ["\"a.b\".\"c\"", "\"a\".\"b.c\"", "a.b", "\"\"\"a\"\"\".\"b\""]);
    }
}

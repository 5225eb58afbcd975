//! What the partitions of a table are.

use std::collections::{BTreeSet, HashMap};

use schemas::TableName;
use tokio_postgres::Client;

use super::super::{Doing, Error, Result, quote};
use super::Table;

/// A partition of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its name.
    pub name: TableName,
    /// The table that it is a part of: the whole, or another partition.
    pub parent: TableName,
    /// Which rows are in it, as SQL: `FOR VALUES …` or `DEFAULT`; empty while it is being detached.
    pub bound: String,
    /// What it is partitioned by itself, as SQL.
    pub partitioned_by: Option<String>,
    /// As [`Table::kind`].
    pub kind: String,
    /// As [`Table::persistence`].
    pub persistence: String,
    /// As [`Table::identity`].
    pub identity: String,
    /// Whether its replica identity is the whole table's: the server writes old rows by it, and describes them by the
    /// whole table's.
    pub agrees: bool,
}

const PARTITIONS: &str = "\
WITH RECURSIVE tree(root, id, parent, pending, depth) AS (
  SELECT c.oid, i.inhrelid, i.inhparent, i.inhdetachpending, 1 FROM pg_class c JOIN pg_inherits i ON i.inhparent = c.oid
   WHERE c.oid = ANY ($1) AND c.relkind = 'p'
  UNION ALL
  SELECT t.root, i.inhrelid, i.inhparent, i.inhdetachpending, t.depth + 1 FROM tree t JOIN pg_inherits i ON i.inhparent = t.id),
identity(table_id, index_id, part_of) AS (
  SELECT x.indrelid, x.indexrelid, (SELECT inhparent FROM pg_inherits WHERE inhrelid = x.indexrelid)
    FROM pg_index x WHERE x.indisreplident)
SELECT t.root, n.nspname::text, c.relname::text, pn.nspname::text, p.relname::text,
       CASE WHEN t.pending THEN '' ELSE coalesce(pg_get_expr(c.relpartbound, c.oid), '') END, CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END,
       c.relkind::text, c.relpersistence::text, c.relreplident::text,
       c.relreplident = r.relreplident AND (c.relreplident <> 'i' OR EXISTS (
         SELECT FROM identity own JOIN identity above ON above.index_id = own.part_of
          WHERE own.table_id = t.id AND above.table_id = t.parent))
  FROM tree t
  JOIN pg_class c ON c.oid = t.id JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_class p ON p.oid = t.parent JOIN pg_namespace pn ON pn.oid = p.relnamespace
  JOIN pg_class r ON r.oid = t.root
 ORDER BY t.root, t.depth, n.nspname, c.relname";

/// Gives a table the partitions that `client` sees in its snapshot; an error that may pass, where one is not fit to be
/// read.
pub async fn take_partitions(client: &Client, table: &mut Table) -> Result<()> {
    if table.partitioned_by.is_none() {
        return Ok(());
    }
    table.partitions = read(client, &[table.oid]).await?.remove(&table.oid).unwrap_or_default();
    let unfit = |partition: &&Partition| partition.bound.is_empty() || !partition.agrees;
    let Some(partition) = table.partitions.iter().find(unfit) else { return Ok(()) };
    let why = match partition.bound.is_empty() {
        true => "is being detached",
        false => {
            "has another replica identity than the table that it is a part of: a DELETE would not name its tenant; \
             `carveout prepare` says what to run"
        }
    };
    Err(Error::connection(
        format!("read the partitions of {}", table.name),
        format!("partition {} {why}", partition.name),
    ))
}

/// The partitions of the table of that name, as [`Table::partitions`].
pub async fn partitions_of(client: &Client, table: &TableName) -> Result<Vec<Partition>> {
    let sql = "SELECT coalesce(to_regclass($1)::oid, 0::oid)";
    let oid: u32 = client.query_one(sql, &[&quote::table(table)]).await.doing(format!("find {table}"))?.get(0);
    Ok(read(client, &[oid]).await?.remove(&oid).unwrap_or_default())
}

/// The partitions, at every level, of a table; waits for nobody's lock.
pub async fn partition_numbers(client: &Client, table: &Table) -> Result<BTreeSet<u32>> {
    let sql = "WITH RECURSIVE tree(id) AS (
                 SELECT inhrelid FROM pg_inherits WHERE inhparent = $1
                 UNION ALL SELECT inhrelid FROM tree JOIN pg_inherits ON inhparent = id)
               SELECT id FROM tree";
    let rows = client.query(sql, &[&table.oid]).await.doing(format!("list the partitions of {}", table.name))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

pub(super) async fn read(client: &Client, oids: &[u32]) -> Result<HashMap<u32, Vec<Partition>>> {
    let mut partitions: HashMap<u32, Vec<Partition>> = HashMap::new();
    for row in client.query(PARTITIONS, &[&oids]).await.doing("list partitions")? {
        let name = |place| TableName::new(row.get::<_, String>(place), row.get::<_, String>(place + 1));
        partitions.entry(row.get(0)).or_default().push(Partition {
            name: name(1),
            parent: name(3),
            bound: row.get(5),
            partitioned_by: row.get(6),
            kind: row.get(7),
            persistence: row.get(8),
            identity: row.get(9),
            agrees: row.get(10),
        });
    }
    Ok(partitions)
}

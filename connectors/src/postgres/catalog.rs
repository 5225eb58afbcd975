//! What a table is, from the catalogs: columns with their exact types, keys, identity.
//! Names come from here and nowhere else.

use std::collections::HashMap;

use schemas::TableName;
use schemas::tenant::KeyType;
use tokio_postgres::{Client, Row};

use super::{Doing, Result, control, quote, types};
pub use partitions::{Partition, partition_numbers, partitions_of, take_partitions};

mod partitions;

/// A table as the catalogs describe it.
#[derive(Clone, Debug)]
pub struct Table {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Its name.
    pub name: TableName,
    /// `pg_class.relkind`: `r` ordinary, `p` partitioned, `f` foreign.
    pub kind: String,
    /// `pg_class.relpersistence`: `p` permanent, `u` unlogged.
    pub persistence: String,
    /// `pg_class.relreplident`: `d` default, `n` nothing, `f` full, `i` index.
    pub identity: String,
    /// Whether row level security would hide rows from the role that asks.
    pub row_security: bool,
    /// Whether it inherits from or is inherited by another table, otherwise than as partitions do.
    pub inherits: bool,
    /// What a partitioned table is partitioned by, as SQL.
    pub partitioned_by: Option<String>,
    /// Whether the server goes on publishing its partitions as what they were when the stream first met each (14).
    pub outdated: bool,
    /// Its partitions at every level, each behind the one that it is a part of. They are no tables of their own here.
    pub partitions: Vec<Partition>,
    /// The planner's estimate of its rows.
    pub estimated_rows: i64,
    /// Columns that exist, in physical order.
    pub columns: Vec<Column>,
    /// Unique indexes over plain columns.
    pub keys: Vec<UniqueKey>,
    /// Its foreign keys, by name.
    pub foreign_keys: Vec<ForeignKey>,
}

/// A foreign key of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignKey {
    /// The constraint's name.
    pub name: String,
    /// Its columns.
    pub columns: Vec<String>,
    /// The table that they refer to.
    pub parent: TableName,
    /// The columns there, in the same order.
    pub referenced: Vec<String>,
    /// Whether every row was checked (not NOT VALID).
    pub validated: bool,
    /// Whether rows may stay while the row they refer to is deleted and made again in one transaction: checked
    /// at its end, and nothing else happens to them.
    pub may_outlive: bool,
}

/// A column.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// `pg_attribute.attnum`: a column that was dropped and added again has another one.
    pub number: i16,
    /// `pg_type.oid`.
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`: length, precision, scale; -1 without.
    pub typmod: i32,
    /// The array type over it, 0 where there is none.
    pub array_oid: u32,
    /// The type as DDL spells it, with length and precision.
    pub type_sql: String,
    /// The type as a cast spells it: schema and name, quoted, without length.
    pub type_name: String,
    /// The type below its domains, spelled like that.
    pub base_name: String,
    /// As a key, where it can be one: under a nondeterministic collation equal values have different bytes.
    pub key: Option<KeyType>,
    /// `pg_type.typcategory`; `A` is an array, which `unnest` would flatten.
    pub category: String,
    /// Whether the type comes with PostgreSQL (and not from an extension or a user).
    pub built_in: bool,
    /// Whether its values travel as text ([`types::text_only`]).
    pub text_only: bool,
    /// What stands between the elements in the text of an array of the type.
    pub delimiter: u8,
    /// NOT NULL, and every row was checked (since 18 it may be NOT VALID).
    pub not_null: bool,
    /// The default or generation expression.
    pub default: Option<String>,
    /// `pg_attribute.attidentity`: empty, `a` always, `d` by default.
    pub identity: String,
    /// `pg_attribute.attgenerated`: empty, `s` stored or (since 18) `v` virtual.
    pub generated: String,
    /// A collation other than the type's own, as SQL.
    pub collation: Option<String>,
    /// The sequence that the default draws from and that the column owns.
    pub owned_sequence: Option<TableName>,
    /// The options of that sequence, or of the identity's, as CREATE SEQUENCE takes them; without the type.
    pub sequence_options: Option<String>,
}

/// A unique index over plain columns, without predicate, where equal means equal (not WITHOUT OVERLAPS).
#[derive(Clone, Debug)]
pub struct UniqueKey {
    /// The index's name.
    pub name: String,
    /// Its key columns, in index order.
    pub columns: Vec<String>,
    /// PRIMARY KEY.
    pub primary: bool,
    /// Checked at once, and every column NOT NULL: fit to be a replica identity.
    pub identifies: bool,
    /// `pg_index.indisreplident`.
    pub replica_identity: bool,
}

impl UniqueKey {
    /// Whether every one of `columns` is in it.
    pub fn covers(&self, columns: &[String]) -> bool {
        columns.iter().all(|column| self.columns.contains(column))
    }
}

impl Table {
    /// The column called `name`.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The columns that hold values of their own, which are copied and applied.
    pub fn stored(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| column.generated.is_empty())
    }

    /// The key that names a row: what the old image carries under this table's identity.
    pub fn row_key(&self) -> Option<&UniqueKey> {
        match self.identity.as_str() {
            "i" => self.keys.iter().find(|key| key.replica_identity),
            // PostgreSQL does not take a deferrable primary key for an identity.
            "d" => self.keys.iter().find(|key| key.primary && key.identifies),
            _ => self.best_key(),
        }
    }

    /// A key that names one row at every moment. A deferrable one does not: inside a transaction two
    /// rows may have the same.
    pub fn best_key(&self) -> Option<&UniqueKey> {
        let fit = || self.keys.iter().filter(|key| key.identifies);
        fit().find(|key| key.primary).or_else(|| fit().next())
    }

    /// Whether UPDATE and DELETE carry the old values of `columns`.
    pub fn identity_covers(&self, columns: &[String]) -> bool {
        match self.identity.as_str() {
            "f" => true,
            "i" | "d" => self.row_key().is_some_and(|key| key.covers(columns)),
            _ => false,
        }
    }

    /// Whether a column travels as text, and with it all others: a row is of one form.
    pub fn is_text(&self) -> bool {
        self.stored().any(|column| column.text_only)
    }

    /// The type of the tenant key `column`, where it is one that can be routed by.
    pub fn key_type(&self, column: &str) -> Option<KeyType> {
        self.column(column).and_then(|column| column.key)
    }
}

/// Every table of the application in this database: not PostgreSQL's, not Carveout's, not a tenant's. All is
/// read under one snapshot: a tenant's table that is made meanwhile is not taken for the application's.
pub async fn tables(client: &Client) -> Result<Vec<Table>> {
    let doing = "read the catalog";
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.doing(doing)?;
    let found = applications(client).await;
    client.batch_execute("COMMIT").await.doing(doing)?;
    found
}

async fn applications(client: &Client) -> Result<Vec<Table>> {
    let (schemas, made) = control::created(client).await?;
    let all = load(
        client,
        "n.nspname <> ALL ($1) AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'carveout')",
        &schemas,
    )
    .await?;
    Ok(all.into_iter().filter(|table| !made.contains(&control::object_name(&table.name))).collect())
}

/// The tables of the named schemas.
pub async fn tables_in(client: &Client, schemas: &[String]) -> Result<Vec<Table>> {
    load(client, "n.nspname = ANY ($1)", schemas).await
}

async fn load(client: &Client, filter: &str, schemas: &[String]) -> Result<Vec<Table>> {
    let heads = format!(
        "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relreplident::text,
                row_security_active(c.oid),
                c.relkind <> 'p' AND EXISTS (SELECT FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent)),
                CASE WHEN c.relkind = 'p' THEN
                     (WITH RECURSIVE tree(id) AS (
                        SELECT inhrelid FROM pg_inherits WHERE inhparent = c.oid
                        UNION ALL SELECT i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.id)
                      SELECT coalesce(sum(greatest(l.reltuples, 0)), 0)::bigint
                        FROM tree t JOIN pg_class l ON l.oid = t.id AND l.relkind <> 'p')
                     ELSE c.reltuples::bigint END,
                CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END,
                c.relkind = 'p' AND current_setting('server_version_num')::int < 150000
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind IN ('r', 'p', 'f') AND NOT c.relispartition AND c.relpersistence <> 't' AND {filter}
          ORDER BY n.nspname, c.relname"
    );
    let mut tables: Vec<Table> =
        client.query(&heads, &[&schemas]).await.doing("list tables")?.iter().map(head).collect();
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let mut columns = columns(client, &oids).await?;
    let mut keys = keys(client, &oids).await?;
    let mut foreign_keys = foreign_keys(client, &oids).await?;
    let mut partitions = partitions::read(client, &oids).await?;
    for table in &mut tables {
        table.columns = columns.remove(&table.oid).unwrap_or_default();
        table.keys = keys.remove(&table.oid).unwrap_or_default();
        table.foreign_keys = foreign_keys.remove(&table.oid).unwrap_or_default();
        table.partitions = partitions.remove(&table.oid).unwrap_or_default();
    }
    Ok(tables)
}

fn head(row: &Row) -> Table {
    Table {
        oid: row.get(0),
        name: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
        kind: row.get(3),
        persistence: row.get(4),
        identity: row.get(5),
        row_security: row.get(6),
        inherits: row.get(7),
        estimated_rows: row.get(8),
        partitioned_by: row.get(9),
        outdated: row.get(10),
        partitions: Vec::new(),
        columns: Vec::new(),
        keys: Vec::new(),
        foreign_keys: Vec::new(),
    }
}

const COLUMNS: &str = "\
SELECT a.attrelid, a.attname::text, t.oid, t.typarray, format_type(t.oid, a.atttypmod),
       tn.nspname::text, t.typname::text, t.typcategory::text,
       t.oid < 16384 AND tn.nspname = 'pg_catalog' AND t.typtype <> 'c',
       t.typdelim,
       a.attnotnull AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = a.attrelid AND k.contype = 'n'
                                        AND NOT k.convalidated AND a.attnum = ANY (k.conkey)), pg_get_expr(d.adbin, d.adrelid), a.attidentity::text, a.attgenerated::text,
       CASE WHEN a.attcollation <> t.typcollation THEN
            (SELECT quote_ident(cn.nspname) || '.' || quote_ident(c.collname) FROM pg_collation c
               JOIN pg_namespace cn ON cn.oid = c.collnamespace WHERE c.oid = a.attcollation) END,
       own.schema, own.name, own.options, a.attnum, a.atttypmod,
       NOT EXISTS (SELECT FROM pg_collation c WHERE c.oid = a.attcollation AND NOT c.collisdeterministic)
  FROM pg_attribute a
  JOIN pg_type t ON t.oid = a.atttypid
  JOIN pg_namespace tn ON tn.oid = t.typnamespace
  LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  LEFT JOIN LATERAL (
       SELECT CASE WHEN o.deptype = 'a' THEN sn.nspname::text END AS schema, s.relname::text AS name,
              CASE WHEN o.deptype = 'a' THEN 'AS ' || format_type(q.seqtypid, NULL) || ' ' ELSE '' END ||
              format('INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s CACHE %s %s', q.seqincrement, q.seqmin, q.seqmax,
                     q.seqstart, q.seqcache, CASE WHEN q.seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END) AS options
         FROM pg_depend o
         JOIN pg_class s ON s.oid = o.objid AND s.relkind = 'S'
         JOIN pg_sequence q ON q.seqrelid = s.oid
         JOIN pg_namespace sn ON sn.oid = s.relnamespace
        WHERE o.classid = 'pg_class'::regclass AND o.refclassid = 'pg_class'::regclass
          AND o.refobjid = a.attrelid AND o.refobjsubid = a.attnum
          AND (o.deptype = 'i' OR o.deptype = 'a' AND EXISTS (
               SELECT FROM pg_depend u WHERE u.classid = 'pg_attrdef'::regclass AND u.objid = d.oid
                  AND u.refclassid = 'pg_class'::regclass AND u.refobjid = s.oid)) LIMIT 1) own ON true
 WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attrelid, a.attnum";

async fn columns(client: &Client, oids: &[u32]) -> Result<HashMap<u32, Vec<Column>>> {
    let mut columns: HashMap<u32, Vec<Column>> = HashMap::new();
    let rows = client.query(COLUMNS, &[&oids]).await.doing("list columns")?;
    let all: Vec<u32> = rows.iter().map(|row| row.get(2)).collect();
    let (text_only, bases) = (types::text_only(client, &all).await?, types::bases(client, &all).await?);
    for row in rows {
        let owner = row.get::<_, Option<String>>(15).zip(row.get::<_, Option<String>>(16));
        let (type_schema, type_name): (String, String) = (row.get(5), row.get(6));
        let type_name = format!("{}.{}", quote::ident(&type_schema), quote::ident(&type_name));
        let base = bases.get(&row.get(2));
        columns.entry(row.get(0)).or_default().push(Column {
            name: row.get(1),
            type_oid: row.get(2),
            array_oid: row.get(3),
            type_sql: row.get(4),
            base_name: base.map_or_else(|| type_name.clone(), |base| base.name.clone()),
            key: base.and_then(|base| base.key).filter(|_| row.get(20)),
            type_name,
            category: row.get(7),
            built_in: row.get(8),
            text_only: text_only.contains(&row.get(2)),
            delimiter: row.get::<_, i8>(9).unsigned_abs(),
            not_null: row.get(10),
            default: row.get(11),
            identity: row.get(12),
            generated: row.get(13),
            collation: row.get(14),
            owned_sequence: owner.map(|(schema, name)| TableName::new(schema, name)),
            sequence_options: row.get(17),
            number: row.get(18),
            typmod: row.get(19),
        });
    }
    Ok(columns)
}

const KEYS: &str = "\
SELECT i.indrelid, c.relname::text, i.indisprimary,
       i.indimmediate AND i.indisvalid AND bool_and(a.attnotnull AND NOT EXISTS (
         SELECT FROM pg_constraint n WHERE n.conrelid = i.indrelid AND n.contype = 'n' AND NOT n.convalidated
                                       AND a.attnum = ANY (n.conkey))), i.indisreplident,
       array_agg(a.attname::text ORDER BY k.place)
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
 CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, place)
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
 WHERE i.indrelid = ANY ($1) AND i.indisunique AND NOT i.indisexclusion AND i.indpred IS NULL AND i.indexprs IS NULL AND k.place <= i.indnkeyatts
 GROUP BY i.indrelid, i.indexrelid, c.relname, i.indisprimary, i.indimmediate, i.indisvalid, i.indisreplident
 ORDER BY i.indisprimary DESC, c.relname";

async fn keys(client: &Client, oids: &[u32]) -> Result<HashMap<u32, Vec<UniqueKey>>> {
    let mut keys: HashMap<u32, Vec<UniqueKey>> = HashMap::new();
    for row in client.query(KEYS, &[&oids]).await.doing("list unique indexes")? {
        keys.entry(row.get(0)).or_default().push(UniqueKey {
            name: row.get(1),
            primary: row.get(2),
            identifies: row.get(3),
            replica_identity: row.get(4),
            columns: row.get(5),
        });
    }
    Ok(keys)
}

const FOREIGN_KEYS: &str = "\
SELECT k.conrelid, k.conname::text, n.nspname::text, p.relname::text, k.convalidated,
       k.condeferrable AND 'a' IN (k.confdeltype, k.confupdtype),
       array_agg(c.attname::text ORDER BY u.place), array_agg(r.attname::text ORDER BY u.place)
  FROM pg_constraint k
  JOIN pg_class p ON p.oid = k.confrelid
  JOIN pg_namespace n ON n.oid = p.relnamespace
 CROSS JOIN LATERAL unnest(k.conkey, k.confkey) WITH ORDINALITY u(column_number, referenced_number, place)
  JOIN pg_attribute c ON c.attrelid = k.conrelid AND c.attnum = u.column_number
  JOIN pg_attribute r ON r.attrelid = k.confrelid AND r.attnum = u.referenced_number
 WHERE k.contype = 'f' AND k.conparentid = 0 AND k.conrelid = ANY ($1)
 GROUP BY k.oid, k.conrelid, k.conname, n.nspname, p.relname, k.convalidated, k.condeferrable, k.confdeltype, k.confupdtype
 ORDER BY k.conname";

async fn foreign_keys(client: &Client, oids: &[u32]) -> Result<HashMap<u32, Vec<ForeignKey>>> {
    let mut found: HashMap<u32, Vec<ForeignKey>> = HashMap::new();
    for row in client.query(FOREIGN_KEYS, &[&oids]).await.doing("list foreign keys")? {
        found.entry(row.get(0)).or_default().push(ForeignKey {
            name: row.get(1),
            parent: TableName::new(row.get::<_, String>(2), row.get::<_, String>(3)),
            validated: row.get(4),
            may_outlive: row.get(5),
            columns: row.get(6),
            referenced: row.get(7),
        });
    }
    Ok(found)
}

//! What the source says about our slot and our publication.

use schemas::record::{Published, PublishedColumn, PublishedTable};
use schemas::{Lsn, TableName};
use tokio_postgres::Client;

use super::snapshot::parse_lsn;
use super::version::Version;
use super::{Doing, Result};

/// A row of `pg_replication_slots`.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Everything up to here was acknowledged.
    pub confirmed_flush: Lsn,
    /// `reserved`, `extended`, `unreserved` or `lost`; empty while the slot is being made.
    pub wal_status: String,
    /// Log kept for it, in bytes.
    pub retained_bytes: u64,
    /// Whether some connection streams from it.
    pub active: bool,
    /// The output plugin; ours is pgoutput.
    pub plugin: String,
    /// The database it belongs to.
    pub database: String,
    /// Whether prepared transactions are decoded at PREPARE.
    pub two_phase: bool,
    /// Whether standbys keep a copy of it; false before PostgreSQL 17.
    pub failover: bool,
}

/// The slot called `name`, if there is one.
pub async fn find(client: &Client, name: &str) -> Result<Option<Slot>> {
    let row = client
        .query_opt(
            "SELECT coalesce(confirmed_flush_lsn::text, '0/0'), coalesce(wal_status, ''),
                    greatest(coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0), 0)::bigint,
                    active, coalesce(plugin::text, 'physical'), coalesce(database::text, ''), two_phase,
                    coalesce((to_jsonb(s) ->> 'failover')::boolean, false)
               FROM pg_replication_slots s WHERE slot_name = $1",
            &[&name],
        )
        .await
        .doing("look at the slot")?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Slot {
        confirmed_flush: parse_lsn(row.get(0))?,
        wal_status: row.get(1),
        retained_bytes: row.get::<_, i64>(2).unsigned_abs(),
        active: row.get(3),
        plugin: row.get(4),
        database: row.get(5),
        two_phase: row.get(6),
        failover: row.get(7),
    }))
}

/// A publication and its members.
#[derive(Clone, Debug)]
pub struct Publication {
    /// `pg_publication.oid`: another one after DROP and CREATE.
    pub oid: u32,
    /// The tables, by name.
    pub tables: Vec<TableName>,
    /// Whether INSERT, UPDATE, DELETE and TRUNCATE are all published, and no generated columns.
    pub complete: bool,
    /// `publish_via_partition_root`: changes of partitions come as the partitioned table's.
    pub via_root: bool,
    /// Whether it is FOR ALL TABLES (or a schema).
    pub all_tables: bool,
    /// Whether a member has a row filter or a column list.
    pub filtered: bool,
}

/// The publication called `name`, if there is one.
pub async fn find_publication(client: &Client, name: &str) -> Result<Option<Publication>> {
    // Since 15 there are schemas, row filters and column lists, since 18 generated columns. As JSON a column that an
    // older catalog lacks is NULL.
    let schemas = match Version::of(client).await?.major() {
        14 => "false",
        _ => "EXISTS (SELECT FROM pg_publication_namespace n WHERE n.pnpubid = p.oid)",
    };
    let sql = format!(
        "SELECT oid, pubinsert AND pubupdate AND pubdelete AND pubtruncate
                    AND coalesce(to_jsonb(p) ->> 'pubgencols', 'n') = 'n',
                puballtables OR {schemas},
                EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid
                            AND coalesce(to_jsonb(r) ->> 'prqual', to_jsonb(r) ->> 'prattrs') IS NOT NULL),
                pubviaroot
           FROM pg_publication p WHERE pubname = $1"
    );
    let head = client.query_opt(&sql, &[&name]).await.doing("look at the publication")?;
    let Some(head) = head else { return Ok(None) };
    let members = client
        .query(
            "SELECT n.nspname::text, c.relname::text
               FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
               JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE p.pubname = $1",
            &[&name],
        )
        .await
        .doing("list the publication's tables")?;
    Ok(Some(Publication {
        oid: head.get(0),
        complete: head.get(1),
        all_tables: head.get(2),
        filtered: head.get(3),
        via_root: head.get(4),
        tables: members.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect(),
    }))
}

/// What the publication called `name` publishes of `tables` now; tables that it does not have are left out.
pub async fn published(client: &Client, name: &str, tables: &[TableName]) -> Result<Published> {
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        tables.iter().map(|table| (table.schema.as_str(), table.name.as_str())).unzip();
    let rows = client
        .query(
            "SELECT p.xmin::text::bigint, w.schema, w.name, c.oid, r.oid,
                    coalesce(pg_relation_filenode(c.oid), 0), array_agg(a.attname::text ORDER BY a.attnum),
                    array_agg(a.attnum ORDER BY a.attnum), array_agg(a.xmin::text::bigint ORDER BY a.attnum),
                    (SELECT coalesce(array_agg(k.conname::text ORDER BY k.conname), '{}') FROM pg_constraint k
                      WHERE k.conrelid = c.oid AND k.contype = 'f'),
                    (SELECT coalesce(array_agg(pg_get_constraintdef(k.oid) || ' ' ||
                                (SELECT coalesce(string_agg(g.tgenabled::text, '' ORDER BY g.oid), '') FROM pg_trigger g
                                  WHERE g.tgconstraint = k.oid) ORDER BY k.conname), '{}') FROM pg_constraint k
                      WHERE k.conrelid = c.oid AND k.contype = 'f'),
                    (WITH RECURSIVE tree(id, attached) AS (
                       SELECT inhrelid, xmin::text || inhdetachpending FROM pg_inherits
                        WHERE inhparent = c.oid AND c.relkind = 'p'
                       UNION ALL
                       SELECT i.inhrelid, i.xmin::text || i.inhdetachpending FROM tree t JOIN pg_inherits i ON i.inhparent = t.id)
                     SELECT coalesce(array_agg(concat_ws(' ', t.id, t.attached, l.relfilenode, l.relreplident,
                              (SELECT indexrelid FROM pg_index x WHERE x.indrelid = t.id AND indisreplident)) ORDER BY t.id), '{}')
                       FROM tree t JOIN pg_class l ON l.oid = t.id),
                    coalesce(c.relkind = 'p', false)
               FROM pg_publication p
               LEFT JOIN (unnest($2::text[], $3::text[]) w(schema, name)
                    JOIN pg_namespace n ON n.nspname = w.schema
                    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
                    JOIN pg_publication_rel r ON r.prrelid = c.oid
                    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) ON r.prpubid = p.oid
              WHERE p.pubname = $1
              GROUP BY p.xmin::text, w.schema, w.name, c.oid, c.relkind, r.oid",
            &[&name, &schemas, &names],
        )
        .await
        .doing("look at what is published")?;
    let mut published = Published::default();
    for row in &rows {
        published.version = u32::try_from(row.get::<_, i64>(0)).unwrap_or_default();
        let Some(schema) = row.get::<_, Option<String>>(1) else { continue };
        let (names, numbers, versions): (Vec<String>, Vec<i16>, Vec<i64>) = (row.get(6), row.get(7), row.get(8));
        let columns = names.into_iter().zip(numbers).zip(versions);
        let columns = columns.map(|((name, number), version)| PublishedColumn {
            name,
            number,
            version: u32::try_from(version).unwrap_or_default(),
        });
        let (keys, definitions): (Vec<String>, Vec<String>) = (row.get(9), row.get(10));
        let table = PublishedTable {
            oid: row.get(3),
            member: row.get(4),
            file: row.get(5),
            columns: columns.collect(),
            found_by: keys.into_iter().zip(definitions).collect(),
            partitions: row.get::<_, Vec<String>>(11).iter().filter_map(|part| partition(part)).collect(),
            partitioned: row.get(12),
        };
        published.tables.push((TableName::new(schema, row.get::<_, String>(2)), table));
    }
    let oids: Vec<u32> = published.tables.iter().map(|(_, table)| table.oid).collect();
    for row in client.query(LABELS, &[&oids]).await.doing("look at the labels of enums")? {
        let label = (PublishedTable::label(row.get(1), row.get(2)), row.get(3));
        let of_table = published.tables.iter_mut().map(|(_, table)| table).find(|table| table.oid == row.get(0));
        of_table.into_iter().for_each(|table| table.found_by.push(label.clone()));
    }
    Ok(published)
}

/// Number and version of a partition.
fn partition(text: &str) -> Option<(u32, String)> {
    let (number, version) = text.split_once(' ')?;
    Some((number.parse().ok()?, version.to_owned()))
}

/// The labels of the enums in tables' columns, with their row's version: one that is renamed and back has another.
const LABELS: &str = "SELECT a.attrelid, a.attname::text, e.oid, e.enumlabel || ' ' || e.xmin
                        FROM pg_attribute a JOIN pg_enum e ON e.enumtypid = a.atttypid
                       WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped";

/// The end of the source's log, which the lag is measured from.
pub async fn wal_end(client: &Client) -> Result<Lsn> {
    let row = client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.doing("read the log's end")?;
    parse_lsn(row.get(0))
}

//! The copy of one table of one tenant: COPY out of a snapshot, into the target, byte for byte, in binary or, where a
//! column travels as text, all as text; committed in parts. The table counts as copied only with the row in `carveout.copied`
//! that the last part commits; an interrupted table is emptied and begun again.

use bytes::{Buf, Bytes};
use futures_util::{SinkExt, StreamExt, pin_mut};
use schemas::tenant::KeyType;
use schemas::{Lsn, MoveId, Snapshot, TableName, TenantId};
use tokio_postgres::{Client, Transaction};

use super::apply::key_bytes;
use super::catalog::Table;
use super::policy::Owned;
use super::provision::partitions;
use super::{Doing, Error, Result, checksum, control, quote};

/// The most that one transaction copies: its log passes through our own slot when the target is a
/// schema of the source's server.
const PART_BYTES: usize = 32 << 20;

/// `PGCOPY\n\377\r\n\0`, flags, extension length (PostgreSQL manual, COPY, "Binary Format").
pub(super) const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// The field count that ends the data.
pub(super) const TRAILER: &[u8] = b"\xff\xff";

/// How many rows the progress and the throttle see at a time.
const REPORT_ROWS: u64 = 256;

/// What to copy, and where.
pub struct CopyJob<'a> {
    /// The move.
    pub id: MoveId,
    /// The lane's epoch, held in each part.
    pub epoch: i64,
    /// The table on the source.
    pub source: &'a Table,
    /// Which rows: an SQL condition over the source table.
    pub filter: String,
    /// The table in the target.
    pub target: TableName,
    /// Whether others have rows there: it has been emptied of the tenant's ([`empty`]), and stays otherwise as it is.
    pub shared: bool,
    /// The snapshot that the reading connection is under.
    pub snapshot: &'a Snapshot,
    /// Every transaction the snapshot shows ends at or before this position.
    pub wal_insert_lsn: Lsn,
}

/// Copies the rows; `report` is called with every few hundred of them and may wait.
pub async fn copy_table<F, W>(from: &Client, into: &mut Client, job: &CopyJob<'_>, mut report: F) -> Result<u64>
where
    F: FnMut(u64) -> W,
    W: Future<Output = ()>,
{
    let doing = || format!("copy {}", job.source.name);
    let text = job.source.is_text();
    let (out, into_sql) = statements(job.source, &job.filter, &job.target);
    hold_shape(from, job.source).await?;
    let rows = from.copy_out(&out).await.doing(doing())?;
    pin_mut!(rows);
    let mut first = true;
    let mut total = 0;
    loop {
        let tx = into.transaction().await.doing(doing())?;
        control::hold_epoch(&tx, job.id, job.epoch).await?;
        if first {
            begin_table(&tx, job).await?;
        }
        let sink = tx.copy_in::<_, Bytes>(&into_sql).await.doing(doing())?;
        pin_mut!(sink);
        if !text {
            sink.feed(Bytes::from_static(HEADER)).await.doing(doing())?;
        }
        let (mut bytes, mut unreported, mut ended) = (0, 0, false);
        while bytes < PART_BYTES {
            // One CopyData message is one row (PostgreSQL manual, "COPY Operations").
            let Some(row) = rows.next().await else {
                ended = text;
                break;
            };
            let mut row = row.doing(doing())?;
            if std::mem::take(&mut first) && !text {
                row = strip_header(row).map_err(|why| Error::protocol(doing(), why))?;
            }
            if row == TRAILER && !text {
                ended = true;
                break;
            }
            bytes += row.len();
            unreported += 1;
            sink.feed(row).await.doing(doing())?;
            if unreported == REPORT_ROWS {
                report(std::mem::take(&mut unreported)).await;
                total += REPORT_ROWS;
            }
        }
        if !ended && bytes < PART_BYTES {
            return Err(Error::protocol(doing(), "the data ended without its end mark"));
        }
        report(unreported).await;
        total += unreported;
        if !text {
            sink.feed(Bytes::from_static(TRAILER)).await.doing(doing())?;
        }
        sink.finish().await.doing(doing())?;
        if ended {
            finish_table(&tx, job, total).await?;
        }
        tx.commit().await.doing(doing())?;
        if ended {
            return Ok(total);
        }
    }
}

/// Keeps the source's table as it is until the reading transaction ends, and makes sure that the snapshot
/// can read it so. A table that was rewritten after the snapshot looks empty under it; one that was changed
/// after it was planned would be copied with the old columns' types. Partitions that are emptied, come or go are
/// noticed by the watcher, and their table is read again.
async fn hold_shape(from: &Client, source: &Table) -> Result<()> {
    let doing = || format!("copy {}", source.name);
    let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", quote::table(&source.name));
    from.batch_execute(&lock).await.doing(doing())?;
    let row = from
        .query_one(
            "SELECT coalesce((SELECT c.relkind = 'p' OR c.relfilenode = pg_relation_filenode(c.oid) FROM pg_class c WHERE c.oid = $1 AND c.oid = to_regclass($2)), false),
                    coalesce(array_agg(a.attname::text ORDER BY a.attnum), '{}'),
                    coalesce(array_agg(a.atttypid ORDER BY a.attnum), '{}'),
                    coalesce(array_agg(a.atttypmod ORDER BY a.attnum), '{}')
               FROM pg_attribute a
              WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''",
            &[&source.oid, &quote::table(&source.name)],
        )
        .await
        .doing(doing())?;
    let (names, types, typmods): (Vec<String>, Vec<u32>, Vec<i32>) = (row.get(1), row.get(2), row.get(3));
    let now = names.iter().zip(types).zip(typmods).map(|((name, kind), typmod)| (name.as_str(), kind, typmod));
    let planned = source.stored().map(|column| (column.name.as_str(), column.type_oid, column.typmod));
    match row.get::<_, bool>(0) && now.eq(planned) {
        true => Ok(()),
        // Another snapshot, and a fresh look at the catalogs, may succeed.
        false => Err(Error::connection(doing(), "the table was changed or rewritten meanwhile")),
    }
}

/// Reads a table's rows under the snapshot that `from` is in, into the empty table `target`, in the transaction that
/// `into` is in. Returns how many.
pub async fn pour(from: &Client, into: &Client, source: &Table, filter: &str, target: &TableName) -> Result<u64> {
    let doing = || format!("read {} again", source.name);
    let (out, into_sql) = statements(source, filter, target);
    hold_shape(from, source).await?;
    let rows = from.copy_out(&out).await.doing(doing())?;
    let sink = into.copy_in::<_, Bytes>(&into_sql).await.doing(doing())?;
    pin_mut!(rows, sink);
    while let Some(bytes) = rows.next().await {
        sink.feed(bytes.doing(doing())?).await.doing(doing())?;
    }
    sink.finish().await.doing(doing())
}

/// COPY out of the source, and into the target.
fn statements(source: &Table, filter: &str, target: &TableName) -> (String, String) {
    let columns = quote::idents(source.stored().map(|column| column.name.as_str()));
    let format = if source.is_text() { "text" } else { "binary" };
    let name = quote::table(&source.name);
    (
        format!("COPY (SELECT {columns} FROM {name} WHERE {filter}) TO STDOUT (FORMAT {format})"),
        format!("COPY {} ({columns}) FROM STDIN (FORMAT {format})", quote::table(target)),
    )
}

/// Empties the table and says that its copy has begun.
async fn begin_table(tx: &Transaction<'_>, job: &CopyJob<'_>) -> Result<()> {
    let doing = || format!("begin the copy of {}", job.source.name);
    if !job.shared {
        tx.batch_execute(&format!("TRUNCATE {}", quote::table(&job.target))).await.doing(doing())?;
        partitions::alike(tx.client(), job.source, &job.target).await?;
    }
    tx.execute(
        "INSERT INTO carveout.copied (move, table_name, snapshot, wal_insert_lsn, rows, done)
         VALUES ($1, $2, $3, $4::text::pg_lsn, 0, false)
         ON CONFLICT (move, table_name) DO UPDATE
            SET snapshot = excluded.snapshot, wal_insert_lsn = excluded.wal_insert_lsn, rows = 0, done = false",
        &[
            &job.id.to_string(),
            &control::copied_name(&job.source.name),
            &job.snapshot.to_string(),
            &job.wal_insert_lsn.to_string(),
        ],
    )
    .await
    .doing(doing())?;
    Ok(())
}

/// Deletes the tenant's rows from a table that others share, where an earlier copy may have left some.
pub async fn empty(client: &Client, owned: &Owned, tenant: &TenantId) -> Result<()> {
    let name = &owned.table.name;
    let sql = format!("DELETE FROM {} WHERE {}", quote::table(name), owned.filter(tenant));
    client.batch_execute(&sql).await.doing(format!("empty {name} of the tenant's rows"))
}

/// Says that the copy is complete, in the transaction that completes it.
async fn finish_table(tx: &Transaction<'_>, job: &CopyJob<'_>, rows: u64) -> Result<()> {
    let doing = || format!("finish the copy of {}", job.source.name);
    let rows = i64::try_from(rows).map_err(|error| Error::protocol(doing(), error))?;
    let updated = tx
        .execute(
            "UPDATE carveout.copied SET done = true, rows = $3 WHERE move = $1 AND table_name = $2",
            &[&job.id.to_string(), &control::copied_name(&job.source.name), &rows],
        )
        .await
        .doing(doing())?;
    match updated {
        1 => Ok(()),
        _ => Err(Error::state(doing(), "its row in carveout.copied is gone")),
    }
}

/// The first message carries the header before the first row (or before the trailer).
fn strip_header(message: Bytes) -> std::result::Result<Bytes, &'static str> {
    match message.strip_prefix(HEADER) {
        Some(_) => Ok(message.slice(HEADER.len()..)),
        None => Err("the data does not begin with COPY's binary header"),
    }
}

/// The values of `columns` in every row of a table, where none is NULL, in the form in which keys are compared: one of
/// them, or several with their lengths. Nobody waits for them, so the server rests while it reads.
pub async fn keys(
    client: &Client,
    table: &TableName,
    columns: &[String],
) -> Result<impl futures_util::Stream<Item = Result<Bytes>> + use<>> {
    let doing = format!("read the keys of {table}");
    let names = quote::idents(columns.iter().map(String::as_str));
    let select = format!("SELECT {names} FROM {}", quote::table(table));
    // A description names the types below domains.
    let described = client.prepare(&select).await.doing(&*doing)?;
    let kinds = described.columns().iter().map(|column| KeyType::from_oid(column.type_().oid()));
    let kinds: Vec<Option<KeyType>> = kinds.collect();
    let out = format!("COPY ({select} WHERE {}) TO STDOUT (FORMAT binary)", checksum::RESTS);
    let rows = client.copy_out(&out).await.doing(&*doing)?;
    let mut first = true;
    Ok(rows.filter_map(move |row| {
        let begins = std::mem::take(&mut first);
        let key = row.doing(&*doing).and_then(|row| {
            let row = if begins { strip_header(row) } else { Ok(row) };
            row.and_then(|row| key(row, &kinds)).map_err(|why| Error::protocol(&*doing, why))
        });
        std::future::ready(key.transpose())
    }))
}

/// The key in one row of COPY BINARY; `None` at the end mark, and where a column is NULL.
fn key(mut row: Bytes, kinds: &[Option<KeyType>]) -> std::result::Result<Option<Bytes>, &'static str> {
    const SHORT: &str = "a row ends too early";
    if row == TRAILER {
        return Ok(None);
    }
    row.try_get_i16().map_err(|_| SHORT)?;
    let mut values = Vec::with_capacity(kinds.len());
    for kind in kinds {
        let Ok(length) = usize::try_from(row.try_get_i32().map_err(|_| SHORT)?) else { return Ok(None) };
        if row.len() < length {
            return Err(SHORT);
        }
        let value = row.split_to(length);
        values.push(match kind {
            Some(kind) => value.slice_ref(kind.compared(&value)),
            None => value,
        });
    }
    Ok(Some(key_bytes(values.iter().map(Bytes::as_ref)).into()))
}

/// The planner's estimate of the rows that `filter` selects.
pub async fn estimate(client: &Client, table: &TableName, filter: &str) -> Result<u64> {
    let sql = format!("EXPLAIN (FORMAT TEXT) SELECT FROM {} WHERE {filter}", quote::table(table));
    let plan = client.query(&sql, &[]).await.doing(format!("estimate the rows of {table}"))?;
    let line: String = plan.first().map(|row| row.get(0)).unwrap_or_default();
    let rows = line.split("rows=").nth(1).and_then(|rest| rest.split(' ').next());
    Ok(rows.and_then(|digits| digits.parse().ok()).unwrap_or(0))
}

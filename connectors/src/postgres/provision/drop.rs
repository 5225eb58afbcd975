//! Drops what a move made, and never what others made or hung on to it.

use schemas::{MoveId, TableName};
use tokio_postgres::{Client, Transaction};

use super::super::quote::{ident, table as qualified};
use super::super::{Doing, Error, Result, control};
use super::objects::word;

/// Drops what the move created but for schemas, and forgets what the tables held: all is made again as the source
/// has it now.
pub async fn drop_tables(client: &mut Client, id: MoveId) -> Result<()> {
    let doing = || format!("drop the tables of {id}");
    let tx = client.transaction().await.doing(doing())?;
    drop_made(&tx, id, "schema").await?;
    control::reset(&tx, id).await?;
    tx.commit().await.doing(doing())
}

/// Drops what the move created in this database, newest first, and its rows in schema `carveout`; nothing when
/// the move of that number belongs to another state directory than `state`.
pub async fn drop_objects(client: &mut Client, id: MoveId, state: &str) -> Result<()> {
    let doing = || format!("drop what {id} created");
    let tx = client.transaction().await.doing(doing())?;
    let present: bool =
        tx.query_one("SELECT to_regclass('carveout.checkpoint') IS NOT NULL", &[]).await.doing(doing())?.get(0);
    let foreign = "SELECT FROM carveout.checkpoint WHERE move = $1 AND state <> $2";
    if !present || tx.query_opt(foreign, &[&id.to_string(), &state]).await.doing(doing())?.is_some() {
        return Ok(());
    }
    drop_made(&tx, id, "").await?;
    for table in ["checkpoint", "copied", "arriving", "objects"] {
        let sql = format!("DELETE FROM carveout.{table} WHERE move = $1");
        tx.execute(&sql, &[&id.to_string()]).await.doing(doing())?;
    }
    tx.commit().await.doing(doing())
}

/// What is there now under the number or the name of each thing that was made.
const NOW: &str = "\
SELECT o.kind, o.name, now.oid, now.name AS present, now.oid = o.oid AS same_number,
       CASE o.kind WHEN 'table' THEN now.oid IS NOT DISTINCT FROM to_regclass(o.name)::oid
                   WHEN 'schema' THEN now.name = quote_ident(o.name) ELSE now.name = o.name END AS same_name
  FROM carveout.objects o
 CROSS JOIN LATERAL (
   SELECT c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE o.kind = 'table' AND (c.oid = o.oid OR c.oid = to_regclass(o.name)) AND c.relkind IN ('r', 'p')
    UNION ALL
   SELECT n.oid, quote_ident(n.nspname) FROM pg_namespace n
    WHERE o.kind = 'schema' AND (n.oid = o.oid OR n.nspname = o.name)
    UNION ALL
   SELECT x.oid, i.identity
     FROM (SELECT 'extension' AS kind, 'pg_extension'::regclass AS class, oid FROM pg_extension
           UNION ALL SELECT 'type', 'pg_type', oid FROM pg_type WHERE oid >= 16384
           UNION ALL SELECT 'function', 'pg_proc', oid FROM pg_proc WHERE oid >= 16384
           UNION ALL SELECT 'collation', 'pg_collation', oid FROM pg_collation WHERE oid >= 16384
           UNION ALL SELECT CASE relkind WHEN 'v' THEN 'view' ELSE 'sequence' END, 'pg_class', oid FROM pg_class
                      WHERE oid >= 16384 AND relkind IN ('v', 'S')) x
    CROSS JOIN LATERAL pg_identify_object(x.class, x.oid, 0) i
    WHERE x.kind = o.kind AND (x.oid = o.oid OR i.identity = o.name)) now
 WHERE o.move = $1 AND o.kind <> $2";

/// Drops what is still what it was, newest first: the number and the name together. A thing that has another name
/// now, or a name that is another thing's (a database that was restored numbers everything anew), is not ours to
/// drop. Without CASCADE: what others hung on to it stops us. Of the kind `but` nothing is dropped.
async fn drop_made(tx: &Transaction<'_>, id: MoveId, but: &str) -> Result<()> {
    hand_on(tx, id).await?;
    let differs = format!("SELECT * FROM ({NOW}) n WHERE same_number <> same_name");
    let rows = tx.query(&differs, &[&id.to_string(), &but]).await.doing(format!("compare what {id} created"))?;
    if let Some(row) = rows.first() {
        let (kind, was, is): (&str, &str, &str) = (row.get(0), row.get(1), row.get(3));
        let why = format!(
            "{kind} {was} is not the one that was made (what is there now is {is}): it was renamed, made again or restored. \
             Name it as it was, or drop it by hand and delete its row in carveout.objects; then cancel again"
        );
        return Err(Error::state(format!("drop what {id} created"), why));
    }
    cut_foreign_keys(tx, id).await?;
    let made = format!(
        "SELECT n.kind, n.present FROM ({NOW}) n JOIN carveout.objects o ON (o.kind, o.name) = (n.kind, n.name)
          ORDER BY o.created_at DESC, o.kind DESC, o.name"
    );
    let rows = tx.query(&made, &[&id.to_string(), &but]).await.doing(format!("list what {id} created"))?;
    for row in &rows {
        let (kind, name): (&str, &str) = (row.get(0), row.get(1));
        tx.batch_execute(&format!("DROP {} {name}", word(kind))).await.doing(format!("drop {kind} {name}"))?;
    }
    let gone = "DELETE FROM carveout.objects WHERE move = $1 AND kind <> $2";
    tx.execute(gone, &[&id.to_string(), &but]).await.doing(format!("forget what {id} created"))?;
    Ok(())
}

/// Another move in this database may use the types and functions that this one made: they are that one's now.
async fn hand_on(tx: &Transaction<'_>, id: MoveId) -> Result<()> {
    let sql = "UPDATE carveout.objects SET move = heir.move
                 FROM (SELECT move FROM carveout.checkpoint WHERE move <> $1 ORDER BY move LIMIT 1) heir
                WHERE objects.move = $1 AND kind IN ('extension', 'type', 'function', 'collation', 'sequence')";
    tx.execute(sql, &[&id.to_string()]).await.doing(format!("hand on what {id} created"))?;
    Ok(())
}

/// Tables that refer to each other could not be dropped one by one.
async fn cut_foreign_keys(tx: &Transaction<'_>, id: MoveId) -> Result<()> {
    let doing = || format!("drop the foreign keys of {id}");
    let rows = tx
        .query(
            "SELECT n.nspname::text, c.relname::text, k.conname::text
               FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE k.contype = 'f' AND k.conrelid <> k.confrelid AND k.conparentid = 0
                AND (SELECT count(*) FROM carveout.objects o
                      WHERE o.move = $1 AND o.kind = 'table' AND o.oid IN (k.conrelid, k.confrelid)) = 2",
            &[&id.to_string()],
        )
        .await
        .doing(doing())?;
    for row in &rows {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let sql = format!("ALTER TABLE {} DROP CONSTRAINT {}", qualified(&table), ident(row.get(2)));
        tx.batch_execute(&sql).await.doing(doing())?;
    }
    Ok(())
}

//! Makes the target: database, schema, tables; after the copy the keys, indexes and checks.
//!
//! Everything made is written to `carveout.objects` in the transaction that makes it, so that
//! `cancel` drops just that. What exists already and is not ours is never touched.

use schemas::url::PgUrl;
use schemas::{MoveId, TableName};
use tokio_postgres::{Client, Transaction};

use super::catalog::{Column, Table};
use super::client::connect;
use super::quote::{ident, literal, table as qualified};
use super::{Doing, Error, Result, control};

/// Whether the database exists on the server behind `admin`.
pub async fn database_exists(admin: &PgUrl, database: &str) -> Result<bool> {
    let client = connect(admin, "provision").await?;
    let row = client
        .query_opt("SELECT FROM pg_database WHERE datname = $1", &[&database])
        .await
        .doing(format!("look for database {database}"))?;
    Ok(row.is_some())
}

/// Creates the database with the source's encoding and collation, unless it exists.
pub async fn create_database(admin: &PgUrl, database: &str, source: &Client) -> Result<()> {
    if database_exists(admin, database).await? {
        return Ok(());
    }
    let doing = || format!("create database {database}");
    let locale = source
        .query_one(
            "SELECT datcollate::text, datctype::text, datlocprovider::text, daticulocale::text
               FROM pg_database WHERE datname = current_database()",
            &[],
        )
        .await
        .doing("read the source's collation")?;
    let mut sql = format!(
        "CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE {} LC_CTYPE {}",
        ident(database),
        literal(locale.get(0)),
        literal(locale.get(1))
    );
    if let ("i", Some(icu)) = (locale.get(2), locale.get::<_, Option<String>>(3)) {
        sql = format!("{sql} LOCALE_PROVIDER icu ICU_LOCALE {}", literal(&icu));
    }
    let client = connect(admin, "provision").await?;
    match client.batch_execute(&sql).await.doing(doing()) {
        // A creation that a killed daemon had begun is still under way: look again.
        Err(error) if matches!(error.sqlstate(), Some("42P04" | "23505")) => Err(Error::connection(doing(), error)),
        done => done,
    }
}

/// Drops a database that Carveout created; nobody else may be connected to it.
pub async fn drop_database(admin: &PgUrl, database: &str) -> Result<()> {
    let client = connect(admin, "provision").await?;
    let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", ident(database));
    client.batch_execute(&sql).await.doing(format!("drop database {database}"))
}

/// Makes the schema where it is missing.
pub async fn create_schema(client: &mut Client, id: MoveId, schema: &str) -> Result<()> {
    let doing = || format!("create schema {schema}");
    let tx = client.transaction().await.doing(doing())?;
    let exists = tx.query_opt("SELECT FROM pg_namespace WHERE nspname = $1", &[&schema]).await.doing(doing())?;
    if exists.is_none() {
        record(&tx, id, "schema", schema).await?;
        tx.batch_execute(&format!("CREATE SCHEMA {}", ident(schema))).await.doing(doing())?;
    }
    tx.commit().await.doing(doing())
}

/// Makes a table without keys and indexes, as `target`. A table of that name that this move did
/// not create is refused.
pub async fn create_table(client: &mut Client, id: MoveId, source: &Table, target: &TableName) -> Result<()> {
    let doing = || format!("create table {target}");
    let tx = client.transaction().await.doing(doing())?;
    let name = control::object_name(target);
    let exists: bool = tx.query_one("SELECT to_regclass($1) IS NOT NULL", &[&name]).await.doing(doing())?.get(0);
    if exists {
        let ours = tx
            .query_opt(
                "SELECT FROM carveout.objects WHERE move = $1 AND kind = 'table' AND name = $2",
                &[&id.to_string(), &name],
            )
            .await
            .doing(doing())?;
        return match ours {
            Some(_) => Ok(()),
            None => Err(Error::state(
                doing(),
                "it exists already and this move did not create it; drop or rename it, or choose another name pattern",
            )),
        };
    }
    record(&tx, id, "table", &name).await?;
    for (column, sequence) in source.columns.iter().filter_map(|c| c.owned_sequence.as_ref().map(|s| (c, s))) {
        create_sequence(&tx, &TableName::new(&target.schema, &sequence.name), column).await?;
    }
    let columns: Vec<String> = source.columns.iter().map(|column| column_sql(column, &target.schema)).collect();
    let sql = format!("CREATE TABLE {} (\n  {})", qualified(target), columns.join(",\n  "));
    tx.batch_execute(&sql).await.doing(doing())?;
    for column in &source.columns {
        if let Some(sequence) = &column.owned_sequence {
            let owned = format!(
                "ALTER SEQUENCE {} OWNED BY {}.{}",
                qualified(&TableName::new(&target.schema, &sequence.name)),
                qualified(target),
                ident(&column.name)
            );
            tx.batch_execute(&owned).await.doing(doing())?;
        }
    }
    tx.commit().await.doing(doing())
}

/// A sequence for a serial column; its values are set when the writes move.
async fn create_sequence(tx: &Transaction<'_>, name: &TableName, column: &Column) -> Result<()> {
    let kind = match column.type_oid {
        21 => "smallint",
        23 => "integer",
        _ => "bigint",
    };
    let sql = format!("CREATE SEQUENCE {} AS {kind}", qualified(name));
    tx.batch_execute(&sql).await.doing(format!("create sequence {name}"))
}

/// One column of CREATE TABLE.
fn column_sql(column: &Column, schema: &str) -> String {
    let mut sql = format!("{} {}", ident(&column.name), column.type_sql);
    if let Some(collation) = &column.collation {
        sql = format!("{sql} COLLATE {collation}");
    }
    match (column.identity.as_str(), column.generated.as_str(), &column.owned_sequence, &column.default) {
        ("a", ..) => sql.push_str(" GENERATED ALWAYS AS IDENTITY"),
        ("d", ..) => sql.push_str(" GENERATED BY DEFAULT AS IDENTITY"),
        (_, "s", _, Some(expression)) => sql = format!("{sql} GENERATED ALWAYS AS ({expression}) STORED"),
        (_, _, Some(sequence), _) => {
            let own = qualified(&TableName::new(schema, &sequence.name));
            sql = format!("{sql} DEFAULT nextval({}::regclass)", literal(&own));
        }
        (_, _, None, Some(default)) => sql = format!("{sql} DEFAULT {default}"),
        _ => {}
    }
    if column.not_null {
        sql.push_str(" NOT NULL");
    }
    sql
}

async fn record(tx: &Transaction<'_>, id: MoveId, kind: &str, name: &str) -> Result<()> {
    tx.execute("INSERT INTO carveout.objects (move, kind, name) VALUES ($1, $2, $3)", &[&id.to_string(), &kind, &name])
        .await
        .doing(format!("record {kind} {name}"))?;
    Ok(())
}

/// The DDL that completes a copied table: primary key, uniques, checks, then the other indexes.
#[derive(Clone, Debug)]
pub struct Finish {
    constraints: Vec<(String, String)>,
    indexes: Vec<(String, String, bool)>,
}

/// Reads from the source what [`finish_table`] will make.
pub async fn read_finish(source: &Client, table: &Table) -> Result<Finish> {
    let doing = || format!("read keys and indexes of {}", table.name);
    let constraints = source
        .query(
            "SELECT conname::text, pg_get_constraintdef(oid) FROM pg_constraint
              WHERE conrelid = $1 AND contype IN ('p', 'u', 'c') ORDER BY contype DESC, conname",
            &[&table.oid],
        )
        .await
        .doing(doing())?;
    let indexes = source
        .query(
            "SELECT c.relname::text, i.indisunique, pg_get_indexdef(i.indexrelid),
                    format('CREATE %sINDEX %I ON %I.%I ', CASE WHEN i.indisunique THEN 'UNIQUE ' END, c.relname, n.nspname, t.relname)
               FROM pg_index i
               JOIN pg_class c ON c.oid = i.indexrelid
               JOIN pg_class t ON t.oid = i.indrelid
               JOIN pg_namespace n ON n.oid = t.relnamespace
              WHERE i.indrelid = $1 AND i.indisvalid
                AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))
              ORDER BY c.relname",
            &[&table.oid],
        )
        .await
        .doing(doing())?;
    let indexes = indexes.iter().map(|row| {
        let (name, unique, definition, head): (String, bool, String, String) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        match definition.strip_prefix(&head) {
            Some(method) => Ok((name, method.to_owned(), unique)),
            None => Err(Error::protocol(doing(), format!("the definition of index {name} has an unknown form"))),
        }
    });
    Ok(Finish {
        constraints: constraints.iter().map(|row| (row.get(0), row.get(1))).collect(),
        indexes: indexes.collect::<Result<_>>()?,
    })
}

/// Makes keys, checks and indexes of a copied table, in one transaction, and analyzes it.
pub async fn finish_table(client: &mut Client, target: &TableName, finish: &Finish) -> Result<()> {
    let doing = || format!("build the indexes of {target}");
    let tx = client.transaction().await.doing(doing())?;
    let present = tx
        .query(
            "SELECT conname::text FROM pg_constraint WHERE conrelid = to_regclass($1)
              UNION SELECT c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
              WHERE i.indrelid = to_regclass($1)",
            &[&qualified(target)],
        )
        .await
        .doing(doing())?;
    let present: Vec<String> = present.iter().map(|row| row.get(0)).collect();
    for (name, definition) in finish.constraints.iter().filter(|(name, _)| !present.contains(name)) {
        let sql = format!("ALTER TABLE {} ADD CONSTRAINT {} {definition}", qualified(target), ident(name));
        tx.batch_execute(&sql).await.doing(format!("add constraint {name} to {target}"))?;
    }
    for (name, definition, unique) in finish.indexes.iter().filter(|(name, ..)| !present.contains(name)) {
        let unique = if *unique { "UNIQUE " } else { "" };
        let sql = format!("CREATE {unique}INDEX {} ON {} {definition}", ident(name), qualified(target));
        tx.batch_execute(&sql).await.doing(format!("create index {name} on {target}"))?;
    }
    tx.commit().await.doing(doing())?;
    client.batch_execute(&format!("ANALYZE {}", qualified(target))).await.doing(format!("analyze {target}"))
}

/// Drops what the move created in this database, newest first, and its rows in schema `carveout`.
pub async fn drop_objects(client: &mut Client, id: MoveId) -> Result<()> {
    let doing = || format!("drop what {id} created");
    let tx = client.transaction().await.doing(doing())?;
    let present: bool =
        tx.query_one("SELECT to_regclass('carveout.objects') IS NOT NULL", &[]).await.doing(doing())?.get(0);
    if !present {
        return Ok(());
    }
    let id = id.to_string();
    let rows = tx
        .query(
            "SELECT kind, name FROM carveout.objects WHERE move = $1 AND kind IN ('table', 'schema')
              ORDER BY kind DESC, name",
            &[&id],
        )
        .await
        .doing(doing())?;
    for row in &rows {
        let (kind, name): (String, String) = (row.get(0), row.get(1));
        // Names of tables are stored quoted. Without CASCADE: what others hung on to it stops us.
        let sql = match kind.as_str() {
            "table" => format!("DROP TABLE IF EXISTS {name}"),
            _ => format!("DROP SCHEMA IF EXISTS {}", ident(&name)),
        };
        tx.batch_execute(&sql).await.doing(format!("drop {kind} {name}"))?;
    }
    for table in ["checkpoint", "copied", "objects"] {
        tx.execute(&format!("DELETE FROM carveout.{table} WHERE move = $1"), &[&id]).await.doing(doing())?;
    }
    tx.commit().await.doing(doing())
}

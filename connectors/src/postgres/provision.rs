//! Makes the target: database, what the tables need (`needs`, `objects`), schema, tables; after the copy the keys,
//! indexes and checks, then what hangs on the tables (`parts`).
//!
//! Everything made is written to `carveout.objects` in the transaction that makes it, so that
//! `cancel` drops just that. What exists already and is not ours is never touched.

use schemas::url::PgUrl;
use schemas::{MoveId, TableName};
use tokio_postgres::{Client, Transaction};

use super::catalog::{self, Column, Table};
use super::client::connect;
use super::quote::{ident, literal, table as qualified};
use super::version::Version;
use super::{Doing, Error, Result, control};

pub mod dress;
mod drop;
pub mod keys;
pub mod needs;
pub mod objects;
pub mod partitions;
pub mod parts;
pub mod report;

pub use drop::{drop_objects, drop_tables};
use needs::PartKind;
use parts::{LeftOut, Place};

/// Whether the database exists on the server behind `admin`.
pub async fn database_exists(admin: &PgUrl, database: &str) -> Result<bool> {
    let client = connect(admin, "provision").await?;
    let row = client
        .query_opt("SELECT FROM pg_database WHERE datname = $1", &[&database])
        .await
        .doing(format!("look for database {database}"))?;
    Ok(row.is_some())
}

/// Creates the database with the source's encoding and collation, for the role of `target`; false when it exists
/// already.
pub async fn create_database(admin: &PgUrl, target: &PgUrl, database: &str, source: &Client) -> Result<bool> {
    let client = connect(admin, "provision").await?;
    lock_database(&client, database).await?;
    if database_exists(admin, database).await? {
        return Ok(false);
    }
    let doing = || format!("create database {database}");
    let version = Version::supported(&client).await?;
    // Providers came with 15, and the column's name changed in 17. As JSON an absent column is NULL.
    let locale = source
        .query_one(
            "SELECT datcollate::text, datctype::text, coalesce(to_jsonb(d) ->> 'datlocprovider', 'c'),
                    coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'), to_jsonb(d) ->> 'daticurules'
               FROM pg_database d WHERE datname = current_database()",
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
    if let (provider @ ("i" | "b"), Some(name)) = (locale.get(2), locale.get::<_, Option<String>>(3)) {
        let (provider, since) = if provider == "i" { ("icu", 15) } else { ("builtin", 17) };
        if version.major() < since {
            let why = format!(
                "the source's collation is {name} of provider {provider}, which the target, PostgreSQL {version}, does \
                 not have for a database; create the database by hand, with a collation that sorts the same"
            );
            return Err(Error::state(doing(), why));
        }
        sql = format!("{sql} LOCALE_PROVIDER {provider} {provider}_LOCALE {}", literal(&name));
        if let Some(rules) = locale.get::<_, Option<String>>(4) {
            sql = format!("{sql} ICU_RULES {}", literal(&rules));
        }
    }
    if admin.role() != target.role() {
        sql = format!("{sql} OWNER {}", ident(target.role()));
    }
    client.batch_execute(&sql).await.doing(doing())?;
    Ok(true)
}

/// CREATE DATABASE goes on in the server when the one who asked is gone, and nobody sees the database
/// before its end. The lock is held as long as the session lives, so whoever has it knows that none is being made.
async fn lock_database(client: &Client, database: &str) -> Result<()> {
    let lock = "SELECT pg_advisory_lock(hashtextextended('carveout database ' || $1, 0))";
    client.execute(lock, &[&database]).await.doing(format!("wait for others that make or drop database {database}"))?;
    Ok(())
}

/// What is in a database beside PostgreSQL's own and schema `carveout` as Carveout makes it. Whatever is made
/// by people has a number from 16384 on.
const OTHERS: &str = "\
SELECT string_agg(pg_describe_object(o.classid, o.oid, 0), ', ' ORDER BY o.classid, o.oid)
  FROM (SELECT 'pg_class'::regclass AS classid, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid >= 16384 AND c.relkind NOT IN ('i', 'I', 't') AND n.nspname <> 'pg_toast'
           AND NOT (n.nspname = 'carveout' AND c.relname IN ('checkpoint', 'copied', 'arriving', 'objects', 'fence', 'tenant_routes', 'migration_progress'))
        UNION ALL SELECT 'pg_namespace'::regclass, oid FROM pg_namespace
         WHERE oid >= 16384 AND nspname NOT IN ('carveout', 'public') AND nspname !~ '^pg_(toast_)?temp_'
        UNION ALL SELECT 'pg_type'::regclass, oid FROM pg_type WHERE oid >= 16384 AND typtype IN ('e', 'd', 'r')
        UNION ALL SELECT 'pg_proc'::regclass, oid FROM pg_proc WHERE oid >= 16384
           AND (pronamespace IS DISTINCT FROM to_regnamespace('carveout')::oid OR proname !~ '^fence_[0-9]')

        UNION ALL SELECT 'pg_extension'::regclass, oid FROM pg_extension WHERE oid >= 16384
        UNION ALL SELECT 'pg_largeobject'::regclass, oid FROM pg_largeobject_metadata
        UNION ALL SELECT 'pg_publication'::regclass, oid FROM pg_publication
        UNION ALL SELECT 'pg_subscription'::regclass, s.oid FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
         WHERE d.datname = current_database()
        UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid FROM pg_foreign_data_wrapper
        UNION ALL SELECT 'pg_foreign_server'::regclass, oid FROM pg_foreign_server
        UNION ALL SELECT 'pg_event_trigger'::regclass, oid FROM pg_event_trigger
        UNION ALL SELECT 'pg_collation'::regclass, oid FROM pg_collation WHERE oid >= 16384
        UNION ALL SELECT 'pg_operator'::regclass, oid FROM pg_operator WHERE oid >= 16384
        UNION ALL SELECT 'pg_cast'::regclass, oid FROM pg_cast WHERE oid >= 16384
        UNION ALL SELECT 'pg_ts_config'::regclass, oid FROM pg_ts_config WHERE oid >= 16384
        UNION ALL SELECT 'pg_ts_dict'::regclass, oid FROM pg_ts_dict WHERE oid >= 16384) o
HAVING count(*) > 0";

/// Drops a database that the move created, with what the move made in it; refuses when there is anything else.
pub async fn drop_database(admin: &PgUrl, target: &PgUrl, database: &str, id: MoveId, state: &str) -> Result<()> {
    let client = connect(admin, "cancel").await?;
    lock_database(&client, database).await?;
    if !database_exists(admin, database).await? {
        return Ok(());
    }
    let mut inside = connect(target, "cancel").await?;
    drop_objects(&mut inside, id, state).await?;
    let doing = || format!("drop database {database}");
    let others = inside.query_opt(OTHERS, &[]).await.doing(doing())?;
    drop(inside);
    if let Some(others) = others {
        let others: String = others.get(0);
        let why = format!(
            "others depend on it: it holds {others}, which Carveout did not create. \
             Move or drop that and cancel again; Carveout's own tables in it are gone"
        );
        return Err(Error::state(doing(), why));
    }
    let sql = format!("DROP DATABASE IF EXISTS {}", ident(database));
    match client.batch_execute(&format!("{sql} WITH (FORCE)")).await.doing(doing()) {
        // Sessions of others, and autovacuum's, are not a role's to end by force. The plain form asks autovacuum
        // to go and waits for the others.
        Err(error) if error.sqlstate() == Some("42501") => client.batch_execute(&sql).await.doing(doing()),
        dropped => dropped,
    }
}

/// Makes what the tables need, the schemas and the tables.
pub async fn make_tables(
    source: &Client,
    client: &mut Client,
    id: MoveId,
    place: &Place,
    tables: &[&Table],
) -> Result<()> {
    let needs = needs::read(source, tables).await?;
    if let Some(part) = needs.parts.iter().find(|part| part.kind == PartKind::Shape && !part.lacks.is_empty()) {
        let table = tables.iter().find(|table| table.oid == part.table).map(|table| table.name.to_string());
        let why =
            format!("it needs {}, which this version does not make; `carveout check` says more", part.lacks.join(", "));
        return Err(Error::state(format!("create table {}", table.unwrap_or_default()), why));
    }
    objects::make(client, id, &needs.before).await?;
    let of_parts = tables.iter().flat_map(|table| {
        let target = place.name(&table.name);
        table.partitions.iter().map(move |part| partitions::counterpart(table, &target, &part.name).schema)
    });
    let mut schemas: Vec<String> = tables.iter().map(|table| place.name(&table.name).schema).chain(of_parts).collect();
    schemas.sort_unstable();
    schemas.dedup();
    for schema in &schemas {
        create_schema(client, id, schema).await?;
    }
    let storage = dress::storage(source, tables).await?;
    for table in tables {
        let storage = storage.get(&table.oid).map(Vec::as_slice).unwrap_or_default();
        create_table(client, id, table, &place.name(&table.name), storage).await?;
    }
    Ok(())
}

/// Makes what hangs on the copied tables: foreign keys, triggers, policies, views, grants, comments. What was not
/// made, and why.
pub async fn make_parts(
    source: &Client,
    client: &mut Client,
    id: MoveId,
    place: &mut Place,
    tables: &[&Table],
) -> Result<Vec<LeftOut>> {
    let needs = needs::read(source, tables).await?;
    let keys = keys::read(source, place, tables).await?;
    let pieces = parts::read(source, place, &needs).await?;
    source.batch_execute("SET search_path = pg_catalog").await.doing("read the source's definitions")?;
    let dresses = dress::read(source, tables).await?;
    objects::make(client, id, &needs.after).await?;
    let mut left_out = keys::make(client, place, &keys).await?;
    left_out.extend(parts::make(client, id, place, &pieces).await?);
    left_out.extend(dress::put_on(client, id, place, &dresses).await?);
    Ok(left_out)
}

/// Makes the schema where it is missing.
async fn create_schema(client: &mut Client, id: MoveId, schema: &str) -> Result<()> {
    let doing = || format!("create schema {schema}");
    let tx = client.transaction().await.doing(doing())?;
    let exists = tx.query_opt("SELECT FROM pg_namespace WHERE nspname = $1", &[&schema]).await.doing(doing())?;
    if exists.is_none() {
        tx.batch_execute(&format!("CREATE SCHEMA {}", ident(schema))).await.doing(doing())?;
        let oid = tx.query_one("SELECT oid FROM pg_namespace WHERE nspname = $1", &[&schema]).await.doing(doing())?;
        record(&tx, id, "schema", schema, oid.get(0)).await?;
    }
    tx.commit().await.doing(doing())
}

/// Makes a table without keys and indexes, as `target`, with the `storage` that [`dress::storage`] read. A table of that name that this move did
/// not create is refused.
pub async fn create_table(
    client: &mut Client,
    id: MoveId,
    source: &Table,
    target: &TableName,
    storage: &[String],
) -> Result<()> {
    let doing = || format!("create table {target}");
    let tx = client.transaction().await.doing(doing())?;
    let name = control::object_name(target);
    let exists = tx
        .query_opt(
            "SELECT EXISTS (SELECT FROM carveout.objects o WHERE o.move = $2 AND o.kind = 'table' AND o.oid = c.oid)
               FROM pg_class c WHERE c.oid = to_regclass($1)",
            &[&name, &id.to_string()],
        )
        .await
        .doing(doing())?;
    if let Some(ours) = exists {
        return match ours.get(0) {
            true => Ok(()),
            false => Err(Error::state(
                doing(),
                "it exists already and this move did not create it; drop or rename it, or choose another name pattern",
            )),
        };
    }
    for (column, sequence) in source.columns.iter().filter_map(|c| c.owned_sequence.as_ref().map(|s| (c, s))) {
        create_sequence(&tx, &TableName::new(&target.schema, &sequence.name), column).await?;
    }
    // An older server has none that are computed when they are read.
    let kind = if Version::of(&tx).await?.major() >= 18 { "VIRTUAL" } else { "STORED" };
    let columns: Vec<String> = source.columns.iter().map(|column| column_sql(column, &target.schema, kind)).collect();
    let by = partitions::partitioned_by(source.partitioned_by.as_ref());
    let sql = format!("CREATE TABLE {} (\n  {}){by}", qualified(target), columns.join(",\n  "));
    tx.batch_execute(&sql).await.doing(doing())?;
    partitions::alike(tx.client(), source, target).await?;
    if !storage.is_empty() {
        let sql = format!("ALTER TABLE {} {}", qualified(target), storage.join(", "));
        tx.batch_execute(&sql).await.doing(format!("set the storage of {target}"))?;
    }
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
    let oid = tx.query_one("SELECT to_regclass($1)::oid", &[&name]).await.doing(doing())?;
    record(&tx, id, "table", &name, oid.get(0)).await?;
    tx.commit().await.doing(doing())
}

/// A sequence for a serial column; its values are set when the writes move.
async fn create_sequence(tx: &Transaction<'_>, name: &TableName, column: &Column) -> Result<()> {
    let options = column.sequence_options.as_deref().unwrap_or_default();
    let sql = format!("CREATE SEQUENCE {} {options}", qualified(name));
    tx.batch_execute(&sql).await.doing(format!("create sequence {name}"))
}

/// One column of CREATE TABLE; `virtual_kind` is what a virtual generated column becomes.
fn column_sql(column: &Column, schema: &str, virtual_kind: &str) -> String {
    let mut sql = format!("{} {}", ident(&column.name), column.type_sql);
    if let Some(collation) = &column.collation {
        sql = format!("{sql} COLLATE {collation}");
    }
    match (column.identity.as_str(), column.generated.as_str(), &column.owned_sequence, &column.default) {
        ("a" | "d", ..) => {
            let when = if column.identity == "a" { "ALWAYS" } else { "BY DEFAULT" };
            let options = column.sequence_options.as_deref().unwrap_or_default();
            sql = format!("{sql} GENERATED {when} AS IDENTITY ({options})");
        }
        (_, "s", _, Some(expression)) => sql = format!("{sql} GENERATED ALWAYS AS ({expression}) STORED"),
        (_, "v", _, Some(expression)) => sql = format!("{sql} GENERATED ALWAYS AS ({expression}) {virtual_kind}"),
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

/// Writes down what was just made; a row that is left of something else of that name is no longer true.
async fn record(tx: &Transaction<'_>, id: MoveId, kind: &str, name: &str, oid: u32) -> Result<()> {
    let sql = "INSERT INTO carveout.objects (move, kind, name, oid, created_at) VALUES ($1, $2, $3, $4, clock_timestamp())
               ON CONFLICT (kind, name) DO UPDATE SET move = excluded.move, oid = excluded.oid, created_at = excluded.created_at";
    tx.execute(sql, &[&id.to_string(), &kind, &name, &oid]).await.doing(format!("record {kind} {name}"))?;
    Ok(())
}

/// The DDL that completes a copied table: uniques, primary key, checks, exclusions, then the other indexes.
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
              WHERE conrelid = $1 AND contype IN ('p', 'u', 'c', 'x') ORDER BY contype = 'x', contype DESC, conname",
            &[&table.oid],
        )
        .await
        .doing(doing())?;
    let indexes = source
        .query(
            "SELECT c.relname::text, i.indisunique, pg_get_indexdef(i.indexrelid),
                    format('CREATE %sINDEX %I ON %s%I.%I ', CASE WHEN i.indisunique THEN 'UNIQUE ' END, c.relname,
                           CASE WHEN t.relkind = 'p' THEN 'ONLY ' END, n.nspname, t.relname)
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
    free_names(&tx, target, finish).await?;
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

/// Since 18 NOT NULL is a constraint with a name of its own, `table_column_not_null`, where the source may have
/// another constraint of that name: ours gives way.
async fn free_names(tx: &Transaction<'_>, target: &TableName, finish: &Finish) -> Result<()> {
    let wanted: Vec<&str> = finish.constraints.iter().map(|(name, _)| name.as_str()).collect();
    let taken = tx
        .query(
            "SELECT conname::text, oid FROM pg_constraint
              WHERE conrelid = to_regclass($1) AND contype = 'n' AND conname = ANY ($2::text[])",
            &[&qualified(target), &wanted],
        )
        .await
        .doing(format!("look for names of constraints of {target}"))?;
    for row in &taken {
        let (name, number): (String, u32) = (row.get(0), row.get(1));
        let free = ident(&format!("carveout_not_null_{number}"));
        let sql = format!("ALTER TABLE {} RENAME CONSTRAINT {} TO {free}", qualified(target), ident(&name));
        tx.batch_execute(&sql).await.doing(format!("rename constraint {name} of {target}"))?;
    }
    Ok(())
}

/// Refuses to copy into a table whose columns are not the source's: the values' bytes pass undecoded.
pub async fn same_shape(client: &Client, source: &Table, target: &TableName) -> Result<()> {
    let doing = || format!("copy {}", source.name);
    let found = catalog::tables_in(client, std::slice::from_ref(&target.schema)).await?;
    let Some(table) = found.iter().find(|table| &table.name == target) else {
        return Err(Error::state(
            doing(),
            format!("table {target} is gone from the target; cancel the move, then move again"),
        ));
    };
    let differs = source.stored().find(|column| {
        // By name: a type that people made has another number in another database.
        table.column(&column.name).is_none_or(|own| own.type_sql != column.type_sql)
    });
    match differs {
        None => Ok(()),
        Some(column) => Err(Error::state(
            doing(),
            format!(
                "column \"{}\" was added or changed after {target} was made; cancel the move, then move again",
                column.name
            ),
        )),
    }
}

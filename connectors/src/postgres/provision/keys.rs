//! Foreign keys between moved tables: made NOT VALID when the rows are copied, validated once the target shows one
//! moment of the source. They are never checked while a lane applies: it does so as `session_replication_role =
//! replica`, and where the role may not set that, none are made.

use schemas::TableName;
use tokio_postgres::Client;

use super::super::catalog::Table;
use super::super::quote::{ident, table as qualified};
use super::super::{Doing, Error, Result};
use super::parts::{LeftOut, Place};

/// A foreign key as it will be made.
#[derive(Clone, Debug)]
pub struct Key {
    table: TableName,
    parent: TableName,
    name: String,
    sql: String,
    validated: bool,
    partitioned: bool,
}

impl Key {
    fn described(&self) -> String {
        format!("foreign key {} of {}", self.name, self.table)
    }

    /// Left out where it would be enforced all the time.
    fn enforced(&self) -> LeftOut {
        let cause = "the target's role may not set session_replication_role: it would be checked while changes are applied, \
             out of their order. GRANT SET ON PARAMETER session_replication_role, or add it when the tenant lives there";
        LeftOut { object: self.described(), cause: cause.to_owned() }
    }
}

/// Reads the foreign keys between moved tables. The connection's search_path is another one afterwards.
pub async fn read(source: &Client, place: &Place, tables: &[&Table]) -> Result<Vec<Key>> {
    let doing = "read the foreign keys";
    source.batch_execute(&place.reading()).await.doing(doing)?;
    let mut keys = Vec::new();
    for table in tables {
        let sql = "SELECT conname::text, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = $1 AND contype = 'f' AND conparentid = 0 ORDER BY 1";
        for row in source.query(sql, &[&table.oid]).await.doing(doing)? {
            let name: String = row.get(0);
            let Some(key) = table.foreign_keys.iter().find(|key| key.name == name) else { continue };
            if place.moved.contains(&key.parent) {
                let (parent, partitioned) = (key.parent.clone(), table.partitioned_by.is_some());
                let (table, validated) = (table.name.clone(), key.validated);
                keys.push(Key { table, parent, name, sql: row.get(1), validated, partitioned });
            }
        }
    }
    Ok(keys)
}

/// Whether keys need not be checked in this session.
async fn may_rest(client: &Client) -> Result<bool> {
    match client.batch_execute("SET session_replication_role = replica").await.doing("set the session's role") {
        Err(error) if error.is_transient() => Err(error),
        set => Ok(set.is_ok()),
    }
}

/// Makes those that are not there yet, NOT VALID; those that were not made.
pub async fn make(client: &mut Client, place: &Place, keys: &[Key]) -> Result<Vec<LeftOut>> {
    if !may_rest(client).await? {
        return Ok(keys.iter().map(Key::enforced).collect());
    }
    let mut left_out = Vec::new();
    // One of a partitioned table cannot be NOT VALID before PostgreSQL 18: it is made when the rows fit.
    for key in keys.iter().filter(|key| !key.partitioned) {
        match make_one(client, place, key).await {
            Ok(()) => {}
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => left_out.push(LeftOut { object: key.described(), cause: error.cause.to_string() }),
        }
    }
    Ok(left_out)
}

const FOUND: &str = "SELECT confrelid, convalidated FROM pg_constraint WHERE conrelid = to_regclass($1) AND conname = $2 AND contype = 'f'";

async fn make_one(client: &mut Client, place: &Place, key: &Key) -> Result<()> {
    let doing = || format!("make {}", key.described());
    let name = qualified(&place.name(&key.table));
    let tx = client.transaction().await.doing(doing())?;
    if tx.query_opt(FOUND, &[&name, &key.name]).await.doing(doing())?.is_some() {
        return Ok(());
    }
    let unchecked = if key.sql.ends_with(" NOT VALID") || key.partitioned { "" } else { " NOT VALID" };
    let sql =
        format!("{}; ALTER TABLE {name} ADD CONSTRAINT {} {}{unchecked}", place.making(), ident(&key.name), key.sql);
    tx.batch_execute(&sql).await.doing(doing())?;
    let made = tx
        .query_one(
            &format!("SELECT confrelid = to_regclass($3) FROM ({FOUND}) k"),
            &[&name, &key.name, &qualified(&place.name(&key.parent))],
        )
        .await
        .doing(doing())?;
    if !made.get::<_, bool>(0) {
        return Err(Error::state(
            doing(),
            "its definition names another table in the target than on the source; make it by hand",
        ));
    }
    tx.commit().await.doing(doing())
}

/// Checks the rows of those that are checked on the source; those that do not hold. The target must show one
/// moment of the source. Reads the tables; writers go on.
pub async fn validate(client: &mut Client, place: &Place, keys: &[Key]) -> Result<Vec<LeftOut>> {
    let mut left_out = Vec::new();
    let may_rest = may_rest(client).await?;
    client.batch_execute("RESET session_replication_role").await.doing("set the session's role")?;
    for key in keys.iter().filter(|key| key.validated) {
        let name = qualified(&place.name(&key.table));
        let doing = || format!("validate {}", key.described());
        let found = client.query_opt(FOUND, &[&name, &key.name]).await.doing(doing())?;
        let held = match found {
            None if key.partitioned && !may_rest => {
                left_out.push(key.enforced());
                continue;
            }
            None if key.partitioned => make_one(client, place, key).await,
            Some(row) if !row.get::<_, bool>(1) => {
                let sql = format!("ALTER TABLE {name} VALIDATE CONSTRAINT {}", ident(&key.name));
                client.batch_execute(&sql).await.doing(doing())
            }
            _ => continue,
        };
        match held {
            Ok(()) => {}
            Err(error) if error.is_constraint() => {
                let cause = "rows of the tenant refer to rows that did not move with it (another tenant's, or none): it stays NOT VALID, and on a partitioned table it is not there";
                left_out.push(LeftOut { object: key.described(), cause: cause.to_owned() });
            }
            Err(error) if key.partitioned && !error.is_transient() => {
                left_out.push(LeftOut { object: key.described(), cause: error.cause.to_string() });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(left_out)
}

//! What a target's database needs so that its changes can flow back: a slot and a publication of its own; where the target is a
//! schema of the source's database, its tables in the source's publication. And taking that away again.

use std::time::{Duration, Instant};

use schemas::TableName;
use tokio_postgres::Client;

use super::catalog::Table;
use super::quote::{ident, table as qualified};
use super::{Doing, Error, Result, slot};

/// A table that is in use is tried again for so long.
const PATIENCE: Duration = Duration::from_secs(5);
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(100);
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '50ms'";
/// The server's word for a lock that was not got in time, and for a slot that somebody streams from.
const BUSY: [&str; 2] = ["55P03", "55006"];

/// Refuses a server whose changes cannot be read.
pub async fn required(client: &Client) -> Result<()> {
    let role: String = client.query_one("SELECT current_user::text", &[]).await.doing("name the role")?.get(0);
    match wanting(client, &role).await?.into_iter().next() {
        None => Ok(()),
        Some((why, remedy)) => {
            let why =
                format!("{why}: {remedy}; or set migration_config.rollback_enabled: false, and there is no way back");
            Err(Error::state("prepare the way back from the target", why))
        }
    }
}

/// What a server lacks for its changes to be read by a role: causes, each with what mends it.
pub async fn wanting(client: &Client, role: &str) -> Result<Vec<(String, String)>> {
    let sql = "SELECT current_setting('wal_level'),
                      (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = $1),
                      current_setting('max_replication_slots')::int - (SELECT count(*)::int FROM pg_replication_slots),
                      current_setting('max_wal_senders')::int - (SELECT count(*)::int FROM pg_stat_replication)";
    let row = client.query_one(sql, &[&role]).await.doing("look at the target's settings")?;
    let (level, may): (String, Option<bool>) = (row.get(0), row.get(1));
    let (slots, senders): (i32, i32) = (row.get(2), row.get(3));
    let mut wanting = Vec::new();
    if level != "logical" {
        let remedy = "ALTER SYSTEM SET wal_level = logical, and restart the target's server";
        wanting.push((format!("wal_level is {level}"), remedy.to_owned()));
    }
    // One that is not there yet is made by somebody who reads the documentation.
    if may == Some(false) {
        let remedy = format!("ALTER ROLE {} REPLICATION", ident(role));
        wanting.push((format!("role {role} may not replicate"), remedy));
    }
    if slots < 1 {
        let remedy = "raise max_replication_slots on the target's server";
        wanting.push(("no replication slot is free".to_owned(), remedy.to_owned()));
    }
    if senders < 1 {
        wanting.push(("no WAL sender is free".to_owned(), "raise max_wal_senders on the target's server".to_owned()));
    }
    Ok(wanting)
}

/// Makes old images name their rows, where no key does: without, the application's UPDATE would fail once the table is published.
/// What is said of a partitioned table is not said of its partitions, and the rows are theirs.
pub async fn identities(client: &Client, tables: &[&Table]) -> Result<()> {
    for table in tables.iter().filter(|table| !table.keys.iter().any(|key| key.primary)) {
        let partitions = table.partitions.iter().map(|partition| &partition.name);
        for name in std::iter::once(&table.name).chain(partitions) {
            let sql = format!("ALTER TABLE {} REPLICA IDENTITY FULL", qualified(name));
            at_leisure(client, &format!("set the replica identity of {name}"), &sql).await?;
        }
    }
    Ok(())
}

/// Takes that back where nothing publishes the table, or a part of it, any more.
pub async fn plain_identities(client: &Client, tables: &[TableName]) -> Result<()> {
    let sql = "WITH tree AS (
                 SELECT r.root, coalesce(t.relid, r.root)::oid AS id FROM (SELECT to_regclass(name) AS root FROM unnest($1::text[]) name) r
                   LEFT JOIN LATERAL pg_partition_tree(r.root) t ON true)
               SELECT n.nspname::text, c.relname::text
                 FROM tree JOIN pg_class c ON c.oid = tree.id JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE c.relreplident = 'f'
                  AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = tree.root AND i.indisprimary)
                  AND NOT EXISTS (SELECT FROM tree part JOIN pg_class p ON p.oid = part.id
                                    JOIN pg_publication_tables t ON t.tablename = p.relname AND t.schemaname = p.relnamespace::regnamespace::name
                                   WHERE part.root = tree.root)";
    let names: Vec<String> = tables.iter().map(qualified).collect();
    for row in client.query(sql, &[&names]).await.doing("look for replica identities")? {
        let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let sql = format!("ALTER TABLE {} REPLICA IDENTITY DEFAULT", qualified(&name));
        at_leisure(client, &format!("put back the replica identity of {name}"), &sql).await?;
    }
    Ok(())
}

/// Makes slot and publication, both called `name`, where they are missing.
pub async fn publish(client: &Client, name: &str, tables: &[TableName]) -> Result<()> {
    if slot::find_publication(client, name).await?.is_none() {
        let list: Vec<String> = tables.iter().map(qualified).collect();
        let sql = format!(
            "CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)",
            ident(name),
            list.join(", ")
        );
        at_leisure(client, &format!("make publication {name}"), &sql).await?;
    }
    if slot::find(client, name).await?.is_none() {
        let sql = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')";
        client.execute(sql, &[&name]).await.doing(format!("make slot {name}"))?;
    }
    Ok(())
}

/// Drops both, where they are there.
pub async fn unpublish(client: &Client, name: &str) -> Result<()> {
    let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1";
    let began = Instant::now();
    while let Err(error) = client.execute(drop, &[&name]).await.doing(format!("drop slot {name}")) {
        again(error, began).await?;
    }
    let sql = format!("DROP PUBLICATION IF EXISTS {}", ident(name));
    at_leisure(client, &format!("drop publication {name}"), &sql).await?;
    let sql = "DELETE FROM carveout.objects WHERE kind = 'slot' AND name = $1";
    client.execute(sql, &[&name]).await.doing(format!("forget slot {name}"))?;
    Ok(())
}

/// Adds the tables to a publication that there is. Whoever has written one is waited for: all that is written later is in the log
/// as that publication's, and a snapshot shows the rest.
pub async fn join(client: &Client, publication: &str, tables: &[TableName]) -> Result<()> {
    let members = slot::find_publication(client, publication).await?.map(|found| found.tables).unwrap_or_default();
    for table in tables.iter().filter(|table| !members.contains(table)) {
        let name = qualified(table);
        let sql = format!(
            "LOCK TABLE {name} IN SHARE ROW EXCLUSIVE MODE; ALTER PUBLICATION {} ADD TABLE {name}",
            ident(publication)
        );
        at_leisure(client, &format!("publish {table}"), &sql).await?;
    }
    Ok(())
}

/// Takes them out of it.
pub async fn leave(client: &Client, publication: &str, tables: &[TableName]) -> Result<()> {
    let members = slot::find_publication(client, publication).await?.map(|found| found.tables).unwrap_or_default();
    for table in tables.iter().filter(|table| members.contains(table)) {
        let sql = format!("ALTER PUBLICATION {} DROP TABLE {}", ident(publication), qualified(table));
        at_leisure(client, &format!("take {table} out of the publication"), &sql).await?;
    }
    Ok(())
}

async fn at_leisure(client: &Client, doing: &str, sql: &str) -> Result<()> {
    let began = Instant::now();
    while let Err(error) = client.batch_execute(&format!("BEGIN; {LOCK_TIMEOUT}; {sql}; COMMIT")).await.doing(doing) {
        client.batch_execute("ROLLBACK").await.doing(doing)?;
        again(error, began).await?;
    }
    Ok(())
}

/// Waits before the next attempt, where there is one.
async fn again(error: Error, began: Instant) -> Result<()> {
    if !error.sqlstate().is_some_and(|state| BUSY.contains(&state)) || began.elapsed() > PATIENCE {
        return Err(error);
    }
    tokio::time::sleep(BETWEEN_ATTEMPTS).await;
    Ok(())
}

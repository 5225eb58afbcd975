//! What the source needs before anything can be moved: identities that carry the tenant, a
//! publication with an explicit list of tables, the control schema, then the slot. `check` names
//! it, `prepare` prints or runs it.

use std::time::Duration;

use schemas::config::{Config, Source};
use schemas::status::{Finding, Severity};
use schemas::{Lsn, TableName};
use tokio_postgres::Client;

use super::catalog::Table;
use super::control::Access;
use super::policy::{Owned, names};
use super::quote::{ident, literal, table as qualified};
use super::version::Version;
use super::{Doing, Error, Result, control, slot};

/// How long one attempt may wait for a lock that the application holds.
const LOCK_TIMEOUT: &str = "SET lock_timeout = '1s'";
const ATTEMPTS: u32 = 20;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(500);

/// What [`wanted`] calls it when the role cannot run the steps by itself.
pub const BY_OTHERS: &str = "prepare --apply";

/// What else a slot with `FAILOVER` takes (PostgreSQL manual, "Logical Decoding", "Replication Slot Synchronization").
const FAILOVER: &str = "a standby keeps its copy only with sync_replication_slots = on, hot_standby_feedback = on, \
    primary_slot_name, and a dbname in primary_conninfo; name that physical slot in synchronized_standby_slots of the \
    primary, so that no target is ever ahead of the standby (a named standby that is away then stops the stream)";

/// What is missing, in the order in which it must be done; each remedy is SQL. At the end, as [`BY_OTHERS`], why
/// the role cannot do it by itself.
pub async fn wanted(client: &Client, config: &Config, owned: &[Owned]) -> Result<Vec<Finding>> {
    let role: String = client.query_one("SELECT current_user::text", &[]).await.doing("name the role")?.get(0);
    let access = control::access(client).await?;
    // Without the control schema the tenants' copies look like tables of the application.
    let owned = if access == Access::Denied { &[] } else { owned };
    let partitioned = owned.iter().any(|owned| owned.table.partitioned_by.is_some());
    let mut findings: Vec<Finding> = owned.iter().filter_map(identity).collect();
    findings.extend(publication(client, &config.source.publication, &names(owned), partitioned).await?);
    let grants = control::grants(&role);
    match access {
        // Whoever runs it, the daemon's role can work with it.
        Access::Absent | Access::Older => {
            let cause = if access == Access::Older { "it lacks a table of this version" } else { "it does not exist" };
            let sql = format!("{}{grants}", control::SETUP);
            findings.push(Finding::prepared("schema carveout", cause, sql));
        }
        Access::Denied => {
            let cause = format!("role {role} may not use it; what else there is to prepare shows when it may");
            findings.push(Finding::prepared("schema carveout", cause, grants));
        }
        Access::Granted => {}
    }
    findings.extend(slot(client, &config.source).await?);
    if findings.iter().any(|finding| finding.prepared) {
        let lacks = lacks(client, &config.source.publication, owned, access).await?;
        let cause = format!("role {role} cannot run these steps by itself: {}", lacks.join("; "));
        let remedy = "run what `carveout prepare` prints as a superuser, or as whoever owns these things";
        findings.extend((!lacks.is_empty()).then(|| Finding::new(Severity::Warning, BY_OTHERS, cause, remedy)));
    }
    Ok(findings)
}

/// What the role would need to run the steps itself. (That a slot takes REPLICATION is a finding of its own.)
async fn lacks(client: &Client, publication: &str, owned: &[Owned], access: Access) -> Result<Vec<String>> {
    let published = slot::find_publication(client, publication).await?;
    let joins = |owned: &&Owned| !published.as_ref().is_some_and(|found| found.tables.contains(&owned.table.name));
    let changes = |owned: &&Owned| joins(owned) || identity(owned).is_some();
    let tables: Vec<u32> = owned.iter().filter(changes).map(|owned| owned.table.oid).collect();
    let row = client
        .query_one(
            "SELECT (SELECT string_agg(format('%I.%I', n.nspname, c.relname), ', ' ORDER BY n.nspname, c.relname)
                       FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                      WHERE c.oid = ANY ($1) AND NOT pg_has_role(c.relowner, 'USAGE')),
                    has_database_privilege(current_database(), 'CREATE'), current_database()::text,
                    (SELECT pg_has_role(pubowner, 'USAGE') FROM pg_publication WHERE pubname = $2),
                    (SELECT pg_has_role(nspowner, 'USAGE') FROM pg_namespace WHERE nspname = 'carveout')",
            &[&tables, &publication],
        )
        .await
        .doing("look at who owns what")?;
    let (foreign, database): (Option<String>, String) = (row.get(0), row.get(2));
    let owns = |place: usize| row.get::<_, Option<bool>>(place).unwrap_or(true);
    let mut lacks = Vec::new();
    lacks.extend(foreign.map(|tables| format!("it does not own {tables}")));
    let creates = matches!(access, Access::Absent | Access::Older) || published.is_none() && !owned.is_empty();
    if creates && !row.get::<_, bool>(1) {
        lacks.push(format!("it may not create in database {database}"));
    }
    if owned.iter().any(|owned| joins(&owned)) && !owns(3) {
        lacks.push(format!("it does not own publication {publication}"));
    }
    if matches!(access, Access::Denied | Access::Older) && !owns(4) {
        lacks.push("it does not own schema carveout".to_owned());
    }
    Ok(lacks)
}

/// The replica identity has to carry what says whose a row is: without it a DELETE names no tenant.
fn identity(owned: &Owned) -> Option<Finding> {
    let table = &owned.table;
    let columns = owned.identity_columns();
    if table.partitioned_by.is_some() {
        return identities(table, &columns);
    }
    if table.identity_covers(&columns) {
        return None;
    }
    let index = table.keys.iter().find(|key| key.identifies && key.covers(&columns));
    let how = match index {
        Some(index) => format!("USING INDEX {}", ident(&index.name)),
        None => "FULL".to_owned(),
    };
    let list: Vec<String> = columns.iter().map(|column| format!("\"{column}\"")).collect();
    let cause = match list.is_empty() {
        true => "it has no replica identity: once it is published, every UPDATE and DELETE would fail".to_owned(),
        false => {
            format!("its replica identity does not carry {}: a DELETE would not name its tenant", list.join(" and "))
        }
    };
    Some(Finding::prepared(
        table.name.to_string(),
        cause,
        format!("ALTER TABLE {} REPLICA IDENTITY {how}", qualified(&table.name)),
    ))
}

/// The same for a partitioned table: the server writes a partition's old rows by the partition's identity, and
/// describes them by the whole table's, so all must be alike.
fn identities(table: &Table, columns: &[String]) -> Option<Finding> {
    let by_key = table.identity == "d" && table.identity_covers(columns);
    let fits = table.identity_covers(columns) && table.partitions.iter().all(|partition| partition.agrees);
    if fits {
        return None;
    }
    let (letter, how) = if by_key { ("d", "DEFAULT") } else { ("f", "FULL") };
    let parts = table.partitions.iter().map(|partition| (&partition.name, partition.identity.as_str()));
    let differing =
        std::iter::once((&table.name, table.identity.as_str())).chain(parts).filter(|(_, own)| *own != letter);
    let names: Vec<String> = differing.map(|(name, _)| qualified(name)).collect();
    let cause = format!(
        "it is partitioned, and a DELETE would not name its tenant: its replica identity and its partitions' must be the \
         same and carry the tenant; others are those of {} (a new partition has its own: set it in the transaction that makes it)",
        names.join(", ")
    );
    let sql: Vec<String> = names.iter().map(|name| format!("ALTER TABLE {name} REPLICA IDENTITY {how}")).collect();
    Some(Finding::prepared(table.name.to_string(), cause, sql.join("; ")))
}

async fn publication(client: &Client, name: &str, tables: &[TableName], partitioned: bool) -> Result<Vec<Finding>> {
    let object = format!("publication {name}");
    let error = |cause: &str, remedy: &str| Ok(vec![Finding::new(Severity::Error, &object, cause, remedy)]);
    let Some(found) = slot::find_publication(client, name).await? else {
        if tables.is_empty() {
            return Ok(Vec::new());
        }
        let list: Vec<String> = tables.iter().map(qualified).collect();
        let sql = format!(
            "CREATE PUBLICATION {} FOR TABLE {}{}",
            ident(name),
            list.join(", "),
            if partitioned { " WITH (publish_via_partition_root = true)" } else { "" }
        );
        return Ok(vec![Finding::prepared(object, "it does not exist", sql)]);
    };
    if found.all_tables || found.filtered || !found.complete {
        return error(
            "it must name its tables one by one, without row filters and column lists, and publish insert, update, delete and truncate, without generated columns",
            "name another one in source.publication, which prepare will create",
        );
    }
    let missing = tables.iter().filter(|table| !found.tables.contains(table)).map(|table| {
        let table = qualified(table);
        // Under the lock no transaction is left that wrote the table before it was published.
        let sql = format!(
            "BEGIN; LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE; ALTER PUBLICATION {} ADD TABLE {table}; COMMIT",
            ident(name)
        );
        Finding::prepared(&object, format!("table {table} is not in it"), sql)
    });
    let root = (partitioned && !found.via_root).then(|| {
        let sql = format!("ALTER PUBLICATION {} SET (publish_via_partition_root = true)", ident(name));
        Finding::prepared(&object, "it publishes partitions one by one, not as the tables that they are parts of (changing that makes moves under way copy again)", sql)
    });
    Ok(root.into_iter().chain(missing).collect())
}

async fn slot(client: &Client, source: &Source) -> Result<Vec<Finding>> {
    let (name, wanted) = (&source.slot, source.failover);
    let object = format!("slot {name}");
    let found = slot::find(client, name).await?;
    if wanted && Version::of(client).await?.major() < 17 {
        let cause = "it asks for a slot that standbys keep a copy of, which PostgreSQL has from 17 on";
        return Ok(vec![Finding::new(Severity::Error, "source.failover", cause, "leave source.failover out")]);
    }
    let mut findings = Vec::new();
    if wanted {
        findings.push(Finding::new(Severity::Note, "source.failover", FAILOVER, ""));
    }
    let Some(found) = found else {
        // A slot that is made anew belongs to no state directory yet. (Temporary and two_phase stay false.)
        let options = if wanted { ", false, false, true" } else { "" };
        let sql = format!(
            "SELECT pg_create_logical_replication_slot({name}, 'pgoutput'{options}); \
             DELETE FROM carveout.objects WHERE kind = 'slot' AND name = {name}",
            name = literal(name)
        );
        findings.push(Finding::prepared(object, "it does not exist", sql));
        return Ok(findings);
    };
    if wanted && !found.failover {
        let cause = "source.failover asks for a slot that standbys keep a copy of; this one was made without";
        let sql = format!("ALTER_REPLICATION_SLOT {} (FAILOVER true)", ident(name));
        let remedy = format!("stop the daemon, run {sql} in psql 'dbname=… replication=database', start it again");
        findings.push(Finding::new(Severity::Error, &object, cause, remedy));
    }
    let here: String =
        client.query_one("SELECT current_database()::text", &[]).await.doing("name the database")?.get(0);
    let wrong = if found.plugin != "pgoutput" {
        format!("it uses {}, not pgoutput", found.plugin)
    } else if found.database != here {
        format!("it belongs to database {}", found.database)
    } else if found.two_phase {
        "it decodes prepared transactions (two_phase), which is not supported".to_owned()
    } else if found.wal_status == "lost" {
        "the server has removed log that it needed; the slot is lost".to_owned()
    } else if found.confirmed_flush == Lsn::ZERO {
        "somebody is making it: that waits for transactions that are open".to_owned()
    } else {
        return Ok(findings);
    };
    let remedy = "name another slot in source.slot, which prepare will create";
    findings.push(Finding::new(Severity::Error, object, wrong, remedy));
    Ok(findings)
}

/// Runs one prepared remedy under a short lock timeout, several times if the lock is busy.
pub async fn apply(client: &Client, finding: &Finding) -> Result<()> {
    client.batch_execute(LOCK_TIMEOUT).await.doing("set lock_timeout")?;
    let doing = || format!("prepare {}", finding.object);
    let mut attempt = 0;
    loop {
        attempt += 1;
        let Err(error) = client.batch_execute(&finding.remedy).await.doing(doing()) else { return Ok(()) };
        // A statement of several may have left its transaction open.
        client.batch_execute("ROLLBACK").await.doing(doing())?;
        match error.sqlstate() {
            Some("55P03") if attempt < ATTEMPTS => tokio::time::sleep(BETWEEN_ATTEMPTS).await,
            Some("55P03") => {
                let why = "a lock stayed busy; nothing of this step was changed. Run prepare again at a quieter time";
                return Err(Error::state(doing(), why));
            }
            _ => return Err(error),
        }
    }
}

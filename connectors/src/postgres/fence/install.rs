//! The fence's functions and triggers: made table by table, each in a short transaction of its own.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use schemas::TableName;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, GenericClient};

use super::super::catalog::{self, Partition};
use super::super::policy::{Owned, Path};
use super::super::quote::{ident, literal, table as qualified};
use super::super::{Doing, Error, Result};
use super::{AT_MOST, CHANGES, CLASS, Fence, LANE, LOCK_NOT_AVAILABLE, REFUSED, Row};

/// How long a change of one table's triggers waits for who uses it: others queue behind that. Where transactions that overlap always
/// take longer it would never come: as time goes by it waits for a tenth of what has passed, at most for so long, and no longer than
/// the least while somebody is in the way for whom that would be too short as well. Between two attempts is twice as long.
const HARDLY_IN_THE_WAY: Duration = Duration::from_millis(50);
/// The server's word for a table that is gone.
const NO_SUCH_TABLE: &str = "42P01";

/// Puts the fence around the tables, or completes it. Those that other rows say the tenant of come last: their triggers cost
/// every tenant's writers most. Tries each table for `patience`.
pub async fn install(client: &mut Client, fence: &Fence, tables: &[Owned], patience: Duration) -> Result<()> {
    let row = fence.create(client).await?;
    let role: String = client.query_one("SELECT session_user::text", &[]).await.doing("name the role")?.get(0);
    let known = known_functions(client, row).await?;
    for (name, body) in functions(fence, &Guard { row, role }, tables) {
        // Where it is made anew, every session compiles it anew.
        if known.get(&name) != Some(&body) {
            let sql = format!(
                "CREATE OR REPLACE FUNCTION carveout.{}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS {}",
                ident(&name),
                literal(&body)
            );
            client.batch_execute(&sql).await.doing(format!("make function carveout.{name}"))?;
        }
    }
    let wanting: HashSet<String> = wanting(client, row, tables).await?.into_iter().collect();
    for owned in from_the_top(tables).iter().filter(|owned| wanting.contains(&owned.table.name.to_string())) {
        // Some may have come since the tables were read.
        let partitions = catalog::partitions_of(client, &owned.table.name).await?;
        let sql = triggers(fence, row, owned, &partitions);
        Change { row, table: &owned.table.name, sql, excludes_readers: false }.at_leisure(client, patience).await?;
    }
    if !wanting.is_empty() {
        let sql = "UPDATE carveout.fence SET state = state WHERE tenant = $1 AND side = $2";
        client.execute(sql, &[&fence.tenant.0, &fence.end.name()]).await.doing(fence.doing("complete"))?;
    }
    Ok(())
}

/// Takes it away, with its row: what costs most first. What there is, the catalogs say, whatever has become of the tables.
pub async fn remove(client: &mut Client, fence: &Fence, patience: Duration) -> Result<()> {
    let Some(row) = fence.read(client).await? else { return Ok(()) };
    loop {
        for (table, triggers) in made(client, fence, row).await? {
            let drop = |name: &String| format!("DROP TRIGGER IF EXISTS {} ON {}", ident(name), qualified(&table));
            // By itself it locks partitions before their parent, and writers do the other way round; and each table weakly at first,
            // so that whoever truncates it meanwhile would end in a deadlock.
            let lock = format!("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE", qualified(&table));
            let sql = std::iter::once(lock).chain(triggers.iter().map(drop)).collect::<Vec<_>>().join("; ");
            let change = Change { row, table: &table, sql, excludes_readers: true };
            match change.at_leisure(client, patience).await {
                Err(error) if error.sqlstate() == Some(NO_SUCH_TABLE) => {}
                done => done?,
            }
        }
        let tx = client.transaction().await.doing(fence.doing("remove"))?;
        let alone = format!("SET LOCAL idle_in_transaction_session_timeout = '10s'; {}", changes_lock(row));
        tx.batch_execute(&alone).await.doing(fence.doing("remove"))?;
        // Who was stopped while it made triggers may have gone on to the end of what it was at.
        if !made(&tx, fence, row).await?.is_empty() {
            continue;
        }
        let functions =
            "SELECT proname::text FROM pg_proc WHERE pronamespace = to_regnamespace('carveout') AND proname ~ $1";
        for found in tx.query(functions, &[&own_functions(row)]).await.doing(fence.doing("look at"))? {
            let name: String = found.get(0);
            let sql = format!("DROP FUNCTION IF EXISTS carveout.{}()", ident(&name));
            tx.batch_execute(&sql).await.doing(format!("drop function carveout.{name}"))?;
        }
        let sql = "DELETE FROM carveout.fence WHERE tenant = $1 AND side = $2";
        tx.execute(sql, &[&fence.tenant.0, &fence.end.name()]).await.doing(fence.doing("remove"))?;
        return tx.commit().await.doing(fence.doing("remove"));
    }
}

/// A fence's functions, as a pattern for their names.
fn own_functions(row: Row) -> String {
    format!("^{}(_[0-9]+)?$", row.function())
}

/// Until the transaction ends nobody else changes this fence's triggers, or takes its functions away.
fn changes_lock(row: Row) -> String {
    format!("SELECT pg_advisory_xact_lock({CHANGES}, {})", row.lock_key)
}

/// The triggers that there are, by table, what costs most first.
async fn made(client: &impl GenericClient, fence: &Fence, row: Row) -> Result<Vec<(TableName, Vec<String>)>> {
    let sql = "WITH ours AS (SELECT oid, proname FROM pg_proc WHERE pronamespace = to_regnamespace('carveout') AND proname ~ $1)
         SELECT n.nspname::text, c.relname::text, array_agg(g.tgname::text ORDER BY g.tgname)
           FROM pg_trigger g JOIN ours o ON o.oid = g.tgfoid JOIN pg_class c ON c.oid = g.tgrelid
           JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE g.tgparentid = 0
          GROUP BY 1, 2 ORDER BY max(o.proname) DESC, 1, 2";
    let rows = client.query(sql, &[&own_functions(row)]).await.doing(fence.doing("look at"))?;
    let made = rows.iter().map(|row| (TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)), row.get(2)));
    Ok(made.collect())
}

/// The tables where a trigger is missing, or does not always fire, on the table itself or on a partition.
pub(super) async fn wanting(client: &Client, row: Row, tables: &[Owned]) -> Result<Vec<String>> {
    let fenced: Vec<&TableName> =
        tables.iter().filter(|owned| !matches!(owned.path, Path::Reference)).map(|owned| &owned.table.name).collect();
    let names: Vec<String> = fenced.iter().map(|name| qualified(name)).collect();
    let sql = "WITH RECURSIVE tree(root, id) AS (
                 SELECT name, to_regclass(name)::oid FROM unnest($1::text[]) name
                 UNION ALL
                 SELECT t.root, i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.id)
               SELECT DISTINCT t.root FROM tree t, unnest($2::text[]) trigger
                WHERE NOT EXISTS (SELECT FROM pg_trigger g
                        WHERE g.tgrelid = t.id AND g.tgname = trigger AND g.tgenabled = 'A'
                          AND g.tgfoid IN (SELECT p.oid FROM pg_proc p WHERE p.pronamespace = to_regnamespace('carveout')
                                              AND starts_with(p.proname, $3)))";
    let triggers: Vec<String> = self::names(row).collect();
    let function = row.function();
    let values: [(&(dyn ToSql + Sync), Type); 3] =
        [(&names, Type::TEXT_ARRAY), (&triggers, Type::TEXT_ARRAY), (&function, Type::TEXT)];
    let rows = client.query_typed(sql, &values).await.doing("look at a fence")?;
    let wanting: HashSet<String> = rows.iter().map(|row| row.get(0)).collect();
    let wanting = fenced.into_iter().filter(|name| wanting.contains(&qualified(name)));
    Ok(wanting.map(TableName::to_string).collect())
}

/// What is changed of one table's triggers, in one transaction.
struct Change<'a> {
    row: Row,
    table: &'a TableName,
    sql: String,
    /// Whether it waits for those who only read, too.
    excludes_readers: bool,
}

impl Change<'_> {
    /// Does it, again and again while others are in the way.
    async fn at_leisure(&self, client: &mut Client, patience: Duration) -> Result<()> {
        let doing = || self.doing();
        let (began, mut wait) = (Instant::now(), HARDLY_IN_THE_WAY);
        let mut in_the_way = HashMap::new();
        loop {
            // Others queue behind the commit too, which need not be on disk to let them go: whoever has put the fence around all
            // tables commits once more, so that nothing is built upon what is not there.
            let sql = format!(
                "BEGIN; SET LOCAL lock_timeout = {}; SET LOCAL synchronous_commit = off; {}; {}; COMMIT",
                wait.as_millis(),
                changes_lock(self.row),
                self.sql
            );
            let Err(error) = client.batch_execute(&sql).await.doing(doing()) else { return Ok(()) };
            client.batch_execute("ROLLBACK").await.doing(doing())?;
            if error.sqlstate() != Some(LOCK_NOT_AVAILABLE) {
                return Err(error);
            }
            let most = self.look(client, &mut in_the_way).await?;
            let longest = in_the_way.values().map(|(since, _)| since.elapsed()).max().unwrap_or_default();
            if began.elapsed() > patience {
                return Err(Error::connection(doing(), self.refusal(&in_the_way)));
            }
            tokio::time::sleep(2 * wait).await;
            let longer = if longest < most { began.elapsed() / 10 } else { Duration::ZERO };
            wait = longer.min(most).max(HARDLY_IN_THE_WAY);
        }
    }

    /// Who is in the way, each since when it was seen first. How long may be waited: so long that nobody is taken for deadlocked.
    async fn look(&self, client: &Client, in_the_way: &mut HashMap<String, (Instant, String)>) -> Result<Duration> {
        let sql = "SELECT DISTINCT s.short, l.virtualtransaction, coalesce(l.pid::text, 'a prepared transaction')
                     FROM (SELECT current_setting('deadlock_timeout')::interval < '1s' AS short) s
                     LEFT JOIN pg_locks l ON l.locktype = 'relation' AND l.granted
                      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                      AND (l.relation = to_regclass($1) OR l.relation IN (SELECT relid FROM pg_partition_tree(to_regclass($1))))
                      AND ($2 OR l.mode NOT IN ('AccessShareLock', 'RowShareLock'))";
        let values: [(&(dyn ToSql + Sync), Type); 2] =
            [(&qualified(self.table), Type::TEXT), (&self.excludes_readers, Type::BOOL)];
        let rows = client.query_typed(sql, &values).await.doing(self.doing())?;
        let now = Instant::now();
        let there = rows.iter().filter_map(|row| {
            let who: String = row.get::<_, Option<String>>(1)?;
            let since = in_the_way.get(&who).map_or(now, |(since, _)| *since);
            Some((who, (since, row.get(2))))
        });
        *in_the_way = there.collect();
        Ok(if rows.iter().any(|row| row.get(0)) { HARDLY_IN_THE_WAY } else { AT_MOST })
    }

    fn refusal(&self, in_the_way: &HashMap<String, (Instant, String)>) -> String {
        let done = if self.excludes_readers { "used" } else { "written" };
        let long = in_the_way.values().filter(|(since, _)| since.elapsed() >= AT_MOST);
        let mut pids: Vec<&str> = long.map(|(_, pid)| pid.as_str()).collect();
        pids.sort_unstable();
        match pids.join(", ") {
            none if none.is_empty() => format!(
                "it is never without a transaction that has {done} it, though none stays open for long; try again at a quieter time"
            ),
            pids => format!(
                "a transaction that has {done} it stays open (pid: {pids}); end it, or try again at a quieter time"
            ),
        }
    }

    fn doing(&self) -> String {
        format!("change the fence around {}", self.table)
    }
}

/// The tables that have a fence, each behind the one that says whose its rows are.
fn from_the_top(tables: &[Owned]) -> Vec<&Owned> {
    let mut fenced: Vec<&Owned> = tables.iter().filter(|owned| !matches!(owned.path, Path::Reference)).collect();
    fenced.sort_by_key(|owned| owned.depth());
    fenced
}

/// The names of a table's triggers.
fn names(row: Row) -> impl Iterator<Item = String> {
    let function = row.function();
    ["insert", "update", "delete", "truncate"].into_iter().map(move |event| format!("carveout_{function}_{event}"))
}

/// The functions of a fence that are as they are made, with their texts.
async fn known_functions(client: &Client, row: Row) -> Result<HashMap<String, String>> {
    let sql = "SELECT p.proname::text, p.prosrc FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
                WHERE p.pronamespace = to_regnamespace('carveout') AND starts_with(p.proname, $1) AND l.lanname = 'plpgsql'
                  AND p.prosecdef AND p.provolatile = 'v' AND p.proconfig IS NULL AND pg_get_userbyid(p.proowner) = current_user";
    let rows = client.query_typed(sql, &[(&row.function(), Type::TEXT)]).await.doing("look at a fence")?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What a function knows beside the fence.
struct Guard {
    row: Row,
    /// The role whose lane passes.
    role: String,
}

/// One function for tables that name the tenant and for TRUNCATE, and one for each of the others: their names and texts.
fn functions(fence: &Fence, guard: &Guard, tables: &[Owned]) -> Vec<(String, String)> {
    let row = guard.row;
    let plain = (row.function(), body(fence, guard, ""));
    let others = from_the_top(tables).into_iter().filter(|owned| owned.depth() > 0).map(|owned| {
        let name = via_function(row, owned);
        let own = |row| owned.condition(row, &fence.tenant);
        let passes = format!("IF NOT (({}) OR ({})) THEN RETURN NULL; END IF;", own("NEW"), own("OLD"));
        (name, body(fence, guard, &passes))
    });
    let whole = tables.iter().filter_map(|owned| {
        let Path::Whole(Some(column)) = &owned.path else { return None };
        let name = via_function(row, owned);
        let kind = owned.table.column(column).map_or("text", |column| column.base_name.as_str());
        let own = format!("NEW.{} OPERATOR(pg_catalog.=) {}::{kind}", ident(column), literal(&fence.tenant.0));
        let foreign = format!(
            "IF TG_OP OPERATOR(pg_catalog.<>) 'DELETE' AND ({own}) IS NOT TRUE THEN RAISE EXCEPTION USING ERRCODE = '23514', \
             MESSAGE = 'a row of another tenant', DETAIL = {}; END IF;",
            literal(&format!("all rows of {} are those of tenant {}", owned.table.name, fence.tenant.0))
        );
        Some((name, body(fence, guard, &foreign)))
    });
    std::iter::once(plain).chain(others).chain(whole).collect()
}

fn via_function(row: Row, owned: &Owned) -> String {
    format!("{}_{}", row.function(), owned.table.oid)
}

/// VOLATILE, so that each statement in it sees what is committed by then. Without `SET search_path`, which would cost more
/// than the rest: every name has its schema. The writer must not be able to touch the control row, so it runs as its owner.
/// The move's own lane passes, whatever the state: its commits are held by its checkpoint's epoch.
fn body(fence: &Fence, guard: &Guard, passes: &str) -> String {
    let (lock_key, detail) = (guard.row.lock_key, literal(&format!("carveout move {}", fence.id)));
    let (role, lane) = (literal(&guard.role), literal(&fence.id.to_string()));
    let said = literal(&format!("tenant {} does not live here", fence.tenant.0));
    format!(
        "DECLARE s text;
BEGIN
  IF session_user OPERATOR(pg_catalog.=) {role}
     AND pg_catalog.current_setting('{LANE}', true) OPERATOR(pg_catalog.=) {lane} THEN RETURN NULL; END IF;
  {passes}
  PERFORM pg_catalog.pg_advisory_xact_lock_shared({CLASS}, {lock_key});
  IF pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.=) 'read committed' THEN
    SELECT f.state INTO s FROM carveout.fence f WHERE f.lock_key OPERATOR(pg_catalog.=) {lock_key};
  ELSE
    SELECT f.state INTO s FROM carveout.fence f WHERE f.lock_key OPERATOR(pg_catalog.=) {lock_key} FOR SHARE;
  END IF;
  IF s OPERATOR(pg_catalog.=) 'open' THEN RETURN NULL; END IF;
  IF s IS NULL AND pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.<>) 'read committed' THEN
    RAISE EXCEPTION USING ERRCODE = '40001', MESSAGE = 'could not serialize access: the fence is younger than the snapshot',
      DETAIL = {detail};
  END IF;
  RAISE EXCEPTION USING ERRCODE = '{REFUSED}', MESSAGE = {said}, DETAIL = {detail},
        HINT = 'Look up carveout.tenant_routes and write there.';
END"
    )
}

/// AFTER, for a BEFORE trigger locks every row first, whosever it is, and sees the tenant before other triggers have set it.
fn triggers(fence: &Fence, row: Row, owned: &Owned, partitions: &[Partition]) -> String {
    let table = qualified(&owned.table.name);
    let own_function = owned.depth() > 0 || matches!(owned.path, Path::Whole(Some(_)));
    let function = if own_function { via_function(row, owned) } else { row.function() };
    let when = |rows: &[&str]| {
        let own: Vec<String> = rows.iter().map(|row| owned.condition(row, &fence.tenant)).collect();
        let always = owned.depth() > 0 || matches!(owned.path, Path::Whole(_));
        if always { String::new() } else { format!("WHEN ({})", own.join(" OR ")) }
    };
    let events = [("AFTER INSERT", &["NEW"][..]), ("AFTER UPDATE", &["OLD", "NEW"]), ("AFTER DELETE", &["OLD"])];
    let rows = events.into_iter().map(|(event, rows)| {
        (event, format!("FOR EACH ROW {} EXECUTE FUNCTION carveout.{}()", when(rows), ident(&function)))
    });
    let partitions = partitions.iter().map(|partition| qualified(&partition.name));
    let places: Vec<String> = std::iter::once(table.clone()).chain(partitions).collect();
    let mut sql: Vec<String> = rows
        .zip(names(row))
        .map(|((event, what), name)| format!("CREATE OR REPLACE TRIGGER {} {event} ON {table} {what}", ident(&name)))
        .collect();
    // The triggers for rows are a partition's too; the one for TRUNCATE is not.
    for place in &places {
        let truncate = names(row).last().unwrap_or_default();
        sql.push(format!(
            "CREATE OR REPLACE TRIGGER {} BEFORE TRUNCATE ON {place} FOR EACH STATEMENT EXECUTE FUNCTION carveout.{}()",
            ident(&truncate),
            ident(&row.function())
        ));
        sql.extend(names(row).map(|name| format!("ALTER TABLE {place} ENABLE ALWAYS TRIGGER {}", ident(&name))));
    }
    sql.join("; ")
}

//! A random application on the hostile schema: transactions of many statements, savepoints rolled back, keys
//! that change, unique values that change hands, rows that change their tenant. Its statements may fail (a
//! key that is there already) as an application's may: what counts is what the server committed. It must
//! never tell the product anything; nobody but the log of the source does.

mod values;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::Client;

use crate::hostile::{Id, KEY, Kind, TABLES, Table, literal, quoted};
pub use values::{toast, value};

/// Given ids are below this; shifted ones come back below it.
const IDS: i32 = 400;
/// Added to an id that is shifted out of the way.
const SHIFT: i32 = 100_000;
/// Statements of one transaction.
const MOST_STATEMENTS: u32 = 12;
/// Errors that an application brings about: integrity, deadlock, lock timeout, aborted transaction.
const EXPECTED: [&str; 5] = ["23505", "23514", "40P01", "55P03", "25P02"];

/// What has been done so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Transactions committed, single statements among them.
    pub committed: u32,
    /// Transactions rolled back.
    pub rolled_back: u32,
    /// Savepoints rolled back.
    pub savepoints: u32,
    /// Statements that failed as an application's may.
    pub failed: u32,
}

/// One session's writing.
pub struct Workload {
    rng: StdRng,
    client: Client,
    tenants: Vec<String>,
    /// What it has done.
    pub tally: Tally,
}

impl Workload {
    /// A session that writes rows of these tenants.
    pub async fn new(rng: StdRng, client: Client, tenants: &[&str]) -> Result<Workload> {
        client.batch_execute("SET lock_timeout = '500ms'; SET deadlock_timeout = '50ms'").await?;
        let tenants = tenants.iter().map(|tenant| (*tenant).to_owned()).collect();
        Ok(Workload { rng, client, tenants, tally: Tally::default() })
    }

    /// Runs so many transactions.
    pub async fn run(&mut self, transactions: u32) -> Result<()> {
        for _ in 0..transactions {
            self.transaction().await?;
        }
        Ok(())
    }

    async fn transaction(&mut self) -> Result<()> {
        if self.rng.random_ratio(1, 3) {
            let sql = self.statement();
            if self.execute(&sql).await? {
                self.tally.committed += 1;
            }
            return Ok(());
        }
        self.execute("BEGIN").await?;
        let statements = self.rng.random_range(1..=MOST_STATEMENTS);
        let mut savepoints = 0;
        for _ in 0..statements {
            // Not released: they nest, and some are rolled back with all that came after them.
            savepoints += 1;
            self.execute(&format!("SAVEPOINT s{savepoints}")).await?;
            let sql = self.statement();
            let failed = !self.execute(&sql).await?;
            if failed || self.rng.random_ratio(1, 5) {
                let back = if failed { savepoints } else { self.rng.random_range(1..=savepoints) };
                self.execute(&format!("ROLLBACK TO s{back}")).await?;
                savepoints = back;
                self.tally.savepoints += 1;
            }
        }
        let commit = self.rng.random_ratio(9, 10);
        // A deferred constraint may refuse the COMMIT.
        let done = self.execute(if commit { "COMMIT" } else { "ROLLBACK" }).await?;
        if commit && done {
            self.tally.committed += 1;
        } else {
            self.tally.rolled_back += 1;
        }
        Ok(())
    }

    /// Whether it went through; an error that no application brings about ends the test.
    async fn execute(&mut self, sql: &str) -> Result<bool> {
        let Err(error) = self.client.batch_execute(sql).await else { return Ok(true) };
        match error.code() {
            Some(code) if EXPECTED.contains(&code.code()) => {
                self.tally.failed += 1;
                Ok(false)
            }
            _ => Err(error).with_context(|| format!("the workload's statement: {sql}")),
        }
    }

    fn statement(&mut self) -> String {
        let rng = &mut self.rng;
        let table = *TABLES.choose(rng).expect("there are tables");
        let tenant = self.tenants.choose(rng).cloned().unwrap_or_default();
        match rng.random_range(0..100) {
            0..34 => insert(rng, &table, &tenant),
            34..58 => update(rng, &table),
            58..62 => untouched(rng, &table),
            62..72 => format!("DELETE FROM {} WHERE {}", table.sql(), some_row(rng, &table)),
            72..84 => change_id(rng, &table, &tenant),
            84..94 => change_tenant(rng, &table, &tenant),
            _ => swap(rng, &table),
        }
    }
}

/// A condition that names one row, mostly; deterministic as long as nobody else writes.
fn some_row(rng: &mut StdRng, table: &Table) -> String {
    let (id, offset) = (quoted(table.id_column), rng.random_range(0..IDS / 4));
    format!("{id} = (SELECT {id} FROM {} ORDER BY {id} OFFSET {offset} LIMIT 1)", table.sql())
}

fn insert(rng: &mut StdRng, table: &Table, tenant: &str) -> String {
    let mut columns: Vec<&(&str, Kind)> = table.columns.iter().collect();
    // Some columns are left to their defaults.
    columns.retain(|(_, kind)| *kind == Kind::Varchar || !rng.random_ratio(1, 6));
    let given = matches!(table.id, Id::Given | Id::Repeated);
    let rows: Vec<String> = (0..rng.random_range(1..4))
        .map(|_| {
            let mut row = vec![literal(tenant)];
            row.extend(given.then(|| rng.random_range(0..IDS).to_string()));
            row.extend(columns.iter().map(|(_, kind)| value(rng, *kind)));
            format!("({})", row.join(", "))
        })
        .collect();
    let mut names = vec![quoted(KEY)];
    names.extend(given.then(|| quoted(table.id_column)));
    names.extend(columns.iter().map(|(name, _)| quoted(name)));
    format!("INSERT INTO {} ({}) VALUES {}", table.sql(), names.join(", "), rows.join(", "))
}

fn update(rng: &mut StdRng, table: &Table) -> String {
    let mut sets: Vec<String> = Vec::new();
    for (name, kind) in table.columns {
        // Large values stay as they are more often than not.
        if rng.random_ratio(if *kind == Kind::Toast { 1 } else { 2 }, 5) {
            sets.push(format!("{} = {}", quoted(name), value(rng, *kind)));
        }
    }
    if sets.is_empty() {
        return untouched(rng, table);
    }
    let several = !table.columns.iter().any(|(_, kind)| *kind == Kind::Unique) && rng.random_ratio(1, 4);
    let rows = match several {
        true => format!("{} % 7 = {}", quoted(table.id_column), rng.random_range(0..7)),
        false => some_row(rng, table),
    };
    format!("UPDATE {} SET {} WHERE {rows}", table.sql(), sets.join(", "))
}

/// An UPDATE that changes nothing is logged all the same.
fn untouched(rng: &mut StdRng, table: &Table) -> String {
    let key = quoted(KEY);
    format!("UPDATE {} SET {key} = {key} WHERE {}", table.sql(), some_row(rng, table))
}

fn change_id(rng: &mut StdRng, table: &Table, tenant: &str) -> String {
    let (sql, id) = (table.sql(), quoted(table.id_column));
    if table.id == Id::Always {
        return format!("UPDATE {sql} SET {id} = DEFAULT WHERE {}", some_row(rng, table));
    }
    match rng.random_range(0..4) {
        0 => format!("UPDATE {sql} SET {id} = {id} + {SHIFT} WHERE {}", some_row(rng, table)),
        1 => format!("UPDATE {sql} SET {id} = {id} - {SHIFT} WHERE {id} >= {SHIFT} AND {id} % 2 = 0"),
        2 => format!("UPDATE {sql} SET {id} = {} WHERE {}", rng.random_range(0..IDS), some_row(rng, table)),
        // Every row of a tenant moves up by one: which order the server takes decides whether it may.
        _ => format!("UPDATE {sql} SET {id} = {id} + 1 WHERE {} = {}", quoted(KEY), literal(tenant)),
    }
}

fn change_tenant(rng: &mut StdRng, table: &Table, tenant: &str) -> String {
    // Without the whole old row a large value has to be sent anew, or the move that receives the row stops.
    let anew = if table.full { String::new() } else { format!(", {} = {}", quoted("TOAST"), toast(rng)) };
    let rows = match rng.random_ratio(1, 8) {
        true => format!("{} % 11 = {}", quoted(table.id_column), rng.random_range(0..11)),
        false => some_row(rng, table),
    };
    format!("UPDATE {} SET {} = {}{anew} WHERE {rows}", table.sql(), quoted(KEY), literal(tenant))
}

/// Two rows exchange a unique value: by way of a third value, or at once where that is deferrable.
fn swap(rng: &mut StdRng, table: &Table) -> String {
    let sql = table.sql();
    let pair = |column: &str, rng: &mut StdRng| {
        let offset = rng.random_range(0..IDS / 4);
        format!(
            "ARRAY(SELECT {column} FROM {sql} WHERE {column} IS NOT NULL ORDER BY {column} OFFSET {offset} LIMIT 2)"
        )
    };
    let at_once = |column: &str, pair: &str| {
        format!(
            "UPDATE {sql} SET {column} = CASE {column} WHEN ({pair})[1] THEN ({pair})[2] ELSE ({pair})[1] END \
             WHERE {column} = ANY ({pair}) AND cardinality({pair}) = 2"
        )
    };
    match table.name {
        "deferrable pk" => {
            let pair = pair("\"Id\"", rng);
            at_once("\"Id\"", &pair)
        }
        "order" if rng.random() => {
            let pair = pair("\"later\"", rng);
            at_once("\"later\"", &pair)
        }
        "order" => {
            let pair = pair("\"unique\"", rng);
            format!(
                "DO $swap$ DECLARE p integer[] := {pair}; BEGIN \
                 IF cardinality(p) = 2 THEN \
                   UPDATE {sql} SET \"unique\" = -1 WHERE \"unique\" = p[1]; \
                   UPDATE {sql} SET \"unique\" = p[1] WHERE \"unique\" = p[2]; \
                   UPDATE {sql} SET \"unique\" = p[2] WHERE \"unique\" = -1; \
                 END IF; END $swap$"
            )
        }
        _ => untouched(rng, table),
    }
}

/// Writes until `stop` says so, at most so many transactions a second: how a session writes while a test does
/// its work.
pub async fn write_until(mut workload: Workload, rate: u32, stop: watch::Receiver<bool>) -> Result<Tally> {
    let mut pace = interval(Duration::from_secs(1) / rate);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !*stop.borrow() {
        pace.tick().await;
        workload.run(1).await?;
    }
    if workload.tally.committed == 0 {
        bail!("nothing was committed: {:?}", workload.tally);
    }
    Ok(workload.tally)
}

//! Compares one table of one tenant on both sides, each under its own held snapshot: count and an
//! order-free sum of the rows' 128-bit hashes, computed in the databases. Where they differ, the
//! rows are found by bisection over buckets of the key's hash. Values never leave the databases
//! but for the keys of rows that differ.

use std::collections::BTreeMap;

use schemas::TableName;
use schemas::status::{Difference, TableReport};
use tokio_postgres::Client;

mod keys;
pub mod seen;

use super::catalog::Table;
use super::quote::{ident, table as qualified};
use super::{Doing, Error, Result};
pub use keys::compare_keys;

/// What rows are put into by the hashes of their keys `k`.
const BUCKET: &str = "(hashtextextended(k, 0) & 4095)::text";
/// Buckets whose rows are looked at one by one.
const MOST_BUCKETS: usize = 32;
/// Differing rows that are named.
const MOST_EXAMPLES: usize = 20;

/// By key: rows with it, and the sum of their hashes.
type Hashes = BTreeMap<String, (i64, String)>;

/// One side of the comparison.
pub struct Side<'a> {
    /// A connection inside the transaction that holds the snapshot.
    pub client: &'a Client,
    /// The table there.
    pub table: TableName,
    /// Which of its rows.
    pub filter: String,
}

/// How a table is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// At once: somebody waits for it.
    Quick,
    /// So that others hardly notice: it rests for most of the time.
    Gentle,
}

/// A condition that rests as [`Pace::Gentle`] does, for rows of which the keys are read alone, or whether they are the tenant's: once for
/// each 2,048 of them.
pub const RESTS: &str = "CASE WHEN random() * 2048 < 1 THEN pg_sleep(0.0075) IS NOT NULL ELSE true END";

impl Pace {
    /// A condition that is true of each row `r`, now or a little later: for each 64 KiB of rows, which take about 1 ms, it rests once,
    /// on the average. How busy the server is does not change that.
    fn condition(self) -> &'static str {
        match self {
            Pace::Quick => "true",
            Pace::Gentle => {
                "CASE WHEN random() * 65536 < octet_length(r) THEN pg_sleep(0.0075) IS NOT NULL ELSE true END"
            }
        }
    }

    /// The same for rows that are looked up by their keys, which takes longer: once for each 128 of them. Not for as long: meanwhile
    /// more are changed.
    fn keyed(self) -> &'static str {
        match self {
            Pace::Quick => "true",
            Pace::Gentle => "CASE WHEN random() * 128 < 1 THEN pg_sleep(0.005) IS NOT NULL ELSE true END",
        }
    }
}

/// Compares both sides of a table. `shape` names columns and key.
pub async fn compare(source: &Side<'_>, target: &Side<'_>, shape: &Table, pace: Pace) -> Result<TableReport> {
    let columns = row_text(shape.stored().map(|column| column.name.as_str()));
    let paced = pace.condition();
    let (left, right) = tokio::try_join!(digest(source, &columns, paced), digest(target, &columns, paced))?;
    let mut report = TableReport {
        table: shape.name.to_string(),
        lsn: None,
        source_rows: left.0,
        target_rows: right.0,
        source_digest: left.1.clone(),
        target_digest: right.1.clone(),
        differences: 0,
        examples: Vec::new(),
    };
    if left != right {
        hash_alike(source, target).await?;
        let primary = || shape.keys.iter().find(|key| key.primary);
        let key = match shape.row_key().or_else(primary) {
            Some(key) => row_text(key.columns.iter().map(String::as_str)),
            None => format!("(to_hex(hashtextextended({columns}, 0)) COLLATE \"C\")"),
        };
        let found = differences(source, target, &key, &columns).await?;
        // The sums differ, so at least one row does, wherever the search stopped.
        report.differences = (found.len() as u64).max(1).max(left.0.abs_diff(right.0));
        report.examples = found.into_iter().take(MOST_EXAMPLES).collect();
    }
    Ok(report)
}

/// The text of a row, whatever its columns' collations: NULL and the empty string differ in it.
fn row_text<'a>(columns: impl Iterator<Item = &'a str>) -> String {
    let columns: Vec<String> = columns.map(|name| format!("t.{}", ident(name))).collect();
    format!("(ROW({})::text COLLATE \"C\")", columns.join(", "))
}

/// The two halves of the hashes of row texts `r`; sums of them do not depend on the order of rows. PostgreSQL keeps this function as it
/// is, as partitions by hash go by it. What selects `r` ends in OFFSET 0: otherwise the text of each row is made for each half anew.
const HALVES: &str =
    "coalesce(sum(hashtextextended(r, 0)), 0)::text || '/' || coalesce(sum(hashtextextended(r, 1)), 0)::text";

async fn digest(side: &Side<'_>, columns: &str, paced: &str) -> Result<(u64, String)> {
    let sql = format!(
        "SELECT count(*), {HALVES} FROM (SELECT {columns} AS r FROM {} t WHERE {} OFFSET 0) h WHERE {paced}",
        qualified(&side.table),
        side.filter
    );
    let row = side.client.query_one(&sql, &[]).await.doing(format!("sum the rows of {}", side.table))?;
    Ok((row.get::<_, i64>(0).unsigned_abs(), row.get(1)))
}

/// Servers of other byte orders hash otherwise: nothing can be said of rows whose sums differ.
async fn hash_alike(source: &Side<'_>, target: &Side<'_>) -> Result<()> {
    let sql = "SELECT hashtextextended('carveout', 0)";
    let (left, right) = tokio::try_join!(source.client.query_one(sql, &[]), target.client.query_one(sql, &[]))
        .doing("ask both servers for a hash")?;
    match left.get::<_, i64>(0) == right.get::<_, i64>(0) {
        true => Ok(()),
        false => Err(Error::state(
            format!("compare {}", source.table),
            "the servers' machines have different byte orders, and hash differently",
        )),
    }
}

/// The rows that differ, as far as [`MOST_BUCKETS`] buckets hold them.
async fn differences(source: &Side<'_>, target: &Side<'_>, key: &str, columns: &str) -> Result<Vec<Difference>> {
    let (left, right) = tokio::try_join!(buckets(source, key, columns), buckets(target, key, columns))?;
    let all = left.keys().chain(right.keys());
    let mut unequal: Vec<String> = all.filter(|bucket| left.get(*bucket) != right.get(*bucket)).cloned().collect();
    unequal.sort_unstable();
    unequal.dedup();
    unequal.truncate(MOST_BUCKETS);
    let (left, right) = tokio::try_join!(rows(source, key, columns, &unequal), rows(target, key, columns, &unequal))?;
    Ok(unlike(&left, &right))
}

/// Keys whose rows are not the same on both sides.
fn unlike(left: &Hashes, right: &Hashes) -> Vec<Difference> {
    let mut found = Vec::new();
    for (key, hash) in left {
        let kind = match right.get(key) {
            None => "missing",
            Some(other) if other != hash => "different",
            Some(_) => continue,
        };
        found.push(Difference { key: key.clone(), kind: kind.to_owned() });
    }
    let extra = right.keys().filter(|key| !left.contains_key(*key));
    found.extend(extra.map(|key| Difference { key: key.clone(), kind: "extra".to_owned() }));
    found.sort();
    found
}

async fn buckets(side: &Side<'_>, key: &str, columns: &str) -> Result<Hashes> {
    let sql = format!(
        "SELECT b, count(*), {HALVES}
           FROM (SELECT {BUCKET} AS b, r FROM (SELECT {key} AS k, {columns} AS r FROM {} t WHERE {} OFFSET 0) h) h GROUP BY b",
        qualified(&side.table),
        side.filter
    );
    let rows = side.client.query(&sql, &[]).await.doing(format!("bisect {}", side.table))?;
    Ok(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
}

/// Key to (rows with it, sum of their hashes) in some buckets.
async fn rows(side: &Side<'_>, key: &str, columns: &str, buckets: &[String]) -> Result<Hashes> {
    let sql = format!(
        "SELECT k, count(*), {HALVES}
           FROM (SELECT {key} AS k, {columns} AS r FROM {} t WHERE {} OFFSET 0) h WHERE {BUCKET} = ANY ($1) GROUP BY k",
        qualified(&side.table),
        side.filter
    );
    let rows = side.client.query(&sql, &[&buckets]).await.doing(format!("compare rows of {}", side.table))?;
    Ok(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
}

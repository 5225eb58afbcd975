//! The judge: is a tenant the same on both sides? It compares by means of its own (`md5` of the rows' text,
//! added up, so that order does not matter and equal rows do not cancel) and shares nothing with the
//! product's verification. It only reads. Both clients' sessions are set to one text format.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use tokio_postgres::Client;

/// How rows turn into text; the same for both sides.
const FORMAT: &str = "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; \
                      SET extra_float_digits = 1; SET bytea_output = 'hex'; SET xmloption = 'content'";
/// Differing rows that a failure shows of each side.
const SHOWN_ROWS: usize = 5;

/// What both sides hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Rows of the tenant in the source.
    pub source_rows: i64,
    /// Rows in the target.
    pub target_rows: i64,
    /// Order-free digest of the source's rows.
    pub source_digest: String,
    /// Order-free digest of the target's rows.
    pub target_digest: String,
}

impl Comparison {
    /// Whether counts and digests agree.
    pub fn equal(&self) -> bool {
        self.source_rows == self.target_rows && self.source_digest == self.target_digest
    }
}

/// Compares the rows of `source_table` that satisfy `filter` (`bid = 7`) with all rows of `target_table`.
/// Tables are given as SQL names (`public.x`). Other columns on one side than on the other are an error.
/// The two sides are read one after the other: only a tenant at rest compares equal.
pub async fn compare(
    source: &Client,
    source_table: &str,
    filter: &str,
    target: &Client,
    target_table: &str,
) -> Result<Comparison> {
    let columns = columns(source, source_table).await?;
    let theirs = self::columns(target, target_table).await?;
    ensure!(columns == theirs, "{source_table} has columns {columns:?}, {target_table} has {theirs:?}");
    let (source_rows, source_digest) = digest(source, &rows(&columns, source_table, filter)).await?;
    let (target_rows, target_digest) = digest(target, &rows(&columns, target_table, "true")).await?;
    Ok(Comparison { source_rows, target_rows, source_digest, target_digest })
}

/// [`compare`], and an error that shows differing rows when the sides differ.
pub async fn assert_equal(
    source: &Client,
    source_table: &str,
    filter: &str,
    target: &Client,
    target_table: &str,
) -> Result<Comparison> {
    let comparison = compare(source, source_table, filter, target, target_table).await?;
    if comparison.equal() {
        return Ok(comparison);
    }
    let columns = columns(source, source_table).await?;
    let ours = texts(source, &rows(&columns, source_table, filter)).await?;
    let theirs = texts(target, &rows(&columns, target_table, "true")).await?;
    bail!(
        "{source_table} where {filter} differs from {target_table}: {comparison:?}\n\
         columns {columns:?}\nonly in the source: {:#?}\nonly in the target: {:#?}",
        surplus(&ours, &theirs),
        surplus(&theirs, &ours),
    )
}

/// Rows of a target table that are not this tenant's, those without a tenant included. Must be 0.
pub async fn foreign_rows(target: &Client, table: &str, key: &str, tenant: &str) -> Result<i64> {
    let key = quoted(key);
    let sql = format!("SELECT count(*) FROM {table} WHERE {key}::text IS DISTINCT FROM $1");
    let row = target.query_one(&sql, &[&tenant]).await.with_context(|| format!("count foreign rows of {table}"))?;
    Ok(row.get(0))
}

/// Names of a table's columns, sorted: the two sides may have them in different order.
async fn columns(client: &Client, table: &str) -> Result<Vec<String>> {
    let sql = "SELECT attname::text FROM pg_attribute WHERE attrelid = $1::text::regclass \
               AND attnum > 0 AND NOT attisdropped ORDER BY attname COLLATE \"C\"";
    let rows = client.query(sql, &[&table]).await.with_context(|| format!("list the columns of {table}"))?;
    ensure!(!rows.is_empty(), "{table} has no columns");
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// A query for rows with exactly these columns in this order.
fn rows(columns: &[String], table: &str, filter: &str) -> String {
    let columns: Vec<String> = columns.iter().map(|column| quoted(column)).collect();
    format!("SELECT {} FROM {table} WHERE {filter}", columns.join(", "))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

async fn digest(client: &Client, rows: &str) -> Result<(i64, String)> {
    client.batch_execute(FORMAT).await.context("set the text format")?;
    // 128 bits of every row, as two numeric sums: rows that occur twice count twice.
    let sql = format!(
        "SELECT count(*), \
                coalesce(sum(('x' || substr(hash, 1, 16))::bit(64)::bigint::numeric), 0)::text \
                || '/' || coalesce(sum(('x' || substr(hash, 17, 16))::bit(64)::bigint::numeric), 0)::text \
         FROM (SELECT md5(t::text) AS hash FROM ({rows}) AS t) AS hashes"
    );
    let row = client.query_one(&sql, &[]).await.with_context(|| format!("compute the digest of: {rows}"))?;
    Ok((row.get(0), row.get(1)))
}

/// Every row's text and how often it occurs.
async fn texts(client: &Client, rows: &str) -> Result<HashMap<String, usize>> {
    client.batch_execute(FORMAT).await.context("set the text format")?;
    let mut counts = HashMap::new();
    let found = client.query(&format!("SELECT t::text FROM ({rows}) AS t"), &[]).await;
    for row in found.with_context(|| format!("read: {rows}"))? {
        *counts.entry(row.get(0)).or_default() += 1;
    }
    Ok(counts)
}

/// The first few rows that occur more often in `left` than in `right`.
fn surplus<'a>(left: &'a HashMap<String, usize>, right: &HashMap<String, usize>) -> Vec<&'a str> {
    let more = left.iter().filter(|(row, count)| right.get(*row).copied().unwrap_or_default() < **count);
    let mut rows: Vec<&str> = more.map(|(row, _)| row.as_str()).collect();
    rows.sort_unstable();
    rows.truncate(SHOWN_ROWS);
    rows
}

//! Compares the rows with some keys: count and order-free sum of their hashes, as for whole tables.

use futures_util::{StreamExt, pin_mut};
use schemas::status::TableReport;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::super::apply::{Keys, Picked};
use super::super::catalog::Table;
use super::super::{Doing, Result};
use super::{HALVES, Hashes, MOST_EXAMPLES, Pace, Side, hash_alike, row_text, unlike};

/// Compares the rows of both sides that have one of these keys; where neither has any, they are alike. Each side comes with the
/// table as it stands there. Both must be at rest, or read under snapshots.
pub async fn compare_keys(
    source: (&Side<'_>, &Table),
    target: (&Side<'_>, &Table),
    keys: &Keys,
    pace: Pace,
) -> Result<TableReport> {
    let shape = source.1;
    let columns = row_text(shape.stored().map(|column| column.name.as_str()));
    let mut report = TableReport {
        table: shape.name.to_string(),
        lsn: None,
        source_rows: 0,
        target_rows: 0,
        source_digest: String::new(),
        target_digest: String::new(),
        differences: 0,
        examples: Vec::new(),
    };
    for alike in keys.alike() {
        let (here, there) = (alike.pick(shape)?, alike.pick(target.1)?);
        let sum = |side, picked| digest(side, &columns, picked, pace);
        let (left, right) = tokio::try_join!(sum(source.0, &here), sum(target.0, &there))?;
        report.source_rows += left.0;
        report.target_rows += right.0;
        if left != right {
            hash_alike(source.0, target.0).await?;
            let key = row_text(keys.columns().iter().map(String::as_str));
            let rows = |side, picked| rows(side, &key, &columns, picked);
            let (left, right) = tokio::try_join!(rows(source.0, &here), rows(target.0, &there))?;
            let found = unlike(&left, &right);
            report.differences += (found.len() as u64).max(1);
            let room = MOST_EXAMPLES.saturating_sub(report.examples.len());
            report.examples.extend(found.into_iter().take(room));
        }
        report.source_digest.push_str(&left.1);
        report.target_digest.push_str(&right.1);
    }
    Ok(report)
}

async fn digest(side: &Side<'_>, columns: &str, picked: &Picked, pace: Pace) -> Result<(u64, String)> {
    let sql = format!(
        "SELECT count(*), {HALVES} FROM (SELECT {columns} AS r FROM {} WHERE {} OFFSET 0) h WHERE {}",
        picked.from,
        side.filter,
        pace.keyed()
    );
    let rows = ask(side, &sql, picked).await?;
    let row = rows.first().map(|row| (row.get::<_, i64>(0).unsigned_abs(), row.get(1)));
    Ok(row.unwrap_or_default())
}

async fn rows(side: &Side<'_>, key: &str, columns: &str, picked: &Picked) -> Result<Hashes> {
    let sql = format!(
        "SELECT k, count(*), {HALVES} FROM (SELECT {key} AS k, {columns} AS r FROM {} WHERE {} OFFSET 0) h GROUP BY k",
        picked.from, side.filter
    );
    let rows = ask(side, &sql, picked).await?;
    Ok(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
}

async fn ask(side: &Side<'_>, sql: &str, picked: &Picked) -> Result<Vec<Row>> {
    let doing = || format!("compare changed rows of {}", side.table);
    // Each parameter's type is said by its cast. In one message: writers may be waiting.
    let params = picked.params().map(|param| (param, Type::UNKNOWN));
    let answer = side.client.query_typed_raw(sql, params).await.doing(doing())?;
    pin_mut!(answer);
    let mut rows = Vec::new();
    while let Some(row) = answer.next().await {
        rows.push(row.doing(doing())?);
    }
    Ok(rows)
}

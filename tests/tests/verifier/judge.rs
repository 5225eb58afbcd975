//! What a mutant has changed, by means of its own: rows are told apart by the bytes of their types' send functions, not by their text.
//! And what `carveout verify` says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tests::binary;
use tokio_postgres::Client;

use super::tables::Table;

/// Rows by the key that names them.
pub type Contents = BTreeMap<String, Vec<String>>;
/// Kind and key of each difference.
pub type Differences = BTreeSet<(String, String)>;

/// What a table holds of the rows for which `rows` holds.
pub async fn contents(client: &Client, table: &Table, rows: &str) -> Result<Contents> {
    let sql =
        format!("SELECT {}, md5(record_send(t)) FROM {} t WHERE {rows} ORDER BY 1, 2", table.shown_key(), table.name);
    let mut contents = Contents::new();
    for row in client.query(&sql, &[]).await.with_context(|| sql.clone())? {
        contents.entry(row.get(0)).or_default().push(row.get(1));
    }
    Ok(contents)
}

/// What has to be found when the one is at the source and the other in the target.
pub fn differences(source: &Contents, target: &Contents) -> Differences {
    let keys: BTreeSet<&String> = source.keys().chain(target.keys()).collect();
    let kind = |key: &String| match (source.get(key), target.get(key)) {
        (Some(_), None) => Some("missing"),
        (None, Some(_)) => Some("extra"),
        (one, other) => (one != other).then_some("different"),
    };
    keys.into_iter().filter_map(|key| Some((kind(key)?.to_owned(), key.clone()))).collect()
}

/// How many rows.
pub fn rows(contents: &Contents) -> u64 {
    contents.values().map(|rows| rows.len() as u64).sum()
}

/// What `verify` answered.
#[derive(Debug)]
pub enum Answer {
    /// Exit code 0: so many rows of the source, at this position.
    Equal { rows: u64, lsn: schemas::Lsn },
    /// Exit code 1: the tables that differ, with how many rows it says differ, and which.
    Different(BTreeMap<String, (u64, Differences)>),
    /// Exit code 1, and nothing was compared.
    NotReady(String),
}

/// Asks for a comparison.
pub async fn verify(config: &Path, tenant: &str) -> Result<Answer> {
    let output = binary::cli(config, &["verify", tenant, "--output", "json"]).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    let Some(report) =
        serde_json::from_slice::<Value>(&output.stdout).ok().filter(|report| report["tables"].is_array())
    else {
        ensure!(code == Some(1), "verify ended with {code:?}: {output:?}");
        return Ok(Answer::NotReady(said));
    };
    let (mut rows, mut found) = (0, BTreeMap::new());
    for entry in report["tables"].as_array().context("tables")? {
        rows += entry["source_rows"].as_u64().context("source_rows")?;
        let (count, examples) = (entry["differences"].as_u64(), entry["examples"].as_array().context("examples")?);
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a text");
        let examples = examples.iter().map(|one| Ok((text(&one["kind"])?, text(&one["key"])?)));
        let examples: Differences = examples.collect::<Result<_>>()?;
        let same = entry["source_digest"] == entry["target_digest"] && entry["source_rows"] == entry["target_rows"];
        ensure!(same == (count == Some(0)) && same == examples.is_empty(), "{entry}");
        if !same {
            found.insert(text(&entry["table"])?, (count.context("differences")?, examples));
        }
    }
    match (code, report["equal"].as_bool(), found.is_empty()) {
        (Some(0), Some(true), true) => Ok(Answer::Equal { rows, lsn: report["lsn"].as_str().context("lsn")?.parse()? }),
        (Some(1), Some(false), false) => Ok(Answer::Different(found)),
        _ => bail!("verify ended with {code:?}: {report}"),
    }
}

//! `verify` finds what somebody changed by hand, and names it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::hostile::{Table, quoted};

use super::{Shop, insert_into};

/// C08: a changed byte, a missing row, a row too many, a foreign one: each is named by its key, exit code 1.
#[tokio::test(flavor = "multi_thread")]
async fn verify_names_every_row_that_somebody_changed() -> Result<()> {
    let shop = Shop::open().await?;
    let (order, bare) = (Table::called("order"), Table::called("no pk Ω"));
    for table in [&order, &bare] {
        let insert = insert_into(table, &["TOAST"]);
        shop.sql(&format!("{insert} SELECT n % 3, n, repeat(md5(n::text), 200) FROM generate_series(1, 999) n"))
            .await?;
    }
    shop.carve("1", "schema").await?;
    shop.assert_equal("1", "schema").await?;
    let (target, schema) = shop.target("1", "schema").await?;
    let (o, b) = (format!("{}.\"order\"", quoted(&schema)), format!("{}.\"no pk Ω\"", quoted(&schema)));
    let cases = [
        (
            "one byte of a large value",
            format!("UPDATE {o} SET \"TOAST\" = overlay(\"TOAST\" placing '~' from 6001) WHERE \"select\" = 502"),
            vec![("different", "(502)")],
        ),
        (
            "NULL for empty",
            format!(
                "UPDATE {o} SET \"v\"\"9\" = '' WHERE \"select\" = 4; UPDATE {o} SET \"f\" = '-0' WHERE \"select\" = 7"
            ),
            vec![("different", "(4)"), ("different", "(7)")],
        ),
        (
            "a space at the end",
            format!("UPDATE {o} SET \"t[]\" = '{{\"a \",NULL}}' WHERE \"select\" = 10"),
            vec![("different", "(10)")],
        ),
        (
            "rows that are gone",
            format!("DELETE FROM {o} WHERE \"select\" IN (1, 997)"),
            vec![("missing", "(1)"), ("missing", "(997)")],
        ),
        (
            "a row too many",
            format!("INSERT INTO {o} SELECT * FROM {} WHERE \"select\" = 2", order.sql()),
            vec![("extra", "(2)")],
        ),
        (
            "another key",
            format!("UPDATE {o} SET \"select\" = 40000 WHERE \"select\" = 40"),
            vec![("missing", "(40)"), ("extra", "(40000)")],
        ),
    ];
    for (what, change, expected) in cases {
        target
            .batch_execute(&format!("CREATE TABLE public.kept AS SELECT * FROM {o}; {change}"))
            .await
            .context(what)?;
        let found = differences(&shop, &order, what).await?;
        let expected: BTreeSet<(String, String)> =
            expected.into_iter().map(|(kind, key)| (kind.to_owned(), key.to_owned())).collect();
        ensure!(found == expected, "{what}: {found:?}");
        target
            .batch_execute(&format!(
                "DELETE FROM {o}; INSERT INTO {o} SELECT * FROM public.kept; DROP TABLE public.kept"
            ))
            .await?;
        shop.assert_equal("1", "schema").await.context("after it was put back")?;
    }
    // Equal rows do not cancel each other, whether there are two more or two fewer.
    for (what, change, kind) in [
        (
            "a keyless row twice more",
            format!("INSERT INTO {b} SELECT t.* FROM {b} t, generate_series(1, 2) WHERE \"Id\" = 1"),
            "different",
        ),
        ("a keyless row gone", format!("DELETE FROM {b} WHERE \"Id\" = 1"), "missing"),
    ] {
        target.batch_execute(&change).await.context(what)?;
        let found = differences(&shop, &bare, what).await?;
        ensure!(found.len() == 1 && found.iter().all(|(found, _)| found == kind), "{what}: {found:?}");
    }
    shop.daemon.assert_no_errors(&[])
}

/// Runs `verify`, which must find differences in this table only; kind and key of each.
async fn differences(shop: &Shop, table: &Table, what: &str) -> Result<BTreeSet<(String, String)>> {
    let text = shop.daemon.cli(&["verify", "1"]).await?;
    let said = String::from_utf8_lossy(&text.stdout).into_owned();
    ensure!(text.status.code() == Some(1) && said.contains("DIFFERENT"), "{what}: {:?} {said}", text.status);
    let output = shop.daemon.cli(&["verify", "1", "--output", "json"]).await?;
    ensure!(output.status.code() == Some(1), "{what}: {:?}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout).context("read the report")?;
    ensure!(report["equal"] == false, "{what}: {report}");
    let mut found = BTreeSet::new();
    for entry in report["tables"].as_array().context("tables")? {
        let examples = entry["examples"].as_array().context("examples")?;
        if entry["table"] != table.shown() {
            ensure!(entry["differences"] == 0 && examples.is_empty(), "{what}: {entry}");
            continue;
        }
        // Equal rows that there are too many or too few of have one entry.
        let rows =
            entry["source_rows"].as_u64().context("rows")?.abs_diff(entry["target_rows"].as_u64().context("rows")?);
        ensure!(entry["differences"] == rows.max(examples.len() as u64), "{what}: {entry}");
        for example in examples {
            let (kind, key) = (example["kind"].as_str().context("kind")?, example["key"].as_str().context("key")?);
            ensure!(said.contains(key), "{what}: {key} is not in {said}");
            found.insert((kind.to_owned(), key.to_owned()));
        }
    }
    Ok(found)
}

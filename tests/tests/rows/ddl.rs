//! The source's tables change under a move.

use anyhow::{Result, ensure};
use tests::hostile::{Table, quoted};

use super::{Shop, insert_into};
use crate::carve::{cli, phase};

const REWRITTEN: &str = "the table was rewritten with other values";

/// R09: a column that the target does not have stops the lanes it concerns, when a row comes with it; no value
/// lands in another column, no half of a transaction in the target. The column made by hand, `move` resumes.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_column_stops_the_lane_that_gets_a_row_with_it_and_nobody_else() -> Result<()> {
    let shop = Shop::open().await?;
    let (order, index) = (Table::called("order"), Table::called("Index \"id\""));
    for table in [&order, &index] {
        shop.sql(&format!("{} SELECT n % 3, n FROM generate_series(1, 30) n", insert_into(table, &[]))).await?;
    }
    shop.carve("1", "schema").await?;
    shop.carve("2", "database").await?;
    let add = "ADD COLUMN \"n e w\" text DEFAULT 'landed'";
    // A transaction with rows before and after the change; tenant 2 has no row of the table in it.
    shop.sql(&format!(
        "BEGIN; {} VALUES (1, 100); ALTER TABLE {} {add}; {} VALUES (1, 101); COMMIT; UPDATE {} SET \"num\" = 2",
        insert_into(&order, &[]),
        order.sql(),
        insert_into(&order, &[]),
        index.sql(),
    ))
    .await?;
    let fault = shop.faulted("1").await?["fault"].clone();
    let message = fault["message"].as_str().unwrap_or_default();
    ensure!(message.contains("n e w") && message.contains("does not exist in the target"), "{fault}");
    ensure!(message.contains(&order.shown()), "{fault}");
    let (target, schema) = shop.target("1", "schema").await?;
    let there = format!("{}.\"order\"", quoted(&schema));
    let landed = format!("SELECT count(*) FROM {there} t WHERE t::text LIKE '%landed%' OR \"select\" >= 100");
    let landed: i64 = target.query_one(&landed, &[]).await?.get(0);
    ensure!(landed == 0, "{landed} rows of the half that could be applied are there");
    // The other tenant goes on, with other tables too.
    shop.drained("2").await?;
    let (other, _) = shop.target("2", "database").await?;
    let changed: i64 =
        other.query_one(&format!("SELECT count(*) FROM {} WHERE \"num\" = 2", index.sql()), &[]).await?.get(0);
    ensure!(changed == 10, "{changed} rows of tenant 2 have changed");
    // Now it is tenant 2's turn: with the column made by hand, the move resumes.
    shop.sql(&format!("UPDATE {} SET \"n e w\" = 'x' WHERE \"select\" IN (1, 2)", order.sql())).await?;
    shop.faulted("2").await?;
    // A table that was described before the checkpoint changes after it.
    shop.sql(&format!("UPDATE {} SET \"num\" = 3", index.sql())).await?;
    other.batch_execute(&format!("ALTER TABLE {} {add}", order.sql())).await?;
    cli(&shop.config, &["move", "2"]).await?;
    phase(&shop.daemon, "2", &["streaming"]).await?;
    shop.assert_equal("2", "database").await?;
    // A transaction of which one half has the column and the other has not takes a new copy.
    drop(target);
    cli(&shop.config, &["cancel", "1"]).await?;
    shop.carve("1", "schema").await?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        shop.assert_equal(tenant, to).await?;
    }
    shop.daemon.assert_no_errors(&["does not exist in the target"])
}

/// R09: a column renamed, dropped or given another type stops the lane; a name that comes back with another
/// column behind it is not taken for the old one.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_goes_or_changes_stops_the_lane_and_is_never_guessed() -> Result<()> {
    let shop = Shop::open().await?;
    let table = Table::called("order");
    let insert = insert_into(&table, &["unique", "f"]);
    shop.sql(&format!("{insert} SELECT n % 3, n, n, n FROM generate_series(1, 30) n")).await?;
    let sql = table.sql();
    for (change, undo, said) in [
        ("RENAME \"f\" TO \"F\"", "RENAME \"F\" TO \"f\"", "\"F\" does not exist in the target"),
        ("ALTER \"unique\" TYPE bigint", "ALTER \"unique\" TYPE integer", "\"unique\" has another type"),
        ("DROP COLUMN \"d\"", "ADD COLUMN \"d\" date", "\"d\" is no longer there"),
    ] {
        shop.carve("1", "schema").await?;
        shop.sql(&format!("ALTER TABLE {sql} {change}; {} VALUES (1, 1000)", insert_into(&table, &[]))).await?;
        let fault = shop.faulted("1").await?["fault"].clone();
        // Whoever sees it first: the lane, or who looks once a second for what the stream does not say.
        let told = ["object", "message"].map(|part| fault[part].as_str().unwrap_or_default()).join(": ");
        let rewritten = change.contains("TYPE") && told.contains(REWRITTEN);
        ensure!((told.contains(said) || rewritten) && told.contains(&table.shown()), "{change}: {fault}");
        shop.sql(&format!("ALTER TABLE {sql} {undo}; DELETE FROM {sql} WHERE \"select\" = 1000")).await?;
        cli(&shop.config, &["cancel", "1"]).await?;
    }
    shop.carve("1", "schema").await?;
    // Dropped and added in one breath: the values are gone on the source, the name and the type are the same.
    shop.sql(&format!("ALTER TABLE {sql} DROP COLUMN \"f\", ADD COLUMN \"f\" double precision; UPDATE {sql} SET \"at\" = 'infinity' WHERE \"select\" < 10")).await?;
    let settled = tests::wait::until("a stop, or the same rows", super::SOON, async || {
        let status = shop.daemon.tenant("1").await?;
        if !status["fault"].is_null() {
            return Ok(());
        }
        let (target, schema) = shop.target("1", "schema").await?;
        tests::hostile::assert_tenant_equal(&shop.source, "1", &target, &schema).await?;
        Ok(())
    });
    settled.await.map_err(|error| error.context("a column dropped and added again was taken for the old one"))?;
    shop.daemon.assert_no_errors(&[
        "does not exist in the target",
        "another type",
        "no longer there",
        "dropped and added again",
        REWRITTEN,
    ])
}

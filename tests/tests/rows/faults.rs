//! Target and source disagree: the lane concerned stops, with everything a person needs to know.

use std::time::Duration;

use anyhow::{Result, ensure};
use schemas::Lsn;
use tests::hostile::{Table, quoted};
use tests::wait::until;

use super::{Shop, insert_into};
use crate::carve::{cli, phase};

/// R08: TRUNCATE names no tenant. It stops the moves that have the table; cancel and move gets out.
#[tokio::test(flavor = "multi_thread")]
async fn truncate_stops_the_moves_it_touches_and_cancel_then_move_gets_out() -> Result<()> {
    let shop = Shop::open().await?;
    let (order, index) = (Table::called("order"), Table::called("Index \"id\""));
    for table in [&order, &index] {
        shop.sql(&format!("{} SELECT n % 3, n FROM generate_series(1, 30) n", insert_into(table, &[]))).await?;
    }
    shop.carve("1", "schema").await?;
    shop.carve("2", "database").await?;
    let insert = insert_into(&order, &[]);
    // What comes before in the same transaction, and after it, must not arrive by itself either.
    shop.sql(&format!(
        "BEGIN; {insert} VALUES (1, 100), (2, 101); TRUNCATE {}, {} RESTART IDENTITY CASCADE; {insert} VALUES (1, 200), (2, 201); COMMIT; \
         {insert} VALUES (1, 300), (2, 301)",
        order.sql(),
        index.sql()
    ))
    .await?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        let fault = shop.faulted(tenant).await?["fault"].clone();
        ensure!(fault["code"] == "truncate", "{fault}");
        ensure!([order.shown(), index.shown()].iter().any(|name| fault["object"] == name.as_str()), "{fault}");
        let (target, schema) = shop.target(tenant, to).await?;
        let count = format!("SELECT count(*) FROM {}.\"order\"", quoted(&schema));
        let rows: i64 = target.query_one(&count, &[]).await?.get(0);
        ensure!(rows == 10, "the target of {tenant} was touched: {rows} rows");
        let refused = shop.daemon.cli(&["move", tenant]).await?;
        ensure!(refused.status.code() == Some(1), "move went over the fault: {refused:?}");
    }
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        cli(&shop.config, &["cancel", tenant]).await?;
        shop.carve(tenant, to).await?;
        ensure!(shop.assert_equal(tenant, to).await? == 2);
    }
    shop.daemon.assert_no_errors(&["truncated on the source"])
}

/// T01, N09: a row that somebody put into the target is in the way. That lane stops and says where; the
/// other tenant's goes on; the row gone, `move` resumes.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_in_the_way_stops_one_lane_until_it_is_gone() -> Result<()> {
    let shop = Shop::open().await?;
    let table = Table::called("order");
    let insert = insert_into(&table, &["unique", "v\"9"]);
    shop.sql(&format!("{insert} SELECT n % 3, n, n, 'fine' FROM generate_series(1, 30) n")).await?;
    shop.carve("1", "schema").await?;
    shop.carve("2", "database").await?;
    let (target, schema) = shop.target("1", "schema").await?;
    let there = format!("{}.\"order\"", quoted(&schema));
    let by_hand = insert.replace(&table.sql(), &there);
    for (what, row, constraint) in [
        ("the key", "(1, 777, 5000, 'c4nary hand')", "order_pkey"),
        ("a unique value", "(1, 5001, 777, 'c4nary hand')", "order_unique_key"),
    ] {
        target.batch_execute(&format!("{by_hand} VALUES {row}")).await?;
        // Others of the same transaction and of later ones wait with it.
        shop.sql(&format!(
            "BEGIN; {insert} VALUES (1, 776, 776, 'x'); {insert} VALUES (1, 777, 777, 'c4nary row'); COMMIT; \
             {insert} VALUES (1, 778, 778, 'x'), (2, 779, 779, 'x')"
        ))
        .await?;
        let status = shop.faulted("1").await?;
        let fault = status["fault"].clone();
        let message = fault["message"].as_str().unwrap_or_default();
        ensure!(fault["code"] == "constraint", "{what}: {fault}");
        for part in ["SQLSTATE 23505", constraint, "order", status["applied_lsn"].as_str().unwrap_or("?")] {
            ensure!(message.contains(part), "{what}: {part:?} is not in {fault}");
        }
        ensure!(!fault.to_string().contains("c4nary") && !shop.daemon.log()?.contains("c4nary"), "{what}: {fault}");
        ensure!(fault["next"].as_str().unwrap_or_default().contains("carveout move"), "{what}: {fault}");
        shop.assert_equal("2", "database").await.map_err(|error| error.context("the other tenant"))?;
        target.batch_execute(&format!("DELETE FROM {there} WHERE \"v\"\"9\" = 'c4nary hand'")).await?;
        cli(&shop.config, &["move", "1"]).await?;
        phase(&shop.daemon, "1", &["streaming"]).await?;
        shop.assert_equal("1", "schema").await.map_err(|error| error.context(what))?;
        shop.sql(&format!("DELETE FROM {} WHERE \"select\" > 700", table.sql())).await?;
        shop.assert_equal("1", "schema").await?;
    }
    shop.daemon.assert_no_errors(&["duplicate key"])
}

/// Invariants 1 and 4: several transactions wait as one group, and one in the middle cannot be applied. The target holds
/// those before it and no more: neither it nor those after it may be taken for applied.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_stops_in_its_middle_loses_nothing_behind_it() -> Result<()> {
    let shop = Shop::open().await?;
    let table = Table::called("order");
    let insert = insert_into(&table, &["unique"]);
    shop.sql(&format!("{insert} SELECT n % 3, n, n FROM generate_series(1, 30) n")).await?;
    shop.carve("1", "database").await?;
    let (target, schema) = shop.target("1", "database").await?;
    let there = format!("{}.\"order\"", quoted(&schema));
    for round in 1..=3 {
        let first = 1000 * round;
        target
            .batch_execute(&format!("ALTER TABLE {there} ADD CONSTRAINT poison CHECK (\"unique\" <> {})", first + 4))
            .await?;
        // The lane's next commit waits for this, and what comes meanwhile is one group.
        target.batch_execute("BEGIN; LOCK TABLE carveout.checkpoint IN EXCLUSIVE MODE").await?;
        for n in 0..9 {
            shop.sql(&format!("{insert} VALUES (1, {0}, {0})", first + n)).await?;
        }
        let row = shop.source.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
        let end: Lsn = row.get::<_, String>(0).parse()?;
        until("the changes in the spool", Duration::from_secs(30), async || {
            let status = shop.daemon.status().await?;
            let received: Lsn = status["source"]["received_lsn"].as_str().unwrap_or("0/0").parse()?;
            ensure!(received >= end, "{received} of {end}");
            Ok(())
        })
        .await?;
        target.batch_execute("COMMIT").await?;
        let fault = shop.faulted("1").await?["fault"].clone();
        ensure!(fault["code"] == "constraint", "{fault}");
        target.batch_execute(&format!("ALTER TABLE {there} DROP CONSTRAINT poison")).await?;
        cli(&shop.config, &["move", "1"]).await?;
        phase(&shop.daemon, "1", &["streaming", "ready"]).await?;
        shop.assert_equal("1", "database").await.map_err(|error| error.context(format!("round {round}")))?;
    }
    shop.daemon.assert_no_errors(&["poison"])
}

/// Invariant 10, DESIGN 3.6: an UPDATE or a DELETE that finds no row stops the lane, with and without a key.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_a_row_that_is_not_there_stops_the_lane() -> Result<()> {
    let shop = Shop::open().await?;
    let (order, bare) = (Table::called("order"), Table::called("no pk Ω"));
    for table in [&order, &bare] {
        shop.sql(&format!("{} SELECT n % 3, n FROM generate_series(1, 30) n", insert_into(table, &[]))).await?;
    }
    shop.carve("1", "schema").await?;
    shop.carve("2", "database").await?;
    let (target, schema) = shop.target("1", "schema").await?;
    let count = format!("SELECT count(*) FROM {}.\"order\"", quoted(&schema));
    for (table, change) in [
        (&order, format!("UPDATE {} SET \"f\" = 3 WHERE \"select\" IN (1, 4, 7)", order.sql())),
        (&order, format!("DELETE FROM {} WHERE \"select\" IN (10, 4, 13)", order.sql())),
        (&bare, format!("UPDATE {} SET \"n\" = 3 WHERE \"Id\" IN (1, 4, 7)", bare.sql())),
        (&bare, format!("DELETE FROM {} WHERE \"Id\" IN (10, 4, 13)", bare.sql())),
    ] {
        let (there, id) = (format!("{}.{}", quoted(&schema), quoted(table.name)), quoted(table.id_column));
        let before: i64 = target.query_one(&count, &[]).await?.get(0);
        target
            .batch_execute(&format!(
                "CREATE TABLE public.kept AS SELECT * FROM {there} WHERE {id} = 4; DELETE FROM {there} WHERE {id} = 4"
            ))
            .await?;
        shop.sql(&change).await?;
        let fault = shop.faulted("1").await?["fault"].clone();
        ensure!(fault["message"].as_str().unwrap_or_default().contains(table.name), "{change}: {fault}");
        let during: i64 = target.query_one(&count, &[]).await?.get(0);
        ensure!(before - during <= 1, "{change}: a part of it was applied");
        shop.assert_equal("2", "database").await?;
        target.batch_execute(&format!("INSERT INTO {there} SELECT * FROM public.kept; DROP TABLE public.kept")).await?;
        cli(&shop.config, &["move", "1"]).await?;
        phase(&shop.daemon, "1", &["streaming"]).await?;
        shop.assert_equal("1", "schema").await.map_err(|error| error.context(change))?;
    }
    shop.daemon.assert_no_errors(&["did not find its row", "rows were touched"])
}

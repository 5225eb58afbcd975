//! Transactions in parts: savepoints that are rolled back, and two-phase commit.

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::{ClusterOptions, StopMode};
use tests::daemon::Daemon;
use tests::hostile::Table;
use tests::scene::{Configuration, Scene};

use super::{Shop, insert_into};
use crate::carve::phase;

/// S17: one transaction of thousands of subtransactions, half of them rolled back, nested ones too.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_transaction_with_savepoints_only_what_was_kept_arrives() -> Result<()> {
    let shop = Shop::open().await?;
    let table = Table::called("Index \"id\"");
    let (sql, insert) = (table.sql(), insert_into(&table, &["num"]));
    shop.sql(&format!("{insert} VALUES (1, 20001, 0), (2, 20002, 0)")).await?;
    shop.carve("1", "schema").await?;
    shop.carve("2", "database").await?;
    let block = format!(
        "DO $do$ BEGIN FOR n IN 1..6000 LOOP BEGIN \
           {insert} VALUES (n % 3, n, n); \
           BEGIN UPDATE {sql} SET \"num\" = -n WHERE \"Id\" = n - 2; IF n % 5 = 0 THEN RAISE 'inner'; END IF; \
           EXCEPTION WHEN raise_exception THEN NULL; END; \
           IF n % 2 = 0 THEN RAISE 'outer'; END IF; \
         EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $do$"
    );
    shop.sql(&block).await?;
    let explicit = format!(
        "BEGIN; SAVEPOINT a; {insert} VALUES (1, 10001, 1); SAVEPOINT b; {insert} VALUES (1, 10002, 1); SAVEPOINT a; \
         UPDATE {sql} SET \"num\" = 7 WHERE \"Id\" > 10000; ROLLBACK TO a; RELEASE a; {insert} VALUES (2, 10003, 1); \
         ROLLBACK TO b; {insert} VALUES (2, 10004, 1); COMMIT"
    );
    shop.sql(&explicit).await?;
    for (tenant, to, expected) in [("1", "schema", 1002), ("2", "database", 1002)] {
        let rows = shop.assert_equal(tenant, to).await?;
        ensure!(rows == expected, "tenant {tenant} has {rows} rows");
    }
    shop.daemon.assert_no_errors(&[])
}

/// S18: prepared before the copy and committed after it, across a crash of daemon and source; prepared while
/// streaming, and rolled back.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_arrives_once_when_it_is_committed_after_restarts() -> Result<()> {
    let settings = vec![("max_prepared_transactions".to_owned(), "10".to_owned())];
    let scene = Scene::single(ClusterOptions { settings, ..ClusterOptions::default() }).await?;
    let mut shop = Shop::furnish(scene, "integer", Configuration::default()).await?;
    let table = Table::called("order");
    let insert = insert_into(&table, &["unique"]);
    shop.sql(&format!("{insert} SELECT n % 3, n, n FROM generate_series(1, 60) n")).await?;
    let prepare = |name: &str, id: u32| {
        format!(
            "BEGIN; {insert} SELECT n % 3, {id} + n, {id} + n FROM generate_series(1, 6) n; \
             UPDATE {} SET \"f\" = {id} WHERE \"select\" = {id} / 100; PREPARE TRANSACTION '{name}'",
            table.sql()
        )
    };
    shop.sql(&prepare("before the copy", 1000)).await?;
    shop.carve("1", "schema").await?;
    shop.carve("2", "database").await?;
    shop.sql(&prepare("streaming", 2000)).await?;
    shop.sql(&prepare("never", 3000)).await?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        let rows = shop.assert_equal(tenant, to).await?;
        ensure!(rows == 20, "tenant {tenant} has {rows} rows before any COMMIT PREPARED");
    }
    shop.daemon.kill()?;
    let source = shop.scene.source.clone();
    let restart = move || source.stop(StopMode::Immediate).and_then(|()| source.start_again());
    tokio::task::spawn_blocking(restart).await.context("join the restart")??;
    shop.source = shop.scene.source_client().await?;
    shop.daemon = Daemon::start(&shop.config).await?;
    shop.sql("COMMIT PREPARED 'before the copy'").await?;
    shop.sql("COMMIT PREPARED 'streaming'").await?;
    shop.sql("ROLLBACK PREPARED 'never'").await?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        phase(&shop.daemon, tenant, &["streaming"]).await?;
        let rows = shop.assert_equal(tenant, to).await?;
        ensure!(rows == 24, "tenant {tenant} has {rows} rows");
    }
    shop.daemon.assert_no_errors(&[])
}

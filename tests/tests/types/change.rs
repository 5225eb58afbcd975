//! Types that change while tenants are followed, and values that the target cannot hold.

use anyhow::{Result, ensure};
use serde_json::Value;
use tests::daemon::Daemon;
use tests::scene::Configuration;
use tests::wait::until;

use crate::carve::{cli, phase};
use crate::settle::{self, SOON, faulted};
use crate::surface::Desk;

/// Waits for a fault with this code.
async fn fault(daemon: &Daemon, tenant: &str, code: &str) -> Result<Value> {
    until(&format!("the fault {code}"), SOON, async || {
        let fault = daemon.tenant(tenant).await?["fault"].clone();
        ensure!(fault["code"] == code, "{fault}");
        Ok(fault)
    })
    .await
}

/// The stream has begun in this form, as many times.
fn streams(daemon: &Daemon, binary: bool) -> Result<usize> {
    Ok(daemon.log()?.matches(&format!("binary={binary}")).count())
}

/// R15: a value of a `reg*` column names a table that the target does not have: the lane stops and says which, and
/// goes on when it is there. Nothing else of the row is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_names_what_the_target_lacks_stops_the_lane() -> Result<()> {
    let tables = vec![("elsewhere".to_owned(), "{exclude: true}".to_owned())];
    let desk = Desk::open_with(Default::default(), Configuration { tables, ..Configuration::default() }).await?;
    desk.sql(
        "CREATE TABLE elsewhere (n integer); ALTER TABLE orders ADD COLUMN o regclass; UPDATE orders SET o = 'orders'",
    )
    .await?;
    let daemon = desk.work().await?;
    desk.carve(&daemon, "1", "database").await?;
    desk.assert_equal(&daemon, "1", "database").await?;
    desk.sql("INSERT INTO orders VALUES (1, 9001, 'not to be seen', 'elsewhere')").await?;
    let said = faulted(&daemon, "1").await?["fault"].clone();
    ensure!(
        said["code"] == "apply"
            && said["message"].as_str().is_some_and(|it| it.contains("relation \"public.elsewhere\" does not exist"))
            && said["next"].as_str().is_some_and(|it| it.contains("make in the target what is missing")),
        "{said}"
    );
    ensure!(!daemon.log()?.contains("not to be seen"), "a row's value stands in the log");
    desk.scene.target_client("bid_1").await?.batch_execute("CREATE TABLE elsewhere (n integer)").await?;
    cli(&desk.config, &["move", "1"]).await?;
    desk.assert_equal(&daemon, "1", "database").await
}

/// R15: a column that travels as text comes into a binary stream: before its first row the stream begins again as
/// text, and no number of the source's catalog is ever applied.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_column_turns_a_binary_stream_into_text() -> Result<()> {
    let desk = Desk::open().await?;
    let daemon = desk.work().await?;
    for (tenant, to) in [("1", "database"), ("2", "schema")] {
        desk.carve(&daemon, tenant, to).await?;
    }
    ensure!(streams(&daemon, false)? == 0, "the stream was text from the beginning");
    let alter = |table: &str| format!("ALTER TABLE {table} ADD COLUMN o regclass, ADD COLUMN a aclitem[]");
    desk.scene.target_client("bid_1").await?.batch_execute(&alter("orders")).await?;
    desk.sql(&alter("bid_2.orders")).await?;
    desk.sql(&alter("orders")).await?;
    for n in 0..5 {
        desk.sql(&format!(
            "UPDATE orders SET o = 'events', a = '{{=r/postgres,NULL}}' WHERE id % 5 = {n}; DELETE FROM orders WHERE id = {n};
             INSERT INTO orders SELECT t, 9000 + {n}, 'new', 'orders' FROM generate_series(1, 2) t"
        ))
        .await?;
    }
    for (tenant, to) in [("1", "database"), ("2", "schema")] {
        // A lane that has read its target's columns before stops, and reads them again.
        if settle::drained(&desk.scene, &daemon, tenant).await.is_err() {
            cli(&desk.config, &["move", tenant]).await?;
        }
        desk.assert_equal(&daemon, tenant, to).await?;
    }
    ensure!(streams(&daemon, false)? == 1, "the stream did not begin again as text");
    Ok(())
}

const PAIRS: &str =
    "CREATE TYPE pair AS (n integer); ALTER TABLE orders ADD COLUMN p pair; UPDATE orders SET p = ROW(1)";

/// R15: the server cannot print a value in binary and ends the stream (SQLSTATE 42883): it goes on as text.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_the_server_cannot_print_goes_on_as_text() -> Result<()> {
    let desk = Desk::open().await?;
    desk.sql(PAIRS).await?;
    let daemon = desk.work().await?;
    desk.carve(&daemon, "1", "schema").await?;
    ensure!(streams(&daemon, true)? == 1, "the stream was text from the beginning");
    // Of the table nothing changes: it is not described again.
    desk.sql("ALTER TYPE pair ADD ATTRIBUTE a aclitem[]").await?;
    desk.sql("UPDATE orders SET p = ROW(2, '{=r/postgres}') WHERE id % 2 = 0").await?;
    desk.assert_equal(&daemon, "1", "schema").await?;
    ensure!(daemon.log()?.contains("no binary output function"), "the stream did not end");
    ensure!(streams(&daemon, false)? == 1, "the stream did not go on as text");
    daemon.assert_no_errors(&[])
}

/// R15: a number of the source's catalog has come in binary before anybody could know: it is not applied, and the
/// tenant is copied again. From there on the stream is text.
#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_number_that_came_in_binary_is_never_applied() -> Result<()> {
    let desk = Desk::open().await?;
    desk.sql(PAIRS).await?;
    let daemon = desk.work().await?;
    desk.carve(&daemon, "1", "database").await?;
    desk.sql("ALTER TYPE pair ADD ATTRIBUTE r regclass").await?;
    desk.sql("UPDATE orders SET p = ROW(2, 'orders') WHERE id % 2 = 0").await?;
    fault(&daemon, "1", "apply").await?;
    desk.scene.target_client("bid_1").await?.batch_execute("ALTER TYPE pair ADD ATTRIBUTE r regclass").await?;
    cli(&desk.config, &["move", "1"]).await?;
    let said = fault(&daemon, "1", "type_changed").await?;
    ensure!(said["message"].as_str().is_some_and(|it| it.contains("column \"p\" travels as text")), "{said}");
    let taken = "SELECT count(*) FROM orders WHERE (p).n = 2";
    let taken: i64 = desk.scene.target_client("bid_1").await?.query_one(taken, &[]).await?.get(0);
    ensure!(taken == 0, "{taken} rows were applied");
    cli(&desk.config, &["move", "1"]).await?;
    phase(&daemon, "1", &["streaming"]).await?;
    desk.sql("UPDATE orders SET p = ROW(3, 'events') WHERE id % 3 = 0").await?;
    desk.assert_equal(&daemon, "1", "database").await?;
    ensure!(streams(&daemon, false)? == 1, "the stream did not go on as text");
    Ok(())
}

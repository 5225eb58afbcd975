//! `pause`, `resume` and `resume --skip`.

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::ClusterOptions;
use serde_json::{Value, json};
use tests::daemon::Daemon;
use tests::scene::Configuration;
use tests::wait::until;

use crate::carve::{cli, phase, verify_equal};
use crate::settle::{SOON, faulted};
use crate::surface::{Desk, run};

/// Waits until nobody of ours reads a table of the source.
async fn no_copy(desk: &Desk) -> Result<()> {
    let copies = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^carveout (copy|snapshot)'";
    until("the end of the copy", SOON, async || {
        let left = desk.ask(copies).await?;
        ensure!(left == "0", "{left} sessions");
        Ok(())
    })
    .await
}

fn number(status: &Value, field: &str) -> u64 {
    status[field].as_u64().unwrap_or(0)
}

/// INTERFACE: a move that is paused while it copies, and while it follows, stands, also over a crash; the slot is
/// acknowledged meanwhile by what its spool holds, the others go on, `resume` brings everything. A spool that
/// grows over its budget meanwhile is a new copy, as any.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_move_stands_and_loses_nothing() -> Result<()> {
    let extra = "limits: {copy_rows_per_second: 40, spool_per_tenant: 1MiB}\n".to_owned();
    let desk = Desk::open_with(ClusterOptions::default(), Configuration { extra, ..Configuration::default() }).await?;
    let mut daemon = desk.work().await?;
    cli(&desk.config, &["move", "1", "--to", "schema"]).await?;
    until("a copy under way", SOON, async || {
        let status = daemon.tenant("1").await?;
        ensure!(status["phase"] == "copying" && number(&status, "rows_copied") > 0, "{status}");
        Ok(())
    })
    .await?;
    for _ in 0..2 {
        run(&desk.config, &["pause", "1"]).await?.assert(0, &["is paused (copying)"])?;
    }
    no_copy(&desk).await?;
    desk.carve(&daemon, "2", "database").await?;
    desk.sql("UPDATE orders SET note = 'while it is paused' WHERE id % 2 = 0; DELETE FROM orders WHERE id % 7 = 0")
        .await?;
    desk.acknowledged(&daemon).await?;
    daemon.kill()?;
    daemon = Daemon::start(&desk.config).await?;
    desk.assert_equal(&daemon, "2", "database").await?;
    let status = daemon.tenant("1").await?;
    ensure!(status["phase"] == "copying" && status["paused"] == true && number(&status, "spool_bytes") > 0, "{status}");
    run(&desk.config, &["status"]).await?.assert(0, &["copying (paused)"])?;
    run(&desk.config, &["move", "1"]).await?.assert(1, &["a person holds the move", "carveout resume"])?;
    run(&desk.config, &["verify", "1"]).await?.assert(1, &[])?;
    for _ in 0..2 {
        run(&desk.config, &["resume", "1"]).await?.assert(0, &["goes on"])?;
    }
    phase(&daemon, "1", &["streaming"]).await?;
    desk.assert_equal(&daemon, "1", "schema").await?;

    // While it follows.
    run(&desk.config, &["pause", "1"]).await?.assert(0, &["is paused"])?;
    desk.sql("INSERT INTO orders SELECT n % 5, 2000 + n, 'paused again' FROM generate_series(1, 50) n").await?;
    desk.acknowledged(&daemon).await?;
    desk.assert_equal(&daemon, "2", "database").await?;
    ensure!(desk.ask("SELECT count(*) FROM bid_1.orders WHERE id > 2000").await? == "0", "it was applied");
    ensure!(daemon.get("/metrics").await?.body.contains("carveout_paused 1"), "the metric is missing");
    run(&desk.config, &["verify", "1"]).await?.assert(1, &["it is paused"])?;
    ensure!(daemon.terminate().await?.success());
    let text = std::fs::read_to_string(&desk.config)?.replace("copy_rows_per_second: 40", "copy_rows_per_second: 0");
    std::fs::write(&desk.config, text)?;
    daemon = Daemon::start(&desk.config).await?;
    ensure!(daemon.tenant("1").await?["paused"] == true);
    let answer = daemon.post("/v1/tenants/1/resume", &json!({})).await?.success()?.json()?;
    ensure!(answer["paused"] == false, "{answer}");
    desk.assert_equal(&daemon, "1", "schema").await?;

    // Over the budget.
    daemon.post("/v1/tenants/1/pause", &json!({})).await?.success()?;
    desk.sql("INSERT INTO orders SELECT 1, 5000 + n, repeat(md5(n::text), 32) FROM generate_series(1, 2000) n").await?;
    let status = faulted(&daemon, "1").await?;
    ensure!(
        status["phase"] == "needs_copy" && status["paused"] == true && status["fault"]["code"] == "spool_full",
        "{status}"
    );
    desk.assert_equal(&daemon, "2", "database").await?;
    run(&desk.config, &["move", "1"]).await?.assert(1, &["carveout resume"])?;
    cli(&desk.config, &["resume", "1"]).await?;
    phase(&daemon, "1", &["streaming"]).await?;
    desk.assert_equal(&daemon, "1", "schema").await?;
    run(&desk.config, &["pause", "77"]).await?.assert(1, &["no move"])?;
    // A paused move can be cancelled, and is gone then.
    cli(&desk.config, &["pause", "1"]).await?;
    run(&desk.config, &["cancel", "1"]).await?.assert(0, &["is cancelled"])?;
    run(&desk.config, &["resume", "1"]).await?.assert(1, &["is cancelled"])?;
    ensure!(desk.ask("SELECT count(*) FROM pg_namespace WHERE nspname = 'bid_1'").await? == "0", "the schema is left");
    daemon.assert_no_errors(&["spool_full"])
}

/// The transaction that a fault tells to skip.
fn named(status: &Value) -> Result<String> {
    let next = status["fault"]["next"].as_str().context("next")?;
    let lsn =
        next.split("--skip ").nth(1).and_then(|rest| rest.split('`').next()).context("no transaction is named")?;
    ensure!(status["fault"]["message"].as_str().is_some_and(|message| message.contains(lsn)), "{status}");
    Ok(lsn.to_owned())
}

/// INTERFACE: `--skip` leaves out exactly the transaction that the fault names, for this tenant only; it is written
/// down, survives a crash, and a clean verify is owed from then on.
#[tokio::test(flavor = "multi_thread")]
async fn one_transaction_is_left_out_by_name_and_a_verify_is_owed() -> Result<()> {
    let desk = Desk::open().await?;
    let mut daemon = desk.work().await?;
    desk.carve(&daemon, "1", "schema").await?;
    desk.carve(&daemon, "2", "schema").await?;
    verify_equal(&daemon, "1").await?;
    run(&desk.config, &["resume", "1", "--skip", "0/1"]).await?.assert(1, &["does not stand at a transaction"])?;
    ensure!(daemon.post("/v1/tenants/1/resume", &json!({"skip": "x"})).await?.status == 400);
    desk.sql("INSERT INTO bid_1.orders VALUES (1, 9001, 'in the way')").await?;
    desk.sql("INSERT INTO orders VALUES (1, 8999, 'before'), (2, 8999, 'before')").await?;
    desk.sql(
        "BEGIN; INSERT INTO orders VALUES (1, 9000, 'left out'), (2, 9000, 'kept'); \
         INSERT INTO orders VALUES (1, 9001, 'left out'), (2, 9001, 'kept'); COMMIT",
    )
    .await?;
    desk.sql(
        "INSERT INTO orders VALUES (1, 9002, 'after'), (2, 9002, 'after'); UPDATE orders SET note = 'x' WHERE id < 9",
    )
    .await?;
    let lsn = named(&faulted(&daemon, "1").await?)?;
    run(&desk.config, &["resume", "1", "--skip", "0/1"]).await?.assert(1, &[&lsn, "not at 0/1"])?;
    // Without a mended cause it comes to stand at the same one.
    run(&desk.config, &["resume", "1"]).await?.assert(0, &["goes on"])?;
    ensure!(named(&faulted(&daemon, "1").await?)? == lsn);
    daemon.kill()?;
    daemon = Daemon::start(&desk.config).await?;
    ensure!(named(&faulted(&daemon, "1").await?)? == lsn);
    run(&desk.config, &["resume", "1", "--skip", &lsn]).await?.assert(0, &["carveout verify 1"])?;
    daemon.kill()?;
    daemon = Daemon::start(&desk.config).await?;
    phase(&daemon, "1", &["streaming"]).await?;
    until("what came after it", SOON, async || {
        let there = desk
            .ask("SELECT string_agg(id || ' ' || note, ', ' ORDER BY id) FROM bid_1.orders WHERE id > 8000")
            .await?;
        ensure!(there == "8999 before, 9001 in the way, 9002 after", "{there}");
        Ok(())
    })
    .await?;
    let owed = async |daemon: &Daemon| -> Result<bool> {
        let status = daemon.tenant("1").await?;
        ensure!(status["skipped"] == json!([lsn]), "{status}");
        let reason = format!("transaction {lsn} was left out");
        let blocked = status["blocked_by"].as_array().context("blocked_by")?;
        Ok(blocked.iter().any(|why| why.as_str().is_some_and(|why| why.contains(&reason))))
    };
    ensure!(owed(&daemon).await?, "no verify is owed");
    ensure!(daemon.log()?.lines().any(|line| line.contains("skipped") && line.contains(&lsn)));
    run(&desk.config, &["status", "1"]).await?.assert(0, &["left out", &lsn])?;
    desk.assert_equal(&daemon, "2", "schema").await?;
    run(&desk.config, &["verify", "1"]).await?.assert(1, &["9000", "9001"])?;
    ensure!(owed(&daemon).await?, "a verify that found differences counts");
    desk.sql("INSERT INTO bid_1.orders VALUES (1, 9000, 'left out'); UPDATE bid_1.orders SET note = 'left out' WHERE id = 9001").await?;
    verify_equal(&daemon, "1").await?;
    ensure!(!owed(&daemon).await?, "the verify does not count");
    // A TRUNCATE, which cannot be followed, is a transaction like any other.
    desk.sql("TRUNCATE events").await?;
    let truncated = named(&faulted(&daemon, "1").await?)?;
    run(&desk.config, &["resume", "1"]).await?.assert(1, &["truncate"])?;
    cli(&desk.config, &["resume", "1", "--skip", &truncated]).await?;
    phase(&daemon, "1", &["streaming"]).await?;
    run(&desk.config, &["verify", "1"]).await?.assert(1, &["events"])?;
    let status = faulted(&daemon, "2").await?;
    ensure!(status["skipped"] == json!([]) && named(&status)? == truncated, "{status}");
    // A new copy holds what was left out.
    cli(&desk.config, &["cancel", "1"]).await?;
    desk.carve(&daemon, "1", "schema").await?;
    ensure!(daemon.tenant("1").await?["skipped"] == json!([]));
    desk.assert_equal(&daemon, "1", "schema").await?;
    daemon.assert_no_errors(&["duplicate key", "truncated on the source"])
}

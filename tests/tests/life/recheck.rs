//! What is applied between the comparison of both sides and the pause is compared in it. That a change comes just there is made
//! sure by a transaction that stays open: the comparison does not see it, and the fence waits for it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::binary;
use tests::wait::until;
use tokio_postgres::Client;

use super::clients::Clients;
use super::{Gate, SOON, Stage};
use crate::carve::{cli, phase};
use crate::settle;

/// Spoils what a lane writes into a row of `accounts`, once its kind is this one.
pub fn spoil(kind: u32) -> String {
    format!(
        "CREATE OR REPLACE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN NEW.balance := NEW.balance + 1000000; RETURN NEW; END $$;
         CREATE TRIGGER spoil BEFORE UPDATE ON accounts FOR EACH ROW WHEN (NEW.id = 9999 AND NEW.kind = {kind}) EXECUTE FUNCTION spoil();
         ALTER TABLE accounts ENABLE ALWAYS TRIGGER spoil"
    )
}

pub const MEND: &str = "DROP TRIGGER spoil ON accounts; DROP FUNCTION spoil()";

/// Waits until the fence is being made on the side of `client`: both sides are compared then, and nobody is held.
pub async fn compared(client: &Client, asked: &tokio::task::JoinHandle<Result<std::process::Output>>) -> Result<()> {
    let fencing = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name LIKE 'carveout fence%'";
    until("the fence being made", SOON, async || {
        ensure!(!asked.is_finished(), "it has ended already");
        // What a transaction has once seen of others' activity it goes on seeing.
        client.batch_execute("SELECT pg_stat_clear_snapshot()").await?;
        ensure!(client.query_one(fencing, &[]).await?.get::<_, i64>(0) > 0, "not yet");
        Ok(())
    })
    .await
}

impl Stage {
    /// Asks for it, and commits what `writer` has open once both sides were compared.
    async fn ask_while_open(&self, wish: &'static str, writer: &Client, end: &str) -> Result<std::process::Output> {
        let config = self.config.clone();
        let asked = tokio::spawn(async move { binary::cli(&config, &[wish, "1", "--output", "json"]).await });
        compared(writer, &asked).await?;
        writer.batch_execute(end).await?;
        asked.await?
    }
}

pub fn assert_refused(output: &std::process::Output) -> Result<()> {
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.code() == Some(1), "{said}");
    ensure!(said.contains("public.accounts: 1 rows differ, different (9999)"), "{said}");
    ensure!(!said.contains("1000000"), "it names a value: {said}");
    Ok(())
}

pub fn steps(report: &Value) -> Vec<&str> {
    report["steps"].as_array().into_iter().flatten().filter_map(|step| step["step"].as_str()).collect()
}

/// DESIGN 3.10, invariant 10: a row that the target spoils between comparison and flip stops cutover and rollback; it is named, the
/// writers go on where they were, and mended it succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_spoiled_after_the_comparison_stops_the_flip() -> Result<()> {
    let stage = Stage::open().await?;
    // An account that no client touches: none of them waits for the transaction that stays open.
    stage.scene.source_client().await?.batch_execute("INSERT INTO accounts VALUES (9999, 1, 1, 0)").await?;
    stage.carve("1", "database").await?;
    let clients = Clients::start(&stage.scene, "1", 4).await?;
    let (source, target) = (stage.scene.source_client().await?, stage.scene.target_client("bid_1").await?);
    for (wish, here, there, kind, stays, moves) in [
        ("cutover", &source, &target, 5, "shared", "database"),
        ("rollback", &target, &source, 2, "database", "shared"),
    ] {
        clients.progress(20).await?;
        there.batch_execute(&spoil(kind)).await?;
        here.batch_execute(&format!("BEGIN; UPDATE accounts SET kind = {kind} WHERE id = 9999")).await?;
        assert_refused(&stage.ask_while_open(wish, here, "COMMIT").await?).context(wish)?;
        let settled = if stays == "shared" { ["streaming", "ready"] } else { ["reversing", "reversing"] };
        let status = phase(&stage.daemon, "1", &settled).await?;
        ensure!(status["isolation"] == stays, "{status}");
        clients.progress(20).await?;
        // It is not equal by any comparison now.
        let again = binary::cli(&stage.config, &[wish, "1"]).await?;
        ensure!(again.status.code() == Some(1), "{again:?}");
        there.batch_execute(MEND).await?;
        here.batch_execute("UPDATE accounts SET kind = 1 WHERE id = 9999").await?;
        until(&format!("{wish} of what is mended"), SOON, async || {
            let report = stage.json(&[wish, "1"]).await?;
            ensure!(report["route"]["isolation"] == moves && steps(&report).contains(&"recheck"), "{report}");
            println!("{wish}: {} keys were compared in a pause of {} ms", report["rechecked_keys"], report["pause_ms"]);
            Ok(())
        })
        .await?;
    }
    let ledger = clients.stop().await?;
    ledger.assert_never_on_both_sides()?;
    stage.assert_equal("1", "database", &ledger).await
}

/// More has changed since the comparison than may be left for the pause: it is compared before, while the clients write.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_for_the_pause_is_compared_in_rounds() -> Result<()> {
    let stage = Stage::open().await?;
    let (bulk, other) = (stage.scene.source_client().await?, stage.scene.source_client().await?);
    bulk.batch_execute("INSERT INTO accounts SELECT n, 1, 1, 0 FROM generate_series(1001, 6000) n").await?;
    stage.carve("1", "database").await?;
    let target = stage.scene.target_client("bid_1").await?;
    let clients = Clients::start(&stage.scene, "1", 4).await?;
    clients.progress(50).await?;
    bulk.batch_execute("BEGIN; UPDATE accounts SET kind = 4 WHERE bid = 1 AND id > 1000").await?;
    // The fence waits for another tenant's, too: the lane applies the first one meanwhile.
    other.batch_execute("BEGIN; INSERT INTO writes VALUES (-1, 2, 0, 0, '')").await?;
    let config = stage.config.clone();
    let asked = tokio::spawn(async move { binary::cli(&config, &["cutover", "1", "--output", "json"]).await });
    compared(&bulk, &asked).await?;
    bulk.batch_execute("COMMIT").await?;
    until("the bulk in the target", SOON, async || {
        let sql = "SELECT count(*) FROM accounts WHERE id > 1000 AND kind = 4";
        ensure!(target.query_one(sql, &[]).await?.get::<_, i64>(0) == 5000, "not yet");
        Ok(())
    })
    .await?;
    other.batch_execute("COMMIT").await?;
    let output = asked.await??;
    ensure!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(steps(&report).contains(&"rounds") && steps(&report).contains(&"recheck"), "{report}");
    ensure!(report["rechecked_keys"].as_u64().is_some_and(|keys| keys <= 2000), "{report}");
    println!("{} keys were left for a pause of {} ms", report["rechecked_keys"], report["pause_ms"]);
    phase(&stage.daemon, "1", &["reversing"]).await?;
    clients.progress(20).await?;
    let ledger = clients.stop().await?;
    ledger.assert_never_on_both_sides()?;
    stage.assert_equal("1", "database", &ledger).await
}

/// Who verifies while a cutover has compared both sides takes nothing from it; what it finds different stops the cutover.
#[tokio::test(flavor = "multi_thread")]
async fn a_verify_beside_a_cutover_takes_nothing_from_it() -> Result<()> {
    let gate = Gate::new().await?;
    let stage = Stage::open_with("", &gate.hook("before_cutover")).await?;
    let source = stage.scene.source_client().await?;
    source.batch_execute("INSERT INTO accounts VALUES (9999, 1, 1, 0)").await?;
    stage.carve("1", "database").await?;
    let target = stage.scene.target_client("bid_1").await?;
    let asked = gate.cut_over(&stage.config).await?;
    source.batch_execute("UPDATE accounts SET balance = balance + 1 WHERE bid = 1 AND id < 30").await?;
    settle::drained(&stage.scene, &stage.daemon, "1").await?;
    cli(&stage.config, &["verify", "1"]).await?;
    gate.open()?;
    let output = asked.await??;
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    let changed: i64 = source.query_one("SELECT count(*) FROM accounts WHERE bid = 1 AND id < 30", &[]).await?.get(0);
    ensure!(report["rechecked_keys"] == changed, "what was noted for it is gone: {report}");

    stage.json(&["rollback", "1"]).await?;
    let asked = gate.cut_over(&stage.config).await?;
    target.batch_execute(&spoil(5)).await?;
    source.batch_execute("UPDATE accounts SET kind = 5 WHERE id = 9999").await?;
    settle::drained(&stage.scene, &stage.daemon, "1").await?;
    let found = binary::cli(&stage.config, &["verify", "1"]).await?;
    ensure!(found.status.code() == Some(1), "{found:?}");
    // The row is as it was again, but somebody has written there.
    target.batch_execute(MEND).await?;
    source.batch_execute("UPDATE accounts SET kind = 1 WHERE id = 9999").await?;
    settle::drained(&stage.scene, &stage.daemon, "1").await?;
    gate.open()?;
    let output = asked.await??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && said.contains("a `verify` has found differences"), "{output:?}");
    let status = phase(&stage.daemon, "1", &["rolled_back", "ready"]).await?;
    ensure!(status["isolation"] == "shared", "{status}");
    stage.json(&["cutover", "1"]).await?;
    Ok(())
}

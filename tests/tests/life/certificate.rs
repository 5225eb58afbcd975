//! A comparison of all rows goes on to count, over flips too: what has changed since is compared once more, and nothing else.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::binary;
use tests::daemon::Daemon;
use tests::oracle;
use tests::wait::until;
use tokio_postgres::Client;

use super::recheck::{MEND, assert_refused, spoil, steps};
use super::{SOON, Stage};
use crate::carve::{cli, phase};
use crate::settle;

/// Whether a report says that all rows were compared for it.
fn anew(report: &Value) -> Result<bool> {
    let (verify, certificate) = (steps(report).contains(&"verify"), steps(report).contains(&"certificate"));
    ensure!(verify != certificate && report["verified"] == true, "{report}");
    Ok(verify)
}

/// The tenant changes some rows.
async fn write(client: &Client) -> Result<()> {
    let sql = "UPDATE accounts SET balance = balance + 1 WHERE bid = 1 AND id < 30;
               UPDATE notes SET note = note || '.' WHERE account IN (SELECT id FROM accounts WHERE bid = 1 AND id < 30)";
    Ok(client.batch_execute(sql).await?)
}

impl Stage {
    /// Moves the writes of a tenant that is proved equal; whether all rows were compared for that.
    async fn flips(&self, wish: &str) -> Result<bool> {
        anew(&self.json(&[wish, "1"]).await?).with_context(|| wish.to_owned())
    }

    /// What the status says of the last comparison.
    async fn shown(&self) -> Result<Value> {
        Ok(self.daemon.tenant("1").await?["certificate"].clone())
    }

    /// There and back, both sides compared before, and `sql` run in the target: whether all rows were compared for each.
    async fn round_trip(&self, sql: &str, target: &Client) -> Result<[bool; 2]> {
        cli(&self.config, &["verify", "1"]).await?;
        target.batch_execute(sql).await?;
        let there = self.flips("cutover").await?;
        write(target).await?;
        Ok([there, self.flips("rollback").await?])
    }
}

/// DESIGN 3.10, 3.11: what was compared counts for a cutover and for the rollback after it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_compared_counts_over_flips_until_nobody_knows_what_has_changed() -> Result<()> {
    let mut stage = Stage::open().await?;
    stage.carve("1", "database").await?;
    let (source, target) = (stage.scene.source_client().await?, stage.scene.target_client("bid_1").await?);
    write(&source).await?;
    let put_back =
        "BEGIN; CREATE TEMP TABLE kept AS TABLE writes; TRUNCATE writes; INSERT INTO writes TABLE kept; COMMIT";
    ensure!(stage.round_trip(put_back, &target).await? == [true, false], "a table that was emptied and filled again");
    ensure!(stage.round_trip("SELECT", &target).await? == [false, false], "all rows were compared");
    // What a lane does not note, or notes too much of.
    let silent = "CREATE FUNCTION quiet() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
                  CREATE TRIGGER quiet AFTER INSERT ON writes FOR EACH ROW EXECUTE FUNCTION quiet()";
    ensure!(stage.round_trip(silent, &target).await? == [false, false], "a trigger that does not fire");
    let always = "ALTER TABLE writes ENABLE ALWAYS TRIGGER quiet";
    ensure!(stage.round_trip(always, &target).await? == [true, false], "a trigger that always fires");
    target.batch_execute("DROP FUNCTION quiet CASCADE").await?;
    for other in ["VACUUM FULL accounts", "CREATE UNIQUE INDEX another ON accounts (id, kind)"] {
        ensure!(stage.round_trip(other, &target).await? == [true, false], "{other}");
    }
    cli(&stage.config, &["verify", "1"]).await?;
    source.batch_execute("INSERT INTO notes SELECT 3, n, '' FROM generate_series(10, 1010) n").await?;
    settle::drained(&stage.scene, &stage.daemon, "1").await?;
    ensure!(stage.flips("cutover").await?, "more than a thousand keys");
    // A lane that goes on where it was stopped.
    let few = "UPDATE accounts SET balance = balance + 1 WHERE bid = 1 AND id < 30";
    target.batch_execute(few).await?;
    cli(&stage.config, &["pause", "1"]).await?;
    target.batch_execute(few).await?;
    cli(&stage.config, &["resume", "1"]).await?;
    phase(&stage.daemon, "1", &["reversing"]).await?;
    ensure!(!stage.flips("rollback").await?, "after pause and resume");
    // Reference tables are read again after a rollback.
    cli(&stage.config, &["verify", "1"]).await?;
    source.batch_execute(few).await?;
    settle::drained(&stage.scene, &stage.daemon, "1").await?;
    stage.daemon.terminate().await?;
    source.batch_execute(few).await?;
    stage.daemon = Daemon::start(&stage.config).await?;
    phase(&stage.daemon, "1", &["rolled_back", "ready"]).await?;
    ensure!(!stage.flips("cutover").await?, "after an orderly end");
    ensure!(!stage.flips("rollback").await?, "after an orderly end, and a flip");
    cli(&stage.config, &["verify", "1"]).await?;
    let compared = stage.shown().await?;
    ensure!(compared["counts"] == true && compared["tables"] == 4, "{compared}");
    ensure!(!stage.flips("cutover").await?, "just compared");
    // What was found is kept; what has changed since then is not.
    let kept = |status: &Value| ["at", "lsn", "tables", "rows"].into_iter().all(|name| status[name] == compared[name]);
    let flipped = stage.daemon.tenant("1").await?;
    ensure!(kept(&flipped["certificate"]) && flipped["certificate"]["counts"] == true, "{flipped}, and not {compared}");
    ensure!(flipped["verified_at_lsn"].is_null(), "a position of the other stream: {flipped}");
    stage.daemon.kill()?;
    stage.daemon = Daemon::start(&stage.config).await?;
    phase(&stage.daemon, "1", &["reversing"]).await?;
    until("what was found", SOON, async || {
        let started = stage.shown().await?;
        ensure!(kept(&started) && started["counts"] == false, "{started}, and not {compared}");
        Ok(())
    })
    .await?;
    ensure!(stage.flips("rollback").await?, "after a restart");
    for (table, filter) in [
        ("accounts", "bid = 1"),
        ("notes", "account IN (SELECT id FROM accounts WHERE bid = 1)"),
        ("writes", "bid = 1"),
        ("kinds", "true"),
    ] {
        let table = format!("public.{table}");
        oracle::assert_equal(&source, &table, filter, &target, &table).await?;
    }
    stage.flips("cutover").await?;
    cli(&stage.config, &["complete", "1"]).await?;
    ensure!(stage.shown().await?.is_null(), "nothing is compared any more");
    stage.daemon.assert_no_errors(&[])
}

/// Invariant 10: what the lane back writes after a flip is noted from its beginning, so a row that the source spoils right after
/// the cutover stops the rollback, which compares nothing but what has changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_spoiled_after_the_flip_stops_the_way_back() -> Result<()> {
    let stage = Stage::open().await?;
    let source = stage.scene.source_client().await?;
    source.batch_execute("INSERT INTO accounts VALUES (9999, 1, 1, 0)").await?;
    stage.carve("1", "database").await?;
    let target = stage.scene.target_client("bid_1").await?;
    stage.json(&["cutover", "1"]).await?;
    source.batch_execute(&spoil(2)).await?;
    target.batch_execute("UPDATE accounts SET kind = 2 WHERE id = 9999").await?;
    until("the row at the source", SOON, async || {
        let row = source.query_one("SELECT kind FROM accounts WHERE id = 9999", &[]).await?;
        ensure!(row.get::<_, i32>(0) == 2, "not yet");
        Ok(())
    })
    .await?;
    source.batch_execute(MEND).await?;
    assert_refused(&binary::cli(&stage.config, &["rollback", "1", "--output", "json"]).await?).context("rollback")?;
    phase(&stage.daemon, "1", &["reversing"]).await?;
    target.batch_execute("UPDATE accounts SET kind = 1, balance = 0 WHERE id = 9999").await?;
    until("rollback of what is mended", SOON, async || {
        ensure!(anew(&stage.json(&["rollback", "1"]).await?)?, "it was not equal by the last comparison");
        Ok(())
    })
    .await
}

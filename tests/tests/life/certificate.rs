//! A comparison of all rows goes on to count, over flips too: what has changed since is compared once more, and nothing else.

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::signal;
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

/// Of a large tenant many rows may change: as long as it is sooner to look them up, all rows are not compared again, and what differs
/// among them is found.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_tenant_is_cut_over_by_what_has_changed_since() -> Result<()> {
    let stage = Stage::open().await?;
    let source = stage.scene.source_client().await?;
    source.batch_execute("INSERT INTO accounts SELECT n, 1, 1, 0 FROM generate_series(100001, 400000) n").await?;
    stage.carve("1", "database").await?;
    let target = stage.scene.target_client("bid_1").await?;
    let many = "UPDATE accounts SET balance = balance + 1 WHERE bid = 1 AND id BETWEEN 100001 AND";
    for spoiled in [true, false] {
        cli(&stage.config, &["verify", "1"]).await?;
        source.batch_execute(&format!("{many} 120000")).await?;
        settle::drained(&stage.scene, &stage.daemon, "1").await?;
        let status = phase(&stage.daemon, "1", &["streaming"]).await?;
        ensure!(status["certificate"]["counts"] == true, "{status}");
        if spoiled {
            target.batch_execute("UPDATE accounts SET kind = 2 WHERE id = 119999").await?;
            let refused = binary::cli(&stage.config, &["cutover", "1"]).await?;
            let said = String::from_utf8_lossy(&refused.stderr);
            ensure!(!refused.status.success() && said.contains("different (119999)"), "{said}");
            target.batch_execute("UPDATE accounts SET kind = 1 WHERE id = 119999").await?;
        }
    }
    let report = stage.json(&["cutover", "1"]).await?;
    ensure!(!anew(&report)? && steps(&report).contains(&"rounds"), "{report}");
    target.batch_execute(&format!("{many} 140000")).await?;
    until("its changes at the source", SOON, async || {
        let sql = "SELECT sum(balance)::bigint FROM accounts WHERE bid = 1 AND id > 100000";
        ensure!(source.query_one(sql, &[]).await?.get::<_, i64>(0) == 80_000, "not yet");
        Ok(())
    })
    .await?;
    ensure!(stage.flips("rollback").await?, "more than a tenth of the rows");
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

impl Stage {
    /// Begins a comparison, and ends it when it has read the first of its tables and waits for the last one.
    async fn interrupt(&mut self, locker: &Client, by: &str) -> Result<()> {
        // It takes a while to read the first one: the lock comes too late only where this is held up for as long.
        while !self.interrupt_in_time(locker, by).await? {
            locker.batch_execute("ROLLBACK").await?;
        }
        Ok(locker.batch_execute("COMMIT").await?)
    }

    async fn interrupt_in_time(&mut self, locker: &Client, by: &str) -> Result<bool> {
        let config = self.config.clone();
        let asked = tokio::spawn(async move { binary::cli(&config, &["verify", "1"]).await });
        let reads = async |chosen: &str, table: &str, waits: bool| -> Result<usize> {
            let sql = format!(
                "SELECT {chosen} FROM pg_stat_activity
                  WHERE datname = current_database() AND application_name = 'carveout verify' AND state = 'active'
                    AND query LIKE '%{table}%' AND (wait_event_type = 'Lock') IS NOT DISTINCT FROM {waits}"
            );
            locker.batch_execute("SELECT pg_stat_clear_snapshot()").await?;
            Ok(locker.query(&sql, &[]).await?.len())
        };
        for (table, waits) in [("sum(%accounts", false), ("sum(%writes", true)] {
            until(table, SOON, async || {
                ensure!(asked.is_finished() || reads("1", table, waits).await? == 1, "not yet");
                Ok(())
            })
            .await?;
            if !waits {
                locker.batch_execute("BEGIN; LOCK writes").await?;
            }
        }
        if asked.is_finished() {
            ensure!(asked.await??.status.success() || by == "a pause", "it failed by itself");
            return Ok(false);
        }
        match by {
            "the connection" => ensure!(reads("pg_terminate_backend(pid)", "writes", true).await? == 1, "it is gone"),
            "a pause" => {
                cli(&self.config, &["pause", "1"]).await?;
                locker.batch_execute("COMMIT").await?;
            }
            "another lane" => {
                // Whoever compares is held up; nobody else is.
                let sql = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'writes'::regclass";
                let comparing: i32 = locker.query_one(sql, &[]).await?.get(0);
                signal(comparing.unsigned_abs(), "STOP")?;
                locker.batch_execute("COMMIT").await?;
                let began = self.skip_and_spoil().await;
                let ended = self.daemon.terminate().await;
                signal(comparing.unsigned_abs(), "CONT")?;
                ensure!(began.and(ended)?.success(), "it did not end in order");
            }
            _ => ensure!(self.daemon.terminate().await?.success(), "it did not end in order"),
        }
        ensure!(!asked.await??.status.success(), "it was not interrupted");
        Ok(true)
    }

    /// The lane comes to stand, a person has another one go on behind that, and the target spoils what it writes.
    async fn skip_and_spoil(&self) -> Result<()> {
        let (source, target) = (self.scene.source_client().await?, self.scene.target_client("bid_1").await?);
        let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
                      CREATE TRIGGER refuse BEFORE UPDATE ON accounts FOR EACH ROW WHEN (NEW.kind = 5) EXECUTE FUNCTION refuse();
                      ALTER TABLE accounts ENABLE ALWAYS TRIGGER refuse";
        target.batch_execute(refuse).await?;
        source.batch_execute("UPDATE accounts SET kind = 5 WHERE id = 9998").await?;
        let skip = until("the fault", SOON, async || {
            let status = self.daemon.tenant("1").await?;
            let next = status["fault"]["next"].as_str().context("it goes on")?;
            let skip = next.split("--skip ").nth(1).and_then(|rest| rest.split('`').next());
            Ok(skip.with_context(|| status.to_string())?.to_owned())
        })
        .await?;
        // Whoever compares does not let the trigger be dropped.
        target.batch_execute("ALTER TABLE accounts DISABLE TRIGGER refuse").await?;
        cli(&self.config, &["resume", "1", "--skip", &skip]).await?;
        target.batch_execute(&spoil(2)).await?;
        // What was left out is equal again.
        source.batch_execute("UPDATE accounts SET kind = 1 WHERE id = 9998").await?;
        source.batch_execute("UPDATE accounts SET kind = 2 WHERE id = 9999").await?;
        settle::drained(&self.scene, &self.daemon, "1").await?;
        Ok(target.batch_execute("ALTER TABLE accounts DISABLE TRIGGER spoil").await?)
    }

    /// Compares, with the tables that were read at an earlier position.
    async fn verified(&self) -> Result<(Value, Vec<String>)> {
        let output = binary::cli(&self.config, &["verify", "1", "--output", "json"]).await?;
        let report: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
        let tables = report["tables"].as_array().context("tables")?.iter();
        let before = tables.filter(|table| table["lsn"] != report["lsn"]);
        let before = before.map(|table| table["table"].as_str().unwrap_or_default().to_owned()).collect();
        Ok((report, before))
    }
}

/// A comparison that was interrupted goes on: of the tables that were equal only what has changed since is compared once more, and
/// a row that was spoiled meanwhile is found.
#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_that_was_interrupted_goes_on() -> Result<()> {
    let mut stage = Stage::open().await?;
    let source = stage.scene.source_client().await?;
    source
        .batch_execute(
            "INSERT INTO accounts VALUES (9999, 1, 1, 0);
             INSERT INTO accounts SELECT n, 1, 1, 0 FROM generate_series(100001, 400000) n",
        )
        .await?;
    stage.carve("1", "database").await?;
    let target = stage.scene.target_client("bid_1").await?;
    let few = "UPDATE accounts SET balance = balance + 1 WHERE bid = 1 AND id < 30";
    for by in ["the connection", "the daemon's end"] {
        stage.interrupt(&target, by).await?;
        source.batch_execute(few).await?;
        if by != "the connection" {
            stage.daemon = Daemon::start(&stage.config).await?;
            phase(&stage.daemon, "1", &["streaming"]).await?;
        }
        settle::drained(&stage.scene, &stage.daemon, "1").await?;
        ensure!(stage.shown().await?["counts"] != true, "it had not ended");
        let (report, before) = stage.verified().await.context(by)?;
        ensure!(report["equal"] == true, "{report}");
        ensure!(before == ["public.accounts"], "{by}: {before:?} were compared before");
        let (report, before) = stage.verified().await?;
        ensure!(report["equal"] == true && before.is_empty(), "the next one reads everything: {report}");
    }
    // What may not be the same any more is compared anew.
    stage.interrupt(&target, "the connection").await?;
    target.batch_execute("VACUUM FULL accounts").await?;
    let (report, before) = stage.verified().await?;
    ensure!(report["equal"] == true && before.is_empty(), "another file: {report}");
    stage.interrupt(&target, "the connection").await?;
    target.batch_execute(&spoil(5)).await?;
    source.batch_execute("UPDATE accounts SET kind = 5 WHERE id = 9999").await?;
    settle::drained(&stage.scene, &stage.daemon, "1").await?;
    target.batch_execute(MEND).await?;
    let (report, before) = stage.verified().await?;
    ensure!(before.is_empty(), "a row was spoiled: {report}");
    let accounts = &report["tables"][0];
    ensure!(report["equal"] == false && accounts["differences"] == 1, "{report}");
    ensure!(accounts["examples"][0]["key"] == "(1,9999)", "{report}");
    source.batch_execute("UPDATE accounts SET kind = 1 WHERE id = 9999").await?;
    settle::drained(&stage.scene, &stage.daemon, "1").await?;
    let (report, before) = stage.verified().await?;
    ensure!(report["equal"] == true && before.is_empty(), "{report}");
    ensure!(!stage.flips("cutover").await?, "it was just compared");
    Ok(())
}

/// What a lane has changed that did not note it is compared by the next comparison, whatever an earlier one had read.
#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_whose_lane_came_to_stand_begins_anew() -> Result<()> {
    let mut stage = Stage::open().await?;
    let many = "INSERT INTO accounts VALUES (9998, 1, 1, 0), (9999, 1, 1, 0);
                INSERT INTO accounts SELECT n, 1, 1, 0 FROM generate_series(100001, 400000) n";
    stage.scene.source_client().await?.batch_execute(many).await?;
    stage.carve("1", "database").await?;
    let target = stage.scene.target_client("bid_1").await?;
    stage.interrupt(&target, "another lane").await?;
    stage.daemon = Daemon::start(&stage.config).await?;
    phase(&stage.daemon, "1", &["streaming"]).await?;
    let (report, before) = stage.verified().await?;
    ensure!(report["tables"][0]["differences"] == 1 && before.is_empty(), "{report}");
    Ok(())
}

/// A comparison goes on when its lane is paused; what it finds then takes back what the pause has kept.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_pause_kept_is_worth_nothing_once_a_difference_is_found() -> Result<()> {
    let mut stage = Stage::open().await?;
    let many = "INSERT INTO accounts SELECT n, 1, 1, 0 FROM generate_series(100001, 400000) n";
    let source = stage.scene.source_client().await?;
    source.batch_execute(many).await?;
    stage.carve("1", "database").await?;
    let target = stage.scene.target_client("bid_1").await?;
    target.batch_execute("INSERT INTO writes VALUES (99999, 1, 99, 1, 'of nobody')").await?;
    stage.interrupt(&target, "a pause").await?;
    cli(&stage.config, &["resume", "1"]).await?;
    // The lane has taken up what was kept.
    write(&source).await?;
    settle::drained(&stage.scene, &stage.daemon, "1").await?;
    for equal in [false, true] {
        let (report, before) = stage.verified().await?;
        ensure!(report["equal"] == equal && before.is_empty(), "the first one still counts for {before:?}: {report}");
        target.batch_execute("DELETE FROM writes WHERE client = 99").await?;
    }
    Ok(())
}

/// Whoever flipped was killed before the other side was open: what was compared before says nothing of what comes then.
#[tokio::test(flavor = "multi_thread")]
async fn a_flip_that_somebody_else_has_to_end_leaves_nothing_proved() -> Result<()> {
    let mut stage = Stage::open().await?;
    stage.carve("1", "database").await?;
    let (source, target) = (stage.scene.source_client().await?, stage.scene.target_client("bid_1").await?);
    cli(&stage.config, &["verify", "1"]).await?;
    ensure!(!stage.flips("cutover").await?, "just compared");
    cli(&stage.config, &["verify", "1"]).await?;
    // The other side cannot be opened.
    source.batch_execute("BEGIN; LOCK carveout.tenant_routes IN SHARE MODE").await?;
    let config = stage.config.clone();
    let asked = tokio::spawn(async move { binary::cli(&config, &["rollback", "1"]).await });
    until("the flip", SOON, async || {
        let sql = "SELECT state FROM carveout.fence WHERE tenant = '1' AND side = 'target'";
        ensure!(target.query_one(sql, &[]).await?.get::<_, String>(0) == "shut", "not yet");
        ensure!(!asked.is_finished(), "it has ended");
        Ok(())
    })
    .await?;
    stage.daemon.kill()?;
    source.batch_execute("ROLLBACK").await?;
    ensure!(!asked.await??.status.success(), "its daemon was killed");
    stage.daemon = Daemon::start(&stage.config).await?;
    phase(&stage.daemon, "1", &["rolled_back"]).await?;
    ensure!(stage.shown().await?.is_null(), "{}", stage.shown().await?);
    ensure!(stage.flips("cutover").await?, "all rows are compared");
    stage.daemon.assert_no_errors(&[])
}

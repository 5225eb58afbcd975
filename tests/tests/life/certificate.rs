//! A comparison of all rows goes on to count, over flips too: what has changed since is compared once more, and nothing else.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::binary::{self, cli};
use tests::daemon::Daemon;
use tests::wait::until;

use super::clients::Clients;
use super::recheck::{MEND, assert_refused, spoil, steps};
use super::{SOON, Stage};
use crate::carve::phase;

/// Whether a report says that all rows were compared for it.
fn anew(report: &Value) -> Result<bool> {
    let (verify, certificate) = (steps(report).contains(&"verify"), steps(report).contains(&"certificate"));
    ensure!(verify != certificate && report["verified"] == true, "{report}");
    Ok(verify)
}

/// DESIGN 3.10, 3.11: a `verify`, then a cutover, a rollback and a cutover by it; a restart, a lane that began anew, a table that is
/// another one on either side: all rows are compared.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_compared_counts_over_flips_until_nobody_knows_what_has_changed() -> Result<()> {
    let mut stage = Stage::open().await?;
    stage.carve("1", "database").await?;
    let clients = Clients::start(&stage.scene, "1", 4).await?;
    clients.progress(50).await?;
    cli(&stage.config, &["verify", "1"]).await?;
    for wish in ["cutover", "rollback", "cutover"] {
        clients.progress(50).await?;
        let report = stage.json(&[wish, "1"]).await?;
        ensure!(!anew(&report)?, "{wish} compared all rows: {report}");
        println!(
            "{wish}: compared {} s before, {} keys in the pause",
            report["verified_s_ago"], report["rechecked_keys"]
        );
    }
    // Nobody knows what a lane has written that began anew.
    cli(&stage.config, &["pause", "1"]).await?;
    cli(&stage.config, &["resume", "1"]).await?;
    phase(&stage.daemon, "1", &["reversing"]).await?;
    clients.progress(20).await?;
    ensure!(anew(&stage.json(&["rollback", "1"]).await?)?, "after pause and resume");
    ensure!(!anew(&stage.json(&["cutover", "1"]).await?)?, "just compared");
    stage.daemon.kill()?;
    stage.daemon = Daemon::start(&stage.config).await?;
    phase(&stage.daemon, "1", &["reversing"]).await?;
    clients.progress(20).await?;
    ensure!(anew(&stage.json(&["rollback", "1"]).await?)?, "after a restart");
    let (source, target) = (stage.scene.source_client().await?, stage.scene.target_client("bid_1").await?);
    for (number, client) in [&target, &source].into_iter().enumerate() {
        client.batch_execute("CREATE UNIQUE INDEX another ON accounts (id, kind)").await?;
        let wish = ["cutover", "rollback"][number];
        ensure!(anew(&stage.json(&[wish, "1"]).await?)?, "{wish} of a table with another key");
    }
    let ledger = clients.stop().await?;
    ledger.assert_never_on_both_sides()?;
    stage.assert_equal("1", "database", &ledger).await
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

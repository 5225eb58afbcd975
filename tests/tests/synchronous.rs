//! A transaction may be delivered by the stream before any snapshot can see it: with a synchronous
//! standby that is away, for as long as that stays away.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use schemas::Lsn;
use tests::daemon::Daemon;
use tests::scene::{Configuration, Scene};
use tests::wait::until;
use tokio_postgres::Client;

use crate::carve::{assert_tenant_equal, cli, drained, phase, start_move, verify_equal};

const SOON: Duration = Duration::from_secs(30);

async fn standby(client: &Client, names: &str) -> Result<()> {
    client.batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'")).await?;
    client.batch_execute("SELECT pg_reload_conf()").await?;
    until("the setting", SOON, async || {
        let row = client.query_one("SHOW synchronous_standby_names", &[]).await?;
        ensure!(row.get::<_, String>(0) == names, "not yet");
        Ok(())
    })
    .await
}

async fn hidden_transaction(restart: bool) -> Result<()> {
    let scene = Scene::start(12).await?;
    let config = scene.write_config("carveout", &Configuration::default())?;
    cli(&config, &["prepare", "--apply"]).await?;
    let mut daemon = Daemon::start(&config).await?;
    let source = scene.source_client().await?;
    standby(&source, "absent").await?;
    // Delivered, but not visible: its COMMIT waits for the standby.
    let writer = scene.source_client().await?;
    let write = tokio::spawn(async move {
        let sql = "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime, filler) VALUES (1, 11, 1, 424242, now(), 'hidden')";
        writer.batch_execute(sql).await
    });
    until("a commit that waits", SOON, async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        ensure!(source.query_one(sql, &[]).await?.get::<_, i64>(0) == 1, "nobody waits");
        Ok(())
    })
    .await?;
    let end: String = source.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.get(0);
    let end: Lsn = end.parse()?;
    until("the transaction to be acknowledged", SOON, async || {
        let status = daemon.status().await?;
        let acknowledged: Lsn = status["source"]["acknowledged_lsn"].as_str().context("lsn")?.parse()?;
        ensure!(acknowledged >= end, "{acknowledged} of {end}");
        Ok(())
    })
    .await?;
    let count = "SELECT count(*) FROM pgbench_history WHERE delta = 424242";
    ensure!(source.query_one(count, &[]).await?.get::<_, i64>(0) == 0, "the row is visible already");
    if restart {
        daemon.kill()?;
        daemon = Daemon::start(&config).await?;
    }
    start_move(&daemon, "11", "database").await?;
    // The copy may not begin. It takes snapshot after snapshot; each is a session of its own.
    let before: i64 = snapshots(&source).await?;
    until("several snapshots that did not count", SOON, async || {
        let now = snapshots(&source).await?;
        ensure!(now >= before + 40, "{} sessions", now - before);
        Ok(())
    })
    .await?;
    let status = daemon.tenant("11").await?;
    ensure!(status["phase"] == "copying" && status["rows_copied"] == 0, "{status}");
    standby(&source, "").await?;
    write.await??;
    phase(&daemon, "11", &["streaming"]).await?;
    drained(&scene, &daemon, &["11"]).await?;
    let target = scene.target_client("bid_11").await?;
    let arrived: i64 = target.query_one(count, &[]).await?.get(0);
    ensure!(arrived == 1, "the hidden row arrived {arrived} times");
    verify_equal(&daemon, "11").await?;
    assert_tenant_equal(&scene, "11", "database").await
}

/// Sessions that this database has seen, which grows with every snapshot tried.
async fn snapshots(source: &Client) -> Result<i64> {
    let sql = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()";
    Ok(source.query_one(sql, &[]).await?.get(0))
}

/// DESIGN 3.4: the copy waits until the snapshot shows what was delivered before the lane was open.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_delivered_before_it_is_visible_is_not_lost() -> Result<()> {
    hidden_transaction(false).await
}

/// The same, remembered over a restart between delivery and the opening of the lane.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_delivered_before_a_restart_is_not_lost() -> Result<()> {
    hidden_transaction(true).await
}

/// A daemon starts, and claims its slot, while no standby answers: it waits for none.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_starts_while_the_standby_is_away() -> Result<()> {
    let scene = Scene::start(1).await?;
    let config = scene.write_config("carveout", &Configuration::default())?;
    cli(&config, &["prepare", "--apply"]).await?;
    let source = scene.source_client().await?;
    standby(&source, "absent").await?;
    let daemon = Daemon::start(&config).await?;
    daemon.assert_no_errors(&[])
}

/// DESIGN 3.4: delivered before its lane was open, hidden, and the daemon killed before it was acknowledged,
/// with something later in the spool already. It comes again, and is in no spool: the copy has to wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_transaction_that_comes_again_behind_the_spool_is_not_lost() -> Result<()> {
    let scene = Scene::start(1).await?;
    let config = scene.write_config("carveout", &Configuration::default())?;
    cli(&config, &["prepare", "--apply"]).await?;
    let mut daemon = Daemon::start(&config).await?;
    let source = scene.source_client().await?;
    for round in 1..=4 {
        standby(&source, "absent").await?;
        let hide = async |delta: i32| {
            let writer = scene.source_client().await?;
            let sql = format!("INSERT INTO pgbench_history (tid, bid, aid, delta) VALUES (1, 1, {round}, {delta})");
            anyhow::Ok(tokio::spawn(async move { writer.batch_execute(&sql).await }))
        };
        let before = hide(1).await?;
        let received = |status: serde_json::Value| -> Result<Lsn> {
            Ok(status["source"]["received_lsn"].as_str().context("lsn")?.parse()?)
        };
        until("one commit that waits", SOON, async || waiting(&source, 1).await).await?;
        let end: Lsn =
            source.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.get::<_, String>(0).parse()?;
        until("its delivery", SOON, async || {
            ensure!(received(daemon.status().await?)? >= end);
            Ok(())
        })
        .await?;
        start_move(&daemon, "1", "database").await?;
        let spool = scene.path().join(format!("carveout-state/spool/m{round}"));
        until("the lane", SOON, async || {
            ensure!(spool.exists());
            Ok(())
        })
        .await?;
        let after = hide(2).await?;
        until("two commits that wait", SOON, async || waiting(&source, 2).await).await?;
        until("the second one in the spool", SOON, async || {
            let bytes = daemon.tenant("1").await?["spool_bytes"].as_u64().unwrap_or(0);
            ensure!(bytes > 100, "{bytes} bytes");
            Ok(())
        })
        .await?;
        daemon.kill()?;
        daemon = Daemon::start(&config).await?;
        until("the copy under way again", SOON, async || {
            let status = daemon.tenant("1").await?;
            ensure!(status["phase"] == "copying", "{status}");
            Ok(())
        })
        .await?;
        standby(&source, "").await?;
        before.await??;
        after.await??;
        phase(&daemon, "1", &["streaming"]).await?;
        drained(&scene, &daemon, &["1"]).await?;
        assert_tenant_equal(&scene, "1", "database").await.with_context(|| format!("round {round}"))?;
        cli(&config, &["cancel", "1"]).await?;
    }
    Ok(())
}

async fn waiting(source: &Client, wanted: i64) -> Result<()> {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let waiting: i64 = source.query_one(sql, &[]).await?.get(0);
    ensure!(waiting == wanted, "{waiting} wait");
    Ok(())
}

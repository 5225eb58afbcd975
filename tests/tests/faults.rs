//! What goes wrong around the daemon: targets that are away, servers that crash, connections that are
//! cut, spools that fill or vanish. One tenant's trouble stays that tenant's.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::{ClusterOptions, StopMode};
use rand::Rng;
use schemas::Lsn;
use serde_json::Value;
use tests::daemon::Daemon;
use tests::proxy::Proxy;
use tests::scene::{Configuration, Scene};
use tests::seed::rng;
use tests::wait::until;
use tokio_postgres::Client;

use crate::carve::{assert_tenant_equal, cli, drained, phase, start_move, verify_equal};

const SOON: Duration = Duration::from_secs(60);
const BOTH: [(&str, &str); 2] = [("7", "schema"), ("11", "database")];

/// A scene with proxies before both servers, prepared, both tenants in step.
struct Stage {
    scene: Scene,
    source: Proxy,
    target: Proxy,
    daemon: Daemon,
}

async fn stage(extra: &str, options: ClusterOptions) -> Result<Stage> {
    let scene = Scene::start_with(11, options, ClusterOptions::default()).await?;
    let source = Proxy::start(format!("127.0.0.1:{}", scene.source.port).parse()?).await?;
    let target = Proxy::start(format!("127.0.0.1:{}", scene.target.port).parse()?).await?;
    let (at_source, at_target) = (Some(source.addr), Some(target.addr));
    let wanted =
        Configuration { source: at_source, target: at_target, extra: extra.to_owned(), ..Configuration::default() };
    let config = scene.write_config("carveout", &wanted)?;
    cli(&config, &["prepare", "--apply"]).await?;
    let daemon = Daemon::start(&config).await?;
    for (tenant, to) in BOTH {
        start_move(&daemon, tenant, to).await?;
    }
    for (tenant, _) in BOTH {
        phase(&daemon, tenant, &["streaming"]).await?;
    }
    Ok(Stage { scene, source, target, daemon })
}

impl Stage {
    async fn all_equal(&self) -> Result<()> {
        for (tenant, to) in BOTH {
            phase(&self.daemon, tenant, &["streaming"]).await?;
            drained(&self.scene, &self.daemon, &[tenant]).await?;
            verify_equal(&self.daemon, tenant).await?;
            assert_tenant_equal(&self.scene, tenant, to).await?;
        }
        Ok(())
    }

    async fn confirmed(&self) -> Result<Lsn> {
        let client = self.scene.source_client().await?;
        let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'carveout'";
        Ok(client.query_one(sql, &[]).await?.get::<_, String>(0).parse()?)
    }

    /// Waits until the slot knows that everything written so far is durable.
    async fn acknowledged(&self, source: &Client) -> Result<()> {
        let end: String = source.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.get(0);
        let end: Lsn = end.parse()?;
        until("everything to be acknowledged", SOON, async || {
            let confirmed = self.confirmed().await?;
            ensure!(confirmed >= end, "{confirmed} of {end}");
            Ok(())
        })
        .await
    }

    async fn when(&self, tenant: &str, what: &str, met: impl Fn(&Value) -> bool) -> Result<Value> {
        until(&format!("tenant {tenant} {what}"), SOON, async || {
            let status = self.daemon.tenant(tenant).await?;
            ensure!(met(&status), "{status}");
            Ok(status)
        })
        .await
    }
}

fn seconds(status: &Value) -> f64 {
    status["lag_seconds"].as_f64().unwrap_or(f64::MAX)
}

/// S05, T04: the spool of the dead target grows, the slot goes on, the other tenant stays in step.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_target_holds_back_neither_the_slot_nor_another_tenant() -> Result<()> {
    let stage = stage("", ClusterOptions::default()).await?;
    let mut load = stage.scene.load(2, Some(200)).await?;
    stage.target.refuse(true);
    stage.target.cut();
    stage.when("11", "five seconds behind", |status| seconds(status) > 5.0).await?;
    let confirmed = stage.confirmed().await?;
    until("the slot to go on", SOON, async || {
        let now = stage.confirmed().await?;
        ensure!(now > confirmed, "{now}");
        Ok(())
    })
    .await?;
    stage.when("7", "in step", |status| seconds(status) < 1.0 && status["phase"] == "streaming").await?;
    ensure!(stage.daemon.tenant("11").await?["spool_bytes"].as_u64() > Some(0), "nothing is spooled");
    stage.target.refuse(false);
    load.check()?;
    load.stop().await?.assert_fine()?;
    stage.all_equal().await?;
    stage.daemon.assert_no_errors(&[])
}

/// T07, N01: both links cut at random, also between COMMIT and its answer.
#[tokio::test(flavor = "multi_thread")]
async fn connections_cut_at_random_lose_and_double_nothing() -> Result<()> {
    let mut rng = rng("cuts");
    let stage = stage("", ClusterOptions::default()).await?;
    let mut load = stage.scene.load(4, None).await?;
    for _ in 0..40 {
        let before = stage.daemon.tenant("11").await?["applied_lsn"].clone();
        stage.when("11", "moving", |status| status["applied_lsn"] != before).await?;
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..50))).await;
        match rng.random_range(0..3) {
            0 => stage.source.cut(),
            _ => stage.target.cut(),
        }
    }
    load.check()?;
    load.stop().await?.assert_fine()?;
    stage.all_equal().await?;
    stage.daemon.assert_no_errors(&[])
}

/// T07: the servers crash and recover; pgbench is started again for the source's crash.
#[tokio::test(flavor = "multi_thread")]
async fn crashes_of_either_server_lose_and_double_nothing() -> Result<()> {
    let stage = stage("", ClusterOptions::default()).await?;
    let mut load = stage.scene.load(4, None).await?;
    for _ in 0..3 {
        stage.scene.target.stop(StopMode::Immediate)?;
        stage.when("11", "behind", |status| seconds(status) > 1.0).await?;
        stage.scene.target.start_again()?;
        phase(&stage.daemon, "11", &["streaming"]).await?;
    }
    load.check()?;
    for _ in 0..3 {
        stage.scene.source.stop(StopMode::Immediate)?;
        // Its clients fail with it; that is not ours.
        load.stop().await?;
        stage.scene.source.start_again()?;
        load = stage.scene.load(4, None).await?;
        let confirmed = stage.confirmed().await?;
        until("the stream to go on", SOON, async || {
            let now = stage.confirmed().await?;
            ensure!(now > confirmed, "{now}");
            Ok(())
        })
        .await?;
    }
    load.stop().await?.assert_fine()?;
    stage.all_equal().await?;
    stage.daemon.assert_no_errors(&[])
}

/// DESIGN 3.2: a used-up budget takes out that lane alone, also when the daemon is killed then; `move`
/// copies it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_over_its_budget_costs_that_tenant_a_copy_and_nobody_else() -> Result<()> {
    let mut stage = stage("limits: {spool_per_tenant: 1MiB}\n", ClusterOptions::default()).await?;
    stage.target.refuse(true);
    stage.target.cut();
    let source = stage.scene.source_client().await?;
    let sql = "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime, filler) \
               SELECT 1, 11, n, n, now(), 'much' FROM generate_series(1, 30000) n";
    source.batch_execute(sql).await?;
    let status = stage.when("11", "out", |status| status["phase"] == "needs_copy").await?;
    ensure!(status["fault"]["code"] == "spool_full", "{status}");
    stage.daemon.kill()?;
    let config = stage.daemon.config.clone();
    stage.daemon = Daemon::start(&config).await?;
    ensure!(stage.daemon.tenant("11").await?["phase"] == "needs_copy", "the daemon forgot");
    stage.when("7", "in step", |status| status["phase"] == "streaming").await?;
    stage.target.refuse(false);
    start_move(&stage.daemon, "11", "database").await?;
    stage.all_equal().await?;
    stage.daemon.assert_no_errors(&["spool_full"])
}

/// T08, S03: what was acknowledged into a spool that is gone is not skipped over.
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_vanished_means_a_copy_never_a_gap() -> Result<()> {
    let mut stage = stage("", ClusterOptions::default()).await?;
    stage.target.refuse(true);
    stage.target.cut();
    let source = stage.scene.source_client().await?;
    source.batch_execute("UPDATE pgbench_accounts SET abalance = 5 WHERE bid = 11 AND aid % 7 = 0").await?;
    stage.acknowledged(&source).await?;
    stage.daemon.kill()?;
    std::fs::remove_dir_all(stage.scene.path().join("carveout-state/spool/m2")).context("remove the spool")?;
    let config = stage.daemon.config.clone();
    stage.daemon = Daemon::start(&config).await?;
    // What is written before the lane can compare goes into a new spool, and is acknowledged from there.
    source.batch_execute("UPDATE pgbench_accounts SET abalance = 6 WHERE bid = 11 AND aid % 11 = 0").await?;
    stage.acknowledged(&source).await?;
    stage.daemon.kill()?;
    stage.daemon = Daemon::start(&config).await?;
    stage.target.refuse(false);
    let status = stage.when("11", "refused", |status| status["phase"] == "needs_copy").await?;
    ensure!(status["fault"]["code"] == "gap", "{status}");
    start_move(&stage.daemon, "11", "database").await?;
    stage.all_equal().await
}

/// S10, S11: a target that is locked for long does not cost the connection to the source.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_target_does_not_break_the_stream() -> Result<()> {
    let options = ClusterOptions {
        settings: vec![("wal_sender_timeout".to_owned(), "2s".to_owned())],
        ..ClusterOptions::default()
    };
    let stage = stage("", options).await?;
    let load = stage.scene.load(2, Some(100)).await?;
    let locker = stage.scene.target_client("bid_11").await?;
    locker
        .batch_execute("BEGIN; LOCK TABLE pgbench_accounts, pgbench_tellers, pgbench_branches, pgbench_history")
        .await?;
    stage.when("11", "eight seconds behind", |status| seconds(status) > 8.0).await?;
    locker.batch_execute("COMMIT").await?;
    load.stop().await?.assert_fine()?;
    stage.all_equal().await?;
    ensure!(!stage.daemon.log()?.contains("the stream ended"), "the stream was broken");
    stage.daemon.assert_no_errors(&[])
}

/// S06: writes that nobody publishes do not hold the log.
#[tokio::test(flavor = "multi_thread")]
async fn unpublished_writes_do_not_hold_the_log() -> Result<()> {
    let stage = stage("", ClusterOptions::default()).await?;
    let source = stage.scene.source_client().await?;
    source.batch_execute("CREATE TABLE noise (n bigint, t text)").await?;
    for _ in 0..4 {
        source.batch_execute("INSERT INTO noise SELECT n, repeat('x', 200) FROM generate_series(1, 50000) n").await?;
    }
    let end: String = source.query_one("SELECT pg_current_wal_lsn()::text", &[]).await?.get(0);
    let end: Lsn = end.parse()?;
    until("the slot to follow", SOON, async || {
        let confirmed = stage.confirmed().await?;
        ensure!(confirmed >= end, "{confirmed} of {end}");
        Ok(())
    })
    .await
}

/// S13: a fast shutdown of the source does not wait for us, even with a lane that is behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_fast_shutdown_of_the_source_is_not_held_up() -> Result<()> {
    let stage = stage("", ClusterOptions::default()).await?;
    let load = stage.scene.load(4, None).await?;
    stage.target.refuse(true);
    stage.target.cut();
    stage.when("11", "behind", |status| seconds(status) > 1.0).await?;
    load.stop().await?;
    let began = std::time::Instant::now();
    stage.scene.source.stop(StopMode::Fast)?;
    ensure!(began.elapsed() < Duration::from_secs(10), "the shutdown took {:?}", began.elapsed());
    stage.scene.source.start_again()?;
    stage.target.refuse(false);
    stage.all_equal().await
}

/// T14 in small: lanes share the connections; nobody starves, idle lanes let go.
#[tokio::test(flavor = "multi_thread")]
async fn more_lanes_than_connections_all_stay_in_step() -> Result<()> {
    let scene = Scene::start(8).await?;
    let wanted = Configuration { extra: "limits: {target_connections: 2}\n".to_owned(), ..Configuration::default() };
    let config = scene.write_config("carveout", &wanted)?;
    cli(&config, &["prepare", "--apply"]).await?;
    let daemon = Daemon::start(&config).await?;
    let tenants = ["1", "2", "3", "4", "5", "6", "7", "8"];
    for tenant in tenants {
        start_move(&daemon, tenant, "database").await?;
    }
    let load = scene.load(2, Some(100)).await?;
    for tenant in tenants {
        phase(&daemon, tenant, &["streaming", "catching_up"]).await?;
    }
    load.stop().await?.assert_fine()?;
    drained(&scene, &daemon, &tenants).await?;
    for tenant in tenants {
        verify_equal(&daemon, tenant).await?;
        assert_tenant_equal(&scene, tenant, "database").await?;
    }
    daemon.assert_no_errors(&[])
}

/// T08: a byte that the disk changed in the middle of a spool is not stepped over, in whatever segment it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_is_damaged_in_an_older_segment_means_a_copy() -> Result<()> {
    let mut stage = stage("", ClusterOptions::default()).await?;
    stage.target.refuse(true);
    stage.target.cut();
    let source = stage.scene.source_client().await?;
    source.batch_execute("UPDATE pgbench_accounts SET abalance = 5 WHERE bid = 11").await?;
    stage.acknowledged(&source).await?;
    stage.daemon.kill()?;
    let spool = stage.scene.path().join("carveout-state/spool/m2");
    let mut segments: Vec<_> = std::fs::read_dir(&spool)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    segments.sort();
    ensure!(segments.len() > 2, "only {} segments", segments.len());
    let mut bytes = std::fs::read(&segments[1])?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(&segments[1], bytes)?;
    stage.target.refuse(false);
    let config = stage.daemon.config.clone();
    stage.daemon = Daemon::start(&config).await?;
    let status = stage.when("11", "refused", |status| status["phase"] == "needs_copy").await?;
    ensure!(["gap", "spool_damaged"].iter().any(|code| status["fault"]["code"] == *code), "{status}");
    start_move(&stage.daemon, "11", "database").await?;
    stage.all_equal().await
}

/// T06, invariant 1: a machine that loses power may lose the end of a spool whose rows the target holds already.
/// They come again from the source, and are not applied again.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_ahead_of_its_spool_gets_nothing_twice() -> Result<()> {
    let mut rng = rng("ahead of its spool");
    let mut stage = stage("", ClusterOptions::default()).await?;
    let (state, kept) = (stage.scene.path().join("carveout-state/spool/m2"), stage.scene.path().join("kept"));
    let source = stage.scene.source_client().await?;
    let config = stage.daemon.config.clone();
    for round in 0..6 {
        ensure!(stage.daemon.terminate().await?.success());
        let _ = std::fs::remove_dir_all(&kept);
        copy_folder(&state, &kept)?;
        stage.daemon = Daemon::start(&config).await?;
        let target = stage.scene.target_client("bid_11").await?;
        let sql = format!(
            "INSERT INTO pgbench_history (tid, bid, aid, delta) SELECT 1, 11, n, {round} FROM generate_series(1, 100) n"
        );
        source.batch_execute(&sql).await?;
        until("the rows in the target", SOON, async || {
            let sql = format!("SELECT count(*) FROM pgbench_history WHERE delta = {round} AND mtime IS NULL");
            let rows: i64 = target.query_one(&sql, &[]).await?.get(0);
            ensure!(rows == 100, "{rows} rows");
            Ok(())
        })
        .await?;
        // Before or after the acknowledgement that comes every second: random on purpose.
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..1200))).await;
        stage.daemon.kill()?;
        std::fs::remove_dir_all(&state)?;
        copy_folder(&kept, &state)?;
        stage.daemon = Daemon::start(&config).await?;
        source.batch_execute("INSERT INTO pgbench_history (tid, bid, aid, delta) VALUES (1, 11, 0, -1)").await?;
        stage.all_equal().await.with_context(|| format!("round {round}"))?;
    }
    stage.daemon.assert_no_errors(&[])
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().context("run cp")?;
    ensure!(copied.success(), "cp -a {} {}: {copied}", from.display(), to.display());
    Ok(())
}

/// S12, T04: a target that takes everything and answers nothing costs its own tenant time, and nobody else: the
/// commands answer, the budget holds, the other tenant goes on, and so does this one afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_hangs_holds_up_nothing_but_its_own_tenant() -> Result<()> {
    let stage = stage("limits: {spool_per_tenant: 2MiB}\n", ClusterOptions::default()).await?;
    let source = stage.scene.source_client().await?;
    stage.target.black_hole(true);
    let much = "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime, filler) \
                SELECT 1, 11, n, n, now(), 'much' FROM generate_series(1, 40000) n";
    source.batch_execute(much).await?;
    stage.when("11", "out", |status| status["phase"] == "needs_copy").await?;
    source.batch_execute("UPDATE pgbench_accounts SET abalance = 7 WHERE bid = 7 AND aid % 1000 = 0").await?;
    drained(&stage.scene, &stage.daemon, &["7"]).await?;
    verify_equal(&stage.daemon, "7").await?;
    // Asked to copy again, it waits, and says for what.
    start_move(&stage.daemon, "11", "database").await?;
    stage.when("11", "waiting", |status| !status["waiting_for"].is_null()).await?;
    let began = std::time::Instant::now();
    let asked = stage.daemon.cli(&["cancel", "11"]);
    // Other commands do not wait for this one.
    let others = async {
        start_move(&stage.daemon, "3", "schema").await?;
        phase(&stage.daemon, "3", &["streaming"]).await
    };
    let (asked, others) = tokio::join!(asked, others);
    others?;
    let said = String::from_utf8_lossy(&asked?.stdout).into_owned();
    ensure!(said.contains("cancelling") && began.elapsed() < Duration::from_secs(50), "{said} {:?}", began.elapsed());
    stage.target.black_hole(false);
    stage.target.cut();
    until("the end of the cancel", SOON, async || {
        let status: Value = stage.daemon.get("/v1/tenants/11").await?.success()?.json()?;
        ensure!(status["phase"] == "cancelled", "{status}");
        Ok(())
    })
    .await?;
    start_move(&stage.daemon, "11", "database").await?;
    stage.all_equal().await?;
    stage.daemon.assert_no_errors(&["spool_full"])
}

/// S08: a source that was set back to an older state, under a running daemon and under one that starts then,
/// is never streamed from.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_was_set_back_is_refused() -> Result<()> {
    let mut stage = stage("", ClusterOptions::default()).await?;
    let source = stage.scene.source_client().await?;
    let (data, older) = (stage.scene.source.dir.join("data"), stage.scene.path().join("older"));
    stage.scene.source.stop(StopMode::Fast)?;
    copy_folder(&data, &older)?;
    stage.scene.source.start_again()?;
    drop(source);
    let source = stage.scene.source_client().await?;
    source.batch_execute("UPDATE pgbench_accounts SET abalance = 5 WHERE bid = 11").await?;
    stage.acknowledged(&source).await?;
    stage.scene.source.stop(StopMode::Immediate)?;
    std::fs::remove_dir_all(&data)?;
    std::fs::rename(&older, &data)?;
    stage.scene.source.start_again()?;
    until("a daemon that is not ready, and says why", SOON, async || {
        let fault = stage.daemon.status().await?["source"]["fault"].clone();
        ensure!(fault["message"].as_str().is_some_and(|message| message.contains("restored from a backup")), "{fault}");
        Ok(())
    })
    .await?;
    stage.daemon.terminate().await?;
    let config = stage.daemon.config.clone();
    stage.daemon = Daemon::spawn(&config, &[])?;
    let status = stage.daemon.wait_exit(SOON).await?;
    ensure!(status.code() == Some(1) && stage.daemon.log()?.matches("restored from a backup").count() >= 2, "{status}");
    Ok(())
}

/// A file system of its own, until dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: std::path::PathBuf, size: &str) -> Result<SmallDisk> {
        std::fs::create_dir_all(&path)?;
        let options = format!("size={size}");
        let done =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(&path).status()?;
        ensure!(done.success(), "a small file system needs root and the right to mount one: {done}");
        Ok(SmallDisk(path))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Nothing can be done about a failure here; the folder's removal will tell.
        std::process::Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

/// T03: a state directory without room costs nobody a copy. Nothing more is read, visibly, while the source keeps
/// its log; with room, it goes on by itself. Once the spools fill the disk, once somebody else does, to the last byte.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "campaign: needs root and the right to mount a small file system"]
async fn a_full_disk_stops_the_reading_and_costs_nobody_a_copy() -> Result<()> {
    let mut stage = stage("", ClusterOptions::default()).await?;
    ensure!(stage.daemon.terminate().await?.success());
    let state = stage.scene.path().join("carveout-state");
    let away = stage.scene.path().join("away");
    std::fs::rename(&state, &away)?;
    let disk = SmallDisk::mount(state.clone(), "160m")?;
    let moved = std::process::Command::new("cp").arg("-a").arg(away.join(".")).arg(&state).status()?;
    ensure!(moved.success(), "{moved}");
    let config = stage.daemon.config.clone();
    stage.daemon = Daemon::start(&config).await?;
    let source = stage.scene.source_client().await?;
    let full = async |stage: &Stage| {
        until("a disk that is said to be full", SOON, async || {
            let status = stage.daemon.status().await?;
            ensure!(status["source"]["fault"]["code"] == "disk_full", "{}", status["source"]);
            let ready = stage.daemon.get("/readyz").await?;
            ensure!(ready.status == 503, "{ready:?}");
            Ok(())
        })
        .await
    };
    stage.target.refuse(true);
    stage.target.cut();
    for n in 0..8 {
        source.batch_execute(&format!("UPDATE pgbench_accounts SET abalance = {n} WHERE bid = 11")).await?;
    }
    full(&stage).await?;
    ensure!(stage.daemon.tenant("11").await?["fault"].is_null(), "it costs a copy");
    stage.target.refuse(false);
    stage.all_equal().await?;
    let filler = state.join("filler");
    stage.target.refuse(true);
    stage.target.cut();
    for round in 0..3 {
        let writer = stage.scene.source_client().await?;
        let write = tokio::spawn(async move {
            for n in 0..2 {
                writer.batch_execute(&format!("UPDATE pgbench_accounts SET abalance = {n} WHERE bid = 11")).await?;
            }
            anyhow::Ok(())
        });
        // In the middle of it, or nearly: random on purpose.
        tokio::time::sleep(Duration::from_millis(rng("full disk").random_range(0..1500))).await;
        let filled = std::process::Command::new("dd")
            .args(["if=/dev/zero", "bs=1M", "count=1000"])
            .arg(format!("of={}", filler.display()))
            .output()?;
        ensure!(!filled.status.success(), "the disk is too large to be filled");
        write.await??;
        full(&stage).await.with_context(|| format!("round {round}"))?;
        if round == 1 {
            stage.daemon.kill()?;
            std::fs::remove_file(&filler)?;
            stage.daemon = Daemon::start(&config).await?;
        } else {
            std::fs::remove_file(&filler)?;
        }
        stage.target.refuse(false);
        stage.all_equal().await.with_context(|| format!("round {round}"))?;
        stage.target.refuse(true);
        stage.target.cut();
    }
    stage.daemon.assert_no_errors(&[])?;
    stage.daemon.kill()?;
    drop(disk);
    Ok(())
}

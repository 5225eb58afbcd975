//! Daemon and server end when they are told to, and go on afterwards.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::{ClusterOptions, StopMode};
use tests::daemon::Daemon;
use tests::proxy::Proxy;
use tests::scene::Configuration;
use tests::wait::until;
use tokio::sync::watch;

use super::{Desk, SOON, run};
use crate::carve::{cli, phase};

/// The longest that an orderly end may take.
const END: Duration = Duration::from_secs(10);

/// INTERFACE, T12: SIGTERM ends the daemon with 0 within 10 s: while it copies, while it streams, and while a
/// target does not answer. Nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_daemon_in_time_whatever_it_is_doing() -> Result<()> {
    let scene = tests::scene::Scene::single(ClusterOptions::default()).await?;
    let proxy = Proxy::start(format!("127.0.0.1:{}", scene.target.port).parse()?).await?;
    let extra = "limits: {copy_rows_per_second: 100}\n".to_owned();
    let config = scene
        .write_config("carveout", &Configuration { target: Some(proxy.addr), extra, ..Configuration::default() })?;
    let source = scene.source_client().await?;
    source.batch_execute(super::TABLES).await?;
    let desk = Desk { source, config, scene };
    let mut daemon = desk.work().await?;
    cli(&desk.config, &["move", "1", "--to", "schema"]).await?;
    cli(&desk.config, &["move", "2", "--to", "database"]).await?;
    until("a copy under way", SOON, async || {
        let status = daemon.tenant("1").await?;
        ensure!(status["phase"] == "copying" && status["rows_copied"].as_u64().unwrap_or(0) > 0, "{status}");
        Ok(())
    })
    .await?;
    end(&mut daemon).await.context("while it copies")?;
    daemon = Daemon::start(&desk.config).await?;
    for tenant in ["1", "2"] {
        phase(&daemon, tenant, &["streaming"]).await?;
    }
    end(&mut daemon).await.context("while it streams")?;
    daemon = Daemon::start(&desk.config).await?;
    phase(&daemon, "2", &["streaming"]).await?;
    proxy.black_hole(true);
    desk.sql("INSERT INTO orders SELECT 2, -n, 'late' FROM generate_series(1, 100) n").await?;
    until("changes that do not get through", SOON, async || {
        let status = daemon.tenant("2").await?;
        ensure!(status["lag_seconds"].as_f64().unwrap_or(0.0) > 1.0, "{status}");
        Ok(())
    })
    .await?;
    end(&mut daemon).await.context("while a target does not answer")?;
    proxy.black_hole(false);
    daemon = Daemon::start(&desk.config).await?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        phase(&daemon, tenant, &["streaming"]).await?;
        desk.assert_equal(&daemon, tenant, to).await?;
    }
    run(&desk.config, &["status"]).await?.assert(0, &["streaming"])?;
    daemon.assert_no_errors(&[])
}

async fn end(daemon: &mut Daemon) -> Result<()> {
    let began = Instant::now();
    let status = daemon.terminate().await?;
    ensure!(status.code() == Some(0), "{status}: {}", daemon.log()?);
    ensure!(began.elapsed() < END, "it took {:?}", began.elapsed());
    Ok(())
}

/// S13: a fast shutdown of the source ends within 10 s while we stream under load; afterwards the daemon
/// comes back by itself, and nothing is missing.
#[tokio::test(flavor = "multi_thread")]
async fn the_source_shuts_down_in_time_while_the_daemon_streams() -> Result<()> {
    let mut desk = Desk::open().await?;
    let daemon = desk.work().await?;
    desk.carve(&daemon, "1", "schema").await?;
    desk.carve(&daemon, "2", "database").await?;
    for round in 0..4 {
        let writer = desk.scene.source_client().await?;
        let (written, seen) = watch::channel(0);
        let writing = tokio::spawn(async move {
            let sql = format!(
                "INSERT INTO orders SELECT n % 5, (SELECT max(id) FROM orders) + n, 'round {round}' \
                 FROM generate_series(1, 500) n"
            );
            while writer.batch_execute(&sql).await.is_ok() {
                written.send_modify(|written| *written += 1);
            }
        });
        until("a stream under load", SOON, async || {
            let written = *seen.borrow();
            ensure!(written > 3, "{written} transactions");
            Ok(())
        })
        .await?;
        let began = Instant::now();
        let cluster = desk.scene.source.clone();
        tokio::task::spawn_blocking(move || cluster.stop(StopMode::Fast))
            .await?
            .with_context(|| format!("round {round}"))?;
        ensure!(began.elapsed() < END, "round {round}: the shutdown took {:?}", began.elapsed());
        writing.await?;
        let cluster = desk.scene.source.clone();
        tokio::task::spawn_blocking(move || cluster.start_again()).await??;
        until("a daemon that is back", SOON, async || {
            daemon.get("/readyz").await?.success()?;
            Ok(())
        })
        .await?;
    }
    desk.source = desk.scene.source_client().await?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        desk.assert_equal(&daemon, tenant, to).await?;
    }
    daemon.assert_no_errors(&[])
}

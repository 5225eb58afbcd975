//! `limits.source`: a copy gives way to the source's load; stream and apply do not.

use std::process::{Child, Command};

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::{ClusterOptions, free_port, signal};
use tests::daemon::Daemon;
use tests::scene::{Configuration, connect};
use tests::wait::until;
use tokio_postgres::Client;

use crate::carve::{cli, phase};
use crate::settle::SOON;
use crate::surface::{Desk, run};

/// Waits until the tenant's copy stands for this reason.
async fn throttled(daemon: &Daemon, tenant: &str, by: &str) -> Result<()> {
    until(&format!("a copy that stands by {by}"), SOON, async || {
        let status = daemon.tenant(tenant).await?;
        ensure!(status["phase"] == "copying", "{status}");
        ensure!(status["throttled_by"].as_str().is_some_and(|reason| reason.contains(by)), "{status}");
        Ok(())
    })
    .await
}

/// A server that replays the source's log; ended when it is dropped.
struct Standby(Child);

impl Drop for Standby {
    fn drop(&mut self) {
        signal(self.0.id(), "QUIT").ok();
        self.0.wait().ok();
    }
}

async fn standby(desk: &Desk) -> Result<(Standby, Client)> {
    let port = free_port()?;
    let mut copy = desk.scene.source.command("pg_basebackup")?;
    copy.args(["-D", "standby", "-R", "-X", "stream", "-c", "fast"]);
    let copied = tokio::process::Command::from(copy).output().await?;
    ensure!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    let mut postgres: Command = desk.scene.source.command("postgres")?;
    let log = std::fs::File::create(desk.scene.path().join("standby.log"))?;
    let child =
        postgres.args(["-D", "standby", "-p", &port.to_string()]).stdout(log.try_clone()?).stderr(log).spawn()?;
    let standby = Standby(child);
    let url = format!("postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable");
    let client = until("a standby", SOON, async || connect(&url).await).await?;
    Ok((standby, client))
}

/// Issue 4: sessions that run, sessions that wait for locks and a standby that is behind each make the copies stand;
/// a tenant that follows goes on; when the load goes, so do the copies.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_stands_while_the_source_is_busy_and_nothing_else_does() -> Result<()> {
    let limits =
        "limits: {copy_rows_per_second: 3000, source: {active_sessions: 4, waiting_sessions: 1, replica_lag: 2s}}\n";
    let tables = vec![("busy".to_owned(), "{exclude: true}".to_owned())];
    let wanted = Configuration { extra: limits.to_owned(), tables, ..Configuration::default() };
    let desk = Desk::open_with(ClusterOptions::default(), wanted).await?;
    desk.sql("CREATE TABLE busy (id integer PRIMARY KEY); INSERT INTO busy VALUES (1)").await?;
    let daemon = desk.work().await?;
    desk.carve(&daemon, "1", "schema").await?;
    // Who may not see the others' sessions could not say how many there are.
    desk.sql("CREATE ROLE blind LOGIN REPLICATION").await?;
    let text = std::fs::read_to_string(&desk.config)?;
    let blind = desk.scene.path().join("blind.yaml");
    std::fs::write(&blind, text.replacen("postgres@", "blind@", 1))?;
    run(&blind, &["check"])
        .await?
        .assert(1, &["limits.source would stop every copy", "GRANT pg_read_all_stats TO \"blind\""])?;

    let sessions = async |sql: &'static str, number: usize| -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        for _ in 0..number {
            let client = desk.scene.source_client().await?;
            pids.push(client.query_one("SELECT pg_backend_pid()", &[]).await?.get::<_, i32>(0).unsigned_abs());
            tokio::spawn(async move { client.batch_execute(sql).await.ok() });
        }
        until("sessions that run", SOON, async || {
            let list = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
            let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid IN ({list})");
            let running = desk.ask(&sql).await?;
            ensure!(running == number.to_string(), "{running} of {number}");
            Ok(())
        })
        .await?;
        Ok(pids)
    };
    let end = async |pids: Vec<u32>| -> Result<()> {
        for pid in pids {
            desk.sql(&format!("SELECT pg_terminate_backend({pid})")).await?;
        }
        Ok(())
    };
    let follows = async |note: &str| -> Result<()> {
        desk.sql(&format!("UPDATE orders SET note = '{note}' WHERE id % 3 = 0")).await?;
        desk.assert_equal(&daemon, "1", "schema").await
    };
    for (tenant, by, holder, load, number) in [
        ("2", "active_sessions", None, "SELECT pg_sleep(600)", 6),
        ("3", "waiting_sessions", Some("BEGIN; LOCK TABLE busy"), "SELECT * FROM busy", 2),
    ] {
        let first = desk.scene.source_client().await?;
        if let Some(holder) = holder {
            first.batch_execute(holder).await?;
        }
        let pids = sessions(load, number).await?;
        cli(&desk.config, &["move", tenant, "--to", "database"]).await?;
        throttled(&daemon, tenant, by).await?;
        follows(by).await?;
        throttled(&daemon, tenant, by).await?;
        let status = daemon.tenant(tenant).await?;
        ensure!(status["rows_copied"] == 0, "{status}");
        ensure!(daemon.get("/metrics").await?.body.contains("carveout_copies_throttled 1"), "the metric is missing");
        run(&desk.config, &["status", tenant]).await?.assert(0, &["throttled", by])?;
        end(pids).await?;
        drop(first);
        phase(&daemon, tenant, &["streaming"]).await?;
        desk.assert_equal(&daemon, tenant, "database").await?;
    }

    // A copy that is under way stands where it is, and goes on from there.
    desk.sql("INSERT INTO orders SELECT 0, 10000 + n, 'many' FROM generate_series(1, 30000) n").await?;
    cli(&desk.config, &["move", "0", "--to", "database"]).await?;
    let rows = async || anyhow::Ok(daemon.tenant("0").await?["rows_copied"].as_u64().unwrap_or(0));
    until("a copy under way", SOON, async || {
        ensure!(rows().await? > 0, "nothing is copied yet");
        Ok(())
    })
    .await?;
    let pids = sessions("SELECT pg_sleep(600)", 6).await?;
    throttled(&daemon, "0", "active_sessions").await?;
    let stands = until("a copy that stands", SOON, async || {
        let before = rows().await?;
        follows("under way").await?;
        let after = rows().await?;
        ensure!(before == after, "{before} {after}");
        Ok(after)
    })
    .await?;
    ensure!((1..30_000).contains(&stands), "{stands} rows were copied before it stood");
    end(pids).await?;
    phase(&daemon, "0", &["streaming"]).await?;
    ensure!(rows().await? == 30_200, "it was begun again");
    desk.assert_equal(&daemon, "0", "database").await?;

    let (running, standby) = standby(&desk).await?;
    standby.batch_execute("SELECT pg_wal_replay_pause()").await?;
    until("a standby that is behind", SOON, async || {
        desk.sql("INSERT INTO busy SELECT max(id) + 1 FROM busy").await?;
        let behind = "SELECT coalesce(max(replay_lag) > '4s', false) FROM pg_stat_replication WHERE application_name = 'walreceiver'";
        ensure!(desk.ask(behind).await? == "true", "it is not");
        Ok(())
    })
    .await?;
    cli(&desk.config, &["move", "4", "--to", "database"]).await?;
    throttled(&daemon, "4", "replica_lag").await?;
    follows("replica_lag").await?;
    standby.batch_execute("SELECT pg_wal_replay_resume()").await?;
    until("a copy that goes on", SOON, async || {
        // The standby says how far it is when something comes.
        desk.sql("INSERT INTO busy SELECT max(id) + 1 FROM busy").await?;
        let status = daemon.tenant("4").await?;
        ensure!(status["phase"] == "streaming" || status["phase"] == "ready", "{status}");
        Ok(())
    })
    .await?;
    desk.assert_equal(&daemon, "4", "database").await?;
    drop((standby, running));
    daemon.assert_no_errors(&[]).context("the daemon's log")
}

//! What people and programs watch a daemon by: metrics, the stream of the status, the page, systemd.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::daemon::Daemon;
use tests::scene::Configuration;
use tests::wait::until;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::{Desk, SOON};
use crate::carve::{cli, phase};
use crate::settle::faulted;

/// The value of a series, by its name with labels.
fn value(text: &str, series: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).with_context(|| format!("{series} is not in\n{text}"))
}

/// INTERFACE, Metrics: every number of the interface that this version knows, true to what was done.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_say_what_was_done() -> Result<()> {
    let desk = Desk::open().await?;
    let daemon = desk.work().await?;
    for tenant in ["1", "2"] {
        desk.carve(&daemon, tenant, "schema").await?;
    }
    desk.sql("UPDATE orders SET note = 'new' WHERE bid = 1; DELETE FROM events WHERE bid = 2").await?;
    for tenant in ["1", "2"] {
        desk.assert_equal(&daemon, tenant, "schema").await?;
    }
    let text = daemon.get("/metrics").await?.success()?.body;
    ensure!(value(&text, "carveout_changes_applied_total{tenant=\"1\"}")? == 100.0, "{text}");
    ensure!(value(&text, "carveout_changes_applied_total{tenant=\"2\"}")? == 100.0, "{text}");
    ensure!(value(&text, "carveout_transactions_applied_total{tenant=\"1\"}")? == 1.0, "{text}");
    ensure!(value(&text, "carveout_rows_copied_total{tenant=\"1\"}")? == 200.0, "{text}");
    ensure!(value(&text, "carveout_verify_differences{tenant=\"2\"}")? == 0.0, "{text}");
    ensure!(value(&text, "carveout_apply_seconds_count{tenant=\"1\"}")? >= 1.0, "{text}");
    ensure!(value(&text, "carveout_source_streaming")? == 1.0 && value(&text, "carveout_faults")? == 0.0, "{text}");
    for name in [
        "source_lag_bytes",
        "slot_retained_bytes",
        "tenant_lag_seconds{tenant=\"1\"}",
        "tenant_lag_bytes{tenant=\"2\"}",
        "spool_bytes{tenant=\"1\"}",
    ] {
        ensure!(value(&text, &format!("carveout_{name}"))? >= 0.0);
    }
    ensure!(text.trim_end().ends_with("# EOF"), "{text}");
    desk.sql("UPDATE bid_1.orders SET note = 'by hand' WHERE id % 2 = 1; TRUNCATE events").await?;
    faulted(&daemon, "1").await?;
    faulted(&daemon, "2").await?;
    let text = daemon.get("/metrics").await?.success()?.body;
    ensure!(value(&text, "carveout_faults")? == 2.0, "{text}");
    Ok(())
}

/// INTERFACE: `metrics.per_tenant: false` adds the tenants up, so that their number does not matter.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_can_do_without_a_series_per_tenant() -> Result<()> {
    let wanted = Configuration { extra: "metrics: {per_tenant: false}\n".to_owned(), ..Configuration::default() };
    let desk = Desk::open_with(Default::default(), wanted).await?;
    let daemon = desk.work().await?;
    for tenant in ["1", "2"] {
        desk.carve(&daemon, tenant, "schema").await?;
    }
    desk.sql("DELETE FROM events").await?;
    for tenant in ["1", "2"] {
        desk.assert_equal(&daemon, tenant, "schema").await?;
    }
    let text = daemon.get("/metrics").await?.success()?.body;
    ensure!(!text.contains("tenant="), "{text}");
    ensure!(value(&text, "carveout_changes_applied_total{}")? == 200.0, "{text}");
    ensure!(value(&text, "carveout_rows_copied_total{}")? == 400.0, "{text}");
    Ok(())
}

/// INTERFACE: `/v1/events` goes on by itself for longer than a silent connection lives, and ends with the daemon.
#[tokio::test(flavor = "multi_thread")]
async fn events_bring_the_status_again_and_again() -> Result<()> {
    let desk = Desk::open().await?;
    let mut daemon = desk.work().await?;
    let stream = TcpStream::connect(daemon.address).await?;
    let mut lines = BufReader::new(stream);
    lines.write_all(b"GET /v1/events HTTP/1.1\r\nHost: here\r\n\r\n").await?;
    cli(&desk.config, &["move", "1", "--to", "schema"]).await?;
    let (began, mut phases, mut count) = (std::time::Instant::now(), Vec::new(), 0);
    while began.elapsed() < Duration::from_secs(22) {
        let mut line = String::new();
        ensure!(tokio::time::timeout(SOON, lines.read_line(&mut line)).await?? > 0, "it ended after {count} events");
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let status: Value = serde_json::from_str(data)?;
        phases.extend(status["tenants"][0]["phase"].as_str().map(str::to_owned));
        count += 1;
    }
    ensure!(count >= 15 && phases.last().is_some_and(|phase| phase == "streaming"), "{count} events: {phases:?}");
    let began = std::time::Instant::now();
    ensure!(daemon.terminate().await?.success());
    ensure!(began.elapsed() < Duration::from_secs(8), "a watcher held up the end for {:?}", began.elapsed());
    Ok(())
}

/// systemd is told when the daemon is ready, that it lives, and when it stops.
#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told() -> Result<()> {
    let desk = Desk::open().await?;
    cli(&desk.config, &["prepare", "--apply"]).await?;
    let path = desk.scene.path().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_nonblocking(true)?;
    let place = path.display().to_string();
    let mut daemon = Daemon::spawn(&desk.config, &[("NOTIFY_SOCKET", &place), ("WATCHDOG_USEC", "400000")])?;
    let mut told = String::new();
    let mut hear = async |what: &str, times: usize| {
        until(what, SOON, async || {
            let mut bytes = [0; 1000];
            while let Ok(length) = socket.recv(&mut bytes) {
                told.push_str(&String::from_utf8_lossy(&bytes[..length]));
                told.push('\n');
            }
            ensure!(told.matches(what).count() >= times, "{told}");
            Ok(())
        })
        .await
    };
    hear("READY=1", 1).await?;
    hear("WATCHDOG=1", 4).await?;
    hear("STATUS=streaming, 0 moves", 1).await?;
    daemon.wait_ready().await?;
    ensure!(daemon.terminate().await?.success());
    hear("STOPPING=1", 1).await
}

/// The page in a real browser: it loads, shows a move under way and moves on by itself, shows a fault with its next
/// step, in light and in dark, and needs nothing from elsewhere.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "campaign: needs chromium (apt-get install chromium)"]
async fn the_page_lives_in_a_browser() -> Result<()> {
    let wanted = Configuration { extra: "limits: {copy_rows_per_second: 15}\n".to_owned(), ..Configuration::default() };
    let desk = Desk::open_with(Default::default(), wanted).await?;
    let daemon = desk.work().await?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        cli(&desk.config, &["move", tenant, "--to", to]).await?;
    }
    phase(&daemon, "1", &["copying"]).await?;
    // Loaded while both copy, looked at when they are through.
    let seen = browse(&desk, &daemon, "move", "light", "data-seen=\"[^\"]*streaming").await?;
    ensure!(seen.contains("data-tenant=\"1\"") && seen.contains("bid_2"), "{seen}");
    let phases = seen.split("data-seen=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
    ensure!(phases.contains("copying") && phases.contains("streaming"), "it has seen {phases:?}");
    desk.sql("TRUNCATE events").await?;
    faulted(&daemon, "1").await?;
    let seen = browse(&desk, &daemon, "fault", "dark", "was truncated on the source").await?;
    ensure!(seen.contains("was truncated on the source") && seen.contains("next: `carveout cancel`"), "{seen}");
    Ok(())
}

/// Opens the page until it has what is wanted (a pattern), or for a minute and a half; what it has then, as HTML. A picture comes to lie in `CARVEOUT_PICTURES`.
async fn browse(desk: &Desk, daemon: &Daemon, name: &str, scheme: &str, wanted: &str) -> Result<String> {
    let pictures = std::env::var("CARVEOUT_PICTURES").map_or_else(|_| desk.scene.path().to_owned(), Into::into);
    let script = desk.scene.path().join("browse.mjs");
    std::fs::write(&script, include_str!("browse.mjs"))?;
    let url = format!("http://{}/", daemon.address);
    let picture = pictures.join(format!("page-{name}-{scheme}.png"));
    let profile = desk.scene.path().join(format!("profile-{name}"));
    let output = tokio::process::Command::new("node")
        .arg("--experimental-websocket")
        .arg(&script)
        .args([&url, scheme, wanted, "90"])
        .args([&profile, &picture])
        .output()
        .await
        .context("run node")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

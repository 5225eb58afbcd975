//! Steps that several promises share: prepare, move, wait until in step, compare on both sides.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::daemon::Daemon;
use tests::oracle;
use tests::scene::{Scene, TABLES};
use tests::wait::until;

/// The longest a move may take to be in step.
pub const IN_STEP: Duration = Duration::from_secs(300);

/// Runs a command that must succeed; its standard output.
pub async fn cli(daemon_or_config: &std::path::Path, args: &[&str]) -> Result<String> {
    let output = tests::binary::cli(daemon_or_config, args).await?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "carveout {args:?}: {}\n{stdout}\n{stderr}", output.status);
    Ok(stdout.into_owned())
}

/// Starts a move.
pub async fn start_move(daemon: &Daemon, tenant: &str, to: &str) -> Result<()> {
    let answer = daemon.post(&format!("/v1/tenants/{tenant}/move"), &json!({"to": to})).await?;
    answer.success().with_context(|| format!("move {tenant} to a {to}"))?;
    Ok(())
}

/// Waits until the tenant's phase is one of `phases`; a fault ends the waiting.
pub async fn phase(daemon: &Daemon, tenant: &str, phases: &[&str]) -> Result<Value> {
    let mut fault = None;
    let found = until(&format!("tenant {tenant} {phases:?}"), IN_STEP, async || {
        let status = daemon.tenant(tenant).await?;
        if !status["fault"].is_null() {
            fault = Some(status["fault"].clone());
            return Ok(status);
        }
        // Who is in step may have been verified lately too.
        let is = status["phase"].as_str().map(|phase| if phase == "ready" { "streaming" } else { phase });
        ensure!(phases.iter().any(|phase| is == Some(phase) || status["phase"] == *phase), "{status}");
        Ok(status)
    })
    .await?;
    match fault {
        None => Ok(found),
        Some(fault) => anyhow::bail!("tenant {tenant} stopped: {fault}"),
    }
}

/// `carveout verify` must say equal.
pub async fn verify_equal(daemon: &Daemon, tenant: &str) -> Result<()> {
    let report: Value = serde_json::from_str(&cli(&daemon.config, &["verify", tenant, "--output", "json"]).await?)?;
    ensure!(report["equal"] == true, "verify {tenant}: {report}");
    Ok(())
}

/// Where a tenant's rows of pgbench are: a database of the target, or a schema of the source.
pub async fn assert_tenant_equal(scene: &Scene, tenant: &str, to: &str) -> Result<()> {
    let source = scene.source_client().await?;
    let target = match to {
        "database" => scene.target_client(&format!("bid_{tenant}")).await?,
        _ => scene.source_client().await?,
    };
    let schema = if to == "database" { "public".to_owned() } else { format!("bid_{tenant}") };
    for table in TABLES {
        let (left, right) = (format!("public.{table}"), format!("{schema}.{table}"));
        oracle::assert_equal(&source, &left, &format!("bid = {tenant}"), &target, &right).await?;
        let foreign = oracle::foreign_rows(&target, &right, "bid", tenant).await?;
        ensure!(foreign == 0, "{foreign} foreign rows in {right}");
    }
    Ok(())
}

/// Waits until the lane has applied everything that is in the source's log now.
pub async fn drained(scene: &Scene, daemon: &Daemon, tenants: &[&str]) -> Result<()> {
    let source = scene.source_client().await?;
    let end: String = source
        .query_one("SELECT pg_logical_emit_message(true, 'test', '')::text, pg_current_wal_insert_lsn()::text", &[])
        .await?
        .get(1);
    let end: schemas::Lsn = end.parse()?;
    for tenant in tenants {
        until(&format!("tenant {tenant} past {end}"), IN_STEP, async || {
            let status = daemon.tenant(tenant).await?;
            let applied: schemas::Lsn = status["applied_lsn"].as_str().context("applied_lsn")?.parse()?;
            ensure!(applied >= end && status["fault"].is_null(), "{status}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

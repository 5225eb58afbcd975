//! pgbench as PostgreSQL ships it: its unmodified load writes throughout, tenants move out meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::daemon::Daemon;
use tests::scene::{Configuration, DATABASE, Scene};
use tests::wait::until;

use crate::carve::{assert_tenant_equal, cli, drained, phase, start_move, verify_equal};

/// T06 aside, the whole spine: one tenant to a schema, one to another server, equal during and after.
#[tokio::test(flavor = "multi_thread")]
async fn two_branches_leave_under_load_and_are_equal_during_and_after() -> Result<()> {
    let scene = Scene::start(20).await?;
    let config = scene.write_config("carveout", &Configuration::default())?;
    cli(&config, &["prepare", "--apply"]).await?;
    let mut load = scene.load(4, None).await?;
    let daemon = Daemon::start(&config).await?;
    start_move(&daemon, "7", "schema").await?;
    start_move(&daemon, "11", "database").await?;
    for tenant in ["7", "11"] {
        phase(&daemon, tenant, &["streaming"]).await?;
        verify_equal(&daemon, tenant).await?;
    }
    load.check()?;
    load.stop().await?.assert_fine()?;
    drained(&scene, &daemon, &["7", "11"]).await?;
    for (tenant, to) in [("7", "schema"), ("11", "database")] {
        verify_equal(&daemon, tenant).await?;
        assert_tenant_equal(&scene, tenant, to).await?;
    }
    daemon.assert_no_errors(&[])
}

/// T14 in small, S05: every branch at once over one slot; nobody's rows in another's target.
#[tokio::test(flavor = "multi_thread")]
async fn twenty_branches_leave_for_twenty_databases_over_one_slot() -> Result<()> {
    const BOUND_BYTES: i64 = 256 << 20;
    let scene = Scene::start(20).await?;
    let tenants: Vec<String> = (1..=20).map(|n: u32| n.to_string()).collect();
    let config = scene.write_config("carveout", &Configuration::default())?;
    cli(&config, &["prepare", "--apply"]).await?;
    let mut load = scene.load(4, None).await?;
    let daemon = Daemon::start(&config).await?;
    for tenant in &tenants {
        start_move(&daemon, tenant, "database").await?;
    }
    let source = scene.source_client().await?;
    let mut most = 0;
    let mut slots = 0;
    until("all twenty in step", Duration::from_secs(600), async || {
        let row = source
            .query_one("SELECT count(*), max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn))::bigint FROM pg_replication_slots", &[])
            .await?;
        slots = slots.max(row.get::<_, i64>(0));
        most = most.max(row.get::<_, i64>(1));
        let status = daemon.status().await?;
        let all = status["tenants"].as_array().context("tenants")?;
        let waiting: Vec<String> =
            all.iter().filter(|t| t["phase"] != "streaming" && t["phase"] != "ready").map(|t| format!("{} {} {}", t["tenant"], t["phase"], t["fault"])).collect();
        ensure!(all.len() == 20 && waiting.is_empty(), "{waiting:?}");
        Ok(())
    })
    .await?;
    println!("log retained by the slot: at most {most} bytes, over {slots} slot");
    ensure!(slots == 1, "{slots} slots");
    ensure!(most < BOUND_BYTES, "the slot retained {most} bytes");
    load.check()?;
    verify_equal(&daemon, "13").await?;
    load.stop().await?.assert_fine()?;
    let names: Vec<&str> = tenants.iter().map(String::as_str).collect();
    drained(&scene, &daemon, &names).await?;
    for tenant in names {
        verify_equal(&daemon, tenant).await?;
        assert_tenant_equal(&scene, tenant, "database").await?;
    }
    let left: i64 = source.query_one("SELECT count(*) FROM pgbench_accounts", &[]).await?.get(0);
    ensure!(left == 2_000_000, "the source of {DATABASE} has {left} accounts");
    daemon.assert_no_errors(&[])
}

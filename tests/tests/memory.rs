//! S16: a transaction of any size passes, and the daemon's memory does not grow with it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::daemon::Daemon;
use tests::scene::{Configuration, Scene};
use tests::wait::until;

use crate::carve::{assert_tenant_equal, cli, drained, phase, start_move, verify_equal};

const ROWS: u32 = 2_000_000;
const MOST_BYTES: u64 = 256 << 20;

/// Two million rows of one tenant in one transaction, then two million over all tenants.
#[tokio::test(flavor = "multi_thread")]
async fn two_million_rows_in_one_transaction_fit_into_256_mib() -> Result<()> {
    let scene = Scene::start(4).await?;
    let config = scene.write_config("carveout", &Configuration::default())?;
    cli(&config, &["prepare", "--apply"]).await?;
    let daemon = Daemon::start(&config).await?;
    let tenants = ["1", "2", "3", "4"];
    for tenant in tenants {
        start_move(&daemon, tenant, "database").await?;
    }
    for tenant in tenants {
        phase(&daemon, tenant, &["streaming"]).await?;
    }
    let source = scene.source_client().await?;
    for bid in ["2", "1 + n % 4"] {
        let sql = format!(
            "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime, filler) \
             SELECT n % 10, {bid}, n, n, now(), 'large' FROM generate_series(1, {ROWS}) n"
        );
        source.batch_execute(&sql).await.context("write a large transaction")?;
        until("the transaction to be received", Duration::from_secs(300), async || {
            let status = daemon.status().await?;
            ensure!(status["source"]["lag_bytes"].as_u64().context("lag")? < 1 << 20, "{}", status["source"]);
            Ok(())
        })
        .await?;
        drained(&scene, &daemon, &tenants).await?;
        println!("after {ROWS} rows with bid {bid}: at most {} MiB resident", daemon.peak_rss_bytes()? >> 20);
    }
    let peak = daemon.peak_rss_bytes()?;
    ensure!(peak < MOST_BYTES, "the daemon had {peak} bytes in memory");
    for tenant in tenants {
        verify_equal(&daemon, tenant).await?;
        assert_tenant_equal(&scene, tenant, "database").await?;
    }
    daemon.assert_no_errors(&[])
}

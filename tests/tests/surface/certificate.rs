//! `ready`: what a clean comparison is worth, and for how long.

use anyhow::{Result, ensure};
use tests::daemon::Daemon;
use tests::wait::until;

use super::{Desk, run};
use crate::settle;

async fn word(desk: &Desk, daemon: &Daemon, wanted: &str) -> Result<()> {
    settle::drained(&desk.scene, daemon, "1").await?;
    until(wanted, settle::SOON, async || {
        let status = daemon.tenant("1").await?;
        ensure!(status["phase"] == wanted, "{status}");
        Ok(())
    })
    .await
}

/// INTERFACE: a tenant in step is `ready` while its certificate counts: up to a thousand changed keys, none of them unknown; a lane that
/// began anew has no certificate, and a comparison that finds a difference takes it away.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_ready_as_long_as_its_certificate_counts() -> Result<()> {
    let desk = Desk::open().await?;
    let mut daemon = desk.work().await?;
    desk.carve(&daemon, "1", "schema").await?;
    word(&desk, &daemon, "streaming").await?;
    run(&desk.config, &["verify", "1"]).await?.assert(0, &[])?;
    word(&desk, &daemon, "ready").await?;
    desk.sql("INSERT INTO orders SELECT 1, 10000 + n, 'new' FROM generate_series(1, 1000) n").await?;
    word(&desk, &daemon, "ready").await?;
    // The same ones once more, and of others.
    desk.sql("UPDATE orders SET note = 'newer' WHERE bid = 2 OR bid = 1 AND id > 10000").await?;
    word(&desk, &daemon, "ready").await?;
    desk.sql("INSERT INTO orders VALUES (1, 20000, 'one more')").await?;
    word(&desk, &daemon, "streaming").await?;
    run(&desk.config, &["verify", "1"]).await?.assert(0, &[])?;
    word(&desk, &daemon, "ready").await?;
    // A row without a key.
    desk.sql("INSERT INTO events VALUES (1, 'unknown')").await?;
    word(&desk, &daemon, "streaming").await?;
    // A rehearsal compares too.
    run(&desk.config, &["rehearse", "1"]).await?.assert(0, &[])?;
    word(&desk, &daemon, "ready").await?;
    daemon.kill()?;
    daemon = Daemon::start(&desk.config).await?;
    word(&desk, &daemon, "streaming").await?;
    run(&desk.config, &["verify", "1"]).await?.assert(0, &[])?;
    desk.sql("UPDATE bid_1.orders SET note = 'spoilt' WHERE id = 20000").await?;
    word(&desk, &daemon, "ready").await?;
    run(&desk.config, &["verify", "1"]).await?.assert(1, &["20000"])?;
    word(&desk, &daemon, "streaming").await?;
    daemon.assert_no_errors(&[])
}

//! What has to be there before a tenant's writes can move.

use anyhow::{Context, Result, ensure};
use connectors::postgres::wire::Wire;
use schemas::Lsn;
use schemas::url::PgUrl;
use tests::binary;
use tests::scene::DATABASE;
use tests::wait::until;
use tokio_postgres::Client;

use super::{SOON, Stage};
use crate::carve::{cli, phase};

/// Reads the daemon's slot in its place.
async fn take_slot(source: &Client, url: &PgUrl) -> Result<Wire> {
    let slot = "SELECT slot_name::text, active_pid FROM pg_replication_slots";
    let row = source.query_one(slot, &[]).await?;
    let name: String = row.get(0);
    until("the slot", SOON, async || {
        let pid: Option<i32> = source.query_one(slot, &[]).await?.get(1);
        source.execute("SELECT pg_terminate_backend($1, 5000)", &[&pid]).await?;
        let mut wire = Wire::connect(url, "somebody").await?;
        wire.start_replication(&name, "carveout", Lsn::ZERO, false).await?;
        Ok(wire)
    })
    .await
}

/// DESIGN 3.10: without a stream by which the writes could come back they do not go; nothing has changed then, and nobody waited.
#[tokio::test(flavor = "multi_thread")]
async fn writes_do_not_move_while_nothing_would_bring_them_back() -> Result<()> {
    let stage = Stage::open().await?;
    stage.carve("1", "schema").await?;
    let source = stage.scene.source_client().await?;
    let taken = take_slot(&source, &stage.scene.source.url(DATABASE).parse()?).await?;
    let refused = binary::cli(&stage.config, &["cutover", "1"]).await?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    ensure!(said.contains("the stream by which its writes would come back does not begin"), "{said}");
    let status = stage.daemon.tenant("1").await?;
    ensure!(status["isolation"] == "shared" && status["fault"].is_null(), "{status}");
    let fences: i64 = source.query_one("SELECT count(*) FROM carveout.fence", &[]).await?.get(0);
    ensure!(fences == 0, "{fences} fences stayed");
    source
        .batch_execute("INSERT INTO writes VALUES (99999, 1, 99, 1, 'it writes')")
        .await
        .context("the tenant writes")?;
    drop(taken);
    phase(&stage.daemon, "1", &["streaming", "ready"]).await?;
    cli(&stage.config, &["cutover", "1"]).await?;
    phase(&stage.daemon, "1", &["reversing"]).await?;
    Ok(())
}

//! T06: SIGKILL at random points of copy, catch-up and stream. Whatever is killed, nothing is lost,
//! nothing doubled, and the slot never knows more than the lanes hold.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use daemon::spool::SpoolWriter;
use daemon::store::Store;
use rand::Rng;
use schemas::{Lsn, MoveId};
use tests::daemon::Daemon;
use tests::proxy::Proxy;
use tests::scene::{Configuration, Scene};
use tests::seed::rng;
use tests::wait::until;

use crate::carve::{assert_tenant_equal, cli, drained, phase, start_move, verify_equal};

const SOON: Duration = Duration::from_secs(120);
const TENANTS: [(&str, &str); 2] = [("7", "schema"), ("11", "database")];

/// What the daemon was doing when it was killed.
#[derive(Debug, Default)]
struct Tally {
    copy: u32,
    catch_up: u32,
    stream: u32,
    checked: u32,
}

/// After a kill: nothing is confirmed that record, spool and target do not bridge.
async fn assert_bridged(scene: &Scene, config: &Path) -> Result<()> {
    let source = scene.source_client().await?;
    let row = source
        .query_one("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'carveout'", &[])
        .await?;
    let confirmed: Lsn = row.get::<_, String>(0).parse()?;
    let text = std::fs::read_to_string(config)?;
    let state_dir = std::path::PathBuf::from(tests::binary::setting(&text, "state_dir").context("state_dir")?);
    // The lock of the killed process goes with it, but not at once.
    let store = until("the state directory's lock", SOON, async || Ok(Store::open(&state_dir)?)).await?;
    let record = store.ack()?.context("an acknowledge record")?;
    ensure!(confirmed <= record.position, "the slot is at {confirmed}, the record at {}", record.position);
    for (id, held) in &record.held {
        let dir = state_dir.join("spool").join(id.to_string());
        let (spool, _) = SpoolWriter::open(&dir)?;
        let target = checkpoint(scene, &store, *id).await?;
        ensure!(
            spool.end().max(target) >= *held,
            "{id}: spool {} and target {target} do not reach the {held} of the record",
            spool.end()
        );
    }
    Ok(())
}

async fn checkpoint(scene: &Scene, store: &Store, id: MoveId) -> Result<Lsn> {
    let record = store.moves()?.into_iter().find(|record| record.id == id).context("the move's record")?;
    let client = match record.schema {
        Some(_) => scene.source_client().await?,
        None => scene.target_client(&record.database).await?,
    };
    let row = client.query_opt("SELECT lsn::text FROM carveout.checkpoint WHERE move = $1", &[&id.to_string()]).await?;
    match row {
        Some(row) => Ok(row.get::<_, String>(0).parse()?),
        None => Ok(Lsn::ZERO),
    }
}

/// Kills, checks what a crash left, starts again.
async fn kill(scene: &Scene, daemon: &mut Daemon, tally: &mut Tally) -> Result<()> {
    daemon.kill()?;
    assert_bridged(scene, &daemon.config).await?;
    tally.checked += 1;
    let config = daemon.config.clone();
    *daemon = Daemon::start(&config).await?;
    Ok(())
}

/// In a running daemon too: what the server confirmed, our status has shown as acknowledged.
async fn sample(scene: &Scene, daemon: &Daemon) -> Result<()> {
    let source = scene.source_client().await?;
    let row = source
        .query_one("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'carveout'", &[])
        .await?;
    let confirmed: Lsn = row.get::<_, String>(0).parse()?;
    let status = daemon.status().await?;
    let acknowledged: Lsn = status["source"]["acknowledged_lsn"].as_str().context("lsn")?.parse()?;
    ensure!(confirmed <= acknowledged, "confirmed {confirmed}, acknowledged {acknowledged}");
    Ok(())
}

/// 25 kills, at least 5 each in copy, in catch-up, and in stream with a spool that is not empty.
#[tokio::test(flavor = "multi_thread")]
async fn twenty_five_random_kills_lose_and_double_nothing() -> Result<()> {
    let mut rng = rng("kills");
    let scene = Scene::start(20).await?;
    let proxy = Proxy::start(format!("127.0.0.1:{}", scene.target.port).parse()?).await?;
    let wanted = Configuration {
        target: Some(proxy.addr),
        extra: "limits: {copy_rows_per_second: 50000}\n".to_owned(),
        ..Configuration::default()
    };
    let config = scene.write_config("carveout", &wanted)?;
    cli(&config, &["prepare", "--apply"]).await?;
    let mut load = scene.load(4, None).await?;
    let mut daemon = Daemon::start(&config).await?;
    for (tenant, to) in TENANTS {
        start_move(&daemon, tenant, to).await?;
    }
    let mut tally = Tally::default();
    while tally.copy < 9 {
        some_tenant(&daemon, "copying", "rows_copied").await?;
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..400))).await;
        // The pause is random on purpose; what counts is the phase at the kill.
        let copying = daemon.status().await?["tenants"].to_string().contains("\"copying\"");
        kill(&scene, &mut daemon, &mut tally).await?;
        tally.copy += u32::from(copying);
    }
    for (tenant, _) in TENANTS {
        phase(&daemon, tenant, &["streaming"]).await?;
    }
    while tally.catch_up < 8 {
        backlog(&daemon, &proxy).await?;
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..400))).await;
        let behind = daemon.tenant("11").await?["phase"] == "catching_up";
        kill(&scene, &mut daemon, &mut tally).await?;
        tally.catch_up += u32::from(behind);
        proxy.delay(Duration::ZERO);
        sample(&scene, &daemon).await?;
    }
    while tally.stream < 8 {
        for (tenant, _) in TENANTS {
            phase(&daemon, tenant, &["streaming"]).await?;
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..1500))).await;
        sample(&scene, &daemon).await?;
        some_tenant(&daemon, "streaming", "spool_bytes").await?;
        kill(&scene, &mut daemon, &mut tally).await?;
        tally.stream += 1;
    }
    println!("kills: {tally:?}");
    load.check()?;
    load.stop().await?.assert_fine()?;
    for (tenant, to) in TENANTS {
        phase(&daemon, tenant, &["streaming"]).await?;
        drained(&scene, &daemon, &[tenant]).await?;
        verify_equal(&daemon, tenant).await?;
        assert_tenant_equal(&scene, tenant, to).await?;
    }
    daemon.assert_no_errors(&[])
}

/// Waits until some tenant is in `phase` and its `number` is above zero.
async fn some_tenant(daemon: &Daemon, phase: &str, number: &str) -> Result<()> {
    until(&format!("a tenant {phase} with {number}"), SOON, async || {
        for (tenant, _) in TENANTS {
            let status = daemon.tenant(tenant).await?;
            if status["phase"] == phase && status[number].as_u64().unwrap_or(0) > 0 {
                return Ok(());
            }
        }
        anyhow::bail!("none")
    })
    .await
}

/// Cuts the target off until the lane is well behind, then lets it apply again, slowly.
async fn backlog(daemon: &Daemon, proxy: &Proxy) -> Result<()> {
    proxy.refuse(true);
    proxy.cut();
    let behind = until("a backlog", SOON, async || {
        let status = daemon.tenant("11").await?;
        ensure!(status["lag_seconds"].as_f64().unwrap_or(0.0) > 2.0, "{status}");
        Ok(status["applied_lsn"].clone())
    })
    .await?;
    proxy.delay(Duration::from_millis(40));
    proxy.refuse(false);
    until("the lane to apply again", SOON, async || {
        let status = daemon.tenant("11").await?;
        ensure!(status["applied_lsn"] != behind, "{status}");
        Ok(())
    })
    .await
}

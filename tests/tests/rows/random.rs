//! A random application writes before, during and after the copy of two tenants.

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::daemon::Daemon;
use tests::scene::{Configuration, Scene};
use tests::workload::{Workload, write_until};
use tokio::sync::watch;

use super::Shop;
use crate::carve::{cli, phase, verify_equal};

const SCHEMA_TENANT: &str = "550e8400-e29b-41d4-a716-446655440000";
const DATABASE_TENANT: &str = "550e8400-e29b-41d4-a716-446655440001";
/// Stays where it is; rows come from it and go to it.
const SHARED_TENANT: &str = "00000000-0000-0000-0000-00000000000a";
const TENANTS: [&str; 3] = [SCHEMA_TENANT, DATABASE_TENANT, SHARED_TENANT];
/// Transactions before the moves, and transaction ids (savepoints have their own) after the daemon was killed.
const BEFORE: u32 = 400;
const AFTER: u64 = 3000;
/// Most transactions of each writer in a second: a target that commits every single row has to keep up.
const RATE: u32 = 40;

/// R01, R03, R04, R05, R11, R14, R15, T06: two tenants leave a hostile schema while three sessions write at
/// random, rows change hands between movers and stayers, the daemon is killed once. Both sides are equal.
#[tokio::test(flavor = "multi_thread")]
async fn a_random_application_is_followed_row_by_row_whatever_it_does_and_whatever_its_names() -> Result<()> {
    let mut rng = tests::seed::rng("random rows");
    let batch_size = [1, 7, 40, 1000][rng.random_range(0..4)];
    let wanted = Configuration {
        strategy: format!("  migration_config: {{batch_size: {batch_size}}}\n"),
        extra: "limits: {copy_rows_per_second: 150}\n".to_owned(),
        ..Configuration::default()
    };
    let mut shop = Shop::furnish(Scene::empty(Default::default(), Default::default()).await?, "uuid", wanted).await?;
    let mut writer = async || {
        let rng = StdRng::seed_from_u64(rng.random());
        Workload::new(rng, shop.scene.source_client().await?, &TENANTS).await
    };
    let mut first = writer().await?;
    first.run(BEFORE).await?;
    let (stop, stopped) = watch::channel(false);
    let mut writers = Vec::new();
    for workload in [first, writer().await?, writer().await?] {
        writers.push(tokio::spawn(write_until(workload, RATE, stopped.clone())));
    }
    let begun = transactions(&shop).await?;
    cli(&shop.config, &["move", SCHEMA_TENANT, "--to", "schema"]).await?;
    cli(&shop.config, &["move", DATABASE_TENANT, "--to", "database"]).await?;
    for tenant in [SCHEMA_TENANT, DATABASE_TENANT] {
        phase(&shop.daemon, tenant, &["streaming"]).await?;
    }
    let copied = transactions(&shop).await?;
    ensure!(copied > begun + 300, "only {} transactions during the copies", copied - begun);
    for tenant in [SCHEMA_TENANT, DATABASE_TENANT] {
        verify_equal(&shop.daemon, tenant).await.context("while the writers write")?;
    }
    shop.daemon.kill()?;
    shop.daemon = Daemon::start(&shop.config).await?;
    let killed = transactions(&shop).await?;
    tests::wait::until("more transactions", super::SOON, async || {
        let now = transactions(&shop).await?;
        ensure!(now > killed + AFTER, "{} transactions", now - killed);
        Ok(())
    })
    .await?;
    stop.send_replace(true);
    for writer in writers {
        println!("{:?}", writer.await.context("join a writer")??);
    }
    for (tenant, to) in [(SCHEMA_TENANT, "schema"), (DATABASE_TENANT, "database")] {
        phase(&shop.daemon, tenant, &["streaming"]).await?;
        let rows = shop.assert_equal(tenant, to).await?;
        println!("{to}: {rows} rows, batch size {batch_size}");
        ensure!(rows > 20, "only {rows} rows");
    }
    shop.daemon.assert_no_errors(&[])
}

/// Write transactions that the source has begun so far.
pub(super) async fn transactions(shop: &Shop) -> Result<u64> {
    let row = shop.source.query_one("SELECT pg_snapshot_xmax(pg_current_snapshot())::text", &[]).await?;
    Ok(row.get::<_, String>(0).parse()?)
}

//! PostgreSQL 14 to 18, as source and as target. Which pairs play, `PG_MAJORS` says: `all` of them, a list
//! (`14,17`), `installed`; by default the installed version and 18, which `.ci/fetch-postgres` brings.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::Binaries;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::daemon::Daemon;
use tests::scene::{Configuration, Scene};
use tests::workload::{Workload, write_until};
use tokio::sync::watch;

use super::Shop;
use super::random::transactions;
use crate::carve::{cli, phase, verify_equal};
use crate::settle::SOON;

/// Moves to a schema of the source's database, moves to a database of the other server, stays.
const TENANTS: [&str; 3] = ["1", "2", "3"];
/// Transactions before the moves, and transaction ids (savepoints have their own) after the daemon was killed.
const BEFORE: u32 = 150;
const AFTER: u64 = 600;
/// Most transactions of each writer in a second.
const RATE: u32 = 30;

/// Source and target versions that play in `make test`.
fn pairs() -> Result<BTreeSet<(u32, u32)>> {
    let own = || Ok::<_, anyhow::Error>(Binaries::find()?.major);
    let every = |majors: &[u32]| majors.iter().flat_map(|one| majors.iter().map(move |other| (*one, *other))).collect();
    Ok(match std::env::var("PG_MAJORS").unwrap_or_default().as_str() {
        "" => BTreeSet::from([(own()?, 18), (18, own()?), (18, 18)]),
        "installed" => BTreeSet::from([(own()?, own()?)]),
        // Each version, the step to the next and back, and the longest way.
        "all" => {
            let steps = (14..18).flat_map(|major| [(major, major), (major, major + 1), (major + 1, major)]);
            steps.chain([(18, 18), (14, 18), (18, 14)]).collect()
        }
        list => {
            let majors: Result<Vec<u32>, _> = list.split([',', ' ']).map(str::parse).collect();
            every(&majors.with_context(|| format!("PG_MAJORS={list} is no list of major versions"))?)
        }
    })
}

/// Versions: a tenant moves to a schema and one to a database of another server, while a random application
/// writes; the daemon is killed; both sides are equal. For each pair of versions.
#[tokio::test(flavor = "multi_thread")]
async fn tenants_move_between_servers_of_different_versions() -> Result<()> {
    for (source, target) in pairs()? {
        followed(source, target).await.with_context(|| format!("from PostgreSQL {source} to {target}"))?;
    }
    Ok(())
}

/// The same for all 25 pairs.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "25 pairs of versions take some minutes: make campaign"]
async fn tenants_move_between_all_versions() -> Result<()> {
    for (source, target) in (14..=18).flat_map(|source| (14..=18).map(move |target| (source, target))) {
        followed(source, target).await.with_context(|| format!("from PostgreSQL {source} to {target}"))?;
    }
    Ok(())
}

async fn followed(from: u32, to: u32) -> Result<()> {
    let began = Instant::now();
    let mut rng = tests::seed::rng("versions");
    let scene = Scene::between(from, to).await?;
    let wanted =
        Configuration { extra: "limits: {copy_rows_per_second: 400}\n".to_owned(), ..Configuration::default() };
    let mut shop = Shop::furnish(scene, "integer", wanted).await?;
    let mut writer = async || {
        let rng = StdRng::seed_from_u64(rng.random());
        Workload::new(rng, shop.scene.source_client().await?, &TENANTS).await
    };
    let (mut first, second) = (writer().await?, writer().await?);
    first.run(BEFORE).await?;
    let (stop, stopped) = watch::channel(false);
    let writers = [first, second].map(|one| tokio::spawn(write_until(one, RATE, stopped.clone())));
    let moves = [("1", "schema"), ("2", "database")];
    for (tenant, to) in moves {
        cli(&shop.config, &["move", tenant, "--to", to]).await?;
    }
    for (tenant, _) in moves {
        phase(&shop.daemon, tenant, &["streaming"]).await?;
        verify_equal(&shop.daemon, tenant).await.context("while the application writes")?;
    }
    shop.daemon.kill()?;
    shop.daemon = Daemon::start(&shop.config).await?;
    let killed = transactions(&shop).await?;
    tests::wait::until("more transactions", SOON, async || {
        let now = transactions(&shop).await?;
        ensure!(now > killed + AFTER, "{} transactions", now - killed);
        Ok(())
    })
    .await?;
    stop.send_replace(true);
    let mut committed = 0;
    for writer in writers {
        committed += writer.await.context("join a writer")??.committed;
    }
    let mut rows = Vec::new();
    for (tenant, to) in moves {
        phase(&shop.daemon, tenant, &["streaming"]).await?;
        rows.push(shop.assert_equal(tenant, to).await?);
        ensure!(rows.last() > Some(&20), "{rows:?} rows");
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("PostgreSQL {from} to {to}: {committed} transactions, rows of the tenants {rows:?}, {seconds:.1} s");
    shop.daemon.assert_no_errors(&[])
}

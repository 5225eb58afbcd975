//! Rows that go from one tenant to another, with all that hangs on them and with large values that the log does not
//! repeat; and tables that are every tenant's.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::ClusterOptions;
use rand::Rng;
use tests::daemon::Daemon;
use tests::load::Load;
use tests::oracle;
use tests::scene::{Configuration, DATABASE, Scene};
use tests::seed::rng;
use tokio_postgres::Client;

use crate::carve::{cli, drained, phase, start_move, verify_equal};

const HANDS: &str = include_str!("hands/hands.sql");
/// Two tenants that move; 3 and 4 stay.
const TENANTS: [(&str, &str); 2] = [("1", "schema"), ("2", "database")];
/// Table, and its rows of a tenant on the source.
const TABLES: [(&str, &str); 8] = [
    ("r", "bid = $"),
    ("a", "r_id IN (SELECT id FROM r WHERE bid = $)"),
    ("b", "a_id IN (SELECT a.id FROM a JOIN r ON r.id = r_id WHERE bid = $)"),
    ("c", "b_id IN (SELECT b.id FROM b JOIN a ON a.id = a_id JOIN r ON r.id = r_id WHERE bid = $)"),
    (
        "d",
        "c_id IN (SELECT c.id FROM c JOIN b ON b.id = b_id JOIN a ON a.id = a_id JOIN r ON r.id = r_id WHERE bid = $)",
    ),
    ("t", "bid = $"),
    ("kind", "true"),
    ("word", "true"),
];
const LONG: Duration = Duration::from_secs(600);
/// How long rows are waited for before the next kill.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(100);

struct Desk {
    scene: Scene,
    source: Client,
    config: std::path::PathBuf,
}

impl Desk {
    async fn open(setup: &str) -> Result<Desk> {
        let scene = Scene::empty(ClusterOptions::default(), ClusterOptions::default()).await?;
        let source = scene.source_client().await?;
        source.batch_execute(setup).await.context("make the tables")?;
        let tables = [
            ("a", "{via: r_id}"),
            ("b", "{via: a_id}"),
            ("c", "{via: b_id}"),
            ("d", "{via: c_id}"),
            ("kind", "{reference: true}"),
            ("word", "{reference: true}"),
        ];
        let tables = tables.map(|(table, policy)| (table.to_owned(), policy.to_owned())).to_vec();
        let config = scene.write_config("carveout", &Configuration { tables, ..Configuration::default() })?;
        cli(&config, &["prepare", "--apply"]).await?;
        Ok(Desk { scene, source, config })
    }

    async fn assert_equal(&self, daemon: &Daemon) -> Result<i64> {
        let mut rows = 0;
        for (tenant, to) in TENANTS {
            phase(daemon, tenant, &["streaming", "ready"]).await?;
            drained(&self.scene, daemon, &[tenant]).await?;
            verify_equal(daemon, tenant).await?;
            let (target, schema) = match to {
                "database" => (self.scene.target_client(&format!("bid_{tenant}")).await?, "public".to_owned()),
                _ => (self.scene.source_client().await?, format!("bid_{tenant}")),
            };
            for (table, filter) in TABLES {
                let (theirs, filter) = (format!("{schema}.{table}"), filter.replace('$', tenant));
                rows += oracle::assert_equal(&self.source, table, &filter, &target, &theirs).await?.target_rows;
            }
        }
        Ok(rows)
    }
}

/// R05, R06: roots, rows in the middle and leaves go to and from tenants that move and tenants that stay, while the
/// tenants are copied, while their keys are read and after, and the daemon is killed at random points.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_change_hands_take_along_what_hangs_on_them() -> Result<()> {
    give_and_take(HANDS, 12_000).await
}

/// The same where values come as text.
#[tokio::test(flavor = "multi_thread")]
async fn rows_change_hands_in_a_stream_of_text() -> Result<()> {
    give_and_take(&format!("{HANDS}\nALTER TABLE b ADD COLUMN known regclass; UPDATE b SET known = 'a'"), 6_000).await
}

async fn give_and_take(setup: &str, transactions: usize) -> Result<()> {
    let mut rng = rng("hands");
    let desk = Desk::open(setup).await?;
    let mut load = Load::scripts(&desk.scene.source, DATABASE, &[("SELECT give();", 1)], 3, transactions / 3)?;
    let mut daemon = Daemon::start(&desk.config).await?;
    for (tenant, to) in TENANTS {
        start_move(&daemon, tenant, to).await?;
    }
    let mut kills = 0;
    while load.is_running()? {
        // Every other time only when rows have come since: it must happen under load too.
        let begun = Instant::now();
        let seen = came(&daemon)?;
        let pause = Duration::from_millis(rng.random_range(0..4000));
        let waits = |daemon: &Daemon| Ok::<_, anyhow::Error>(begun.elapsed() < PATIENCE && came(daemon)? == seen);
        while load.is_running()? && (begun.elapsed() < pause || (kills % 2 == 1 && waits(&daemon)?)) {
            for (tenant, _) in TENANTS {
                phase(&daemon, tenant, &["planned", "provisioning", "copying", "catching_up", "streaming", "ready"])
                    .await?;
            }
            tokio::time::sleep(LOOK).await;
        }
        daemon.kill()?;
        daemon = Daemon::start(&desk.config).await?;
        kills += 1;
    }
    let under_load = came(&daemon)?;
    load.finish(LONG).await?.assert_fine()?;
    let rows = desk.assert_equal(&daemon).await?;
    println!("{transactions} transactions, {kills} kills, rows came {under_load} times under load, {rows} rows equal");
    ensure!(kills >= 2 && rows > 0 && came(&daemon)? > 0, "too little happened");
    daemon.assert_no_errors(&[])
}

/// How often rows came.
fn came(daemon: &Daemon) -> Result<usize> {
    Ok(daemon.log()?.matches("rows came from another tenant").count())
}

//! The shop: twenty storefronts leave one database at the same time, while its application goes on writing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::ClusterOptions;
use daemon::demo::shop;
use rand::Rng;
use serde_json::Value;
use tests::daemon::Daemon;
use tests::load::Load;
use tests::oracle;
use tests::scene::{Configuration, DATABASE, Scene};
use tests::seed::rng;

use crate::carve::{cli, drained, phase, start_move, verify_equal};

/// How many storefronts there are.
pub const TENANTS: u32 = 20;
/// Of `make test`, and of the campaign.
const TRANSACTIONS: [usize; 2] = [20_000, 100_000];
const CLIENTS: usize = 4;
const LONG: Duration = Duration::from_secs(900);

/// Makes the shop, and a configuration for it.
pub async fn open(scene: &Scene) -> Result<PathBuf> {
    let source = scene.source_client().await?;
    source.batch_execute(shop::SCHEMA).await.context("make the shop")?;
    source.batch_execute(&shop::data(TENANTS, 100)).await.context("fill the shop")?;
    let tables = shop::POLICIES.map(|(table, policy)| (table.to_owned(), policy.to_owned())).to_vec();
    let wanted = Configuration {
        key: Some(shop::KEY.to_owned()),
        names: Some("shop_{tenant}".to_owned()),
        tables,
        ..Configuration::default()
    };
    scene.write_config("carveout", &wanted)
}

/// From a role that may only log in: what `check` prints, one by one, then what `prepare` prints, run by a superuser.
async fn grant_what_is_asked(scene: &Scene, config: &Path) -> Result<()> {
    let source = scene.source_client().await?;
    source.batch_execute("CREATE ROLE carver LOGIN").await?;
    std::fs::write(config, std::fs::read_to_string(config)?.replace("postgres@", "carver@"))?;
    let asked = async || -> Result<Option<String>> {
        let said = tests::binary::cli(config, &["check", "--output", "json"]).await?.stdout;
        let findings: Vec<Value> = serde_json::from_slice(&said).context("read the findings")?;
        let by_a_person = findings.iter().filter(|finding| finding["prepared"] == false);
        let sql = by_a_person.filter_map(|finding| finding["remedy"].as_str());
        let mut sql = sql.filter(|sql| sql.starts_with("GRANT ") || sql.starts_with("ALTER ROLE "));
        Ok(sql.next().map(str::to_owned))
    };
    let mut ran = Vec::new();
    while let Some(sql) = asked().await? {
        ensure!(!ran.contains(&sql), "asked again: {sql}");
        source.batch_execute(&sql).await.with_context(|| sql.clone())?;
        ran.push(sql);
    }
    println!("{}", ran.join("\n"));
    let script = scene.path().join("prepare.sql");
    std::fs::write(&script, cli(config, &["prepare"]).await?)?;
    let mut psql = scene.source.command("psql")?;
    let done = psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"]).arg(&script).arg(DATABASE).output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    cli(config, &["check"]).await?;
    let may = "SELECT rolsuper OR rolcreaterole OR rolbypassrls FROM pg_roles WHERE rolname = 'carver'";
    ensure!(!source.query_one(may, &[]).await?.get::<_, bool>(0), "the role became more than it was");
    Ok(())
}

/// Odd ones go to a schema, even ones to a database.
fn tenants() -> Vec<(String, &'static str)> {
    (0..TENANTS).map(|number| (shop::tenant(number), if number % 2 == 1 { "schema" } else { "database" })).collect()
}

/// Both sides are equal by the product's word and by the oracle's, and nothing of anybody else's is there: the
/// oracle takes all rows of a target for the tenant's.
async fn assert_equal(scene: &Scene, daemon: &Daemon) -> Result<i64> {
    let source = scene.source_client().await?;
    let mut rows = 0;
    for (tenant, to) in tenants() {
        phase(daemon, &tenant, &["streaming", "ready"]).await?;
        drained(scene, daemon, &[&tenant]).await?;
        verify_equal(daemon, &tenant).await?;
        let name = format!("shop_{}", tenant.replace('-', "_"));
        let (target, schema) = match to {
            "database" => (scene.target_client(&name).await?, "public".to_owned()),
            _ => (scene.source_client().await?, name),
        };
        for (table, filter) in shop::TABLES {
            let (theirs, filter) = (format!("{schema}.{table}"), filter.replace("{tenant}", &tenant));
            rows += oracle::assert_equal(&source, table, &filter, &target, &theirs).await?.target_rows;
        }
    }
    Ok(rows)
}

/// So many transactions while all storefronts move at once, with so many kills of the daemon.
async fn all_leave(scene: &Scene, config: &Path, transactions: usize, kills: usize) -> Result<()> {
    let mut rng = rng("shop");
    let mut load = Load::scripts(&scene.source, DATABASE, &shop::load(TENANTS), CLIENTS, transactions / CLIENTS)?;
    let mut daemon = Daemon::start(config).await?;
    for (tenant, to) in tenants() {
        start_move(&daemon, &tenant, to).await?;
    }
    let mut killed = 0;
    while killed < kills {
        // The moment is random on purpose.
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..1200))).await;
        ensure!(load.is_running()?, "the load ended after {killed} kills");
        daemon.kill()?;
        daemon = Daemon::start(config).await?;
        killed += 1;
    }
    load.finish(LONG).await?.assert_fine()?;
    let source = scene.source_client().await?;
    let slots: i64 = source.query_one("SELECT count(*) FROM pg_replication_slots", &[]).await?.get(0);
    ensure!(slots == 1, "{slots} slots");
    let rows = assert_equal(scene, &daemon).await?;
    println!("{TENANTS} storefronts, {transactions} transactions, {killed} kills: {rows} rows equal");
    daemon.assert_no_errors(&[])
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_storefronts_leave_at_once_under_load() -> Result<()> {
    under_load(TRANSACTIONS[0]).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "campaign: the same for 100,000 transactions"]
async fn twenty_storefronts_leave_at_once_under_a_long_load() -> Result<()> {
    under_load(TRANSACTIONS[1]).await
}

async fn under_load(transactions: usize) -> Result<()> {
    let scene = Scene::empty(ClusterOptions::default(), ClusterOptions::default()).await?;
    let config = open(&scene).await?;
    cli(&config, &["prepare", "--apply"]).await?;
    all_leave(&scene, &config, transactions, 0).await
}

/// The same with 25 kills, by a role with exactly the grants that `check` and `prepare` print.
#[tokio::test(flavor = "multi_thread")]
async fn twenty_storefronts_leave_at_once_with_twenty_five_kills() -> Result<()> {
    with_kills(TRANSACTIONS[0]).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "campaign: the same for 100,000 transactions"]
async fn twenty_storefronts_leave_at_once_with_kills_in_a_long_load() -> Result<()> {
    with_kills(TRANSACTIONS[1]).await
}

async fn with_kills(transactions: usize) -> Result<()> {
    let scene = Scene::single(ClusterOptions::default()).await?;
    let config = open(&scene).await?;
    grant_what_is_asked(&scene, &config).await?;
    all_leave(&scene, &config, transactions, 25).await
}

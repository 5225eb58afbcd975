//! A tenant goes round: shared, schema, database, and home; what it has is the same afterwards, and nothing is left of the way.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::ClusterOptions;
use daemon::demo::shop;
use serde_json::{Value, json};
use tests::daemon::Daemon;
use tests::load::Load;
use tests::scene::{DATABASE, Scene};
use tokio_postgres::Client;

use crate::carve::{cli, phase};
use crate::{chinook, shop as storefronts};

/// Tables with the condition for the tenant's rows.
type Tables = Vec<(String, String)>;

/// How many rows the tenant has in each table, and what they are.
async fn rows(client: &Client, schema: &str, tables: &Tables) -> Result<Vec<(String, i64, String)>> {
    let mut all = Vec::new();
    for (table, filter) in tables {
        let filter = if schema == "public" { filter } else { "true" };
        let sql = format!(
            "SELECT count(*), coalesce(md5(string_agg(r::text, chr(10) ORDER BY r::text COLLATE \"C\")), '')
               FROM (SELECT * FROM {schema}.{table} WHERE {filter}) r"
        );
        let row = client.query_one(&sql, &[]).await.with_context(|| format!("read {schema}.{table}"))?;
        all.push((table.clone(), row.get(0), row.get(1)));
    }
    Ok(all)
}

/// What a stage leads to.
struct Way<'a> {
    scene: &'a Scene,
    config: &'a Path,
    daemon: &'a Daemon,
    tenant: &'a str,
    /// The name of its schema and of its database.
    name: &'a str,
    tables: &'a Tables,
}

impl Way<'_> {
    /// Moves the tenant there for good.
    async fn go(&self, to: &str) -> Result<()> {
        cli(self.config, &["move", self.tenant, "--to", to]).await?;
        phase(self.daemon, self.tenant, &["streaming", "ready"]).await?;
        cli(self.config, &["verify", self.tenant]).await?;
        cli(self.config, &["cutover", self.tenant]).await?;
        let report: Value =
            serde_json::from_str(&cli(self.config, &["complete", self.tenant, "--output", "json"]).await?)?;
        let clean =
            report["residue"] == json!([]) && report["foreign"] == json!([]) && report["certificate"]["equal"] == true;
        ensure!(clean && report["route"]["isolation"] == to, "{to}: {report}");
        Ok(())
    }

    async fn round(&self) -> Result<()> {
        let source = self.scene.source_client().await?;
        let before = rows(&source, "public", self.tables).await?;
        ensure!(before.iter().any(|(_, rows, _)| *rows > 0), "the tenant has no rows");
        for to in ["schema", "database", "shared", "database", "shared"] {
            self.go(to).await.with_context(|| format!("to {to}"))?;
            let now = match to {
                "schema" => rows(&source, self.name, self.tables).await?,
                "database" => {
                    let all = self.tables.iter().map(|(table, _)| (table.clone(), "true".to_owned())).collect();
                    rows(&self.scene.target_client(self.name).await?, "public", &all).await?
                }
                _ => rows(&source, "public", self.tables).await?,
            };
            ensure!(now == before, "{to}: {now:?} is not {before:?}");
        }
        let left = "SELECT (SELECT count(*) FROM carveout.objects WHERE kind NOT IN ('slot')) + (SELECT count(*) FROM carveout.fence)
            + (SELECT count(*) FROM carveout.checkpoint) + (SELECT count(*) FROM carveout.copied)
            + (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'carveout%')
            + (SELECT count(*) FROM pg_publication_tables WHERE schemaname <> 'public')";
        let left: i64 = source.query_one(left, &[]).await?.get(0);
        ensure!(left == 0, "{left} things of Carveout stayed");
        let gone = "SELECT NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)";
        ensure!(source.query_one(gone, &[&self.name]).await?.get::<_, bool>(0), "its schema stayed");
        let gone = "SELECT NOT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
        ensure!(
            self.scene.target_client("postgres").await?.query_one(gone, &[&self.name]).await?.get::<_, bool>(0),
            "its database stayed"
        );
        let total: i64 = before.iter().map(|(_, rows, _)| rows).sum();
        println!("tenant {}: {total} rows in {} tables went round", self.tenant, before.len());
        Ok(())
    }
}

/// Issue line 6, on the shop, while the other storefronts are written.
#[tokio::test(flavor = "multi_thread")]
async fn a_storefront_goes_round_and_is_the_same() -> Result<()> {
    let scene = Scene::empty(ClusterOptions::default(), ClusterOptions::default()).await?;
    let config = storefronts::open(&scene).await?;
    cli(&config, &["prepare", "--apply"]).await?;
    let last = storefronts::TENANTS - 1;
    let others = Load::scripts(&scene.source, DATABASE, &shop::load(last), 2, 1_000_000)?;
    let daemon = Daemon::start(&config).await?;
    let tenant = shop::tenant(last);
    let name = format!("shop_{}", tenant.replace('-', "_"));
    let tables = shop::TABLES.map(|(table, filter)| (table.to_owned(), filter.replace("{tenant}", &tenant))).to_vec();
    let way = Way { scene: &scene, config: &config, daemon: &daemon, tenant: &tenant, name: &name, tables: &tables };
    way.round().await?;
    others.stop().await?.assert_fine()?;
    daemon.assert_no_errors(&[])
}

/// The same on Chinook.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "campaign: CARVEOUT_CHINOOK must name Chinook_PostgreSql.sql"]
async fn a_representative_of_chinook_goes_round_and_is_the_same() -> Result<()> {
    let scene = Scene::empty(ClusterOptions::default(), ClusterOptions::default()).await?;
    let config = chinook::open(&scene).await?;
    let daemon = Daemon::start(&config).await?;
    let own = chinook::TABLES.iter().map(|(table, filter)| ((*table).to_owned(), filter.replace('$', "4")));
    let tables: Tables = own.collect();
    let way = Way { scene: &scene, config: &config, daemon: &daemon, tenant: "4", name: "rep_4", tables: &tables };
    way.round().await?;
    daemon.assert_no_errors(&[])
}

//! What becomes of rows: a schema with hostile names (`tests::hostile`), one daemon, tenants on their way to a
//! schema and to a database. One module per kind of promise.

mod ddl;
mod faults;
mod keys;
mod random;
mod tenants;
mod transactions;
mod verify;
mod versions;

use std::path::PathBuf;

use anyhow::{Context, Result};
use daemon::demo::cluster::ClusterOptions;
use serde_json::Value;
use tests::daemon::Daemon;
use tests::hostile::{self, KEY, Table};
use tests::scene::{Configuration, Scene};
use tokio_postgres::Client;

use crate::carve::{cli, phase, verify_equal};
use crate::settle::{self, SOON};

/// What the tenants' schemas and databases are called.
const NAMES: &str = "Of \"{tenant}\" é";

/// The hostile shop with a prepared source and a running daemon.
struct Shop {
    daemon: Daemon,
    source: Client,
    config: PathBuf,
    // Last: the servers go after everybody who speaks to them.
    scene: Scene,
}

impl Shop {
    /// One cluster, tenants of type integer, no rows.
    async fn open() -> Result<Shop> {
        Shop::open_with("integer", Configuration::default()).await
    }

    /// One cluster, this key type, and a configuration with what is different.
    async fn open_with(key_type: &str, wanted: Configuration) -> Result<Shop> {
        Shop::furnish(Scene::single(ClusterOptions::default()).await?, key_type, wanted).await
    }

    /// The shop in a scene without tables.
    async fn furnish(scene: Scene, key_type: &str, wanted: Configuration) -> Result<Shop> {
        let source = scene.source_client().await?;
        source.batch_execute(&hostile::setup(key_type)).await.context("make the hostile schema")?;
        let config = scene.write_config("carveout", &configuration(wanted))?;
        cli(&config, &["prepare", "--apply"]).await?;
        let daemon = Daemon::start(&config).await?;
        Ok(Shop { daemon, source, config, scene })
    }

    /// Runs SQL on the source.
    async fn sql(&self, sql: &str) -> Result<()> {
        self.source.batch_execute(sql).await.with_context(|| sql.to_owned())
    }

    /// Starts a move and waits until it is in step.
    async fn carve(&self, tenant: &str, to: &str) -> Result<()> {
        cli(&self.config, &["move", tenant, "--to", to]).await?;
        phase(&self.daemon, tenant, &["streaming"]).await?;
        Ok(())
    }

    /// A session where the tenant goes, and the schema of its tables there.
    async fn target(&self, tenant: &str, to: &str) -> Result<(Client, String)> {
        let name = NAMES.replace("{tenant}", &tenant.replace('-', "_"));
        if to == "schema" {
            return Ok((self.scene.source_client().await?, name));
        }
        let client = self.scene.target_client(&name).await?;
        Ok((client, hostile::SCHEMA.to_owned()))
    }

    /// Waits until the tenant holds all that has been written, and compares: by `verify` and by the oracle.
    async fn assert_equal(&self, tenant: &str, to: &str) -> Result<u64> {
        self.drained(tenant).await?;
        let (target, schema) = self.target(tenant, to).await?;
        let rows = hostile::assert_tenant_equal(&self.source, tenant, &target, &schema).await?;
        verify_equal(&self.daemon, tenant).await?;
        Ok(rows)
    }

    /// Waits until the tenant holds all that has been written; a fault ends the waiting.
    async fn drained(&self, tenant: &str) -> Result<()> {
        settle::drained(&self.scene, &self.daemon, tenant).await
    }

    /// Waits until the tenant's move stands with a fault; its status.
    async fn faulted(&self, tenant: &str) -> Result<Value> {
        settle::faulted(&self.daemon, tenant).await
    }
}

/// What every shop's configuration has, beside what a test wants.
fn configuration(wanted: Configuration) -> Configuration {
    Configuration { key: Some(KEY.to_owned()), names: Some(NAMES.to_owned()), ..wanted }
}

/// `INSERT INTO table (tenant, id, …) VALUES`, ready for the rows.
fn insert_into(table: &Table, columns: &[&str]) -> String {
    let names: Vec<String> = [KEY, table.id_column].iter().chain(columns).map(|name| hostile::quoted(name)).collect();
    format!("INSERT INTO {} ({})", table.sql(), names.join(", "))
}

/// The quoted tenant key.
fn key() -> String {
    hostile::quoted(KEY)
}

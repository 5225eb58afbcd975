//! What becomes of rows: a schema with hostile names (`tests::hostile`), one daemon, tenants on their way to a
//! schema and to a database. One module per kind of promise.

mod ddl;
mod faults;
mod keys;
mod random;
mod tenants;
mod transactions;
mod verify;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use daemon::demo::cluster::ClusterOptions;
use serde_json::Value;
use tests::daemon::Daemon;
use tests::hostile::{self, KEY, Table};
use tests::scene::{Configuration, Scene};
use tests::wait::until;
use tokio_postgres::Client;

use crate::carve::{cli, drained, phase, verify_equal};

/// The longest wait for something that takes a moment.
const SOON: Duration = Duration::from_secs(60);
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
        // The name is not made for a URL: it is given to the session's settings instead.
        let mut config: tokio_postgres::Config = self.scene.target.url("postgres").parse()?;
        let (client, connection) = config.dbname(&name).connect(tokio_postgres::NoTls).await.context("connect")?;
        tokio::spawn(async move { connection.await.ok() });
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
        let tenants = [tenant];
        tokio::select! {
            drained = drained(&self.scene, &self.daemon, &tenants) => drained,
            status = self.faulted(tenant) => bail!("tenant {tenant} stopped, or did not get there in time: {:?}", status.map(|status| status["fault"].clone())),
        }
    }

    /// Waits until the tenant's move stands with a fault; its status.
    async fn faulted(&self, tenant: &str) -> Result<Value> {
        until(&format!("a fault of tenant {tenant}"), SOON, async || {
            let status = self.daemon.tenant(tenant).await?;
            ensure!(!status["fault"].is_null(), "{status}");
            Ok(status)
        })
        .await
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

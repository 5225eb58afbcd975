//! The scene: a source with the tables, one tenant on its way to a schema and one to a database, a third that stays.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use daemon::demo::cluster::ClusterOptions;
use tests::daemon::Daemon;
use tests::oracle;
use tests::scene::{Configuration, Scene};
use tokio_postgres::Client;

use super::end::{End, Spoilt};
use super::judge::{self, Answer};
use super::mutants::Mutant;
use super::tables::TABLES;
use crate::carve::{cli, phase, start_move};
use crate::settle;

/// Tenants that move.
pub const TENANTS: [(&str, &str); 2] = [("1", "schema"), ("2", "database")];
const SETUP: &str = include_str!("tables.sql");
/// What a text is made of may not depend on what the server is set to.
const READABLE: &str = "SET timezone = 'UTC'; SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET extra_float_digits = 3; SET bytea_output = 'hex'";

pub struct Stage {
    pub daemon: Daemon,
    pub source: Client,
    pub config: std::path::PathBuf,
    // Last: the servers go after everybody who speaks to them.
    pub scene: Scene,
}

impl Stage {
    /// Both tenants in step and equal.
    pub async fn open() -> Result<Stage> {
        let scene = Scene::empty(ClusterOptions::default(), ClusterOptions::default()).await?;
        let source = scene.source_client().await?;
        source.batch_execute(SETUP).await.context("make the tables")?;
        let tables = vec![
            ("lines".to_owned(), "{via: item}".to_owned()),
            ("countries".to_owned(), "{reference: true}".to_owned()),
        ];
        let config = scene.write_config("carveout", &Configuration { tables, ..Configuration::default() })?;
        cli(&config, &["prepare", "--apply"]).await?;
        let daemon = Daemon::start(&config).await?;
        let stage = Stage { daemon, source, config, scene };
        for (tenant, to) in TENANTS {
            start_move(&stage.daemon, tenant, to).await?;
        }
        for (tenant, _) in TENANTS {
            phase(&stage.daemon, tenant, &["streaming", "ready"]).await?;
        }
        stage.assert_equal().await?;
        Ok(stage)
    }

    /// Where a tenant goes; the session finds its tables without their schema.
    pub async fn target(&self, tenant: &str) -> Result<End> {
        let (client, schema) = match tenant {
            "1" => (self.scene.source_client().await?, "bid_1, public"),
            _ => (self.scene.target_client(&format!("bid_{tenant}")).await?, "public"),
        };
        client.batch_execute(&format!("SET search_path = {schema}; {READABLE}")).await?;
        Ok(End { client, rows: "true".to_owned(), is_source: false })
    }

    /// Where a tenant comes from, as long as it lives in its target: a fence is around the tables.
    pub async fn left(&self, tenant: &str) -> Result<End> {
        let client = self.scene.source_client().await?;
        client.batch_execute(READABLE).await?;
        Ok(End { client, rows: format!("bid = {tenant}"), is_source: true })
    }

    /// Both tenants at rest: by the oracle and by `verify`.
    pub async fn assert_equal(&self) -> Result<()> {
        for (tenant, to) in TENANTS {
            settle::drained(&self.scene, &self.daemon, tenant).await?;
            let target = self.target(tenant).await?;
            let schema = if to == "schema" { "bid_1" } else { "public" };
            for table in &TABLES {
                let (ours, theirs) = (format!("public.{}", table.name), format!("{schema}.{}", table.name));
                let rows = table.rows.replace('$', tenant);
                let compared = oracle::assert_equal(&self.source, &ours, &rows, &target.client, &theirs).await?;
                ensure!(compared.source_rows > 0, "{ours} has no rows of tenant {tenant}");
            }
            self.clean(tenant).await?;
        }
        Ok(())
    }

    /// `verify` must say equal, at rest.
    pub async fn clean(&self, tenant: &str) -> Result<()> {
        match judge::verify(&self.config, tenant).await? {
            Answer::Equal { .. } => {}
            answer => bail!("tenant {tenant} is not equal: {answer:?}"),
        }
        let status = self.daemon.tenant(tenant).await?;
        ensure!(!status["verified_at_lsn"].is_null(), "{status}");
        Ok(())
    }

    /// `verify` must find this, and nothing else.
    pub async fn assert_found(&self, tenant: &str, spoilt: &Spoilt) -> Result<()> {
        let Spoilt { mutant: Mutant { kind, table, sql }, expected, rows, .. } = spoilt;
        let name = format!("public.{}", table.name);
        let found = match judge::verify(&self.config, tenant).await? {
            Answer::Different(found) => found,
            answer => bail!("{kind:?} was not found: {answer:?}\n{sql}\n{expected:?}"),
        };
        let count = (expected.len() as u64).max(*rows);
        let wanted = BTreeMap::from([(name, (count, expected.clone()))]);
        ensure!(found == wanted, "{kind:?}: found {found:?} instead of {wanted:?}\n{sql}");
        let status = self.daemon.tenant(tenant).await?;
        ensure!(status["verified_at_lsn"].is_null(), "it still counts as equal: {status}");
        Ok(())
    }
}

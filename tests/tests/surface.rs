//! What a person or a script sees of the product: commands, exit codes, words, HTTP, and what it refuses to go
//! on from. One small database, one cluster; one module per kind of promise.

mod certificate;
mod check;
mod configuration;
mod grants;
mod http;
mod init;
mod prepare;
mod progress;
mod secrets;
mod slot;
mod stopping;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::ClusterOptions;
use tests::binary;
use tests::daemon::Daemon;
use tests::oracle;
use tests::scene::{Configuration, Scene};
use tests::wait::until;
use tokio_postgres::Client;

use crate::carve::{cli, phase, verify_equal};
use crate::settle::{self, SOON};

/// One table whose primary key carries the tenant, one without any key.
pub const TABLES: &str = "CREATE TABLE orders (bid integer, id integer, note text, PRIMARY KEY (bid, id)); \
                      CREATE TABLE events (bid integer, what text); \
                      INSERT INTO orders SELECT n % 5, n, 'order ' || n FROM generate_series(1, 500) n; \
                      INSERT INTO events SELECT n % 5, 'event ' || n FROM generate_series(1, 500) n";

/// A run of a command.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `carveout -c FILE <args>`, whatever its end.
pub async fn run(config: &Path, args: &[&str]) -> Result<Said> {
    let output = binary::cli(config, args).await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Said { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) })
}

impl Said {
    /// Fails unless it ended like this and said these things, on stdout or on stderr.
    pub fn assert(&self, code: i32, parts: &[&str]) -> Result<()> {
        ensure!(self.code == Some(code), "expected exit code {code}: {self:#?}");
        for part in parts {
            ensure!(self.stdout.contains(part) || self.stderr.contains(part), "{part:?} was not said: {self:#?}");
        }
        Ok(())
    }
}

/// One cluster with the small database, and a configuration.
pub struct Desk {
    pub source: Client,
    pub config: PathBuf,
    // Last: the servers go after everybody who speaks to them.
    pub scene: Scene,
}

impl Desk {
    /// With default settings.
    pub async fn open() -> Result<Desk> {
        Desk::open_with(ClusterOptions::default(), Configuration::default()).await
    }

    /// With other settings of the server, another configuration.
    pub async fn open_with(options: ClusterOptions, wanted: Configuration) -> Result<Desk> {
        let scene = Scene::single(options).await?;
        let source = scene.source_client().await?;
        source.batch_execute(TABLES).await.context("make the tables")?;
        let config = scene.write_config("carveout", &wanted)?;
        Ok(Desk { source, config, scene })
    }

    /// Prepared, and a daemon runs.
    pub async fn work(&self) -> Result<Daemon> {
        cli(&self.config, &["prepare", "--apply"]).await?;
        Daemon::start(&self.config).await
    }

    /// Runs SQL on the source.
    pub async fn sql(&self, sql: &str) -> Result<()> {
        self.source.batch_execute(sql).await.with_context(|| sql.to_owned())
    }

    /// The first value of a query on the source, as text.
    pub async fn ask(&self, sql: &str) -> Result<String> {
        let row = self.source.query_one(&format!("SELECT ({sql})::text"), &[]).await.with_context(|| sql.to_owned())?;
        Ok(row.get(0))
    }

    /// Starts a move and waits until it is in step.
    pub async fn carve(&self, daemon: &Daemon, tenant: &str, to: &str) -> Result<()> {
        cli(&self.config, &["move", tenant, "--to", to]).await?;
        phase(daemon, tenant, &["streaming"]).await?;
        Ok(())
    }

    /// Waits until the tenant has everything, and compares.
    pub async fn assert_equal(&self, daemon: &Daemon, tenant: &str, to: &str) -> Result<()> {
        settle::drained(&self.scene, daemon, tenant).await?;
        let (target, schema) = match to {
            "database" => (self.scene.target_client(&format!("bid_{tenant}")).await?, "public".to_owned()),
            _ => (self.scene.source_client().await?, format!("bid_{tenant}")),
        };
        for table in ["orders", "events"] {
            let (left, right) = (format!("public.{table}"), format!("{schema}.{table}"));
            oracle::assert_equal(&self.source, &left, &format!("bid = {tenant}"), &target, &right).await?;
        }
        verify_equal(daemon, tenant).await
    }

    /// Starts a daemon that must not come up; how it ended, and what it logged since.
    pub async fn refused(&self, config: &Path) -> Result<(ExitStatus, String)> {
        let log = std::fs::read_to_string(config.with_extension("log")).unwrap_or_default().len();
        let mut daemon = Daemon::spawn(config, &[])?;
        let status = daemon.wait_exit(SOON).await.context("a daemon that has to refuse goes on")?;
        Ok((status, daemon.log()?[log..].to_owned()))
    }

    /// Waits until the daemon says that it cannot work; the fault of the source in its status.
    pub async fn unready(&self, daemon: &Daemon) -> Result<serde_json::Value> {
        until("a daemon that is not ready, and says why", SOON, async || {
            let ready = daemon.get("/readyz").await?;
            let status = daemon.status().await?;
            ensure!(ready.status == 503 && !status["source"]["fault"].is_null(), "{ready:?} {}", status["source"]);
            Ok(status["source"]["fault"].clone())
        })
        .await
    }

    /// Waits until everything written so far is acknowledged to the slot.
    pub async fn acknowledged(&self, daemon: &Daemon) -> Result<()> {
        let end: schemas::Lsn = self.ask("pg_current_wal_insert_lsn()").await?.parse()?;
        until("an acknowledgement", SOON, async || {
            // Something has to come for a position to pass.
            self.sql("SELECT pg_logical_emit_message(true, 'test', '')").await?;
            let status = daemon.status().await?;
            let here: schemas::Lsn = status["source"]["acknowledged_lsn"].as_str().context("lsn")?.parse()?;
            ensure!(here >= end, "{here} of {end}");
            Ok(())
        })
        .await
    }
}

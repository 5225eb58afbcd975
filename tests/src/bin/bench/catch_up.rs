//! Carveout beside native logical replication. Both get the same backlog of pgbench's own
//! load and are let go in turn; what counts is the ratio of the two times, round by round.
//!
//! The peer is a subscription per tenant with a row filter, binary transfer and the same durability
//! (`synchronous_commit = on`), its launch throttle taken away. Both copy first, untimed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::ClusterOptions;
use serde_json::json;
use tests::binary::cli;
use tests::daemon::Daemon;
use tests::scene::{Configuration, DATABASE, Scene, TABLES};
use tests::wait::until;
use tokio_postgres::Client;

use super::size;

const PATIENCE: Duration = Duration::from_secs(900);

struct Bench {
    scene: Scene,
    source: Client,
    tenants: u32,
    transactions: u32,
}

pub async fn run() -> Result<()> {
    let (tenants, transactions, rounds): (u32, u32, u32) =
        (size("BENCH_TENANTS", 10)?, size("BENCH_TRANSACTIONS", 40_000)?, size("BENCH_ROUNDS", 5)?);
    let options = || ClusterOptions {
        settings: [
            ("wal_retrieve_retry_interval", "100ms"),
            ("max_logical_replication_workers", "80"),
            ("max_worker_processes", "100"),
            ("max_wal_senders", "80"),
            ("max_replication_slots", "80"),
            ("checkpoint_timeout", "30min"),
            ("autovacuum", "off"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec(),
        ..ClusterOptions::default()
    };
    let scene = Scene::start_with(tenants.max(10), options(), options()).await?;
    let source = scene.source_client().await?;
    let bench = Bench { scene, source, tenants, transactions };
    println!(
        "catch-up: backlogs of {transactions} pgbench transactions, {tenants} tenants to {tenants} databases, {rounds} rounds"
    );
    let config = bench.scene.write_config("carveout", &Configuration::default())?;
    let prepared = cli(&config, &["prepare", "--apply"]).await?;
    ensure!(prepared.status.success(), "prepare: {}", String::from_utf8_lossy(&prepared.stderr));
    let mut daemon = Daemon::start(&config).await?;
    for tenant in 1..=tenants {
        daemon.post(&format!("/v1/tenants/{tenant}/move"), &json!({"to": "database"})).await?.success()?;
    }
    for tenant in 1..=tenants {
        until("the copies", PATIENCE, async || {
            let status = daemon.tenant(&tenant.to_string()).await?;
            ensure!(status["phase"] == "streaming" || status["phase"] == "ready", "{status}");
            Ok(())
        })
        .await?;
    }
    daemon.terminate().await?;
    bench.subscribe().await?;
    let mut ratios = Vec::new();
    for round in 1..=rounds {
        bench.backlog(round).await?;
        // Who goes first alternates: the second finds the log in the page cache.
        let (carveout, native) = if round % 2 == 1 {
            let carveout = bench.let_carveout_go(&mut daemon).await?;
            (carveout, bench.let_native_go().await?)
        } else {
            let native = bench.let_native_go().await?;
            (bench.let_carveout_go(&mut daemon).await?, native)
        };
        let ratio = native.as_secs_f64() / carveout.as_secs_f64();
        println!(
            "round {round}: carveout {:6.2} s   native {:6.2} s   native/carveout {ratio:.2}",
            carveout.as_secs_f64(),
            native.as_secs_f64()
        );
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "native/carveout: median {:.2}, min {:.2}, max {:.2}",
        ratios[ratios.len() / 2],
        ratios[0],
        ratios[ratios.len() - 1]
    );
    Ok(())
}

impl Bench {
    /// pgbench's default script, while neither side reads.
    async fn backlog(&self, round: u32) -> Result<()> {
        let mut command = self.scene.source.command("pgbench")?;
        command.args(["-n", "-c", "4", "-j", "2", "-t", &(self.transactions / 4).to_string(), DATABASE]);
        let said = tokio::process::Command::from(command).output().await.context("run pgbench")?;
        ensure!(said.status.success(), "pgbench: {}", String::from_utf8_lossy(&said.stderr));
        // The last row of each tenant: whoever has it has everything.
        for tenant in 1..=self.tenants {
            let sql = format!(
                "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime, filler) VALUES (0, {tenant}, 0, {round}, now(), 'sentinel')"
            );
            self.source.batch_execute(&sql).await?;
        }
        self.source.batch_execute("CHECKPOINT").await?;
        Ok(())
    }

    async fn let_carveout_go(&self, daemon: &mut Daemon) -> Result<Duration> {
        let began = Instant::now();
        *daemon = Daemon::start(&daemon.config.clone()).await?;
        self.carveout_holds("carveout").await?;
        let took = began.elapsed();
        ensure!(daemon.terminate().await?.success(), "the daemon did not end well");
        Ok(took)
    }

    async fn let_native_go(&self) -> Result<Duration> {
        let clients = self.natives().await?;
        let began = Instant::now();
        for client in &clients {
            client.batch_execute("ALTER SUBSCRIPTION native ENABLE").await?;
        }
        self.hold("native", &clients).await?;
        let took = began.elapsed();
        for client in &clients {
            client.batch_execute("ALTER SUBSCRIPTION native DISABLE").await?;
        }
        Ok(took)
    }

    async fn natives(&self) -> Result<Vec<Client>> {
        let mut clients = Vec::new();
        for tenant in 1..=self.tenants {
            clients.push(self.scene.target_client(&format!("native_{tenant}")).await?);
        }
        Ok(clients)
    }

    async fn carveout_holds(&self, what: &str) -> Result<()> {
        let mut clients = Vec::new();
        for tenant in 1..=self.tenants {
            let database = format!("bid_{tenant}");
            let client = until(&database, PATIENCE, async || self.scene.target_client(&database).await).await?;
            clients.push(client);
        }
        self.hold(what, &clients).await
    }

    /// Until every tenant's target has as many rows of history as the source has for it.
    async fn hold(&self, what: &str, clients: &[Client]) -> Result<()> {
        for (tenant, client) in (1..=self.tenants).zip(clients) {
            let count = format!("SELECT count(*) FROM pgbench_history WHERE bid = {tenant}");
            let wanted: i64 = self.source.query_one(&count, &[]).await?.get(0);
            until(&format!("{what}: tenant {tenant}"), PATIENCE, async || {
                let here: i64 = client.query_one(&count, &[]).await?.get(0);
                let accounts: i64 = client.query_one("SELECT count(*) FROM pgbench_branches", &[]).await?.get(0);
                ensure!(here == wanted && accounts == 1, "{here} of {wanted} rows");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// A publication with row filters and a subscription per tenant, in step and then disabled.
    async fn subscribe(&self) -> Result<()> {
        for tenant in 1..=self.tenants {
            let filters: Vec<String> = TABLES.iter().map(|table| format!("{table} WHERE (bid = {tenant})")).collect();
            self.source
                .batch_execute(&format!("CREATE PUBLICATION native_{tenant} FOR TABLE {}", filters.join(", ")))
                .await?;
            let admin = self.scene.target_client("postgres").await?;
            // Sessions on the template have to be gone, which they are soon.
            let create = format!("CREATE DATABASE native_{tenant} TEMPLATE bid_{tenant}");
            until(&create, PATIENCE, async || Ok(admin.batch_execute(&create).await?)).await?;
            let client = self.scene.target_client(&format!("native_{tenant}")).await?;
            client.batch_execute(&format!("DROP SCHEMA carveout CASCADE; TRUNCATE {}", TABLES.join(", "))).await?;
            let sql = format!(
                "CREATE SUBSCRIPTION native CONNECTION 'host=127.0.0.1 port={} dbname={DATABASE} user=postgres' \
                 PUBLICATION native_{tenant} WITH (binary = true, synchronous_commit = 'on', slot_name = 'native_{tenant}')",
                self.scene.source.port
            );
            client.batch_execute(&sql).await?;
            until("native's copy", PATIENCE, async || {
                let sql = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'";
                let left: i64 = client.query_one(sql, &[]).await?.get(0);
                ensure!(left == 0, "{left} tables");
                Ok(())
            })
            .await?;
            client.batch_execute("ALTER SUBSCRIPTION native DISABLE").await?;
        }
        Ok(())
    }
}

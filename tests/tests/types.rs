//! Every type that a column can have, with its extreme values: present before the copy, inserted, updated, and left
//! alone while its row changes; in a binary stream and in one of text, to a schema and to a database; equal as text
//! on both sides at the end.

mod change;
mod keys;
mod random;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use tests::daemon::Daemon;
use tests::oracle;
use tests::scene::{Configuration, Scene};
use tokio_postgres::Client;

use crate::carve::{cli, phase, start_move, verify_equal};
use crate::settle;

/// Types, families of values, and what writes them.
const MAKE: &str = include_str!("types/make.sql");
/// What happens to the tables, the first step before the copy.
const CHANGES: &str = include_str!("types/changes.sql");
const KEY: &str = "Te\"nant é";
const SCHEMA: &str = "Types é";
const TENANTS: [(&str, &str); 2] = [("1", "schema"), ("2", "database")];

/// What a database or a role may be set to: each of these would change values, or how statements end.
const OVERRIDES: &str = "DateStyle = 'German, DMY'; IntervalStyle = sql_standard; extra_float_digits = -15;
    TimeZone = 'Asia/Kathmandu'; bytea_output = escape; search_path = nowhere; lc_monetary = 'C.utf8';
    standard_conforming_strings = off; default_transaction_isolation = serializable; default_transaction_read_only = on;
    default_transaction_deferrable = on; statement_timeout = '1s'; lock_timeout = '1ms'; row_security = on;
    idle_in_transaction_session_timeout = '1s'; xmloption = document; array_nulls = off; quote_all_identifiers = on;
    client_encoding = LATIN1; synchronous_commit = off";
/// What a test's own session needs to read in spite of them.
const READABLE: &str = "SET statement_timeout = 0; SET lc_monetary = 'C'; SET quote_all_identifiers = off;
    SET extra_float_digits = 1; SET client_encoding = UTF8; SET standard_conforming_strings = on; SET xmloption = content";

/// The scene's tables, before anything is prepared.
struct Types {
    scene: Scene,
    source: Client,
    config: PathBuf,
    texts: bool,
}

impl Types {
    async fn make(texts: bool, families: &str, extra: &str) -> Result<Types> {
        Types::make_in(Scene::empty(Default::default(), Default::default()).await?, texts, families, extra).await
    }

    async fn make_in(scene: Scene, texts: bool, families: &str, extra: &str) -> Result<Types> {
        let source = scene.source_client().await?;
        for extension in ["hstore", "citext"] {
            if let Err(error) = source.batch_execute(&format!("CREATE EXTENSION {extension}")).await {
                println!("left out: {extension}: {error}");
            }
        }
        source.batch_execute(MAKE).await.context("make the types")?;
        source.batch_execute(&format!("DELETE FROM family WHERE NOT ({families})")).await?;
        let wanted = Configuration { key: Some(KEY.to_owned()), extra: extra.to_owned(), ..Configuration::default() };
        let config = scene.write_config("carveout", &wanted)?;
        let types = Types { scene, source, config, texts };
        types.step(0).await?;
        Ok(types)
    }

    /// A step of the changes, in one transaction.
    async fn step(&self, number: usize) -> Result<()> {
        let sql = CHANGES.split("-- step").nth(number).context("a step")?;
        let sql = sql.replace("$texts", &self.texts.to_string());
        self.source.batch_execute(&sql).await.with_context(|| format!("step {number}"))
    }

    /// The tables, as SQL names without the schema.
    async fn tables(&self) -> Result<Vec<String>> {
        let sql = "SELECT quote_ident(relname) FROM pg_class WHERE relkind = 'r' AND relnamespace = '\"Types é\"'::regnamespace";
        Ok(self.source.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
    }

    async fn target(&self, tenant: &str, to: &str) -> Result<(Client, String)> {
        let (client, schema) = match to {
            "database" => (self.scene.target_client(&format!("bid_{tenant}")).await?, SCHEMA.to_owned()),
            _ => (self.scene.source_client().await?, format!("bid_{tenant}")),
        };
        client.batch_execute(READABLE).await?;
        Ok((client, schema))
    }

    /// Every table, by the oracle and by `verify`.
    async fn assert_equal(&self, daemon: &Daemon) -> Result<i64> {
        let mut rows = 0;
        self.source.batch_execute(READABLE).await?;
        for (tenant, to) in TENANTS {
            settle::drained(&self.scene, daemon, tenant).await?;
            let (target, schema) = self.target(tenant, to).await?;
            for table in self.tables().await? {
                let (ours, theirs) = (format!("\"{SCHEMA}\".{table}"), format!("\"{schema}\".{table}"));
                let filter = format!("\"Te\"\"nant é\" = {tenant}");
                let compared = oracle::assert_equal(&self.source, &ours, &filter, &target, &theirs).await?;
                ensure!(compared.target_rows > 0, "{theirs} is empty");
                rows += compared.target_rows;
            }
            verify_equal(daemon, tenant).await?;
        }
        Ok(rows)
    }

    /// Prepare, move, change, compare.
    async fn hold(self) -> Result<()> {
        let said = cli(&self.config, &["prepare", "--apply"]).await?;
        let daemon = Daemon::start(&self.config).await?;
        for (tenant, to) in TENANTS {
            start_move(&daemon, tenant, to).await?;
        }
        for (tenant, _) in TENANTS {
            phase(&daemon, tenant, &["streaming"]).await?;
        }
        for number in 1..CHANGES.split("-- step").count() {
            self.step(number).await?;
            let rows = self.assert_equal(&daemon).await.with_context(|| format!("after step {number}\n{said}"))?;
            println!("step {number}: {rows} rows equal in {} tables", self.tables().await?.len());
        }
        let form = format!("binary={}", !self.texts);
        ensure!(daemon.log()?.contains(&form), "the stream was of the other form than {form}");
        daemon.assert_no_errors(&[])
    }
}

/// R15: every built-in family and every kind of made type, binary from end to end.
#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_in_a_binary_stream() -> Result<()> {
    Types::make(false, "true", "").await?.hold().await
}

/// The same with `reg*`, types without a binary form and what is made of them: the stream is text, their tables are
/// copied as text.
#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_in_a_stream_of_text() -> Result<()> {
    Types::make(true, "true", "").await?.hold().await
}

/// Both on the other versions than the one that is usually installed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL 14 to 18: make campaign"]
async fn every_type_arrives_on_every_version() -> Result<()> {
    for major in [14, 16, 17, 18] {
        for texts in [false, true] {
            let held =
                async { Types::make_in(Scene::between(major, major).await?, texts, "true", "").await?.hold().await };
            held.await.with_context(|| format!("on PostgreSQL {major}"))?;
            println!("PostgreSQL {major}, binary={}", !texts);
        }
    }
    Ok(())
}

/// What database and role are set to, on both sides, changes no value and ends no statement.
#[tokio::test(flavor = "multi_thread")]
async fn settings_of_databases_and_roles_change_no_value() -> Result<()> {
    let families = "name IN ('numeric', 'float4', 'float8', 'money', 'bytea', 'date', 'timestamp', 'timestamptz', 'timetz',
        'interval', 'text array', 'composite', 'tstzrange', 'made range', 'point', 'xml', 'text', 'regclass', 'regtype', 'rights')";
    // A table of three hundred rows takes longer than a statement may.
    let types = Types::make(true, families, "limits: {copy_parallel: 4, copy_rows_per_second: 150}\n").await?;
    for server in [types.scene.source_client().await?, types.scene.target_client("postgres").await?] {
        let database: String = server.query_one("SELECT current_database()::text", &[]).await?.get(0);
        for setting in OVERRIDES.split(';').map(str::trim) {
            for whose in [format!("DATABASE \"{database}\""), "ROLE postgres".to_owned()] {
                server
                    .batch_execute(&format!("ALTER {whose} SET {setting}"))
                    .await
                    .with_context(|| setting.to_owned())?;
            }
        }
    }
    types.hold().await
}

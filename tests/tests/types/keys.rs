//! Tenants and rows that are called by a domain, an enum, a `char(n)`: every change goes to the tenant whose it is.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::Rng;
use tests::daemon::Daemon;
use tests::load::Load;
use tests::oracle;
use tests::scene::{Configuration, DATABASE, Scene};
use tests::seed::rng;
use tests::wait::until;
use tokio_postgres::Client;

use crate::carve::{cli, phase, verify_equal};
use crate::settle::{SOON, drained, faulted};
use crate::surface::run;

const KEYS: &str = include_str!("keys.sql");
/// Table, and its rows of a tenant on the source.
const TABLES: [(&str, &str); 4] = [
    ("r", "tenant::text = '$'"),
    ("plain", "whose::text = '$'"),
    ("a", "r_tenant::text = '$'"),
    ("b", "a_id IN (SELECT id FROM a WHERE r_tenant::text = '$')"),
];
const TRANSACTIONS: usize = 4000;
const CLIENTS: usize = 4;

/// What tenants and rows are called by.
struct Kind {
    /// Makes the types.
    types: &'static str,
    key: &'static str,
    other: &'static str,
    referring: &'static str,
    id: &'static str,
    reference: &'static str,
    /// The tenant with the number n, as SQL.
    tenant: &'static str,
}

/// The same uuid in a column of a domain over a domain and in one of uuid.
const DOMAIN: Kind = Kind {
    types: "CREATE DOMAIN raw AS uuid; CREATE DOMAIN tenants AS raw CHECK (VALUE IS NOT NULL);
            CREATE DOMAIN code AS varchar(20) CHECK (VALUE ~ '^i');",
    key: "tenants",
    other: "uuid",
    referring: "raw",
    id: "code",
    reference: "varchar(20)",
    tenant: "md5(n::text)::uuid::text",
};
const ENUM: Kind = Kind {
    types: "CREATE SCHEMA \"T é\"; CREATE TYPE \"T é\".\"pl an\" AS ENUM ('tier_1', 'tier_2', 'tier_3', 'tier_4', 'tier_5 ', 'ü, ''6''');
            CREATE TYPE plans AS ENUM ('none', 'tier_1', 'tier_2', 'tier_3', 'tier_4', 'tier_5 ', 'ü, ''6''');
            DO $$ BEGIN EXECUTE (SELECT format('CREATE TYPE ids AS ENUM (%s)', string_agg(quote_literal('i' || n), ', '))
                                   FROM generate_series(1, 200) n); END $$;",
    key: "\"T é\".\"pl an\"",
    other: "plans",
    referring: "\"T é\".\"pl an\"",
    id: "ids",
    reference: "ids",
    tenant: "('{tier_1,tier_2,tier_3,tier_4,\"tier_5 \",\"ü, ''6''\"}'::text[])[n]",
};
/// Of several lengths, with and without blanks that fill a value up.
const CHAR: Kind = Kind {
    types: "CREATE DOMAIN ulid AS char(26);",
    key: "char(26)",
    other: "char(30)",
    referring: "char(40)",
    id: "ulid",
    reference: "char(26)",
    tenant: "'T' || n || CASE WHEN n % 2 = 0 THEN repeat('x', 24) ELSE '' END",
};

struct Desk {
    scene: Scene,
    source: Client,
    config: PathBuf,
    /// The first three.
    tenants: Vec<(String, &'static str)>,
}

impl Desk {
    async fn open(kind: &Kind, text: bool) -> Result<Desk> {
        let scene = Scene::single(Default::default()).await?;
        let source = scene.source_client().await?;
        let setup = KEYS.replace("{key}", kind.key).replace("{other}", kind.other).replace("{id}", kind.id);
        let setup = setup.replace("{referring}", kind.referring);
        let mut setup =
            kind.types.to_owned() + &setup.replace("{ref}", kind.reference).replace("{tenant}", kind.tenant);
        if text {
            setup += "; ALTER TABLE plain ADD COLUMN about regclass; UPDATE plain SET about = 'plain'";
        }
        source.batch_execute(&setup).await.context("make the tables")?;
        let tables = [("plain", "{key: whose}"), ("a", "{via: [r_tenant, r_n]}"), ("b", "{via: a_id}")];
        let tables = tables.map(|(table, policy)| (table.to_owned(), policy.to_owned())).to_vec();
        let wanted = Configuration { key: Some("tenant".to_owned()), tables, ..Configuration::default() };
        let config = scene.write_config("carveout", &wanted)?;
        let url = format!("postgresql://postgres@127.0.0.1:{}/{DATABASE}?sslmode=disable", scene.source.port);
        let proposed = cli(&config, &["init", "--source", &url]).await?;
        ensure!(proposed.lines().any(|line| line.trim().starts_with("key: tenant")), "{proposed}");
        cli(&config, &["prepare", "--apply"]).await?;
        let called = source.query("SELECT k(n) FROM generate_series(1, 3) n", &[]).await?;
        let tenants = called.iter().map(|row| row.get(0)).zip(["schema", "database", "schema"]).collect();
        Ok(Desk { scene, source, config, tenants })
    }

    async fn assert_equal(&self, daemon: &Daemon) -> Result<i64> {
        let mut rows = 0;
        for (tenant, to) in &self.tenants {
            phase(daemon, tenant, &["streaming"]).await?;
            drained(&self.scene, daemon, tenant).await?;
            verify_equal(daemon, tenant).await?;
            let name = format!("bid_{}", tenant.replace('-', "_"));
            let (target, schema) = match *to {
                "database" => (self.scene.target_client(&name).await?, "public".to_owned()),
                _ => (self.scene.source_client().await?, name),
            };
            for (table, filter) in TABLES {
                let (theirs, filter) = (format!("\"{schema}\".{table}"), filter.replace('$', tenant));
                // All that the target has is compared: nobody else's is there.
                let compared = oracle::assert_equal(&self.source, table, &filter, &target, &theirs).await?;
                ensure!(compared.target_rows > 5, "{theirs}: {compared:?}");
                rows += compared.target_rows;
            }
        }
        Ok(rows)
    }
}

/// Three tenants move while rows come, go and change hands; the daemon is killed twice.
async fn follow(kind: &Kind, text: bool) -> Result<()> {
    let mut rng = rng("keys");
    let desk = Desk::open(kind, text).await?;
    let load = Load::scripts(&desk.scene.source, DATABASE, &[("SELECT hurt();", 1)], CLIENTS, TRANSACTIONS / CLIENTS)?;
    let mut daemon = Daemon::start(&desk.config).await?;
    for (tenant, to) in &desk.tenants {
        // As a person may copy it from a column.
        let padded = if kind.key == "char(26)" { format!("{tenant:26}") } else { tenant.to_uppercase() };
        let wanted = if kind.key == ENUM.key { tenant } else { &padded };
        cli(&desk.config, &["move", wanted, "--to", to]).await?;
    }
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..1500))).await;
        daemon.kill()?;
        daemon = Daemon::start(&desk.config).await?;
    }
    load.finish(SOON).await?.assert_fine()?;
    println!("{} rows equal", desk.assert_equal(&daemon).await?);
    ensure!(daemon.log()?.contains(&format!("binary={}", !text)), "the stream was of the other form");
    daemon.assert_no_errors(&[])
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_are_called_by_a_domain() -> Result<()> {
    follow(&DOMAIN, false).await?;
    follow(&DOMAIN, true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_are_called_by_a_label_of_an_enum() -> Result<()> {
    follow(&ENUM, false).await?;
    follow(&ENUM, true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_are_called_by_a_char_of_some_length() -> Result<()> {
    follow(&CHAR, false).await?;
    follow(&CHAR, true).await
}

/// A row goes to another tenant with what hangs on it, and another one gets its key, in one transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_gets_the_key_of_one_that_went_to_another_tenant() -> Result<()> {
    let mut desk = Desk::open(&ENUM, false).await?;
    desk.tenants.truncate(2);
    let first = "DELETE FROM a WHERE id IN ('i1', 'i2'); INSERT INTO r VALUES ('tier_1', 1000, 'first');
                 INSERT INTO a VALUES ('i1', 'tier_1', 1000, 'first'); INSERT INTO b VALUES (1000, 'i1', 'first')";
    desk.source.batch_execute(first).await?;
    let daemon = Daemon::start(&desk.config).await?;
    for (tenant, to) in &desk.tenants {
        cli(&desk.config, &["move", tenant, "--to", to]).await?;
    }
    desk.assert_equal(&daemon).await?;
    let second = "BEGIN; UPDATE r SET tenant = 'tier_2' WHERE tenant = 'tier_1' AND n = 1000;
                  INSERT INTO r VALUES ('tier_1', 1000, 'second'); INSERT INTO a VALUES ('i2', 'tier_1', 1000, 'second');
                  INSERT INTO b VALUES (1001, 'i2', 'second'); COMMIT";
    desk.source.batch_execute(second).await?;
    desk.assert_equal(&daemon).await?;
    daemon.assert_no_errors(&[])
}

/// A label that is renamed is another tenant from then on, without a word in the stream; a column that gets another
/// type does not say whose its rows are. The move stops.
#[tokio::test(flavor = "multi_thread")]
async fn a_label_that_is_renamed_and_another_domain_stop_the_move() -> Result<()> {
    let mut desk = Desk::open(&ENUM, false).await?;
    let daemon = Daemon::start(&desk.config).await?;
    desk.tenants.truncate(2);
    for (tenant, to) in &desk.tenants {
        cli(&desk.config, &["move", tenant, "--to", to]).await?;
    }
    desk.assert_equal(&daemon).await?;
    run(&desk.config, &["move", "tier_9"]).await?.assert(1, &["invalid input value for enum", "key's value"])?;
    // A label more concerns nobody.
    desk.source.batch_execute("ALTER TYPE \"T é\".\"pl an\" ADD VALUE 'tier_9'").await?;
    desk.assert_equal(&daemon).await?;
    // Nor one that is back when somebody looks: what was written meanwhile was nobody's.
    let rename = |from: &str, to: &str| format!("ALTER TYPE \"T é\".\"pl an\" RENAME VALUE '{from}' TO '{to}'");
    desk.source.batch_execute(&format!("{}; {}", rename("tier_1", "first"), rename("first", "tier_1"))).await?;
    for (tenant, to) in &desk.tenants {
        let fault = faulted(&daemon, tenant).await?["fault"].clone();
        ensure!(fault["code"] == "source_changed", "{fault}");
        cli(&desk.config, &["move", tenant, "--to", to]).await?;
    }
    desk.assert_equal(&daemon).await?;
    desk.source.batch_execute(&rename("tier_1", "first")).await?;
    let fault = faulted(&daemon, "tier_1").await?["fault"].clone();
    let said = fault["message"].as_str().unwrap_or_default();
    ensure!(fault["code"] == "source_changed" && said.contains("was renamed"), "{fault}");
    // Nobody is called so any more.
    cli(&desk.config, &["move", "tier_1"]).await?;
    until("the words of the server", SOON, async || {
        let fault = daemon.tenant("tier_1").await?["fault"].clone();
        ensure!(fault["message"].as_str().is_some_and(|it| it.contains("invalid input value for enum")), "{fault}");
        Ok(())
    })
    .await?;
    for (tenant, _) in &desk.tenants {
        cli(&desk.config, &["cancel", tenant]).await?;
    }
    desk.source.batch_execute("ALTER TYPE plans RENAME VALUE 'tier_1' TO 'first'").await?;
    desk.tenants[0].0 = "first".to_owned();
    for (tenant, to) in &desk.tenants {
        cli(&desk.config, &["move", tenant, "--to", to]).await?;
    }
    desk.assert_equal(&daemon).await?;
    // The values stay, the table is not written anew.
    desk.source
        .batch_execute(
            "CREATE DOMAIN others AS plans; ALTER TABLE plain ALTER whose TYPE others;
             INSERT INTO plain VALUES ('first', 5000, 'unknown')",
        )
        .await?;
    let fault = faulted(&daemon, "first").await?["fault"].clone();
    ensure!(fault["code"] == "schema_changed" && fault["object"] == "public.plain", "{fault}");
    Ok(())
}

/// What has several forms for one value, or no equality, is no key.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_has_several_forms_is_refused() -> Result<()> {
    let scene = Scene::single(Default::default()).await?;
    let source = scene.source_client().await?;
    source
        .batch_execute(
            "CREATE TABLE money (bid numeric);
             CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
             CREATE DOMAIN loosely AS text COLLATE loose; CREATE TABLE words (bid loosely PRIMARY KEY);
             CREATE TYPE label AS ENUM ('1'); CREATE DOMAIN labels AS label; CREATE TABLE labelled (bid labels);
             CREATE TABLE fine (bid text PRIMARY KEY); CREATE TABLE names (name text COLLATE loose PRIMARY KEY, bid text);
             CREATE TABLE of_names (name text COLLATE loose REFERENCES names)",
        )
        .await?;
    let tables = vec![("of_names".to_owned(), "{via: name}".to_owned())];
    let config = scene.write_config("carveout", &Configuration { tables, ..Configuration::default() })?;
    let words = [
        "its key \"bid\" has type numeric; a key can be smallint,",
        "its key \"bid\" has type public.loosely",
        "its key \"bid\" has type public.labels",
        "via: \"name\" is text, public.names.\"name\" is text; both must be the same",
        "nondeterministic collation is not",
    ];
    run(&config, &["check"]).await?.assert(1, &words)
}

//! `init`: what it writes is read, asks for exactly what a person has to decide, and holds no secret.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::{Auth, ClusterOptions};
use serde_json::Value;
use tests::scene::{Configuration, DATABASE};

use super::{Desk, run};

/// With signs that a URL has to encode.
const PASSWORD: &str = "pw-c4nary @:/?#%";
const ENCODED: &str = "pw-c4nary%20%40%3A%2F%3F%23%25";

/// Every kind of table: root, keyed, by one way, by several, by none, with names that YAML and SQL could trip over.
const TABLES: &str = r##"
DROP TABLE orders, events;
CREATE TABLE storefronts (id integer PRIMARY KEY, name text);
CREATE TABLE customers (id integer PRIMARY KEY, storefront_id integer NOT NULL REFERENCES storefronts);
CREATE TABLE orders (id integer PRIMARY KEY, storefront_id integer NOT NULL, customer_id integer REFERENCES customers);
CREATE TABLE items (id integer PRIMARY KEY, order_id integer NOT NULL REFERENCES orders);
CREATE TABLE item_events (id integer PRIMARY KEY, item_id integer NOT NULL REFERENCES items);
CREATE TABLE remarks (customer_id integer REFERENCES customers, item_id integer NOT NULL REFERENCES items);
CREATE TABLE pairs (id integer PRIMARY KEY, order_id integer NOT NULL REFERENCES orders,
                    customer_id integer NOT NULL REFERENCES customers);
CREATE TABLE marks (pair_id integer NOT NULL REFERENCES pairs);
CREATE TABLE visits (customer_id integer REFERENCES customers);
CREATE TABLE drafts (id integer PRIMARY KEY, storefront_id integer);
INSERT INTO drafts VALUES (1, 1), (2, NULL);
CREATE TABLE camel (id integer PRIMARY KEY, "storefrontId" integer NOT NULL);
CREATE TABLE schema_migrations (version text);
CREATE UNLOGGED TABLE moody (storefront_id integer NOT NULL, mood text);
CREATE SCHEMA "s.1";
CREATE TABLE "s.1"."A ""b"": # {c} 
$$ {HOME}" (id integer PRIMARY KEY, "${HOME}: 'v'" integer NOT NULL REFERENCES orders);
CREATE TABLE "null" (storefront_id integer NOT NULL);
"##;

/// The tables that leave a choice, and the line that is taken for each.
const OPEN: [(&str, &str); 5] = [
    ("public.marks", "marks: {via: pair_id}"),
    ("public.moody", "moody: {exclude: true}"),
    ("public.pairs", "pairs: {via: order_id}"),
    ("public.schema_migrations", "schema_migrations: {exclude: true}"),
    ("public.visits", "visits: {via: customer_id, null_tenant: not_moving}"),
];

async fn desk() -> Result<Desk> {
    let options = ClusterOptions { auth: Auth::Scram(PASSWORD.to_owned()), ..ClusterOptions::default() };
    let desk = Desk::open_with(options, Configuration::default()).await?;
    desk.sql(TABLES).await?;
    std::fs::write(desk.scene.path().join("secret"), format!("{PASSWORD}\n"))?;
    Ok(desk)
}

fn url(desk: &Desk, login: &str) -> String {
    format!("postgresql://{login}@127.0.0.1:{}/{DATABASE}?sslmode=disable", desk.scene.source.port)
}

/// The tables that `check` asks a person about.
async fn asked(config: &Path) -> Result<BTreeSet<String>> {
    let said = run(config, &["check", "--output", "json"]).await?;
    let findings: Value = serde_json::from_str(&said.stdout).with_context(|| format!("{said:#?}"))?;
    let person = |finding: &&Value| finding["severity"] == "error" && finding["prepared"] == false;
    let objects = findings.as_array().context("a list")?.iter().filter(person).map(|finding| &finding["object"]);
    objects.map(|object| Ok(object.as_str().context("an object")?.to_owned())).collect()
}

/// `check` on what `init` wrote asks for exactly the tables that `init` left open; with one of the proposed lines for
/// each of them there is nothing left to ask, and `prepare --apply` does the rest.
#[tokio::test(flavor = "multi_thread")]
async fn check_asks_for_exactly_what_init_left_open() -> Result<()> {
    let desk = desk().await?;
    let (file, secret) = (desk.scene.path().join("init.yaml"), desk.scene.path().join("secret"));
    let (written, secret) = (file.display().to_string(), secret.display().to_string());
    let source = url(&desk, "postgres");
    let init = ["init", "--source", &source, "--password-file", &secret, "-o", &written];
    run(&desk.config, &init).await?.assert(0, &["tables: 15;", "(storefront_id): 6;", "foreign keys: 4;", ": 5\n"])?;
    let mut text = std::fs::read_to_string(&file)?;
    for part in [
        "  key: storefront_id\n",
        "    storefronts: {key: id}",
        "    camel: {key: storefrontId}",
        "    items: {via: order_id}",
        "    item_events: {via: item_id}",
        "    remarks: {via: item_id}",
        "    # remarks: {via: customer_id}",
        "# decide: pairs: 2 foreign keys lead to a tenant equally well",
        "    # pairs: {via: customer_id}",
        "# drafts: storefront_id can be NULL (some rows are so)",
        "bookkeeping of a migration tool",
        "it is unlogged, so its changes are not in the log",
        "    tenant_schema_pattern: \"tenant_{storefront_id}\"",
    ] {
        ensure!(text.contains(part), "{part:?} is not in\n{text}");
    }
    ensure!(text.lines().all(|line| !line.starts_with("    #") || line.chars().count() <= 100), "{text}");
    ensure!(asked(&file).await? == OPEN.map(|(table, _)| table.to_owned()).into(), "{text}");
    for (_, line) in OPEN {
        let out = format!("    # {line}");
        ensure!(text.matches(&out).count() == 1, "{line} is not proposed in\n{text}");
        text = text.replace(&out, &format!("    {line}"));
    }
    std::fs::write(&file, &text)?;
    ensure!(asked(&file).await?.is_empty(), "{text}");
    run(&file, &["prepare", "--apply"]).await?.assert(0, &["prepared:"])?;
    let check = run(&file, &["check"]).await?;
    check.assert(
        0,
        &[
            "errors: 0, warnings: 2",
            "it has rows without a tenant",
            "public.marks",
            "public.visits",
            "public.null",
            "s.1.A \"b\": # {c}",
        ],
    )
}

/// The password is read as everywhere else, and stands neither in the file nor in a word about it; a file that exists
/// stays as it is; what cannot be done ends as a script expects it.
#[tokio::test(flavor = "multi_thread")]
async fn init_writes_no_password_and_overwrites_nothing() -> Result<()> {
    let desk = desk().await?;
    let with_password = url(&desk, &format!("postgres:{ENCODED}"));
    let from_environment = url(&desk, &format!("postgres:${{CARVEOUT_NOT_SET:-{ENCODED}}}"));
    let mut said = Vec::new();
    for source in [&with_password, &from_environment] {
        let shown = run(&desk.config, &["init", "--source", source]).await?;
        shown.assert(0, &["# password_file: ", "  key: storefront_id\n", "decisions left to you: 5"])?;
        said.push(shown);
    }
    ensure!(said[0].stdout == said[1].stdout, "{said:#?}");
    let json = run(&desk.config, &["init", "--source", &with_password, "--output", "json"]).await?;
    let report: Value = serde_json::from_str(&json.stdout).with_context(|| format!("{json:#?}"))?;
    let decisions: BTreeSet<&str> =
        report["decisions"].as_array().context("a list")?.iter().filter_map(|open| open["table"].as_str()).collect();
    ensure!(decisions == OPEN.map(|(table, _)| table).into(), "{report:#}");
    ensure!(report["configuration"] == said[0].stdout.as_str(), "{report:#}");
    said.push(json);

    let file = desk.scene.path().join("taken.yaml");
    std::fs::write(&file, "mine\n")?;
    let written = file.display().to_string();
    for (args, code, word) in [
        (vec!["--source", &with_password, "-o", &written], 2, "overwrites nothing"),
        (vec!["--source", &with_password, "--key", "nowhere"], 2, "no table has a column \"nowhere\""),
        (vec!["--source", &with_password, "--key", "order_id"], 0, "  key: order_id\n"),
        (vec!["--source", "mysql://root:pw-c4nary@db/x"], 2, "not a PostgreSQL URL"),
        (vec!["--source", "postgresql://me:pw-c4nary@127.0.0.1:1/x"], 3, "127.0.0.1"),
        (vec!["--source", &url(&desk, "postgres:pw-c4nary-wrong")], 3, "password"),
        (vec![], 2, "--source"),
    ] {
        let args: Vec<&str> = std::iter::once("init").chain(args).collect();
        let shown = run(&desk.config, &args).await?;
        shown.assert(code, &[word])?;
        said.push(shown);
    }
    ensure!(std::fs::read_to_string(&file)? == "mine\n", "the file was touched");
    for shown in &said {
        let text = format!("{}{}", shown.stdout, shown.stderr);
        ensure!(!text.contains("pw-c4nary"), "a password is shown: {text}");
    }
    let empty = url(&desk, &format!("postgres:{ENCODED}")).replace(&format!("/{DATABASE}?"), "/template1?");
    run(&desk.config, &["init", "--source", &empty]).await?.assert(1, &["no column looks like a tenant key", "--key"])
}

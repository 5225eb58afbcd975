//! A tenant on a server of its own: by its override's `database_url`, and by `move --target`.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::{Auth, Binaries, Cluster, ClusterOptions, StopMode};
use serde_json::Value;
use tests::daemon::Daemon;
use tests::oracle;
use tests::scene::{Configuration, connect};
use tests::wait::until;
use tokio_postgres::Client;

use crate::carve::{cli, phase, verify_equal};
use crate::settle::{SOON, drained, faulted};
use crate::surface::{Desk, run};

const SECRET: &str = "third-S3CR3T";

fn url(cluster: &Cluster, dbname: &str) -> String {
    format!("postgresql://postgres@127.0.0.1:{}/{dbname}?sslmode=disable", cluster.port)
}

/// Whether a server has this database.
async fn has(server: &Client, dbname: &str) -> Result<bool> {
    Ok(server.query_opt("SELECT FROM pg_database WHERE datname = $1", &[&dbname]).await?.is_some())
}

/// Whether a file below a folder holds these bytes.
fn holds(folder: &Path, secret: &[u8]) -> Result<bool> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let found = match path.is_dir() {
            true => holds(&path, secret)?,
            false => std::fs::read(&path)?.windows(secret.len()).any(|window| window == secret),
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Issue 4: two tenants by their overrides, one by `--target`, one where all go; killed in between, each arrives on
/// its own server and nowhere else, and stays there whatever the configuration says later.
#[tokio::test(flavor = "multi_thread")]
async fn tenants_go_to_servers_of_their_own_and_stay_there() -> Result<()> {
    let mut desk = Desk::open().await?;
    let folder = desk.scene.path().to_owned();
    let start = |name: &'static str, auth: Auth| {
        let (path, options) = (folder.clone(), ClusterOptions { auth, ..ClusterOptions::default() });
        let start = tokio::task::spawn_blocking(move || Cluster::start(&Binaries::find()?, &path, name, &options));
        async { start.await.context("join the cluster's start")? }
    };
    let (eu, us, third) = tokio::try_join!(
        start("eu", Auth::Trust),
        start("us", Auth::Trust),
        start("third", Auth::Scram(SECRET.to_owned()))
    )?;
    let (at_eu, at_us) = (connect(&eu.url("postgres")).await?, connect(&us.url("postgres")).await?);
    let at_third = connect(&third.url("postgres").replace("postgres@", &format!("postgres:{SECRET}@"))).await?;
    at_us.batch_execute("CREATE DATABASE app").await?;
    at_us.batch_execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0").await?;
    let declared = |kind: &str, url: &str| format!("{{type: {kind}, database_url: \"{url}\"}}");
    let eu_url = url(&eu, "own_{bid}");
    let wanted = |eu_url: &str, us_database: &str| Configuration {
        overrides: vec![
            ("1".to_owned(), declared("database", eu_url)),
            ("2".to_owned(), declared("schema", &url(&us, us_database))),
        ],
        extra: "limits: {copy_rows_per_second: 100}\n".to_owned(),
        ..Configuration::default()
    };
    let write = |eu_url: &str, us_database: &str| -> Result<String> {
        let path = desk.scene.write_config("places", &wanted(eu_url, us_database))?;
        Ok(std::fs::read_to_string(path)?)
    };
    let text = write(&eu_url, "app")?;
    desk.config = desk.scene.path().join("places.yaml");
    // What check says of their servers is what it says of the usual one.
    let checked = async |text: &str, parts: &[&str]| -> Result<()> {
        let path = folder.join("checked.yaml");
        std::fs::write(&path, text)?;
        let said = run(&path, &["check"]).await?;
        parts.iter().try_for_each(|part| {
            ensure!(said.stdout.contains(part), "{part}: {said:#?}");
            Ok(())
        })
    };
    at_eu.batch_execute("CREATE ROLE plain LOGIN").await?;
    checked(&text.replace("/app?", "/latin?"), &["tenant_overrides.2", "encoded in LATIN1"]).await?;
    let plain = text.replace(&eu_url, &eu_url.replace("postgres@", "plain@"));
    checked(&plain, &["tenant_overrides.1", "ALTER ROLE \"plain\" CREATEDB"]).await?;
    eu.stop(StopMode::Fast)?;
    checked(&text, &["tenant_overrides.1", &format!("127.0.0.1:{}", eu.port)]).await?;
    eu.start_again()?;
    let at_eu = connect(&eu.url("postgres")).await?;

    std::fs::write(&desk.config, &text)?;
    let password_file = folder.join("third.password");
    std::fs::write(&password_file, format!("{SECRET}\n"))?;
    let (password_file, third_url) = (password_file.display().to_string(), url(&third, "third_{tenant}"));
    let mut daemon = desk.work().await?;
    cli(&desk.config, &["move", "1"]).await?;
    cli(&desk.config, &["move", "2"]).await?;
    let named = ["move", "3", "--to", "database", "--target", &third_url];
    let with_password = [&named[..], &["--target-password-file", &password_file]].concat();
    cli(&desk.config, &with_password).await?;
    cli(&desk.config, &["move", "4", "--to", "database"]).await?;
    until("copies under way", SOON, async || {
        let status = daemon.status().await?;
        let moves = status["tenants"].as_array().context("tenants")?;
        let copies = |tenant: &Value| tenant["phase"] == "copying" && tenant["rows_copied"].as_u64() > Some(0);
        ensure!(moves.len() == 4 && moves.iter().any(copies), "{status}");
        Ok(())
    })
    .await?;
    daemon.kill()?;
    daemon = Daemon::start(&desk.config).await?;
    for tenant in ["1", "2", "3", "4"] {
        phase(&daemon, tenant, &["streaming"]).await?;
    }
    desk.sql("UPDATE orders SET note = note || '!' WHERE id % 3 = 0; DELETE FROM events WHERE what LIKE '%5'").await?;
    daemon.kill()?;
    desk.sql("INSERT INTO orders SELECT n % 5, 1000 + n, 'more' FROM generate_series(1, 50) n").await?;
    daemon = Daemon::start(&desk.config).await?;
    let third_database = connect(&third.url("third_3").replace("postgres@", &format!("postgres:{SECRET}@"))).await?;
    let places = [
        ("1", connect(&eu.url("own_1")).await?, "public", "own_1", Some(eu.port)),
        ("2", connect(&us.url("app")).await?, "bid_2", "bid_2", Some(us.port)),
        ("3", third_database, "public", "third_3", Some(third.port)),
        ("4", desk.scene.target_client("bid_4").await?, "public", "bid_4", None),
    ];
    for (tenant, target, schema, name, port) in &places {
        phase(&daemon, tenant, &["streaming"]).await?;
        drained(&desk.scene, &daemon, tenant).await?;
        for table in ["orders", "events"] {
            let (left, right) = (format!("public.{table}"), format!("{schema}.{table}"));
            oracle::assert_equal(&desk.source, &left, &format!("bid = {tenant}"), target, &right).await?;
        }
        verify_equal(&daemon, tenant).await?;
        let status = daemon.tenant(tenant).await?;
        let server = port.map(|port| format!("127.0.0.1:{port}"));
        ensure!(status["target"] == *name && status["server"].as_str() == server.as_deref(), "{status}");
        run(&desk.config, &["status", tenant])
            .await?
            .assert(0, &[&server.map_or((*name).to_owned(), |server| format!("{name} on {server}"))])?;
    }
    for (server, dbname) in [(&at_us, "own_1"), (&desk.source, "own_1"), (&at_eu, "third_3"), (&desk.source, "third_3")]
    {
        ensure!(!has(server, dbname).await?, "{dbname} is elsewhere too");
    }
    // The same again is no other wish; another server is.
    run(&desk.config, &named).await?.assert(0, &["third_3 on 127.0.0.1:"])?;
    let other = ["move", "3", "--to", "database", "--target", &eu_url];
    run(&desk.config, &other).await?.assert(1, &["another server", "carveout cancel"])?;
    // The secret is nowhere but in its file.
    let shown = format!("{}{}", daemon.get("/v1/status").await?.success()?.body, daemon.log()?);
    ensure!(!shown.contains(SECRET), "the password is shown");
    ensure!(!holds(&folder.join("places-state"), SECRET.as_bytes())?, "the password is in state_dir");

    // An override that names another server meanwhile is refused, also by cancel; put back, the move goes on.
    ensure!(daemon.terminate().await?.success());
    std::fs::write(&desk.config, text.replace(&eu_url, &url(&us, "own_{bid}")))?;
    daemon = Daemon::start(&desk.config).await?;
    let fault = faulted(&daemon, "1").await?["fault"].clone();
    let (message, place) = (fault["message"].as_str().unwrap_or_default(), format!("127.0.0.1:{}", eu.port));
    ensure!(fault["code"] == "configuration" && message.contains(&place), "{fault}");
    ensure!(!has(&at_us, "own_1").await?, "it went to the other server");
    phase(&daemon, "3", &["streaming"]).await?;
    ensure!(daemon.terminate().await?.success());
    std::fs::write(&desk.config, &text)?;
    daemon = Daemon::start(&desk.config).await?;
    cli(&desk.config, &["move", "1"]).await?;
    phase(&daemon, "1", &["streaming"]).await?;
    verify_equal(&daemon, "1").await?;

    for (tenant, ..) in &places {
        run(&desk.config, &["cancel", tenant]).await?.assert(0, &["is cancelled"])?;
    }
    for (server, dbname) in [(&at_eu, "own_1"), (&at_third, "third_3"), (&desk.source, "bid_4")] {
        ensure!(!has(server, dbname).await?, "{dbname} is left");
    }
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'bid_2'";
    let left: i64 = connect(&us.url("app")).await?.query_one(schemas, &[]).await?.get(0);
    ensure!(left == 0, "schema bid_2 is left");
    daemon.assert_no_errors(&["database_url of tenant_overrides.1 has changed"])
}

//! The daemon's HTTP interface.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::StopMode;
use serde_json::{Value, json};
use tests::http;
use tests::wait::until;

use super::{Desk, SOON, run};

/// Commands that change something, of this version and of later ones.
const COMMANDS: [&str; 9] =
    ["move", "verify", "rehearse", "cutover", "rollback", "complete", "pause", "resume", "cancel"];
const PHASES: [&str; 17] = [
    "planned",
    "provisioning",
    "copying",
    "catching_up",
    "streaming",
    "verifying",
    "ready",
    "rehearsing",
    "cutting_over",
    "reversing",
    "rolling_back",
    "rolled_back",
    "completing",
    "completed",
    "cancelling",
    "cancelled",
    "needs_copy",
];

/// N07: whatever could change something needs the token, whatever else it is; reading needs none, and GET
/// changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_changed_without_the_token() -> Result<()> {
    let desk = Desk::open().await?;
    let daemon = desk.work().await?;
    let token_file = desk.config.with_extension("token");
    let mode = std::fs::metadata(&token_file).context("the token file was made")?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "the token file has mode {mode:o}");
    let token = std::fs::read_to_string(&token_file)?.trim().to_owned();
    let cut = &token[..token.len() - 1];
    let body = json!({"to": "schema"});
    for command in COMMANDS {
        let path = format!("/v1/tenants/1/{command}");
        for wrong in [None, Some(""), Some("x"), Some(cut), Some(&format!("{token}x"))] {
            let answer = http::post(daemon.address, &path, wrong, &body).await?;
            ensure!(
                answer.status == 401,
                "{path} with {}: {answer:?}",
                if wrong.is_none() { "no token" } else { "a wrong one" }
            );
            ensure!(!answer.body.contains(cut), "the answer has the token");
        }
        let got = daemon.get(&path).await?;
        ensure!(got.status == 405, "GET {path}: {got:?}");
    }
    ensure!(daemon.status().await?["tenants"] == json!([]), "a move was started");
    ensure!(desk.ask("SELECT count(*) FROM pg_namespace WHERE nspname = 'bid_1'").await? == "0", "a schema was made");
    for path in ["/v1/tenants/1/mvoe", "/v2/status", "/v1/tenants/1", "/../etc/passwd"] {
        let answer = daemon.post(path, &body).await?;
        ensure!([404, 405].contains(&answer.status), "{path}: {answer:?}");
    }
    for (what, body) in
        [("a word for to", json!({"to": "mars"})), ("an unknown key", json!({"too": "schema"})), ("a list", json!([1]))]
    {
        let answer = daemon.post("/v1/tenants/1/move", &body).await?;
        ensure!(answer.status == 400, "{what}: {answer:?}");
    }
    let large = json!({"to": "x".repeat(1 << 20)});
    let answer = daemon.post("/v1/tenants/1/move", &large).await;
    ensure!(answer.as_ref().map_or(true, |answer| answer.status == 413), "{answer:?}");
    ensure!(daemon.status().await?["tenants"] == json!([]), "a move was started");
    daemon.assert_no_errors(&[])
}

/// INTERFACE: every field of `/v1/status` with its type, before, while and after a move; what is not known is
/// null, and `can_cutover` is false with a reason.
#[tokio::test(flavor = "multi_thread")]
async fn the_status_has_every_field_of_the_interface() -> Result<()> {
    let desk = Desk::open().await?;
    let daemon = desk.work().await?;
    let status = daemon.status().await?;
    ensure!(status["version"].is_string() && status["tenants"] == json!([]), "{status}");
    let source = &status["source"];
    ensure!(source["state"] == "streaming" && source["slot"] == "carveout", "{source}");
    ensure!(
        source["server_version"].as_u64().is_some_and(|version| (14..=18).contains(&(version / 10_000))),
        "{source}"
    );
    assert_lsns(source, &["wal_lsn", "received_lsn", "acknowledged_lsn"])?;
    ensure!(source["lag_bytes"].is_u64(), "{source}");
    desk.carve(&daemon, "1", "schema").await?;
    desk.carve(&daemon, "2", "database").await?;
    run(&desk.config, &["verify", "2"]).await?.assert(0, &["equal"])?;
    let status = until("retained_bytes", SOON, async || {
        let status = daemon.status().await?;
        ensure!(status["source"]["retained_bytes"].is_u64(), "{status}");
        Ok(status)
    })
    .await?;
    for (place, tenant, to, target) in [(0, "1", "schema", "bid_1"), (1, "2", "database", "bid_2")] {
        let entry = &status["tenants"][place];
        ensure!(entry["tenant"] == tenant && entry["to"] == to && entry["target"] == target, "{entry}");
        ensure!(entry["isolation"] == "shared" && entry["move"] == format!("m{}", place + 1).as_str(), "{entry}");
        ensure!(entry["phase"].as_str().is_some_and(|phase| PHASES.contains(&phase)), "{entry}");
        ensure!(entry["rows_copied"] == 200 && entry["rows_total"] == 200, "{entry}");
        assert_lsns(entry, &["received_lsn", "applied_lsn"])?;
        ensure!(
            entry["lag_bytes"].is_u64() && entry["lag_seconds"].is_f64() && entry["spool_bytes"].is_u64(),
            "{entry}"
        );
        ensure!(entry["can_cutover"].is_boolean() && entry["blocked_by"].is_array(), "{entry}");
        for field in ["fault", "route_epoch", "verified_at_lsn"] {
            ensure!(entry.get(field).is_some(), "{field} is missing: {entry}");
        }
        ensure!(entry["fault"].is_null(), "{entry}");
        let one: Value = daemon.get(&format!("/v1/tenants/{tenant}")).await?.success()?.json()?;
        ensure!(one["tenant"] == tenant && one["move"] == entry["move"], "{one}");
    }
    ensure!(status["tenants"][0]["verified_at_lsn"].is_null(), "{status}");
    assert_lsns(&status["tenants"][1], &["verified_at_lsn"])?;
    let list: Value = daemon.get("/v1/tenants").await?.success()?.json()?;
    ensure!(list.as_array().is_some_and(|list| list.len() == 2), "{list}");
    let missing = daemon.get("/v1/tenants/77").await?;
    ensure!(missing.status == 404 && missing.json()?["next"].is_string(), "{missing:?}");
    // The same through the command line.
    let text = run(&desk.config, &["status"]).await?;
    text.assert(0, &["bid_1", "bid_2", "streaming", "carveout"])?;
    let json: Value = serde_json::from_str(&run(&desk.config, &["status", "--output", "json"]).await?.stdout)?;
    ensure!(json["tenants"].as_array().is_some_and(|list| list.len() == 2), "{json}");
    run(&desk.config, &["status", "1"]).await?.assert(0, &["bid_1", "streaming"])?;
    run(&desk.config, &["status", "77"]).await?.assert(1, &["77", "carveout move"])?;
    // The tenant's name is a value of the key's type, or refused with the type.
    for wrong in ["seven", "7x", "99999999999", "550e8400-e29b-41d4-a716-446655440000"] {
        run(&desk.config, &["move", wrong, "--to", "schema"])
            .await?
            .assert(1, &[wrong, "not a value of type integer"])?;
    }
    run(&desk.config, &["move", "003"]).await?.assert(1, &["--to schema"])?;
    run(&desk.config, &["move", "002", "--to", "schema"]).await?.assert(1, &["carveout cancel"])?;
    run(&desk.config, &["move", "002"]).await?.assert(0, &["m2", "bid_2"])?;
    run(&desk.config, &["verify", "77"]).await?.assert(1, &["no move"])?;
    // A table nobody decided about: no move is planned without it.
    desk.sql("CREATE TABLE undecided (bid integer)").await?;
    run(&desk.config, &["move", "3", "--to", "schema"]).await?.assert(1, &["undecided", "carveout check"])?;
    daemon.assert_no_errors(&[])
}

/// INTERFACE: alive asks nobody; ready means that the source can be read. When it comes back, so does ready.
#[tokio::test(flavor = "multi_thread")]
async fn alive_is_not_ready_while_the_source_is_away() -> Result<()> {
    let mut desk = Desk::open().await?;
    let daemon = desk.work().await?;
    desk.carve(&daemon, "1", "schema").await?;
    for path in ["/livez", "/healthz", "/readyz"] {
        let answer = daemon.get(path).await?;
        ensure!(answer.status == 200, "{path}: {answer:?}");
    }
    let cluster = desk.scene.source.clone();
    tokio::task::spawn_blocking(move || cluster.stop(StopMode::Immediate)).await??;
    until("a daemon that is not ready", SOON, async || {
        let ready = daemon.get("/readyz").await?;
        ensure!(ready.status == 503, "{ready:?}");
        Ok(())
    })
    .await?;
    for path in ["/livez", "/healthz", "/v1/status"] {
        let answer = daemon.get(path).await?;
        ensure!(answer.status == 200, "{path}: {answer:?}");
    }
    run(&desk.config, &["move", "2", "--to", "schema"]).await?.assert(3, &["127.0.0.1"])?;
    let cluster = desk.scene.source.clone();
    tokio::task::spawn_blocking(move || cluster.start_again()).await??;
    until("ready again", SOON, async || {
        daemon.get("/readyz").await?.success()?;
        Ok(())
    })
    .await?;
    desk.source = desk.scene.source_client().await?;
    desk.sql("INSERT INTO orders VALUES (1, 1000, 'afterwards')").await?;
    desk.assert_equal(&daemon, "1", "schema").await?;
    daemon.assert_no_errors(&[])
}

fn assert_lsns(entry: &Value, fields: &[&str]) -> Result<()> {
    for field in fields {
        let text = entry[field].as_str().with_context(|| format!("{field} of {entry}"))?;
        let lsn: schemas::Lsn = text.parse().with_context(|| format!("{field} of {entry}"))?;
        ensure!(lsn > schemas::Lsn::ZERO, "{field} of {entry}");
    }
    Ok(())
}

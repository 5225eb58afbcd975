//! The life of a move after its copy: the writes move to the target and back, while clients that follow the routes write.

mod back;
mod branches;
mod certificate;
mod clients;
mod home;
mod log;
mod partitions;
mod probes;
mod ready;
pub mod recheck;
mod stages;
mod work;

use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::{Cluster, ClusterOptions, StopMode};
use rand::Rng;
use serde_json::{Value, json};
use tests::binary;
use tests::daemon::Daemon;
use tests::oracle;
use tests::scene::{Configuration, Scene};
use tests::seed;
use tests::wait::until;
use tokio::task::JoinHandle;

use crate::carve::{cli, phase};
use crate::settle::SOON;
use crate::surface::run;
use clients::{Clients, Ledger};

const SETUP: &str = include_str!("life/tables.sql");
const TABLES: [&str; 4] = ["accounts", "writes", "notes", "kinds"];

/// A scene with a few tenants and a daemon.
struct Stage {
    scene: Scene,
    config: std::path::PathBuf,
    daemon: Daemon,
}

impl Stage {
    async fn open() -> Result<Stage> {
        Stage::open_with("", "").await
    }

    async fn open_with(strategy: &str, extra: &str) -> Result<Stage> {
        let scene = Scene::empty(ClusterOptions::default(), ClusterOptions::default()).await?;
        Stage::of(scene, SETUP, &configuration(strategy, extra)).await
    }

    /// A scene with these tables, prepared.
    async fn of(scene: Scene, tables: &str, configuration: &Configuration) -> Result<Stage> {
        scene.source_client().await?.batch_execute(tables).await.context("make the tables")?;
        let config = scene.write_config("carveout", configuration)?;
        cli(&config, &["prepare", "--apply"]).await?;
        let daemon = Daemon::start(&config).await?;
        Ok(Stage { scene, config, daemon })
    }

    async fn carve(&self, tenant: &str, to: &str) -> Result<()> {
        cli(&self.config, &["move", tenant, "--to", to]).await?;
        phase(&self.daemon, tenant, &["streaming", "ready"]).await?;
        Ok(())
    }

    async fn json(&self, args: &[&str]) -> Result<Value> {
        let args: Vec<&str> = args.iter().copied().chain(["--output", "json"]).collect();
        Ok(serde_json::from_str(&cli(&self.config, &args).await?)?)
    }

    /// The tenant is in its target alone, and nothing of the move is left but its routes and records.
    async fn assert_gone(&self, tenant: &str, to: &str, ledger: &Ledger) -> Result<()> {
        let source = self.scene.source_client().await?;
        let target = match to {
            "database" => self.scene.target_client(&format!("bid_{tenant}")).await?,
            _ => self.scene.source_client().await?,
        };
        let schema = if to == "database" { "public".to_owned() } else { format!("bid_{tenant}") };
        ledger.assert_held_by(&target, &schema, tenant).await?;
        let rows = format!(
            "SELECT (SELECT count(*) FROM accounts WHERE bid = {tenant}) + (SELECT count(*) FROM writes WHERE bid = {tenant})
                + (SELECT count(*) FROM notes WHERE account NOT IN (SELECT id FROM accounts))"
        );
        ensure!(source.query_one(&rows, &[]).await?.get::<_, i64>(0) == 0, "rows of the tenant stayed");
        for client in [source, target] {
            let left: i64 = client.query_one(LEFT, &[]).await?.get(0);
            ensure!(left == 0, "{left} things of Carveout stayed");
        }
        Ok(())
    }

    /// Both sides have the same, and what the clients were told.
    async fn assert_equal(&self, tenant: &str, to: &str, ledger: &Ledger) -> Result<()> {
        let source = self.scene.source_client().await?;
        let (target, schema) = match to {
            "database" => (self.scene.target_client(&format!("bid_{tenant}")).await?, "public".to_owned()),
            _ => (self.scene.source_client().await?, format!("bid_{tenant}")),
        };
        for table in TABLES {
            let filter = match table {
                "notes" => format!("account IN (SELECT id FROM accounts WHERE bid = {tenant})"),
                "kinds" => "true".to_owned(),
                _ => format!("bid = {tenant}"),
            };
            until(&format!("{table} the same on both sides"), SOON, async || {
                let (left, right) = (format!("public.{table}"), format!("{schema}.{table}"));
                oracle::assert_equal(&source, &left, &filter, &target, &right).await
            })
            .await?;
        }
        ledger.assert_held_by(&source, "public", tenant).await?;
        ledger.assert_held_by(&target, &schema, tenant).await
    }
}

/// What the configuration says of the tables here.
fn configuration(strategy: &str, extra: &str) -> Configuration {
    let tables =
        vec![("notes".to_owned(), "{via: account}".to_owned()), ("kinds".to_owned(), "{reference: true}".to_owned())];
    Configuration { tables, strategy: strategy.to_owned(), extra: extra.to_owned(), ..Configuration::default() }
}

/// A hook before each cutover, behind which it waits while this is shut.
struct Gate {
    folder: Scene,
}

impl Gate {
    async fn new() -> Result<Gate> {
        Ok(Gate { folder: Scene::single(ClusterOptions::default()).await? })
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// For the configuration: it waits before a cutover, or after it.
    fn hook(&self, at: &str) -> String {
        let [shut, here] = ["shut", "here"].map(|name| self.path(name).display().to_string());
        let script = format!("test -e {shut} || exit 0; touch {here}; while test -e {shut}; do sleep 0.1; done");
        format!("hooks: {{{at}: [\"/bin/sh\", \"-c\", \"{script}\"]}}\n")
    }

    /// Asks for a cutover, which waits here now.
    async fn cut_over(&self, config: &std::path::Path) -> Result<JoinHandle<Result<Output>>> {
        std::fs::write(self.path("shut"), "")?;
        let config = config.to_owned();
        let asked = tokio::spawn(async move { binary::cli(&config, &["cutover", "1", "--output", "json"]).await });
        until("the hook", SOON, async || {
            ensure!(!asked.is_finished(), "it has ended already");
            ensure!(self.path("here").exists(), "it does not run yet");
            Ok(())
        })
        .await?;
        Ok(asked)
    }

    fn open(&self) -> Result<()> {
        std::fs::remove_file(self.path("here"))?;
        Ok(std::fs::remove_file(self.path("shut"))?)
    }
}

/// What of Carveout's is in a database beside its schema's tables.
const LEFT: &str = "SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'carveout%')
    + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'carveout'::regnamespace)
    + (SELECT count(*) FROM carveout.fence)
    + (SELECT count(*) FROM pg_replication_slots WHERE database = current_database() AND slot_name <> 'carveout')
    + (SELECT count(*) FROM pg_publication WHERE pubname <> 'carveout')
    + (SELECT count(*) FROM pg_publication_tables WHERE schemaname <> 'public')";

/// Issue line 1, C04, invariants 1, 5 and 7: to a database and to a schema, there and back and there again.
#[tokio::test(flavor = "multi_thread")]
async fn the_writes_move_and_come_back_and_nothing_is_lost() -> Result<()> {
    let stage = Stage::open().await?;
    // They draw from the same sequence all the time.
    let others = Clients::start(&stage.scene, "3", 2).await?;
    for (tenant, to) in [("1", "database"), ("2", "schema")] {
        stage.carve(tenant, to).await?;
        let clients = Clients::start(&stage.scene, tenant, 4).await?;

        clients.progress(50).await?;
        let mut pauses = Vec::new();
        for round in 0..2 {
            let report = stage.json(&["cutover", tenant]).await?;

            pauses.push(report["pause_ms"].as_f64().context("pause_ms")?);
            ensure!(report["route"]["isolation"] == to && report["verified"] == true, "{report}");
            let status = phase(&stage.daemon, tenant, &["reversing"]).await?;
            ensure!(status["isolation"] == to && status["route_epoch"] == 2 + 2 * round, "{status}");
            clients.progress(50).await?;
            if round == 0 {
                // Nobody follows it now; it is read again when the lane begins anew.
                let sql = format!("UPDATE kinds SET name = 'named at {tenant}' WHERE id = 3");
                stage.scene.source_client().await?.batch_execute(&sql).await?;
                let report = stage.json(&["rollback", tenant]).await?;
                pauses.push(report["pause_ms"].as_f64().context("pause_ms")?);
                ensure!(report["route"]["isolation"] == "shared", "{report}");
                phase(&stage.daemon, tenant, &["rolled_back"]).await?;
                clients.progress(50).await?;
            }
        }
        let ledger = clients.stop().await?;
        ledger.assert_never_on_both_sides()?;
        stage.assert_equal(tenant, to, &ledger).await?;
        let report = stage.json(&["complete", tenant]).await?;
        ensure!(report["residue"] == json!([]) && report["foreign"] == json!([]), "{report}");
        ensure!(report["certificate"]["equal"] == true, "{report}");
        stage.assert_gone(tenant, to, &ledger).await?;
        let again = stage.json(&["complete", tenant]).await?;
        ensure!(again == report, "told otherwise the second time: {again}");

        let deleted: u64 =
            report["deleted"].as_array().context("deleted")?.iter().filter_map(|table| table["rows"].as_u64()).sum();
        println!("{to}: {ledger}, pauses {pauses:?} ms, {deleted} rows deleted");
    }
    let others = others.stop().await?;
    ensure!(others.was_never_refused(), "another tenant was refused: {others}");
    others.assert_held_by(&stage.scene.source_client().await?, "public", "3").await?;
    println!("another tenant: {others}");
    stage.daemon.assert_no_errors(&[])
}

/// Issue line 7, C07: every command where it makes no sense, twice, and two at once.
#[tokio::test(flavor = "multi_thread")]
async fn every_command_in_every_state_has_a_clear_answer() -> Result<()> {
    let stage = Stage::open().await?;
    let said = async |args: &[&str], code, part: &str| {
        run(&stage.config, args).await?.assert(code, &[part]).with_context(|| format!("{args:?}"))
    };
    let no_move = "there is no move of this tenant";
    for command in ["rehearse", "cutover", "rollback", "complete", "verify", "pause", "resume", "cancel"] {
        said(&[command, "1"], 1, no_move).await?;
    }
    stage.carve("1", "database").await?;
    said(&["rollback", "1"], 1, "its writes have not moved").await?;
    said(&["complete", "1"], 1, "its writes are not in the target").await?;
    said(&["pause", "1"], 0, "").await?;
    said(&["cutover", "1"], 1, "it is not in step").await?;
    said(&["resume", "1"], 0, "").await?;
    let cutover = async || run(&stage.config, &["cutover", "1"]).await;
    let (one, other) = tokio::join!(cutover(), cutover());
    let codes = [one?.code, other?.code];
    ensure!(codes.contains(&Some(0)) && codes.contains(&Some(1)), "two at once: {codes:?}");
    let there = "its writes are in the target already";
    for command in ["cutover", "rehearse"] {
        said(&[command, "1"], 1, there).await?;
    }
    said(&["cancel", "1"], 1, "its writes are in the target").await?;
    said(&["move", "1", "--to", "database"], 0, "reversing").await?;
    let home = stage.scene.target_client("bid_1").await?;
    let foreign = home.batch_execute("INSERT INTO writes (bid, client, number, body) VALUES (2, 9, 9, '')").await;
    let code = foreign.err().and_then(|error| error.code().map(|code| code.code().to_owned()));
    ensure!(code.as_deref() == Some("23514"), "another tenant's row was taken: {code:?}");
    said(&["verify", "1"], 0, "is equal").await?;
    said(&["pause", "1"], 0, "").await?;
    said(&["rollback", "1"], 1, "").await?;
    said(&["resume", "1"], 0, "").await?;
    let rollback = async || run(&stage.config, &["rollback", "1"]).await;
    phase(&stage.daemon, "1", &["reversing"]).await?;
    let (one, other) = tokio::join!(rollback(), rollback());
    let codes = [one?.code, other?.code];
    ensure!(codes.contains(&Some(0)) && codes.contains(&Some(1)), "two at once: {codes:?}");
    said(&["rollback", "1"], 1, "they were moved back").await?;
    said(&["complete", "1"], 1, "its writes are not in the target").await?;
    said(&["verify", "1"], 0, "is equal").await?;
    said(&["cutover", "1"], 0, "lives in database bid_1").await?;
    said(&["complete", "1"], 0, "is complete").await?;
    for command in ["move", "cutover", "rehearse", "rollback", "verify", "pause", "resume", "cancel"] {
        said(&[command, "1"], 1, "").await?;
    }
    said(&["complete", "1"], 0, "is complete").await?;
    // Another one is moved, moved back, and forgotten.
    stage.carve("2", "schema").await?;
    said(&["cutover", "2"], 0, "lives in schema bid_2").await?;
    said(&["rollback", "2"], 0, "lives in database shop").await?;
    said(&["cancel", "2"], 0, "cancelled").await?;
    let source = stage.scene.source_client().await?;
    ensure!(source.query_one(LEFT, &[]).await?.get::<_, i64>(0) == 0, "something of Carveout stayed");
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'bid_2'";
    ensure!(source.query_one(schemas, &[]).await?.get::<_, i64>(0) == 0, "the schema stayed");
    source
        .batch_execute("UPDATE accounts SET balance = balance + 1 WHERE bid = 2")
        .await
        .context("the tenant writes")?;
    stage.daemon.assert_no_errors(&[])
}

/// Who hears of a flip before it is answered, and wants the writes back at once, gets them back.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_at_a_flip_waits_for_its_end() -> Result<()> {
    let stage = Stage::open().await?;
    stage.carve("1", "database").await?;
    for (then, lives) in [("rollback", "shared"), ("pause", "database")] {
        let config = stage.config.clone();
        let asked = tokio::spawn(async move { cli(&config, &["cutover", "1"]).await });
        phase(&stage.daemon, "1", &["reversing"]).await?;
        cli(&stage.config, &[then, "1"]).await?;
        asked.await??;
        let status = stage.daemon.tenant("1").await?;
        ensure!(status["isolation"] == lives, "{status}");
    }
    cli(&stage.config, &["resume", "1"]).await?;
    phase(&stage.daemon, "1", &["reversing"]).await?;
    cli(&stage.config, &["rollback", "1"]).await?;
    stage.daemon.assert_no_errors(&[])
}

/// A failing hook before a step stops it, one after it does not; without `rollback_enabled` there is no way back and nothing is
/// asked of the target's server; without `validation_enabled` the reports say so.
#[tokio::test(flavor = "multi_thread")]
async fn hooks_run_around_the_steps_and_what_is_switched_off_is_said() -> Result<()> {
    let folder = Scene::single(ClusterOptions::default()).await?;
    let said = folder.path().join("said");
    let hook = |word: &str| format!("[\"/bin/sh\", \"-c\", \"echo {word} {{tenant}} >> {}\"]", said.display());
    let extra = format!(
        "hooks: {{before_cutover: {}, after_cutover: [\"/bin/false\"], before_complete: {}, after_complete: {}}}\n",
        hook("cutover"),
        hook("complete"),
        hook("completed")
    );
    let strategy = "  migration_config: {rollback_enabled: false, validation_enabled: false}\n";
    let stage = Stage::open_with(strategy, &extra).await?;
    stage.carve("1", "database").await?;
    run(&stage.config, &["cutover", "1"]).await?.assert(0, &["NOT VERIFIED", "lives in database bid_1"])?;
    let target = stage.scene.target_client("bid_1").await?;
    let slots: i64 = target.query_one("SELECT count(*) FROM pg_replication_slots", &[]).await?.get(0);
    ensure!(slots == 0, "a slot was made");
    target.batch_execute("INSERT INTO writes (bid, client, number, body) VALUES (1, 1, 1, 'there')").await?;
    run(&stage.config, &["rollback", "1"]).await?.assert(1, &["rollback_enabled was false"])?;
    run(&stage.config, &["verify", "1"]).await?.assert(1, &["rollback_enabled was false"])?;
    run(&stage.config, &["complete", "1"]).await?.assert(0, &["NONE: both sides were not compared", "is complete"])?;
    ensure!(
        std::fs::read_to_string(&said)? == "cutover 1\ncomplete 1\ncompleted 1\n",
        "{:?}",
        std::fs::read_to_string(&said)
    );
    ensure!(stage.daemon.log()?.contains("a hook failed"), "the failing hook was not reported");
    // Before a step it counts.
    let failing = Stage::open_with("", "hooks: {before_cutover: [\"/bin/false\"]}\n").await?;
    failing.carve("1", "schema").await?;
    run(&failing.config, &["cutover", "1"]).await?.assert(1, &["hooks.before_cutover", "ended with"])?;
    phase(&failing.daemon, "1", &["streaming", "ready"]).await?;
    failing.daemon.assert_no_errors(&[])
}

/// What got past the fence after both sides were compared is in no certificate: `complete` names it and does not delete it.
#[tokio::test(flavor = "multi_thread")]
async fn complete_deletes_only_what_was_compared() -> Result<()> {
    let folder = Scene::single(ClusterOptions::default()).await?;
    let script = folder.path().join("past.sh");
    let hooks = format!("hooks: {{before_complete: [\"/bin/sh\", \"{}\"]}}\n", script.display());
    let stage = Stage::open_with("", &hooks).await?;
    let psql = stage.scene.source.command("psql")?;
    let past = "ALTER TABLE writes DISABLE TRIGGER USER; \
                INSERT INTO writes (bid, client, number, body) VALUES (1, 99, 99, 'past the fence'); \
                UPDATE accounts SET balance = balance WHERE false";
    let environment =
        psql.get_envs().filter_map(|(name, value)| Some(format!("export {}='{}'\n", name.to_str()?, value?.to_str()?)));
    let lines = format!(
        "{}{} -X -q -v ON_ERROR_STOP=1 -d shop -c \"{past}\"\n",
        environment.collect::<String>(),
        std::iter::once(psql.get_program())
            .chain(psql.get_args())
            .filter_map(|word| Some(format!("'{}' ", word.to_str()?)))
            .collect::<String>()
    );
    std::fs::write(&script, lines)?;
    stage.carve("1", "database").await?;
    let clients = Clients::start(&stage.scene, "1", 2).await?;
    clients.progress(20).await?;
    cli(&stage.config, &["cutover", "1"]).await?;
    clients.progress(20).await?;
    // Clients go on: what flows back meanwhile is no residue.
    run(&stage.config, &["complete", "1"])
        .await?
        .assert(1, &["public.writes", "1 rows of the tenant are still there"])?;
    let source = stage.scene.source_client().await?;
    let left = "SELECT count(*), coalesce(max(body), '') FROM writes WHERE bid = 1";
    let left = source.query_one(left, &[]).await?;
    ensure!((left.get::<_, i64>(0), left.get::<_, &str>(1)) == (1, "past the fence"), "{left:?}");
    run(&stage.config, &["complete", "1", "--keep-source"]).await?.assert(0, &["is complete"])?;
    let ledger = clients.stop().await?;
    ledger.assert_held_by(&stage.scene.target_client("bid_1").await?, "public", "1").await
}

/// What stops the way back says how to go on with the tenant where it lives.
#[tokio::test(flavor = "multi_thread")]
async fn a_way_back_that_stands_says_what_can_be_done() -> Result<()> {
    let stage = Stage::open().await?;
    stage.carve("1", "database").await?;
    cli(&stage.config, &["cutover", "1"]).await?;
    stage.scene.target_client("bid_1").await?.batch_execute("TRUNCATE notes").await?;
    let status = until("a fault", SOON, async || {
        let status = stage.json(&["status", "1"]).await?;
        ensure!(status["fault"]["code"] == "truncate", "{status}");
        Ok(status)
    })
    .await?;
    let next = status["fault"]["next"].as_str().unwrap_or_default();
    ensure!(next.contains("at the source") && next.contains("--keep-source"), "{status}");
    run(&stage.config, &["rollback", "1"]).await?.assert(1, &["the lane back stands at", "notes"])?;
    run(&stage.config, &["complete", "1"]).await?.assert(1, &["--keep-source"])?;
    run(&stage.config, &["complete", "1", "--keep-source"]).await?.assert(0, &["is complete"])?;
    let source = stage.scene.source_client().await?;
    let rows = "SELECT count(*) FROM notes WHERE account IN (SELECT id FROM accounts WHERE bid = 1)";
    ensure!(source.query_one(rows, &[]).await?.get::<_, i64>(0) == 300, "rows at the source went");
    Ok(())
}

/// Who is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Daemon,
    Source,
    Target,
}

/// Issue line 2, C02, T07, invariants 7 to 9: whoever is killed, whenever, the cutover or the rollback ends by itself in one of
/// two ways.
async fn kill(tenant: &str, to: &str, rounds: u32, asynchronous: bool) -> Result<()> {
    let mut stage = Stage::open().await?;
    if asynchronous {
        let source = stage.scene.source_client().await?;
        source.batch_execute("ALTER DATABASE shop SET synchronous_commit = off").await?;
    }
    stage.carve(tenant, to).await?;
    if asynchronous && to == "database" {
        let sql = format!("ALTER DATABASE bid_{tenant} SET synchronous_commit = off");
        stage.scene.target_client("postgres").await?.batch_execute(&sql).await?;
    }

    let clients = Clients::start(&stage.scene, tenant, 4).await?;
    // How long it takes when nobody is killed.
    let began = Instant::now();
    for command in ["cutover", "rollback"] {
        cli(&stage.config, &[command, tenant]).await?;
    }
    let usual = began.elapsed() / 2;
    let mut rng = seed::rng("kill");
    // A schema has no server of its own.
    let victims: &[Victim] = match to {
        "database" => &[Victim::Daemon, Victim::Source, Victim::Target],
        _ => &[Victim::Daemon, Victim::Source],
    };
    let mut crashes = Vec::new();
    let (mut there, mut flips, mut longest, mut answered) = (false, 0, Duration::ZERO, 0);
    for round in 0..rounds {
        let wish = if there { "rollback" } else { "cutover" };
        let victim = victims[rng.random_range(0..victims.len())];
        let moment = usual.mul_f64(rng.random_range(0.3..1.4));
        let (config, of) = (stage.config.clone(), tenant.to_owned());
        let asked = tokio::spawn(async move { tests::binary::cli(&config, &[wish, &of]).await });
        tokio::time::sleep(moment).await;
        answered += u32::from(asked.is_finished());
        match victim {
            Victim::Daemon => {
                stage.daemon.kill()?;
                stage.daemon = Daemon::start(&stage.config).await?;
            }
            Victim::Source | Victim::Target => {
                let (is_target, began) = (matches!(victim, Victim::Target), Instant::now());
                crash(if is_target { &stage.scene.target } else { &stage.scene.source }).await?;
                crashes.push((is_target, began, Instant::now()));
            }
        }
        let began = Instant::now();
        asked.await??;
        let settled = ["streaming", "ready", "rolled_back", "reversing"];
        let status = phase(&stage.daemon, tenant, &settled)
            .await
            .with_context(|| format!("{round} {wish} {victim:?} {moment:?}"))?;
        clients.progress(5).await.with_context(|| format!("{round} {wish} {victim:?} {moment:?} {status}"))?;
        longest = longest.max(began.elapsed());
        ensure!(began.elapsed() < Duration::from_secs(60), "{victim:?} at {moment:?}: {:?}", began.elapsed());
        let now = status["isolation"] != "shared";
        flips += u32::from(now != there);
        there = now;
    }
    let mut ledger = clients.stop().await?;
    ledger.assert_never_on_both_sides()?;
    if asynchronous {
        crashes.into_iter().for_each(|(is_target, began, ended)| ledger.forget_around(is_target, began, ended));
    }
    stage.assert_equal(tenant, to, &ledger).await?;
    println!("{to}: {rounds} kills ({answered} after the answer), {flips} flips, settled within {longest:?}; {ledger}");
    Ok(())
}

/// Ends a server at once, and starts it again.
async fn crash(cluster: &Arc<Cluster>) -> Result<()> {
    let cluster = Arc::clone(cluster);
    tokio::task::spawn_blocking(move || {
        cluster.stop(StopMode::Immediate)?;
        cluster.start_again()
    })
    .await?
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_killed_the_writes_are_on_one_side() -> Result<()> {
    kill("1", "database", 8, false).await
}

/// The same to a schema too, which takes longer.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "campaign: 200 kills"]
async fn two_hundred_kills() -> Result<()> {
    kill("1", "database", 100, false).await?;
    kill("1", "schema", 100, false).await
}

/// The same where a server that dies takes back what it has acknowledged last.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "campaign: 200 kills"]
async fn two_hundred_kills_with_synchronous_commit_off() -> Result<()> {
    kill("1", "database", 100, true).await?;
    kill("1", "schema", 100, true).await
}

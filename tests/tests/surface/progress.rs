//! How a move goes, as dashboards read it (`carveout.migration_progress`) and as programs follow it (`/v1/events`, the log).

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::daemon::Daemon;
use tests::scene::Configuration;
use tests::wait::until;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::{Desk, SOON, run};
use crate::carve::{cli, phase};
use crate::settle::faulted;

/// The rows of a tenant, each in one line: the phases in the order in which they began, then the tables.
const ROWS: &str = "SELECT concat_ws(' ', phase, table_name, status, records_migrated || '/' || records_total)
   FROM carveout.migration_progress WHERE tenant = $1 ORDER BY table_name NULLS FIRST, started_at";

async fn rows(desk: &Desk, tenant: &str) -> Result<Vec<String>> {
    Ok(desk.source.query(ROWS, &[&tenant]).await?.iter().map(|row| row.get(0)).collect())
}

/// Waits until the table says exactly this.
async fn says(desk: &Desk, tenant: &str, wanted: &[&str]) -> Result<()> {
    until(&format!("{wanted:#?}"), SOON, async || {
        let rows = rows(desk, tenant).await?;
        ensure!(rows == wanted, "{rows:#?}");
        Ok(())
    })
    .await?;
    // Whatever is over has a beginning and an end, what goes on only a beginning.
    let wrong = "SELECT string_agg(p::text, ' ') FROM carveout.migration_progress p
                  WHERE CASE status WHEN 'completed' THEN started_at <= completed_at AND completed_at <= clock_timestamp()
                                    WHEN 'running' THEN started_at <= clock_timestamp() AND completed_at IS NULL
                                    ELSE true END IS NOT true";
    let wrong: Option<String> = desk.source.query_one(wrong, &[]).await?.get(0);
    ensure!(wrong.is_none(), "wrong times: {wrong:?}");
    Ok(())
}

const TABLES: [&str; 2] = ["copying public.events completed 100/100", "copying public.orders completed 100/100"];

/// Issue 5, INTERFACE: one row per phase and per table, true at every step from the plan to the end; a step that is taken
/// again begins again.
#[tokio::test(flavor = "multi_thread")]
async fn the_table_says_how_a_move_goes_from_its_plan_to_its_end() -> Result<()> {
    let desk = Desk::open().await?;
    let daemon = desk.work().await?;
    desk.carve(&daemon, "1", "schema").await?;
    let begun = ["planned completed", "provisioning completed", "copying completed 200/200"];
    let now = async |phases: &[&str]| says(&desk, "1", &[&begun[..], phases, &TABLES[..]].concat()).await;
    now(&["streaming running"]).await?;
    cli(&desk.config, &["cutover", "1"]).await?;
    now(&["streaming completed", "cutting_over completed", "reversing running"]).await?;
    cli(&desk.config, &["rollback", "1"]).await?;
    let there = ["streaming completed", "cutting_over completed", "reversing completed", "rolling_back completed"];
    now(&[&there[..], &["rolled_back running"]].concat()).await?;
    cli(&desk.config, &["cutover", "1"]).await?;
    let back = ["streaming completed", "rolling_back completed", "rolled_back completed", "cutting_over completed"];
    now(&[&back[..], &["reversing running"]].concat()).await?;
    phase(&daemon, "1", &["reversing"]).await?;
    cli(&desk.config, &["complete", "1"]).await?;
    let end = ["reversing completed", "completing completed", "completed completed"];
    now(&[&back[..], &end[..]].concat()).await?;
    daemon.assert_no_errors(&[])
}

/// What stands says why, without values of rows; what is cancelled says so until the tenant moves again, which begins anew.
#[tokio::test(flavor = "multi_thread")]
async fn what_fails_says_why_and_what_is_cancelled_begins_anew() -> Result<()> {
    let desk = Desk::open().await?;
    let daemon = desk.work().await?;
    desk.carve(&daemon, "1", "schema").await?;
    desk.sql("INSERT INTO bid_1.orders VALUES (1, 9001, 'by hand')").await?;
    desk.sql("INSERT INTO orders VALUES (1, 9001, 'a secret of the tenant')").await?;
    faulted(&daemon, "1").await?;
    let begun = ["planned completed", "provisioning completed", "copying completed 200/200"];
    says(&desk, "1", &[&begun[..], &["streaming failed"], &TABLES[..]].concat()).await?;
    let why = desk.ask("SELECT error_message FROM carveout.migration_progress WHERE phase = 'streaming'").await?;
    ensure!(why.contains("orders") && why.contains("duplicate key") && !why.contains("secret"), "{why}");
    ensure!(!daemon.log()?.contains("secret of"), "a row's value is in the log");
    cli(&desk.config, &["cancel", "1"]).await?;
    let cancelled = ["streaming cancelled", "cancelling completed", "cancelled cancelled"];
    let tables = ["copying public.events cancelled 100/100", "copying public.orders cancelled 100/100"];
    says(&desk, "1", &[&begun[..], &cancelled[..], &tables[..]].concat()).await?;
    desk.sql("DELETE FROM orders WHERE id = 9001").await?;
    desk.carve(&daemon, "1", "schema").await?;
    says(&desk, "1", &[&begun[..], &["streaming running"], &TABLES[..]].concat()).await?;
    daemon.assert_no_errors(&["duplicate key"])
}

/// A cutover that began and did not move the writes is told from one that did.
#[tokio::test(flavor = "multi_thread")]
async fn a_cutover_that_moves_nothing_is_a_failed_one() -> Result<()> {
    let desk = Desk::open().await?;
    let daemon = desk.work().await?;
    desk.carve(&daemon, "1", "schema").await?;
    for command in ["cutover", "rollback"] {
        cli(&desk.config, &[command, "1"]).await?;
    }
    phase(&daemon, "1", &["rolled_back"]).await?;
    // The fence is there already; a writer is longer at it than a cutover waits.
    desk.sql("BEGIN; UPDATE orders SET note = 'held' WHERE bid = 1 AND id = 1").await?;
    run(&desk.config, &["cutover", "1"]).await?.assert(1, &[])?;
    desk.sql("COMMIT").await?;
    let begun = ["planned completed", "provisioning completed", "copying completed 200/200", "streaming completed"];
    let then = ["reversing completed", "rolling_back completed", "cutting_over failed", "rolled_back running"];
    says(&desk, "1", &[&begun[..], &then[..], &TABLES[..]].concat()).await?;
    let why = desk.ask("SELECT error_message FROM carveout.migration_progress WHERE phase = 'cutting_over'").await?;
    ensure!(why.contains("did not move"), "{why}");
    daemon.assert_no_errors(&[])
}

/// A copy that is held, let go and cut off by a kill: the rows say so, and in the end what was copied.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_while_it_copies_tells_the_rest_afterwards() -> Result<()> {
    let extra = "limits: {copy_rows_per_second: 500}\n".to_owned();
    let desk = Desk::open_with(Default::default(), Configuration { extra, ..Configuration::default() }).await?;
    desk.sql("INSERT INTO orders SELECT 1, n, 'more' FROM generate_series(1001, 4000) n; ANALYZE orders, events")
        .await?;
    let mut daemon = desk.work().await?;
    cli(&desk.config, &["move", "1", "--to", "schema"]).await?;
    let copies = async |status: &str| {
        until(&format!("a table {status}"), SOON, async || {
            let sql = "SELECT count(*) FROM carveout.migration_progress p WHERE phase = 'copying' AND status = $1
                          AND completed_at IS NULL AND records_migrated > 0 AND records_migrated < records_total";
            let count: i64 = desk.source.query_one(sql, &[&status]).await?.get(0);
            // That of the table and that of the phase.
            ensure!(count == 2, "{:?}", rows(&desk, "1").await?);
            Ok(())
        })
        .await
    };
    copies("running").await?;
    cli(&desk.config, &["pause", "1"]).await?;
    copies("paused").await?;
    cli(&desk.config, &["resume", "1"]).await?;
    copies("running").await?;
    daemon.kill()?;
    copies("running").await?;
    daemon = Daemon::start(&desk.config).await?;
    copies("running").await?;
    phase(&daemon, "1", &["streaming"]).await?;
    let ended = ["copying completed 3200/3200", "streaming running"];
    let tables = ["copying public.events completed 100/100", "copying public.orders completed 3100/3100"];
    let wanted = [&["planned completed", "provisioning completed"], &ended[..], &tables[..]].concat();
    says(&desk, "1", &wanted).await?;
    // Another daemon tells the same of what is over.
    let all = "SELECT string_agg(p::text, ' ' ORDER BY p::text) FROM carveout.migration_progress p";
    let before = desk.ask(&format!("({all})")).await?;
    ensure!(daemon.terminate().await?.success());
    desk.sql("UPDATE carveout.migration_progress SET status = 'pending' WHERE phase = 'streaming'").await?;
    daemon = Daemon::start(&desk.config).await?;
    says(&desk, "1", &wanted).await?;
    ensure!(desk.ask(&format!("({all})")).await? == before, "it was told otherwise: {before}");
    daemon.assert_no_errors(&[])
}

/// It only tells: whoever locks the table or drops it holds up no move, and it is mended by `prepare`.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_be_written_holds_up_no_move() -> Result<()> {
    let desk = Desk::open().await?;
    let daemon = desk.work().await?;
    let other = desk.scene.source_client().await?;
    other.batch_execute("BEGIN; LOCK TABLE carveout.migration_progress").await?;
    desk.carve(&daemon, "1", "schema").await?;
    cli(&desk.config, &["cutover", "1"]).await?;
    cli(&desk.config, &["rollback", "1"]).await?;
    // Said once as long as it lasts.
    let unwritten = async |times| {
        until("a word about it in the log", SOON, async || {
            let said = daemon.log()?.matches("the moves' progress could not be written").count();
            ensure!(said == times, "said {said} times");
            Ok(())
        })
        .await
    };
    unwritten(1).await?;
    other.batch_execute("COMMIT").await?;
    let begun = ["planned completed", "provisioning completed", "copying completed 200/200", "streaming completed"];
    let moved = ["cutting_over completed", "reversing completed", "rolling_back completed", "rolled_back running"];
    let wanted = [&begun[..], &moved[..], &TABLES[..]].concat();
    says(&desk, "1", &wanted).await?;
    // An older version's schema has no such table.
    desk.sql("DROP TABLE carveout.migration_progress").await?;
    desk.sql("UPDATE orders SET note = 'new' WHERE bid = 1").await?;
    desk.assert_equal(&daemon, "1", "schema").await?;
    cli(&desk.config, &["pause", "1"]).await?;
    unwritten(2).await?;
    run(&desk.config, &["check"]).await?.assert(1, &["schema carveout", "migration_progress"])?;
    run(&desk.config, &["prepare", "--apply"]).await?.assert(0, &["prepared: 1 step"])?;
    let held: Vec<&str> = wanted.iter().map(|row| if *row == moved[3] { "rolled_back paused" } else { row }).collect();
    says(&desk, "1", &held).await?;
    cli(&desk.config, &["resume", "1"]).await?;
    says(&desk, "1", &wanted).await?;
    daemon.assert_no_errors(&[])
}

/// Reads `/v1/events`.
struct Follower(BufReader<TcpStream>);

impl Follower {
    async fn of(daemon: &Daemon) -> Result<Follower> {
        let mut lines = BufReader::new(TcpStream::connect(daemon.address).await?);
        lines.write_all(b"GET /v1/events HTTP/1.1\r\nHost: here\r\n\r\n").await?;
        let mut follower = Follower(lines);
        // From the first status on nothing is missed.
        ensure!(follower.next().await?.0 == "status");
        Ok(follower)
    }

    /// The next event: its name and its data.
    async fn next(&mut self) -> Result<(String, Value)> {
        let mut name = String::new();
        loop {
            let mut line = String::new();
            ensure!(tokio::time::timeout(SOON, self.0.read_line(&mut line)).await?? > 0, "it ended");
            if let Some(event) = line.strip_prefix("event: ") {
                event.trim().clone_into(&mut name);
            }
            if let Some(data) = line.strip_prefix("data: ") {
                return Ok((name, serde_json::from_str(data)?));
            }
        }
    }

    /// What has happened until this is told.
    async fn until(&mut self, last: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
        let mut told = Vec::new();
        loop {
            let (name, event) = self.next().await?;
            if name == "status" {
                continue;
            }
            ensure!(event["event"] == name.as_str(), "{name}: {event}");
            told.push(event);
            if told.last().is_some_and(&last) {
                return Ok(told);
            }
        }
    }
}

/// Issue 5: what happens is told at once, with documented names and fields, and the log has the same.
#[tokio::test(flavor = "multi_thread")]
async fn events_and_the_log_say_the_same() -> Result<()> {
    let extra = "log: {format: json}\n".to_owned();
    let desk = Desk::open_with(Default::default(), Configuration { extra, ..Configuration::default() }).await?;
    let daemon = desk.work().await?;
    let mut follower = Follower::of(&daemon).await?;
    for tenant in ["1", "2"] {
        desk.carve(&daemon, tenant, "schema").await?;
    }
    for command in ["pause", "resume"] {
        cli(&desk.config, &[command, "1"]).await?;
    }
    phase(&daemon, "1", &["streaming"]).await?;
    for command in ["verify", "rehearse", "cutover", "rollback", "cutover"] {
        cli(&desk.config, &[command, "1"]).await?;
    }
    run(&desk.config, &["cutover", "1"]).await?.assert(1, &[])?;
    phase(&daemon, "1", &["reversing"]).await?;
    cli(&desk.config, &["complete", "1"]).await?;
    desk.sql("TRUNCATE events").await?;
    let told = follower.until(|event| event["event"] == "fault").await?;

    let of = |name: &str| told.iter().filter(|event| event["event"] == name).cloned().collect::<Vec<_>>();
    let phases: Value =
        of("phase").iter().filter(|event| event["tenant"] == "1").map(|event| event["phase"].clone()).collect();
    let wanted = "planned provisioning copying streaming cutting_over reversing rolling_back rolled_back cutting_over \
                  reversing completing completed";
    ensure!(phases == Value::from_iter(wanted.split_whitespace()), "{phases}");
    let tables = of("table");
    let copied = tables.iter().filter(|event| event["status"] == "completed" && event["rows_copied"] == 100);
    ensure!(tables.len() == 8 && copied.count() == 4, "{tables:?}");
    ensure!(of("verify").iter().all(|event| event["equal"] == true && event["differences"] == 0), "{told:?}");
    let cutovers = of("cutover");
    let outcomes: Vec<&str> = cutovers.iter().filter_map(|event| event["status"].as_str()).collect();
    ensure!(outcomes == ["completed", "completed", "failed"], "{cutovers:?}");
    ensure!(cutovers[0]["pause_ms"].as_f64() > Some(0.0) && cutovers[0]["isolation"] == "schema", "{cutovers:?}");
    ensure!(cutovers[2]["code"] == "not_ready" && cutovers[2]["cause"].is_string(), "{cutovers:?}");
    ensure!(of("complete")[0]["rows_deleted"] == 200, "{:?}", of("complete"));
    ensure!(of("fault")[0]["code"] == "truncate" && of("fault")[0]["tenant"] == "2", "{:?}", of("fault"));
    let names: BTreeSet<&str> = told.iter().filter_map(|event| event["event"].as_str()).collect();
    let wanted = "complete cutover fault paused phase rehearse resumed rollback table verify";
    ensure!(names == wanted.split(' ').collect(), "{names:?}");

    let logged: Result<Vec<Value>> = until("the last event in the log", SOON, async || {
        let log = daemon.log()?;
        let lines = log.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
        let events = lines.context(log)?.into_iter().filter(|line| !line["event"].is_null()).map(without_the_frame);
        let events: Vec<Value> = events.collect();
        ensure!(events.last().is_some_and(|event| event["event"] == "fault"), "{:?}", events.last());
        Ok(events)
    })
    .await;
    let (mut logged, mut told) = (logged?, told);
    ensure!(told.iter().all(|event| !event.to_string().contains("order 1")), "a row's value: {told:?}");
    // Two tasks may tell at the same time.
    logged.sort_by_key(Value::to_string);
    told.sort_by_key(Value::to_string);
    ensure!(logged == told, "log {logged:#?}\nevents {told:#?}");
    daemon.assert_no_errors(&["truncated on the source"])
}

/// What every line of the log has.
fn without_the_frame(mut line: Value) -> Value {
    for part in ["timestamp", "level", "target", "span", "spans"] {
        line.as_object_mut().map(|line| line.remove(part));
    }
    line
}

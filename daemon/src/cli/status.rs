//! `carveout status`: the table of moves, or everything about one.

use std::io::{IsTerminal, stdout};
use std::thread::sleep;
use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use schemas::status::{CertificateStatus, SourceStatus, Status, TenantStatus};
use serde::Serialize;

use super::Global;
use super::client::{Client, tenant_path};
use super::exit::{Exit, Failure, describe};
use super::format::{bytes, count, percent, seconds, server_version};
use super::output::{self, Output, plain, table};
use crate::clock;

/// Between two looks with `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Where nothing is known.
const NOTHING: &str = "-";

/// What `status` takes.
#[derive(Args)]
pub struct Options {
    /// The tenant's key; left out, all moves are shown
    #[arg(value_parser = NonEmptyStringValueParser::new(), allow_negative_numbers = true)]
    tenant: Option<String>,
    /// Look again every second, until interrupted
    #[arg(short, long)]
    watch: bool,
}

/// Runs the command.
pub fn run(global: &Global, options: &Options) -> Result<Exit, Failure> {
    let client = Client::reader(global)?;
    match &options.tenant {
        None => look(global, options, || client.get("/v1/status"), everything),
        Some(tenant) => look(global, options, || client.get(&tenant_path(tenant)), one),
    }
}

/// Prints what `ask` brings, once or again and again.
fn look<T: Serialize>(
    global: &Global,
    options: &Options,
    ask: impl Fn() -> Result<T, Failure>,
    text: impl Fn(&T) -> String,
) -> Result<Exit, Failure> {
    let first = ask()?;
    if !options.watch {
        output::result(global.output, &first, || text(&first))?;
        return Ok(Exit::Done);
    }
    let mut answer: Result<_, Failure> = Ok(first);
    loop {
        match (&answer, global.output) {
            (Ok(value), Output::Json) => output::json_line(value)?,
            (Ok(value), Output::Text) => redraw(&text(value))?,
            // The daemon may come back: it is waited for, visibly.
            (Err(failure), Output::Json) => failure.report(Output::Json),
            (Err(failure), Output::Text) => redraw(&(describe("error", &failure.fault) + "\n"))?,
        }
        sleep(WATCH_INTERVAL);
        answer = ask();
    }
}

/// On a terminal over what stood there before, elsewhere below it.
fn redraw(text: &str) -> Result<(), Failure> {
    if stdout().is_terminal() {
        // Home; clear to the end of each line, and below the last.
        output::print(&format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")))
    } else {
        output::print(&format!("{text}\n"))
    }
}

fn everything(status: &Status) -> String {
    let mut text = source(&status.source);
    if status.tenants.is_empty() {
        return text + "no moves; `carveout move TENANT --to schema|database` starts one\n";
    }
    let rows: Vec<Vec<String>> = status.tenants.iter().map(row).collect();
    text += "\n";
    text += &table(&["TENANT", "MOVE", "TO", "TARGET", "PHASE", "ROWS", "LAG", "BEHIND", "FAULT"], &rows);
    for tenant in &status.tenants {
        if let Some(fault) = &tenant.fault {
            text += &format!("\n{}\n", describe(&plain(&tenant.tenant.0), fault));
        }
        if let Some(load) = &tenant.throttled_by {
            text += &format!("\n{}: the copy gives way to the source: {}\n", plain(&tenant.tenant.0), plain(load));
        }
        if let Some(waiting) = &tenant.waiting_for {
            text += &format!("\n{}: waiting: {}\n", plain(&tenant.tenant.0), plain(waiting));
        }
    }
    text
}

fn source(source: &SourceStatus) -> String {
    let mut parts = vec![source.state.clone(), format!("slot {}", source.slot)];
    parts.extend(source.server_version.map(|version| format!("PostgreSQL {}", server_version(version))));
    parts.push(format!("{} behind", bytes(source.lag_bytes)));
    parts.extend(source.retained_bytes.map(|kept| format!("slot keeps {}", bytes(kept))));
    parts.push(format!("acknowledged {}", source.acknowledged_lsn));
    let fault = source.fault.as_ref().map(|fault| describe("source", fault) + "\n");
    format!("source: {}\n{}", plain(&parts.join(", ")), fault.unwrap_or_default())
}

fn row(tenant: &TenantStatus) -> Vec<String> {
    let rows = match (tenant.rows_copied, tenant.rows_total) {
        (0, 0) => NOTHING.to_owned(),
        (copied, total) if copied == total => count(copied),
        (copied, total) => format!("{} ({}%)", count(copied), percent(copied, total)),
    };
    vec![
        tenant.tenant.0.clone(),
        tenant.r#move.to_string(),
        tenant.to.clone(),
        place(tenant),
        phase(tenant),
        rows,
        tenant.lag_seconds.map_or(NOTHING.to_owned(), seconds),
        bytes(tenant.lag_bytes),
        tenant.fault.as_ref().map_or(NOTHING.to_owned(), |fault| fault.code.clone()),
    ]
}

/// The phase, and whether a person holds the move.
fn phase(tenant: &TenantStatus) -> String {
    if tenant.paused { format!("{} (paused)", tenant.phase) } else { tenant.phase.clone() }
}

/// The target's name, and its server where the tenant has one for itself.
pub fn place(tenant: &TenantStatus) -> String {
    let server = tenant.server.as_ref().map(|server| format!(" on {server}"));
    format!("{}{}", tenant.target, server.unwrap_or_default())
}

/// The last clean comparison of all rows.
fn verified(certificate: &CertificateStatus) -> String {
    let CertificateStatus { at, lsn, counts, tables, rows } = certificate;
    let ago = seconds((clock::unix_micros() as f64 / 1e6 - at).max(0.0));
    let worth = if *counts { "it counts for moving the writes" } else { "it counts no more" };
    format!("equal {ago} ago at {lsn}: {} rows of {} tables; {worth}", count(*rows), count(*tables))
}

/// Everything about one move, also what `move` and `cancel` answer with.
pub fn one(tenant: &TenantStatus) -> String {
    let done = percent(tenant.rows_copied, tenant.rows_total);
    let lag = tenant.lag_seconds.map_or("not known before the copy is done".to_owned(), seconds);
    let cutover = match (tenant.can_cutover, tenant.blocked_by.is_empty()) {
        (true, _) => "possible".to_owned(),
        (false, true) => "not possible".to_owned(),
        (false, false) => format!("not possible: {}", tenant.blocked_by.join("; ")),
    };
    let mut lines = vec![
        ("tenant", tenant.tenant.0.clone()),
        ("move", tenant.r#move.to_string()),
        ("lives in", tenant.isolation.clone()),
        ("goes to", format!("{} {}", tenant.to, place(tenant))),
        ("phase", phase(tenant)),
        ("copied", format!("{} of {} rows ({done}%)", count(tenant.rows_copied), count(tenant.rows_total))),
        ("lag", format!("{lag}; {} of log behind", bytes(tenant.lag_bytes))),
        ("received", tenant.received_lsn.to_string()),
        ("applied", tenant.applied_lsn.to_string()),
        ("spool", bytes(tenant.spool_bytes)),
        ("verified", tenant.certificate.as_ref().map_or("never".to_owned(), verified)),
        ("cutover", cutover),
    ];
    let skipped: Vec<String> = tenant.skipped.iter().map(ToString::to_string).collect();
    lines.extend((!skipped.is_empty()).then(|| ("left out", skipped.join(", "))));
    lines.extend(tenant.warnings.iter().map(|warning| ("warning", warning.clone())));
    lines.extend(tenant.left_out.iter().map(|object| ("not made", object.clone())));
    lines.extend(tenant.throttled_by.clone().map(|load| ("throttled", format!("by the source's load: {load}"))));
    lines.extend(tenant.waiting_for.clone().map(|waiting| ("waiting", waiting)));
    lines.extend(tenant.route_epoch.map(|epoch| ("route", format!("epoch {epoch}"))));
    let mut text: String = lines.iter().map(|(name, value)| format!("{name:<10}{}\n", plain(value))).collect();
    if let Some(fault) = &tenant.fault {
        text += &(describe("fault", fault) + "\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::Lsn;
    use schemas::record::Fault;

    /// As INTERFACE shows it, with what this version leaves out.
    fn sample() -> Status {
        let json = r#"{"version":"0.1.0",
            "source":{"state":"streaming","slot":"carveout","server_version":150018,"wal_lsn":"0/5000060","received_lsn":"0/5000060",
                "acknowledged_lsn":"0/5000028","lag_bytes":0,"retained_bytes":16777216,"fault":null},
            "tenants":[{"tenant":"7","move":"m1","isolation":"shared","to":"database","target":"bid_7","phase":"copying",
                "rows_copied":60000,"rows_total":120000,"received_lsn":"0/5000060","applied_lsn":"0/5000060","lag_bytes":1536,
                "lag_seconds":null,"spool_bytes":0,"can_cutover":false,"blocked_by":["the copy is not done"],"fault":null,
                "verified_at_lsn":null,"route_epoch":null}]}"#;
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn moves_are_shown_as_a_table_below_the_source() {
        let expected = "source: streaming, slot carveout, PostgreSQL 15.18, 0 B behind, slot keeps 16.0 MiB, acknowledged 0/5000028\n\n\
            TENANT  MOVE  TO        TARGET  PHASE    ROWS          LAG  BEHIND   FAULT\n\
            7       m1    database  bid_7   copying  60,000 (50%)  -    1.5 KiB  -\n";
        assert_eq!(everything(&sample()), expected);
    }

    #[test]
    fn a_certificate_is_shown_with_what_it_is_worth() {
        let mut tenant = sample().tenants.remove(0);
        assert!(one(&tenant).contains("verified  never\n"));
        let at = clock::unix_micros() as f64 / 1e6 - 125.0;
        for (counts, worth) in [(true, "counts for moving the writes"), (false, "counts no more")] {
            tenant.certificate = Some(CertificateStatus { at, lsn: Lsn(0x60), counts, tables: 3, rows: 1200 });
            let line = format!("verified  equal 2m 05s ago at 0/60: 1,200 rows of 3 tables; it {worth}\n");
            assert!(one(&tenant).contains(&line), "{}", one(&tenant));
        }
    }

    #[test]
    fn a_fault_is_shown_with_its_next_step() {
        let mut status = sample();
        status.tenants[0].fault =
            Some(Fault::new("truncate", "public.orders", "the table was truncated", "carveout move 7"));
        for text in [everything(&status), one(&status.tenants[0])] {
            assert!(text.contains(": public.orders: the table was truncated\n  next: carveout move 7\n"), "{text}");
        }
    }
}

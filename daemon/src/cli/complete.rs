//! `carveout complete`: asks for the end of a move, and prints all of it.

use clap::{Args, ValueEnum};
use schemas::status::{CompletionReport, TableRows};
use serde_json::json;

use super::client::{Client, Patience};
use super::exit::{Exit, Failure};
use super::output::{self, note, plain, table};
use super::{Global, Tenant};

/// What `complete` takes.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    tenant: Tenant,
    /// Leave the tenant's rows at the source
    #[arg(long)]
    keep_source: bool,
    /// How the report is printed, where --output is not json
    #[arg(long, value_enum, default_value = "text")]
    report: Form,
}

/// The value of `--report`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For a terminal.
    Text,
    /// For a ticket.
    Markdown,
}

/// Runs the command.
pub fn run(global: &Global, options: &Options) -> Result<Exit, Failure> {
    let tenant = &options.tenant.tenant;
    let client = Client::commander(global)?;
    note(&format!("completing the move of tenant {}…\n", plain(tenant)));
    let body = json!({"keep_source": options.keep_source});
    let report: CompletionReport = client.command(tenant, "complete", &body, Patience::Unlimited)?;
    output::result(global.output, &report, || match options.report {
        Form::Text => text(&report),
        Form::Markdown => markdown(&report),
    })?;
    Ok(Exit::Done)
}

/// The moments of the timeline, by the time since its beginning.
fn timeline(report: &CompletionReport) -> Vec<Vec<String>> {
    let began = report.timeline.first().map_or(0.0, |event| event.at);
    let row = |event: &schemas::status::Happened| {
        let pause = event.pause_ms.map_or(String::new(), |pause| format!("{pause:.1} ms"));
        vec![format!("{:.1} s", event.at - began), event.phase.clone(), pause]
    };
    report.timeline.iter().map(row).collect()
}

fn counted(rows: &[TableRows]) -> String {
    match rows.iter().map(|table| table.rows).sum::<u64>() {
        0 => "none".to_owned(),
        sum => format!("{sum} in {} tables", rows.len()),
    }
}

/// What is said in one line each.
fn facts(report: &CompletionReport) -> Vec<(&'static str, String)> {
    let certificate = report.certificate.as_ref().map_or("NONE: both sides were not compared".to_owned(), |proved| {
        let rows: u64 = proved.tables.iter().map(|table| table.source_rows).sum();
        format!("{rows} rows in {} tables equal at {}", proved.tables.len(), proved.lsn)
    });
    let schema = report.route.schema.as_ref().map_or(String::new(), |schema| format!(", schema {}", plain(schema)));
    vec![
        (
            "lives in",
            format!("database {}{schema} (route epoch {})", plain(&report.route.database), report.route.epoch),
        ),
        ("rows copied", report.rows_copied.to_string()),
        ("certificate", certificate),
        ("deleted at the source", if report.keep_source { "kept".to_owned() } else { counted(&report.deleted) }),
        ("left at the source", counted(&report.residue)),
        ("of others in the target", counted(&report.foreign)),
    ]
}

fn text(report: &CompletionReport) -> String {
    let facts: Vec<Vec<String>> = facts(report).into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    let head = format!("move {} of tenant {} is complete", report.r#move, plain(&report.tenant.0));
    let times = table(&["AFTER", "PHASE", "PAUSE"], &timeline(report));
    format!("{times}\n{}\n{head}\n", table(&["", ""], &facts).trim_start_matches('\n'))
}

fn markdown(report: &CompletionReport) -> String {
    let mut out = format!("# Move {} of tenant {}\n\n", report.r#move, plain(&report.tenant.0));
    for (name, value) in facts(report) {
        out += &format!("- {name}: {value}\n");
    }
    out += "\n| after | phase | pause |\n|---|---|---|\n";
    for row in timeline(report) {
        out += &format!("| {} |\n", row.join(" | "));
    }
    if let Some(proved) = &report.certificate {
        out += "\n| table | rows | digest |\n|---|---|---|\n";
        for table in &proved.tables {
            out += &format!("| {} | {} | {} |\n", plain(&table.table), table.source_rows, table.source_digest);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use schemas::status::{Happened, Route};
    use schemas::{MoveId, TenantId};

    use super::*;

    #[test]
    fn the_report_says_what_is_left_and_what_was_not_proved() {
        let tenant = TenantId("7".to_owned());
        let happened = |phase: &str, at, pause_ms| Happened { phase: phase.to_owned(), at, pause_ms };
        let report = CompletionReport {
            route: Route {
                tenant: tenant.clone(),
                isolation: "database".to_owned(),
                database: "shop_7".to_owned(),
                schema: None,
                url: String::new(),
                state: "open".to_owned(),
                epoch: 2,
            },
            tenant,
            r#move: MoveId(3),
            timeline: vec![happened("copying", 10.0, None), happened("reversing", 12.5, Some(14.25))],
            rows_copied: 9,
            certificate: None,
            keep_source: false,
            deleted: vec![TableRows { table: "public.a".to_owned(), rows: 9 }],
            residue: Vec::new(),
            foreign: Vec::new(),
        };
        let said = text(&report);
        for part in ["2.5 s  reversing  14.2 ms", "NONE: both", "9 in 1 tables", "move m3 of tenant 7 is complete"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(markdown(&report).contains("| 2.5 s | reversing | 14.2 ms |"));
    }
}

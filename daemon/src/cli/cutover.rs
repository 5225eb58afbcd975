//! `carveout rehearse`, `cutover` and `rollback`: ask for it, and show where the time went.

use clap::Args;
use schemas::config::Span;
use schemas::status::{CutoverReport, Route};
use serde_json::json;

use super::client::{Client, Patience};
use super::exit::{Exit, Failure};
use super::output::{self, note, plain, table};
use super::{Global, Tenant};
use crate::moves::cutover::Wish;

/// What they take.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    tenant: Tenant,
    /// How long the tenant's writers may be held at most
    #[arg(long, value_name = "TIME", default_value = "5s")]
    max_pause: Span,
}

/// Runs the command.
pub fn run(global: &Global, wish: Wish, options: &Options) -> Result<Exit, Failure> {
    let Options { tenant: Tenant { tenant }, max_pause } = options;
    let client = Client::commander(global)?;
    let (command, doing) = match wish {
        Wish::Rehearse => ("rehearse", "rehearsing the cutover"),
        Wish::CutOver => ("cutover", "moving the writes"),
        Wish::RollBack => ("rollback", "moving the writes back"),
    };
    note(&format!("{doing} of tenant {}…\n", plain(tenant)));
    let body = json!({"max_pause": max_pause.to_string()});
    let report: CutoverReport = client.command(tenant, command, &body, Patience::Unlimited)?;
    output::result(global.output, &report, || text(&report, wish))?;
    Ok(Exit::Done)
}

fn text(report: &CutoverReport, wish: Wish) -> String {
    let rows: Vec<Vec<String>> =
        report.steps.iter().map(|step| vec![step.step.clone(), format!("{:.1} ms", step.ms)]).collect();
    let (tenant, pause) = (plain(&report.tenant.0), report.pause_ms);
    let done = match wish {
        Wish::Rehearse => format!("tenant {tenant} would pause for {pause:.1} ms; nothing has changed"),
        Wish::CutOver | Wish::RollBack => {
            format!("tenant {tenant} paused for {pause:.1} ms and lives in {} now", place(&report.route))
        }
    };
    let compared = match report.verified_s_ago {
        _ if !report.verified => "NOT VERIFIED: migration_config.validation_enabled is false\n".to_owned(),
        Some(ago) => {
            let keys = report.rechecked_keys;
            format!(
                "all rows were equal {ago} s before, and what had changed since is; the last {keys} of it were compared in the pause\n"
            )
        }
        None => String::new(),
    };
    format!("{}\n{compared}{done}\n", table(&["STEP", "TIME"], &rows))
}

fn place(route: &Route) -> String {
    match &route.schema {
        Some(schema) => format!("schema {} of database {}", plain(schema), plain(&route.database)),
        None => format!("database {}", plain(&route.database)),
    }
}

#[cfg(test)]
mod tests {
    use schemas::status::StepReport;
    use schemas::{Lsn, TenantId};

    use super::*;

    #[test]
    fn the_pause_and_its_steps_are_shown() {
        let step = |step: &str, ms| StepReport { step: step.to_owned(), ms };
        let steps = vec![step("verify", 1200.0), step("drain", 3.25)];
        let tenant = TenantId("7".to_owned());
        let route = Route {
            tenant: tenant.clone(),
            isolation: "schema".to_owned(),
            database: "shop".to_owned(),
            schema: Some("tenant_7".to_owned()),
            url: String::new(),
            state: "open".to_owned(),
            epoch: 2,
        };
        let (lsn, verified_s_ago) = (Lsn(0x60), Some(2));
        let mut report = CutoverReport {
            tenant,
            lsn,
            pause_ms: 4.5,
            verified: true,
            verified_s_ago,
            rechecked_keys: 3,
            route,
            steps,
        };
        let expected = "STEP    TIME\nverify  1200.0 ms\ndrain   3.2 ms\n\n\
            all rows were equal 2 s before, and what had changed since is; the last 3 of it were compared in the pause\n\
            tenant 7 would pause for 4.5 ms; nothing has changed\n";
        assert_eq!(text(&report, Wish::Rehearse), expected);
        report.verified = false;
        let said = text(&report, Wish::CutOver);
        assert!(said.contains("NOT VERIFIED"), "{said}");
        assert!(said.ends_with("paused for 4.5 ms and lives in schema tenant_7 of database shop now\n"), "{said}");
    }
}

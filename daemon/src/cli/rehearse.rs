//! `carveout rehearse`: asks for a cutover without its flip, and shows where the time goes.

use clap::Args;
use schemas::config::Span;
use schemas::status::RehearsalReport;
use serde_json::json;

use super::client::{Client, Patience};
use super::exit::{Exit, Failure};
use super::output::{self, note, plain, table};
use super::{Global, Tenant};

/// What `rehearse` takes.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    tenant: Tenant,
    /// How long the tenant's writers may be held at most
    #[arg(long, value_name = "TIME", default_value = "5s")]
    max_pause: Span,
}

/// Runs the command.
pub fn run(global: &Global, Options { tenant: Tenant { tenant }, max_pause }: &Options) -> Result<Exit, Failure> {
    let client = Client::commander(global)?;
    note(&format!("rehearsing the cutover of tenant {}…\n", plain(tenant)));
    let body = json!({"max_pause": max_pause.to_string()});
    let report: RehearsalReport = client.command(tenant, "rehearse", &body, Patience::Unlimited)?;
    output::result(global.output, &report, || text(&report))?;
    Ok(Exit::Done)
}

fn text(report: &RehearsalReport) -> String {
    let rows: Vec<Vec<String>> =
        report.steps.iter().map(|step| vec![step.step.clone(), format!("{:.1} ms", step.ms)]).collect();
    let tenant = plain(&report.tenant.0);
    format!(
        "{}\ntenant {tenant} would pause for {:.1} ms; nothing has changed\n",
        table(&["STEP", "TIME"], &rows),
        report.pause_ms
    )
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
        let report = RehearsalReport { tenant: TenantId("7".to_owned()), lsn: Lsn(0x60), pause_ms: 4.5, steps };
        let expected = "STEP    TIME\nverify  1200.0 ms\ndrain   3.2 ms\n\n\
            tenant 7 would pause for 4.5 ms; nothing has changed\n";
        assert_eq!(text(&report), expected);
    }
}

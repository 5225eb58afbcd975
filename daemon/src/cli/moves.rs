//! `carveout move`: starts a move, or resumes it, and follows it with `--wait`.

use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use schemas::record::Fault;
use schemas::status::TenantStatus;
use serde_json::json;

use super::client::{Client, Patience, tenant_path};
use super::exit::{Exit, Failure};
use super::output::{self, plain};
use super::progress::Progress;
use super::{Global, Tenant};

/// Between two looks with `--wait`.
const WAIT_INTERVAL: Duration = Duration::from_millis(250);
/// How long a daemon that is being restarted is waited for.
const ABSENCE_LIMIT: Duration = Duration::from_secs(30);

/// What `move` takes.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    tenant: Tenant,
    /// Where the tenant goes; left out, the configuration's tenant_overrides or the move there is decide
    #[arg(long, value_enum, value_name = "schema|database", hide_possible_values = true)]
    to: Option<To>,
    /// A server of its own for this tenant (not in this version)
    #[arg(long, value_name = "URL")]
    target: Option<String>,
    /// Follow the move on stderr until it is in step with the source
    #[arg(long)]
    wait: bool,
}

/// The value of `--to`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum To {
    /// A schema of its own in the source's database, or where the configuration says.
    Schema,
    /// A database of its own.
    Database,
}

/// Runs the command.
pub fn run(global: &Global, options: &Options) -> Result<Exit, Failure> {
    if options.target.is_some() {
        let message = format!("`move --target` is not in this version ({})", env!("CARGO_PKG_VERSION"));
        let next = "leave it out: the configuration's tenant_database_pattern names the server";
        return Err(Failure::new(Exit::Usage, "not_in_this_version", "--target", message, next));
    }
    let client = Client::commander(global)?;
    let body = match options.to {
        None => json!({}),
        Some(To::Schema) => json!({"to": "schema"}),
        Some(To::Database) => json!({"to": "database"}),
    };
    let tenant = &options.tenant.tenant;
    let mut status: TenantStatus = client.command(tenant, "move", &body, Patience::Unlimited)?;
    if options.wait {
        status = follow(&client, status)?;
    }
    output::result(global.output, &status, || said(&status))?;
    Ok(Exit::Done)
}

fn said(status: &TenantStatus) -> String {
    let name = plain(&status.tenant.0);
    let hint =
        if in_step(status) { format!("carveout verify {name}") } else { format!("carveout status {name} --watch") };
    let (number, to, target, phase) = (status.r#move, &status.to, plain(&status.target), &status.phase);
    format!("move {number}: tenant {name} to {to} {target} is {phase}\n  next: {hint}\n")
}

/// Shows how the move goes on until it is in step, or stands still.
fn follow(client: &Client, first: TenantStatus) -> Result<TenantStatus, Failure> {
    let mut progress = Progress::on_stderr();
    let path = tenant_path(&first.tenant.0);
    let (mut answer, mut heard): (Result<_, Failure>, _) = (Ok(first), Instant::now());
    loop {
        match answer {
            Ok(status) => {
                heard = Instant::now();
                progress.show(&status);
                if let Some(fault) = stopped(&status) {
                    progress.end();
                    return Err(Failure::no(fault));
                }
                if in_step(&status) {
                    progress.end();
                    return Ok(status);
                }
            }
            Err(failure) if failure.exit == Exit::Unreachable && heard.elapsed() < ABSENCE_LIMIT => {}
            Err(failure) => {
                progress.end();
                return Err(failure);
            }
        }
        sleep(WAIT_INTERVAL);
        answer = client.get(&path);
    }
}

fn in_step(status: &TenantStatus) -> bool {
    matches!(status.phase.as_str(), "streaming" | "ready")
}

/// Why the move does not go on by itself.
fn stopped(status: &TenantStatus) -> Option<Fault> {
    let phase = status.phase.as_str();
    let stands = matches!(phase, "needs_copy" | "cancelling" | "cancelled");
    let name = plain(&status.tenant.0);
    let fallback = || {
        Fault::new(
            phase,
            name.as_str(),
            format!("the move of tenant {name} is {phase}"),
            format!("carveout status {name}"),
        )
    };
    status.fault.clone().or_else(|| stands.then(fallback))
}

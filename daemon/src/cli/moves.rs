//! `carveout move`: starts a move, or resumes it, and follows it with `--wait`.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use schemas::record::{Fault, NamedTarget};
use schemas::status::TenantStatus;
use serde_json::json;

use super::client::{Client, Patience, tenant_path};
use super::exit::{Exit, Failure};
use super::output::{self, plain};
use super::progress::Progress;
use super::status::place;
use super::{Global, Tenant};
use crate::http::tenants::named_target;

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
    #[arg(long, value_enum, value_name = "schema|database|shared", hide_possible_values = true)]
    to: Option<To>,
    /// A server of its own for this tenant: URL without a password; {tenant} may stand in host, user and database
    #[arg(long, value_name = "URL")]
    target: Option<String>,
    /// File with the password for --target, on the daemon's machine; default: database_config.password_file
    #[arg(long, value_name = "FILE", requires = "target")]
    target_password_file: Option<PathBuf>,
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
    /// Home to the shared database, once its move was completed.
    Shared,
}

/// Runs the command.
pub fn run(global: &Global, options: &Options) -> Result<Exit, Failure> {
    // Looked at before it is sent: a password must not leave here.
    let file = options.target_password_file.as_deref().map(absolute).transpose()?;
    let target = named_target(options.target.as_deref(), file).map_err(|(_, why)| usage("--target", why))?;
    let client = Client::commander(global)?;
    let mut body = match options.to {
        None => json!({}),
        Some(To::Schema) => json!({"to": "schema"}),
        Some(To::Database) => json!({"to": "database"}),
        Some(To::Shared) => json!({"to": "shared"}),
    };
    if let Some(NamedTarget { url, password_file }) = target {
        body["target"] = url.into();
        body["target_password_file"] = json!(password_file);
    }
    let tenant = &options.tenant.tenant;
    let mut status: TenantStatus = client.command(tenant, "move", &body, Patience::Unlimited)?;
    if options.wait {
        status = follow(&client, status)?;
    }
    output::result(global.output, &status, || said(&status))?;
    Ok(Exit::Done)
}

fn absolute(file: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(file).map_err(|error| usage("--target-password-file", error.to_string()))
}

fn usage(option: &str, why: String) -> Failure {
    let next =
        "such as --target postgresql://carveout@eu.internal/shop_{tenant} --target-password-file /run/secrets/eu";
    Failure::new(Exit::Usage, "target", option, why, next)
}

fn said(status: &TenantStatus) -> String {
    let name = plain(&status.tenant.0);
    let hint =
        if in_step(status) { format!("carveout verify {name}") } else { format!("carveout status {name} --watch") };
    let (number, to, target, phase) = (status.r#move, &status.to, plain(&place(status)), &status.phase);
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
    if status.paused {
        let message = format!("the move of tenant {name} is paused");
        return Some(Fault::new("paused", name.as_str(), message, format!("carveout resume {name}")));
    }
    status.fault.clone().or_else(|| stands.then(fallback))
}

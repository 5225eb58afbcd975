//! `carveout pause` and `carveout resume`.

use clap::Args;
use schemas::Lsn;
use schemas::status::TenantStatus;
use serde_json::json;

use super::client::{Client, Patience};
use super::exit::{Exit, Failure};
use super::output::{self, plain};
use super::{Global, Tenant};

/// What `resume` takes.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    tenant: Tenant,
    /// Leave out the one transaction that the fault names, by its end; then verify, and mend the target by hand
    #[arg(long, value_name = "LSN")]
    skip: Option<Lsn>,
}

/// Runs `pause`.
pub fn pause(global: &Global, Tenant { tenant }: &Tenant) -> Result<Exit, Failure> {
    let client = Client::commander(global)?;
    let status: TenantStatus = client.command(tenant, "pause", &json!({}), Patience::Unlimited)?;
    output::result(global.output, &status, || {
        let (name, number, phase) = (plain(&status.tenant.0), status.r#move, &status.phase);
        format!(
            "move {number} of tenant {name} is paused ({phase}); its spool goes on filling\n  next: carveout resume {name}\n"
        )
    })?;
    Ok(Exit::Done)
}

/// Runs `resume`.
pub fn resume(global: &Global, Options { tenant: Tenant { tenant }, skip }: &Options) -> Result<Exit, Failure> {
    let client = Client::commander(global)?;
    let body = skip.map_or(json!({}), |skip| json!({"skip": skip}));
    let status: TenantStatus = client.command(tenant, "resume", &body, Patience::Unlimited)?;
    output::result(global.output, &status, || {
        let (name, number, phase) = (plain(&status.tenant.0), status.r#move, &status.phase);
        let next = match skip {
            None => format!("carveout status {name} --watch"),
            Some(_) => format!("carveout verify {name}, which names the rows that the target lacks now"),
        };
        format!("move {number} of tenant {name} goes on ({phase})\n  next: {next}\n")
    })?;
    Ok(Exit::Done)
}

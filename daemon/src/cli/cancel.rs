//! `carveout cancel`.

use schemas::status::TenantStatus;
use serde_json::json;

use super::client::{Client, Patience};
use super::exit::{Exit, Failure};
use super::output::{self, plain};
use super::{Global, Tenant};

/// Runs the command: the daemon answers when what it created is gone.
pub fn run(global: &Global, Tenant { tenant }: &Tenant) -> Result<Exit, Failure> {
    let client = Client::commander(global)?;
    let status: TenantStatus = client.command(tenant, "cancel", &json!({}), Patience::Unlimited)?;
    output::result(global.output, &status, || {
        let (name, number) = (plain(&status.tenant.0), status.r#move);
        match status.phase.as_str() {
            "cancelled" => {
                format!("move {number} of tenant {name} is cancelled; what Carveout created for it is gone\n")
            }
            phase => {
                format!("move {number} of tenant {name} is {phase}; `carveout status {name}` shows how far it is\n")
            }
        }
    })?;
    Ok(Exit::Done)
}

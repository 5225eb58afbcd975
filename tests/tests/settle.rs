//! Waiting for a move to have settled: everything applied, or standing with a fault. A test that waits for the
//! one is told at once when the other has come.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::Value;
use tests::daemon::Daemon;
use tests::scene::Scene;
use tests::wait::until;

/// The longest wait for something that takes a moment.
pub const SOON: Duration = Duration::from_secs(60);

/// Waits until the tenant's target holds all that the source has now; a fault ends the waiting.
pub async fn drained(scene: &Scene, daemon: &Daemon, tenant: &str) -> Result<()> {
    let tenants = [tenant];
    tokio::select! {
        drained = crate::carve::drained(scene, daemon, &tenants) => drained,
        status = faulted(daemon, tenant) => bail!("tenant {tenant} stopped, or did not get there in {SOON:?}: {}", status?["fault"]),
    }
}

/// Waits until the tenant's move stands with a fault; its status.
pub async fn faulted(daemon: &Daemon, tenant: &str) -> Result<Value> {
    until(&format!("a fault of tenant {tenant}"), SOON, async || {
        let status = daemon.tenant(tenant).await?;
        ensure!(!status["fault"].is_null(), "{status}");
        Ok(status)
    })
    .await
}

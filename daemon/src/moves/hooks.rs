//! The operator's programs around a step: one before it that fails stops it, one after it only reports.

use std::process::Stdio;
use std::time::Duration;

use schemas::TenantId;
use schemas::record::Fault;
use tokio::process::Command;

/// How long a program may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the program called `name` in the block `hooks`, where there is one, for a tenant.
pub async fn run(program: Option<&Vec<String>>, name: &str, tenant: &TenantId) -> Result<(), Fault> {
    let Some((file, arguments)) = program.and_then(|words| words.split_first()) else { return Ok(()) };
    let failed = |why: String| {
        let next = format!("run it by hand and mend it, or take hooks.{name} out of the configuration");
        Fault::new("hook", format!("hooks.{name}"), why, next)
    };
    let mut command = Command::new(file);
    command.args(arguments.iter().map(|word| word.replace("{tenant}", &tenant.0)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let began = tokio::time::Instant::now();
    match tokio::time::timeout(PATIENCE, command.status()).await {
        Ok(Ok(status)) if status.success() => {
            tracing::info!(hook = name, %tenant, seconds = began.elapsed().as_secs_f64(), "ran");
            Ok(())
        }
        Ok(Ok(status)) => Err(failed(format!("it ended with {status}"))),
        Ok(Err(error)) => Err(failed(format!("it could not be run: {error}"))),
        Err(_) => Err(failed(format!("it did not end within {} s and was killed", PATIENCE.as_secs()))),
    }
}

/// The same for one whose failure changes nothing any more.
pub async fn report(program: Option<&Vec<String>>, name: &str, tenant: &TenantId) {
    if let Err(fault) = run(program, name, tenant).await {
        tracing::warn!(hook = name, %tenant, cause = fault.message, "a hook failed; the step is done all the same");
    }
}

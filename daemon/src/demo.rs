//! `carveout demo`: the whole way on private clusters. pgbench's unmodified load runs on a shared
//! database; one tenant moves into a schema of it, one into a database on another server; the
//! daemon is killed in the middle; both sides are compared while the load runs and after it.
//!
//! Everything goes through the built program's own commands, as a user would type them.

pub mod cluster;
mod scene;
pub mod shop;

use std::time::Duration;

use anyhow::{Context, Result, bail};

use scene::Scene;

/// Tenants that move, and where to.
const MOVES: [(&str, &str); 2] = [("7", "schema"), ("11", "database")];
/// How long a phase may take before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(300);

/// Options of `carveout demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Branches of pgbench (`-s`): each is a tenant with 100,000 accounts
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(11..=1000))]
    pub scale: u32,
    /// Clients of pgbench that write all the time
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub clients: u32,
    /// Seconds of load after both tenants are in step
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Leave servers and daemon running at the end, until Ctrl-C
    #[arg(long)]
    pub keep: bool,
}

/// Runs the demo; true when everything compared equal.
pub async fn run(options: Options) -> Result<bool> {
    // The scene's calls block; they have a thread of their own.
    tokio::task::spawn_blocking(move || show(&options)).await.context("run the demo")?
}

fn show(options: &Options) -> Result<bool> {
    let mut scene = Scene::build(options.scale)?;
    scene.say("prepare: replica identities, publication, slot, control schema");
    scene.carveout(&["prepare", "--apply"])?;
    let mut load = scene.start_load(options.clients)?;
    scene.say(&format!("load: pgbench's own script, {} clients, until the end", options.clients));
    scene.start_daemon()?;
    for (tenant, to) in MOVES {
        scene.say(&format!("move: tenant {tenant} to a {to}"));
        scene.carveout(&["move", tenant, "--to", to])?;
    }
    scene.wait("half of a copy", PATIENCE, |tenants| {
        tenants.iter().any(|t| t.phase == "copying" && t.rows_copied > 0)
    })?;
    scene.kill_daemon()?;
    scene.say("killed the daemon (SIGKILL) in the middle of the copy; starting it again");
    scene.start_daemon()?;
    scene.wait("both tenants in step", PATIENCE, |tenants| {
        tenants.len() == MOVES.len() && tenants.iter().all(|t| t.phase == "streaming")
    })?;
    scene.say(&format!("both tenants are in step; {} s more of load", options.seconds));
    scene.keep_showing(Duration::from_secs(options.seconds))?;
    let mut equal = compare(&scene, "while the load runs")?;
    load.stop().context("pgbench must not fail")?;
    scene.say("the load has stopped, without a failed transaction");
    equal &= compare(&scene, "after the load")?;
    println!("\n{}", if equal { "everything compared equal" } else { "THE SIDES DIFFER" });
    if options.keep {
        println!("servers and daemon keep running: {}/v1/status", scene.url());
        println!("configuration: {}; end with Ctrl-C", scene.config().display());
        scene.wait_for_daemon()?;
    }
    scene.stop_daemon()?;
    Ok(equal)
}

fn compare(scene: &Scene, when: &str) -> Result<bool> {
    let mut equal = true;
    for (tenant, _) in MOVES {
        scene.say(&format!("verify: tenant {tenant}, {when}"));
        let output = scene.try_carveout(&["verify", tenant])?;
        print!("{}", String::from_utf8_lossy(&output.stdout));
        match output.status.code() {
            Some(0) => {}
            Some(1) if output.stderr.is_empty() => equal = false,
            _ => bail!("verify {tenant}: {}", String::from_utf8_lossy(&output.stderr).trim()),
        }
    }
    Ok(equal)
}

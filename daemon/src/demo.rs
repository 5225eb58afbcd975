//! `carveout demo`: the whole life of a move on private clusters. An application writes to a shared database all the time;
//! one tenant moves into a schema of it, one into a database on another server; the daemon is killed in the middle;
//! both sides are compared while the load runs and after it. Then the writes move, come back, move again, and the moves end.
//!
//! Everything goes through the built program's own commands, as a user would type them. The application is the shop;
//! with `--pgbench` it is pgbench's own script on its own tables.

pub mod cluster;
mod follow;
mod scene;
pub mod shop;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use scene::{Play, Scene};

/// How long a phase may take before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(300);

/// Writes of the application between two steps.
const SOME_WRITES: u64 = 200;

/// Options of `carveout demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// pgbench's unmodified script on its own tables, instead of the shop
    #[arg(long)]
    pub pgbench: bool,
    /// Tenants: storefronts, or with --pgbench branches with 100,000 accounts each
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(12..=1000))]
    pub tenants: u32,
    /// Clients of the application that write all the time
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
    let play = if options.pgbench { Play::pgbench(options.tenants) } else { Play::shop(options.tenants) };
    let mut scene = Scene::build(&play)?;
    scene.say("prepare: replica identities, publication, slot, control schema");
    scene.carveout(&["prepare", "--apply"])?;
    let mut load = scene.start_load(&play, options.clients)?;
    scene.say(&format!("load: {}, {} clients, until the end", play.load, options.clients));
    scene.start_daemon()?;
    scene.say(&format!("the daemon runs; its page: {}/", scene.url()));
    for (tenant, to) in &play.moves {
        scene.say(&format!("move: tenant {tenant} to a {to}"));
        scene.carveout(&["move", tenant, "--to", to])?;
    }
    scene.wait("half of a copy", PATIENCE, |tenants| {
        tenants.iter().any(|t| t.phase == "copying" && t.rows_copied > 0)
    })?;
    scene.kill_daemon()?;
    scene.say("killed the daemon (SIGKILL) in the middle of the copy; starting it again");
    let killed = Instant::now();
    scene.start_daemon()?;
    scene.wait("both tenants in step", PATIENCE, |tenants| {
        tenants.len() == play.moves.len() && tenants.iter().all(|t| matches!(t.phase.as_str(), "streaming" | "ready"))
    })?;
    let in_step = killed.elapsed();
    scene.say(&format!("both tenants are in step; {} s more of load", options.seconds));
    let most_lag = scene.keep_showing(Duration::from_secs(options.seconds))?;
    let mut equal = compare(&scene, &play, "while the load runs")?;
    load.stop().context("the application must not see an error")?;
    scene.say("the load has stopped, without a failed transaction");
    equal &= compare(&scene, &play, "after the load")?;
    let lives = move_the_writes(&scene, &play)?;
    report(&scene, &play, in_step, most_lag, &lives, equal)?;
    if options.keep {
        println!("servers and daemon keep running; the page: {}/", scene.url());
        println!("configuration: {}; end with Ctrl-C", scene.config().display());
        scene.wait_for_daemon()?;
    }
    scene.stop_daemon()?;
    Ok(equal)
}

/// The writes of each tenant move to its target and back and there again, while an application follows them; then its move ends.
fn move_the_writes(scene: &Scene, play: &Play) -> Result<Vec<String>> {
    let mut said = Vec::new();
    for (tenant, to) in &play.moves {
        let application = scene.start_application(play, tenant)?;
        application.progress(SOME_WRITES, false)?;
        for (command, moved) in [("rehearse", false), ("cutover", true), ("rollback", false), ("cutover", true)] {
            scene.say(&format!("{command}: tenant {tenant} ({to})"));
            said.push(format!("  {command}: {}", scene.last_line(&[command, tenant])?));
            application.progress(SOME_WRITES, moved)?;
        }
        scene.say(&format!("complete: tenant {tenant}"));
        print!("{}", String::from_utf8_lossy(&scene.try_carveout(&["complete", tenant])?.stdout));
        application.progress(SOME_WRITES, true)?;
        said.push(format!("  its application: {}", application.stop().context("the application")?));
    }
    Ok(said)
}

fn compare(scene: &Scene, play: &Play, when: &str) -> Result<bool> {
    let mut equal = true;
    for (tenant, _) in &play.moves {
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

/// What was shown, in a few lines.
fn report(scene: &Scene, play: &Play, in_step: Duration, most_lag: f64, lives: &[String], equal: bool) -> Result<()> {
    let status = scene.status()?;
    println!("\n{} tenants in one database; moved while {} wrote:", play.tenants, play.load);
    for tenant in &status.tenants {
        let (rows, changes) = (tenant.rows_copied, tenant.changes_applied);
        println!(
            "  {} to {} {}: {rows} rows copied, {changes} changes followed",
            tenant.tenant, tenant.to, tenant.target
        );
    }
    println!("the daemon was killed once; both were in step {:.1} s after it was started again", in_step.as_secs_f64());
    println!(
        "lag afterwards: at most {most_lag:.1} s; one slot, {} KiB of log kept",
        status.source.retained_bytes.unwrap_or(0) / 1024
    );
    println!("an application that follows the routes, while its tenant's writes moved there, back, and there again:");
    lives.iter().for_each(|line| println!("{line}"));
    println!("{}", if equal { "everything compared equal" } else { "THE SIDES DIFFER" });
    Ok(())
}

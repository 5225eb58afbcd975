//! The command line: what there is, and which file does it. Results go to stdout, logs and progress to
//! stderr. It must never do a move's work itself: apart from `init`, `check`, `prepare`, `run` and `demo` every
//! command is a client of the daemon's HTTP interface.

mod cancel;
mod check;
mod client;
mod complete;
mod cutover;
mod exit;
mod format;
mod hold;
mod init;
mod later;
pub mod load;
mod log;
mod moves;
mod output;
mod prepare;
mod progress;

mod run;
mod status;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::moves::cutover::Wish;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::demo;
use exit::{Exit, Failure};
use output::Output;

/// Carves tenants out of a shared PostgreSQL database, live.
#[derive(Parser)]
#[command(name = "carveout", version, max_term_width = 100, after_help = EXAMPLE)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLE: &str = "\
Example:
  carveout init --source postgresql://carveout@db/shop -o carveout.yaml
  carveout check                          what stands in the way
  carveout prepare --apply                identities, publication, slot, control schema
  carveout run &                          the daemon
  carveout move 42 --to database --wait   copy tenant 42 and keep it in step
  carveout verify 42                      are both sides equal?
  carveout rehearse 42                    how long would the writes pause?

Exit codes:
  0 done   1 the answer is no   2 wrong usage or configuration
  3 the daemon or a database cannot be reached   4 another instance holds the slot or the state directory";

/// What every command takes.
#[derive(Args)]
struct Global {
    /// Configuration file; relative paths in it are relative to the working directory
    #[arg(short, long, global = true, value_name = "FILE", default_value = "carveout.yaml")]
    config: PathBuf,
    /// How results are printed
    #[arg(long, global = true, value_enum, value_name = "text|json", hide_possible_values = true, default_value_t = Output::Text)]
    output: Output,
    /// Address of the daemon, such as http://127.0.0.1:8377; default: http.listen of the configuration
    #[arg(long, global = true, env = "CARVEOUT_URL", hide_env_values = true)]
    url: Option<String>,
    /// The daemon's token; default: the file of http.token_file. Better in CARVEOUT_TOKEN than here, where `ps` shows it
    #[arg(long, global = true, env = "CARVEOUT_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

/// The tenant that a command is about.
#[derive(Args)]
struct Tenant {
    /// The tenant's key, as text
    #[arg(value_parser = NonEmptyStringValueParser::new(), allow_negative_numbers = true)]
    tenant: String,
}

#[derive(Subcommand)]
enum Command {
    /// Look at a database and write a commented configuration: keys, paths, and what a person has to decide
    #[command(
        after_help = "Example:\n  carveout init --source postgresql://carveout@db.internal/shop -o carveout.yaml\n  carveout init --source 'postgresql://carveout:${PGPASSWORD}@db.internal/shop' --key storefront_id"
    )]
    Init(init::Options),
    /// Look at source and targets, and say what stands in the way; writes nothing
    #[command(
        after_help = "Example:\n  carveout check -c carveout.yaml\n  carveout check --output json | jq '.[] | select(.severity == \"error\")'"
    )]
    Check,
    /// Print, or run, the SQL that the source needs before anything can be moved
    #[command(after_help = "Example:\n  carveout prepare > prepare.sql\n  carveout prepare --apply")]
    Prepare(prepare::Options),
    /// Run the daemon until SIGTERM or SIGINT; a second signal ends it at once
    #[command(after_help = "Example:\n  carveout run -c carveout.yaml\n  RUST_LOG=debug carveout run")]
    Run,
    /// Show the moves, or everything about one tenant's
    #[command(
        after_help = "Example:\n  carveout status\n  carveout status 42 --watch\n  carveout status --output json | jq '.tenants[].phase'"
    )]
    Status(status::Options),
    /// Start a tenant's move, or resume it where it stopped
    #[command(
        after_help = "Example:\n  carveout move 42 --to schema\n  carveout move 550e8400-e29b-41d4-a716-446655440000 --to database --wait\n  carveout move 42 --to database --target postgresql://carveout@eu.internal/shop_42 --target-password-file /run/secrets/eu"
    )]
    Move(moves::Options),
    /// Compare a tenant on both sides at one position
    #[command(after_help = "Example:\n  carveout verify 42 && echo equal")]
    Verify(Tenant),
    /// A cutover up to, not including, the flip: says how long the tenant's writers would wait; they go on afterwards
    #[command(after_help = "Example:\n  carveout rehearse 42\n  carveout rehearse 42 --max-pause 500ms")]
    Rehearse(cutover::Options),
    /// Move the tenant's writes to the target: they wait for a moment, then they are told where it lives
    #[command(
        after_help = "Example:\n  carveout rehearse 42 && carveout cutover 42\n  carveout cutover 42 --max-pause 500ms"
    )]
    Cutover(cutover::Options),
    /// After a cutover: move the writes back, with all that was written in the target
    #[command(after_help = "Example:\n  carveout rollback 42\n  carveout rollback 42 --max-pause 500ms")]
    Rollback(cutover::Options),
    /// End a move: nothing flows back any more, and the tenant's rows at the source are deleted
    #[command(
        after_help = "Example:\n  carveout complete 42\n  carveout complete 42 --keep-source\n  carveout complete 42 --report markdown > move-42.md"
    )]
    Complete(complete::Options),
    /// Hold a move: its copy and its target stand, its changes gather in the spool
    #[command(after_help = "Example:\n  carveout pause 42")]
    Pause(Tenant),
    /// Let a move go on that was paused, or whose fault has been mended
    #[command(
        after_help = "Example:\n  carveout resume 42\n  carveout resume 42 --skip 0/5000060 && carveout verify 42"
    )]
    Resume(hold::Options),
    /// Before cutover: forget a move, and drop only what Carveout itself created
    #[command(after_help = "Example:\n  carveout cancel 42")]
    Cancel(Tenant),
    /// Show a move on private clusters; nothing but PostgreSQL's programs is needed
    #[command(after_help = "Example:\n  carveout demo")]
    Demo(demo::Options),
    /// Print the completions of a shell
    #[command(after_help = "Example:\n  carveout completions bash > /etc/bash_completion.d/carveout")]
    Completions {
        /// The shell
        shell: Shell,
    },
    #[command(flatten)]
    Later(later::Later),
}

/// Runs the command of the process's arguments; called by `main` only.
pub fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    let output = global.output;
    let done = match command {
        Command::Init(options) => init::run(&global, &options),
        Command::Check => check::run(&global),
        Command::Prepare(options) => prepare::run(&global, &options),
        Command::Run => run::run(&global),
        Command::Status(options) => status::run(&global, &options),
        Command::Move(options) => moves::run(&global, &options),
        Command::Verify(tenant) => verify::run(&global, &tenant),
        Command::Rehearse(options) => cutover::run(&global, Wish::Rehearse, &options),
        Command::Cutover(options) => cutover::run(&global, Wish::CutOver, &options),
        Command::Rollback(options) => cutover::run(&global, Wish::RollBack, &options),
        Command::Complete(options) => complete::run(&global, &options),
        Command::Pause(tenant) => hold::pause(&global, &tenant),
        Command::Resume(options) => hold::resume(&global, &options),
        Command::Cancel(tenant) => cancel::run(&global, &tenant),
        Command::Demo(options) => run_demo(options),
        Command::Completions { shell } => completions(shell),
        Command::Later(later) => later.refuse(),
    };
    let exit = done.unwrap_or_else(|failure| {
        failure.report(output);
        failure.exit
    });
    ExitCode::from(exit as u8)
}

fn run_demo(options: demo::Options) -> Result<Exit, Failure> {
    match block_on(demo::run(options))? {
        Ok(true) => Ok(Exit::Done),
        Ok(false) => Ok(Exit::No),
        Err(error) => Err(Failure::new(Exit::No, "demo", "demo", format!("{error:#}"), "")),
    }
}

fn completions(shell: Shell) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "carveout", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}

/// Runs a future on a runtime of its own; the commands that only ask the daemon have none.
fn block_on<F: Future>(future: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| Failure::new(Exit::No, "runtime", "process", format!("cannot start threads: {error}"), ""))?;
    let result = runtime.block_on(future);
    // What still runs (a name being resolved) must not hold up the end.
    runtime.shutdown_background();
    Ok(result)
}

#[cfg(test)]
mod tests;

//! `carveout init`: looks at a database and writes a commented configuration. It decides nothing that has two
//! answers, never writes a password, and never overwrites a file.

mod text;

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use connectors::postgres::catalog::{self, Table};
use connectors::postgres::client::connect;
use connectors::postgres::proposal::{self, Chosen, Proposal};
use schemas::config::{Config, ConfigError};
use serde::Serialize;

use super::exit::{Exit, Failure};
use super::output::{self, Output, note, plain};
use super::{Global, block_on, load};

/// What `init` takes.
#[derive(Args)]
pub struct Options {
    /// The shared database, as source.url of a configuration: `${NAME}` is taken from the environment
    #[arg(long, value_name = "URL")]
    source: String,
    /// File with the password, for a URL without one; the configuration then names it
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// The column that names a row's tenant; default: the most plausible one
    #[arg(long, value_name = "COLUMN")]
    key: Option<String>,
    /// Write the configuration into a new file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    output_file: Option<PathBuf>,
}

/// What `--output json` shows.
#[derive(Serialize)]
struct Report<'a> {
    key: &'a str,
    tables: usize,
    /// Tables that name the tenant themselves.
    by_key: usize,
    /// Tables that lead to it by foreign keys.
    by_via: usize,
    decisions: Vec<Decision>,
    /// Where the configuration was written, or else itself.
    file: Option<&'a Path>,
    configuration: Option<&'a str>,
}

/// A table that a person has to decide about.
#[derive(Serialize)]
struct Decision {
    table: String,
    why: Vec<String>,
}

/// Runs the command.
pub fn run(global: &Global, options: &Options) -> Result<Exit, Failure> {
    let asked = asked(options)?;
    let (tables, proposal) = block_on(look(&asked, options.key.as_deref()))??;
    let text = text::configuration(&asked.source, &proposal);
    verify(&text, &tables, &proposal)?;
    if let Some(path) = &options.output_file {
        write_new(path, &text)?;
    }
    let report = report(&proposal, options.output_file.as_deref(), &text);
    match (global.output, report.file) {
        (Output::Json, _) => output::result(Output::Json, &report, String::new)?,
        (Output::Text, None) => output::print(&text)?,
        (Output::Text, Some(_)) => output::print(&summary(&report))?,
    }
    if global.output == Output::Text && report.file.is_none() {
        note(&summary(&report));
    }
    Ok(Exit::Done)
}

/// The source as a configuration would have it: read by the same rules, with the same passwords.
fn asked(options: &Options) -> Result<Config, Failure> {
    let refuse =
        |message: String| Failure::new(Exit::Usage, "source", "--source", message, "give a URL as psql takes it");
    let file = match &options.password_file {
        Some(file) => format!(", password_file: {}", text::value(&file.to_string_lossy())),
        None => String::new(),
    };
    let yaml = format!("source: {{url: {}{file}}}\ntenancy: {{key: any}}\n", text::quoted(&options.source));
    let environment = |name: &str| std::env::var(name).ok();
    let wrong = |error: ConfigError| {
        let said = error.to_string();
        let (_, why) = said.split_once("source.url: ").unwrap_or(("", &said));
        refuse(format!("--source: {why}"))
    };
    let config = Config::parse(&yaml, &environment).map_err(wrong)?;
    load::check_passwords(&config)?;
    Ok(config)
}

async fn look(asked: &Config, key: Option<&str>) -> Result<(Vec<Table>, Proposal), Failure> {
    let failed = |error| {
        let mut failure = Failure::database(&error);
        failure.fault.next = failure.fault.next.replace(" in the configuration", "");
        failure
    };
    let client = connect(&asked.source.url, "init").await.map_err(failed)?;
    let tables = catalog::tables(&client).await.map_err(failed)?;
    let mut proposal = proposal::propose(&tables, key).map_err(|error| {
        let next = "name the column with --key COLUMN; `\\d` in psql shows a table's columns";
        let exit = if key.is_some() { Exit::Usage } else { Exit::No };
        Failure::new(exit, "no_key", "--key", error.to_string(), next)
    })?;
    proposal::look_for_nulls(&client, &mut proposal).await.map_err(failed)?;
    Ok((tables, proposal))
}

/// The text must be read as it was meant, and `check` must refuse exactly the open tables: no promise of this command
/// is worth anything otherwise.
fn verify(text: &str, tables: &[Table], proposal: &Proposal) -> Result<(), Failure> {
    let broken = |why: String| {
        let next =
            "please report it, with the names of the tables; docs/configuration.md shows how to write one by hand";
        Failure::new(Exit::No, "init", "configuration", format!("the configuration would be wrong: {why}"), next)
    };
    let config = Config::parse(text, &|_: &str| None).map_err(|error| broken(error.to_string()))?;
    if config.tenancy != proposal.tenancy() {
        return Err(broken("its tenancy is not read back as it was written".to_owned()));
    }
    let refused = proposal::refused(tables, &config.tenancy);
    let open: Vec<String> = proposal.open().map(|entry| entry.table.to_string()).collect();
    let differs = open.iter().find(|table| !refused.contains_key(*table));
    match differs.or_else(|| refused.keys().find(|table| !open.contains(table))) {
        Some(table) => Err(broken(format!("{table} is open in it and not to `check`, or the other way round"))),
        None => Ok(()),
    }
}

fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let shown = path.display().to_string();
    let opened = OpenOptions::new().write(true).create_new(true).open(path);
    opened.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| {
        let next = match error.kind() {
            ErrorKind::AlreadyExists => "init overwrites nothing: remove the file, or name another one",
            _ => "",
        };
        Failure::new(Exit::Usage, "output_file", &shown, format!("cannot write {shown}: {error}"), next)
    })
}

fn report<'a>(proposal: &'a Proposal, file: Option<&'a Path>, text: &'a str) -> Report<'a> {
    let chosen = proposal.entries.iter().map(|entry| &entry.chosen);
    let by_via = chosen.filter(|chosen| matches!(chosen, Chosen::Line(choice) if choice.policy.via.is_some())).count();
    let decision = |entry: &proposal::Entry| Decision { table: entry.table.to_string(), why: entry.why.clone() };
    let decisions: Vec<Decision> = proposal.open().map(decision).collect();
    let tables = proposal.entries.len();
    Report {
        key: &proposal.key.column,
        tables,
        by_key: tables - by_via - decisions.len(),
        by_via,
        decisions,
        file,
        configuration: file.is_none().then_some(text),
    }
}

fn summary(report: &Report) -> String {
    let Report { key, tables, by_key, by_via, decisions, .. } = report;
    let file = report.file.map_or("FILE".to_owned(), |file| plain(&file.display().to_string()));
    format!(
        "tables: {tables}; with their tenant's key ({}): {by_key}; by foreign keys: {by_via}; decisions left to you: {}\n\
         next: decide what is marked \"decide:\" in the file, then `carveout check -c {file}`\n",
        plain(key),
        decisions.len()
    )
}

//! `carveout prepare`: the SQL that `check` asked for, printed or run. With `--apply` nothing is run as
//! long as something stands in the way that a person has to mend.

use clap::Args;
use connectors::postgres::{client, prepare};
use schemas::config::Config;
use schemas::status::{Finding, Severity};

use super::exit::{Exit, Failure};
use super::output::{self, Output, note, plain};
use super::{Global, block_on, check, load};

/// What `prepare` takes.
#[derive(Args)]
pub struct Options {
    /// Run the SQL, each step under a short lock timeout
    #[arg(long)]
    apply: bool,
}

/// Runs the command.
pub fn run(global: &Global, options: &Options) -> Result<Exit, Failure> {
    let config = load::load(&global.config)?;
    let steps = block_on(async {
        let (findings, _) = check::look(&config).await?;
        let (steps, others): (Vec<Finding>, Vec<Finding>) = findings.into_iter().partition(|finding| finding.prepared);
        let stands = |finding: &Finding| {
            finding.severity == Severity::Error || options.apply && finding.object == prepare::BY_OTHERS
        };
        let in_the_way: Vec<Finding> = others.into_iter().filter(stands).collect();
        if options.apply {
            refuse(&in_the_way)?;
            apply(&config, &steps).await?;
        } else {
            in_the_way.iter().for_each(warn);
        }
        Ok(steps)
    })??;
    let slot = &config.source.slot;
    match (global.output, options.apply) {
        (Output::Json, _) => output::result(Output::Json, &steps, String::new)?,
        (Output::Text, false) => output::print(&script(&steps))?,
        (Output::Text, true) => output::print(&applied(steps.len()))?,
    }
    if !steps.is_empty() {
        note(&reminder(slot, options.apply));
    }
    Ok(Exit::Done)
}

fn refuse(in_the_way: &[Finding]) -> Result<(), Failure> {
    let Some(first) = in_the_way.first() else { return Ok(()) };
    in_the_way.iter().for_each(warn);
    let message = format!("nothing was run: a person has to mend something first ({} in all)", in_the_way.len());
    Err(Failure::new(
        Exit::No,
        "check_failed",
        &first.object,
        message,
        "mend them, and run prepare again; `carveout check` shows them all",
    ))
}

fn warn(finding: &Finding) {
    let remedy =
        if finding.remedy.is_empty() { String::new() } else { format!("\n  next: {}", plain(&finding.remedy)) };
    note(&format!("in the way of prepare: {}: {}{remedy}\n", plain(&finding.object), plain(&finding.cause)));
}

async fn apply(config: &Config, steps: &[Finding]) -> Result<(), Failure> {
    if steps.is_empty() {
        return Ok(());
    }
    let client = client::connect(&config.source.url, "prepare").await.map_err(|error| Failure::database(&error))?;
    for (at, step) in steps.iter().enumerate() {
        prepare::apply(&client, step).await.map_err(|error| {
            let mut failure = Failure::database(&error);
            failure.fault.message = format!("step {} of {}: {}", at + 1, steps.len(), failure.fault.message);
            failure.fault.next = "the steps before it are done; mend the cause and run prepare again".to_owned();
            failure
        })?;
        note(&format!("{}/{} done: {}\n", at + 1, steps.len(), plain(&step.object)));
    }
    Ok(())
}

/// The steps as a script for psql.
fn script(steps: &[Finding]) -> String {
    if steps.is_empty() {
        return "-- nothing to prepare\n".to_owned();
    }
    let step = |step: &Finding| {
        let sql = step.remedy.trim().trim_end_matches(';');
        format!("-- {}: {}\n{sql};\n\n", plain(&step.object), plain(&step.cause))
    };
    steps.iter().map(step).collect()
}

fn applied(steps: usize) -> String {
    match steps {
        0 => "nothing to prepare\n".to_owned(),
        1 => "prepared: 1 step\n".to_owned(),
        more => format!("prepared: {more} steps\n"),
    }
}

fn reminder(slot: &str, applied: bool) -> String {
    let slot = plain(slot);
    let when = if applied { "From now on" } else { "Once it exists," };
    format!(
        "{when} slot {slot} keeps the source's log until `carveout run` has read it. Start the daemon soon;\n\
         if Carveout is not used after all, drop the slot: SELECT pg_drop_replication_slot('{}')\n",
        slot.replace('\'', "''"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_runs_in_order_and_no_name_leaves_its_comment() {
        let steps = [
            Finding::prepared("public.\"a\nDROP TABLE b; --\"", "no identity", "ALTER TABLE a REPLICA IDENTITY FULL"),
            Finding::prepared("schema carveout", "it does not exist", "CREATE SCHEMA carveout;\nSELECT 1;\n"),
        ];
        let expected = "-- public.\"a\\nDROP TABLE b; --\": no identity\nALTER TABLE a REPLICA IDENTITY FULL;\n\n\
            -- schema carveout: it does not exist\nCREATE SCHEMA carveout;\nSELECT 1;\n\n";
        assert_eq!(script(&steps), expected);
        assert_eq!(script(&[]), "-- nothing to prepare\n");
    }

    #[test]
    fn nothing_runs_while_a_person_has_to_mend_something() {
        assert!(refuse(&[]).is_ok());
        let failure = refuse(&[Finding::new(Severity::Error, "wal_level", "it is replica", "…")]).unwrap_err();
        assert_eq!((failure.exit, failure.fault.object.as_str()), (Exit::No, "wal_level"));
    }
}

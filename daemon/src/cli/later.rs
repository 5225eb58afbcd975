//! The commands of the interface that this version does not have: accepted, and refused with a clear
//! word, so that a script learns more than "unrecognized subcommand".

use std::ffi::OsString;

use clap::{Args, Subcommand};

use super::exit::{Exit, Failure};

/// Their names, for the tests.
#[cfg(test)]
pub const NAMES: [&str; 2] = ["assess", "apply"];

/// One of them.
#[derive(Subcommand)]
pub enum Later {
    /// Not in this version: inventory of tenants and tables
    #[command(hide = true)]
    Assess(Anything),

    /// Not in this version: a worker of the Kafka deployment
    #[command(hide = true)]
    Apply(Anything),
}

/// Whatever such a command would take.
#[derive(Args)]
pub struct Anything {
    /// Not looked at
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<OsString>,
}

impl Later {
    /// Says that this version does not have it.
    pub fn refuse(&self) -> Result<Exit, Failure> {
        let (name, next) = match self {
            Later::Assess(_) => ("assess", "carveout check shows what can be moved"),

            Later::Apply(_) => ("apply", ""),
        };
        let message = format!("`carveout {name}` is not in this version ({})", env!("CARGO_PKG_VERSION"));
        Err(Failure::new(Exit::Usage, "not_in_this_version", name, message, next))
    }
}

//! Where the daemon's log goes: stderr, as text or JSON. `RUST_LOG` wins over the configuration.

use std::io::{IsTerminal, stderr};

use schemas::config::LogFormat;
use tracing_subscriber::EnvFilter;

use super::exit::{Exit, Failure};

/// Starts logging, once per process.
pub fn start(format: LogFormat, level: &str) -> Result<(), Failure> {
    let wrong = |object: &str, why: String| {
        Failure::new(Exit::Usage, "configuration", object, why, "use error, warn, info, debug or trace")
    };
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => {
            EnvFilter::try_new(directives).map_err(|error| wrong("RUST_LOG", format!("RUST_LOG is wrong: {error}")))?
        }
        _ => EnvFilter::try_new(level).map_err(|error| wrong("log.level", format!("log.level is wrong: {error}")))?,
    };
    let colours = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(colours);
    let started = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| wrong("log", format!("cannot start logging: {error}")))
}

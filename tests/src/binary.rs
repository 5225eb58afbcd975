//! Where the built binary is, one run of one of its commands, and what its configuration file says. It must
//! never build anything: a test that runs an old binary unseen is worse than one that asks for a build.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::timeout;

/// Longest run of one command.
const COMMAND_DEADLINE: Duration = Duration::from_secs(180);

/// `target/release/carveout`, of `CARGO_TARGET_DIR` where that is set.
pub fn binary() -> Result<PathBuf> {
    let default = || OsString::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target"));
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(default);
    let path = Path::new(&target).join("release/carveout");
    let path = fs::canonicalize(&path)
        .with_context(|| format!("{} is missing: run `cargo build --release` first", path.display()))?;
    Ok(path)
}

/// Runs `carveout -c FILE <args>`, with or without a running daemon.
pub async fn cli(config: &Path, args: &[&str]) -> Result<Output> {
    let mut command = tokio::process::Command::new(binary()?);
    command.arg("-c").arg(config).args(args).env("NO_COLOR", "1").stdin(Stdio::null()).kill_on_drop(true);
    let run = timeout(COMMAND_DEADLINE, command.output()).await;
    run.with_context(|| format!("carveout {args:?} took longer than {COMMAND_DEADLINE:?}"))?.context("run carveout")
}

/// The value of a key that occurs once in a simple YAML file, in block or flow style.
pub fn setting(text: &str, key: &str) -> Option<String> {
    let key = format!("{key}:");
    let starts = |before: &str| before.is_empty() || before.ends_with([' ', '{', ',']);
    let value = text.lines().find_map(|line| {
        let line = line.split(" #").next().unwrap_or_default();
        line.split_once(&key).filter(|(before, _)| starts(before)).map(|(_, value)| value)
    })?;
    let value = value.split([',', '}']).next().unwrap_or_default();
    Some(value.trim().trim_matches(['"', '\'']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_found_in_both_styles_of_yaml() {
        let flow = "http: {listen: 127.0.0.1:8377, token_file: \"./token\"} # listen: no";
        let block = "http:\n  listen: 127.0.0.1:8377\n  token_file: ./token\n";
        for text in [flow, block] {
            assert_eq!(setting(text, "listen").as_deref(), Some("127.0.0.1:8377"));
            assert_eq!(setting(text, "token_file").as_deref(), Some("./token"));
        }
        assert_eq!(setting(flow, "file"), None);
    }
}

//! The built binary as a process: started, killed, terminated, asked, and its log read for errors. It must
//! never reach into the product: what a person has (HTTP, command line, signals, `/proc`) is all it uses.

use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use daemon::demo::cluster::signal;
use serde_json::Value;

use crate::binary::{binary, cli, setting};
use crate::http::{self, Answer};
use crate::wait::until;

/// Longest wait for a daemon to be ready, or to end after SIGTERM.
const DAEMON_DEADLINE: Duration = Duration::from_secs(60);
/// What marks a line of the log that a person must look at: text and JSON format, and a panic.
const ERROR_MARKS: [&str; 3] = [" ERROR ", "\"level\":\"ERROR\"", "panicked at"];
/// Lines at the end of a log that an error message carries.
const LOG_TAIL_LINES: usize = 20;

/// A `carveout run`. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    /// Its configuration file.
    pub config: PathBuf,
    /// Where it answers HTTP.
    pub address: SocketAddr,
    /// Its log, next to the configuration; a daemon started again goes on writing there.
    pub log_path: PathBuf,
    token_file: PathBuf,
    child: Child,
}

impl Daemon {
    /// Starts a daemon and waits until `/livez` and then `/readyz` answer 200.
    pub async fn start(config: &Path) -> Result<Daemon> {
        let mut daemon = Daemon::spawn(config, &[])?;
        daemon.wait_ready().await?;
        Ok(daemon)
    }

    /// Starts a daemon with more in its environment, and waits for nothing.
    pub fn spawn(config: &Path, environment: &[(&str, &str)]) -> Result<Daemon> {
        let text = fs::read_to_string(config).with_context(|| format!("read {}", config.display()))?;
        let listen = setting(&text, "listen").context("the configuration has no http.listen")?;
        let address = listen.parse().with_context(|| format!("read the address {listen:?}"))?;
        let folder = config.parent().context("the configuration is in no folder")?;
        let token_file = folder.join(setting(&text, "token_file").context("the configuration has no token_file")?);
        let log_path = config.with_extension("log");
        let log = OpenOptions::new().create(true).append(true).open(&log_path).context("open the daemon's log")?;
        let mut command = Command::new(binary()?);
        command.arg("run").arg("-c").arg(config).current_dir(folder).stdin(Stdio::null());
        command.env("NO_COLOR", "1").envs(environment.iter().copied());
        command.stdout(log.try_clone().context("share the log")?).stderr(log);
        let child = command.spawn().context("run carveout")?;
        // The sweep of stale folders ends it by this file, should this process be killed.
        fs::write(config.with_extension("pid"), child.id().to_string()).context("write the pid file")?;
        Ok(Daemon { config: config.to_owned(), address, log_path, token_file, child })
    }

    /// Waits until the daemon is alive and ready; fails at once, with the log's end, when it has ended.
    pub async fn wait_ready(&mut self) -> Result<()> {
        for path in ["/livez", "/readyz"] {
            let what = format!("{path} of the daemon");
            let ended = until(&what, DAEMON_DEADLINE, async || {
                if let Some(status) = self.child.try_wait()? {
                    return Ok(Some(status));
                }
                http::get(self.address, path).await?.success()?;
                Ok(None)
            });
            if let Some(status) = ended.await.with_context(|| self.log_tail())? {
                bail!("the daemon ended with {status}\n{}", self.log_tail());
            }
        }
        Ok(())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits for the end: the crash that every promise has to survive.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("kill the daemon")?;
        self.child.wait().context("wait for the killed daemon")?;
        Ok(())
    }

    /// SIGTERM, and waits for the orderly end.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        signal(self.child.id(), "TERM")?;
        self.wait_exit(DAEMON_DEADLINE).await
    }

    /// Waits for the daemon to end by itself.
    pub async fn wait_exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        let ended = until("the end of the daemon", deadline, async || child.try_wait()?.context("it runs")).await;
        ended.with_context(|| self.log_tail())
    }

    /// `GET path`, whatever the status.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        http::get(self.address, path).await
    }

    /// `GET /v1/status`.
    pub async fn status(&self) -> Result<Value> {
        self.get("/v1/status").await?.success()?.json()
    }

    /// The part of `/v1/status` about one tenant.
    pub async fn tenant(&self, tenant: &str) -> Result<Value> {
        let status = self.status().await?;
        let tenants = status["tenants"].as_array().context("the status has no list of tenants")?;
        let found = tenants.iter().find(|entry| entry["tenant"] == tenant);
        found.cloned().with_context(|| format!("the status does not know tenant {tenant}"))
    }

    /// `POST path` with the token of the token file, whatever the status.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        let token = fs::read_to_string(&self.token_file).context("read the token file")?;
        http::post(self.address, path, Some(token.trim()), body).await
    }

    /// Runs `carveout <args> -c FILE` with the daemon's configuration.
    pub async fn cli(&self, args: &[&str]) -> Result<Output> {
        cli(&self.config, args).await
    }

    /// Memory that the daemon has in RAM now, in bytes.
    pub fn rss_bytes(&self) -> Result<u64> {
        memory_bytes(self.pid(), "VmRSS")
    }

    /// The most memory that the daemon ever had in RAM, in bytes.
    pub fn peak_rss_bytes(&self) -> Result<u64> {
        memory_bytes(self.pid(), "VmHWM")
    }

    /// Everything it has logged, also before a restart.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log_path).context("read the daemon's log")
    }

    /// Fails when the log has a line that a person must look at and that contains none of `expected`.
    pub fn assert_no_errors(&self, expected: &[&str]) -> Result<()> {
        let log = self.log()?;
        let unexpected = unexpected_errors(&log, expected);
        ensure!(unexpected.is_empty(), "errors in {}:\n{}", self.log_path.display(), unexpected.join("\n"));
        Ok(())
    }

    fn log_tail(&self) -> String {
        let log = self.log().unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
        format!("the end of {}:\n{tail}\n", self.log_path.display())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended long ago: nothing to report.
        self.child.kill().and_then(|()| self.child.wait()).ok();
    }
}

/// Lines marked as errors that contain none of `expected`.
fn unexpected_errors<'a>(log: &'a str, expected: &[&str]) -> Vec<&'a str> {
    let marked = log.lines().filter(|line| ERROR_MARKS.iter().any(|mark| line.contains(mark)));
    marked.filter(|line| !expected.iter().any(|text| line.contains(text))).collect()
}

/// A line of `/proc/<pid>/status` (proc(5)), which counts in kB.
fn memory_bytes(pid: u32, name: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("{path} has no {name}"))? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unexpected_errors_fail_a_test() {
        let log = "10:00 INFO fine\n10:01 ERROR slot is lost\n{\"level\":\"ERROR\",\"message\":\"disk full\"}\n";
        assert_eq!(unexpected_errors(log, &[]).len(), 2);
        assert_eq!(unexpected_errors(log, &["slot is lost", "disk full"]).len(), 0);
    }

    #[test]
    fn memory_of_a_process_is_read_in_bytes() {
        let (now, peak) =
            (memory_bytes(std::process::id(), "VmRSS").unwrap(), memory_bytes(std::process::id(), "VmHWM").unwrap());
        assert!(now > 100_000 && peak >= now, "{now} {peak}");
    }
}

//! Unmodified pgbench, writing all the time while a test moves a tenant. It is the application: it must
//! never see an error, so a client that aborted or a transaction that failed is a failure of the test.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use daemon::demo::cluster::{Cluster, signal};
use tokio_postgres::Client;

use crate::scene::connect;
use crate::wait::until;

/// How long pgbench would run if nobody stopped it, in seconds: no test takes a day.
const RUN_SECONDS: &str = "86400";
/// Longest wait for pgbench's sessions to come or go.
const SESSIONS_DEADLINE: Duration = Duration::from_secs(30);

/// A running pgbench. Dropping it kills it.
#[derive(Debug)]
pub struct Load {
    child: Child,
    log: PathBuf,
    url: String,
}

/// How a load ended.
#[derive(Clone, Debug)]
pub struct LoadReport {
    /// What went wrong before it was stopped; none if no client saw an error.
    pub failure: Option<String>,
    /// Everything that pgbench said: one line of progress a second.
    pub output: String,
}

impl LoadReport {
    /// Fails when the application saw an error.
    pub fn assert_fine(&self) -> Result<()> {
        match &self.failure {
            None => Ok(()),
            Some(failure) => bail!("pgbench failed: {failure}\n{}", self.output),
        }
    }
}

impl Load {
    /// Starts the default script (TPC-B) with `clients` sessions, at most `rate` transactions a second where
    /// given, and returns when all sessions are there. The log gets a file of its own in the cluster's folder.
    pub async fn start(cluster: &Cluster, dbname: &str, clients: usize, rate: Option<u32>) -> Result<Load> {
        let (log, file) = new_log(cluster)?;
        let mut pgbench = cluster.command("pgbench")?;
        pgbench.args(["-n", "-j", "2", "-P", "1", "-T", RUN_SECONDS, "-c", &clients.to_string()]);
        if let Some(rate) = rate {
            pgbench.args(["-R", &rate.to_string()]);
        }
        pgbench.arg(dbname).stdin(Stdio::null());
        pgbench.stdout(file.try_clone().context("share the log")?).stderr(file);
        let child = pgbench.spawn().context("run pgbench")?;
        let mut load = Load { child, log, url: cluster.url(dbname) };
        let client = connect(&load.url).await?;
        let begun = until("pgbench's sessions", SESSIONS_DEADLINE, async || {
            if load.failure()?.is_some() {
                return Ok(());
            }
            let seen = sessions(&client).await?;
            ensure!(seen >= clients as i64, "{seen} of {clients} sessions");
            Ok(())
        });
        begun.await?;
        load.check()?;
        Ok(load)
    }

    /// Starts scripts of the test's own, each with its weight, until every client has done so many transactions.
    pub fn scripts(
        cluster: &Cluster,
        dbname: &str,
        scripts: &[(impl AsRef<str>, u32)],
        clients: usize,
        transactions: usize,
    ) -> Result<Load> {
        let (log, file) = new_log(cluster)?;
        let mut pgbench = cluster.command("pgbench")?;
        pgbench.args(["-n", "-j", "2", "-P", "1", "-t", &transactions.to_string(), "-c", &clients.to_string()]);
        for (number, (sql, weight)) in scripts.iter().enumerate() {
            let path = log.with_extension(format!("{number}.sql"));
            fs::write(&path, sql.as_ref()).context("write a script")?;
            pgbench.arg("-f").arg(format!("{}@{weight}", path.display()));
        }
        pgbench.arg(dbname).stdin(Stdio::null());
        pgbench.stdout(file.try_clone().context("share the log")?).stderr(file);
        let child = pgbench.spawn().context("run pgbench")?;
        Ok(Load { child, log, url: cluster.url(dbname) })
    }

    /// Whether it has not done all its transactions yet.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("look at pgbench")?.is_none())
    }

    /// Waits until a load of [`Load::scripts`] has done all its transactions.
    pub async fn finish(mut self, deadline: Duration) -> Result<LoadReport> {
        let child = &mut self.child;
        let ended = until("the end of the load", deadline, async || child.try_wait()?.context("it runs")).await?;
        let output = self.output()?;
        let failure = reported_failure(&output).or((!ended.success()).then(|| format!("it ended with {ended}")));
        Ok(LoadReport { failure, output })
    }

    /// Fails when pgbench has ended, or any of its clients has seen an error, so far.
    pub fn check(&mut self) -> Result<()> {
        let failure = self.failure()?;
        LoadReport { failure, output: self.output()? }.assert_fine()
    }

    /// Ends pgbench and waits until the server has none of its sessions left, so that nothing is written
    /// any more. The report says whether it had failed before.
    pub async fn stop(mut self) -> Result<LoadReport> {
        if self.child.try_wait().context("look at pgbench")?.is_none() {
            signal(self.child.id(), "TERM")?;
            let child = &mut self.child;
            until("the end of pgbench", SESSIONS_DEADLINE, async || child.try_wait()?.context("it runs")).await?;
            let client = connect(&self.url).await?;
            until("the end of pgbench's sessions", SESSIONS_DEADLINE, async || {
                let seen = sessions(&client).await?;
                ensure!(seen == 0, "{seen} sessions");
                Ok(())
            })
            .await?;
            let output = self.output()?;
            return Ok(LoadReport { failure: reported_failure(&output), output });
        }
        let failure = self.failure()?;
        Ok(LoadReport { failure, output: self.output()? })
    }

    /// Why pgbench is not what it should be: running, with all clients, without a failed transaction.
    fn failure(&mut self) -> Result<Option<String>> {
        let ended = self.child.try_wait().context("look at pgbench")?;
        let reported = reported_failure(&self.output()?);
        Ok(reported.or(ended.map(|status| format!("it ended by itself with {status}"))))
    }

    fn output(&self) -> Result<String> {
        fs::read_to_string(&self.log).context("read pgbench's log")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended long ago: nothing to report.
        self.child.kill().and_then(|()| self.child.wait()).ok();
    }
}

/// A log file that no earlier load of this cluster has.
fn new_log(cluster: &Cluster) -> Result<(PathBuf, File)> {
    let mut number = 1;
    loop {
        let path = cluster.dir.join(format!("pgbench-{number}.log"));
        match File::create_new(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            made => return Ok((path, made.context("create pgbench's log")?)),
        }
    }
}

/// The first line of pgbench's output that tells of an error. A progress line ends with ", 0 failed" when
/// serialization failures and deadlocks spared every transaction.
fn reported_failure(output: &str) -> Option<String> {
    let bad = |line: &&str| {
        let failed = line.strip_suffix(" failed").and_then(|line| line.rsplit(", ").next());
        line.contains("aborted")
            || line.contains("error:")
            || line.contains("FATAL:")
            || failed.is_some_and(|count| count != "0")
    };
    output.lines().find(bad).map(str::to_owned)
}

async fn sessions(client: &Client) -> Result<i64> {
    let sql =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench' AND datname = current_database()";
    Ok(client.query_one(sql, &[]).await.context("count pgbench's sessions")?.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_from_progress() {
        let fine = "progress: 1.0 s, 2012.9 tps, lat 1.9 ms stddev 0.8, 0 failed\n";
        assert_eq!(reported_failure(fine), None);
        for bad in [
            "progress: 2.0 s, 12.9 tps, lat 1.9 ms stddev 0.8, 3 failed",
            "pgbench: error: client 2 script 0 aborted in command 5 query 0: ERROR:  deadlock",
            "pgbench: error: connection to server failed",
        ] {
            assert_eq!(reported_failure(&format!("{fine}{bad}\n{fine}")).as_deref(), Some(bad));
        }
    }
}

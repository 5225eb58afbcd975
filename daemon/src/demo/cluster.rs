//! Private PostgreSQL clusters: initdb, start, stop, remove. `carveout demo` and the tests share it.
//!
//! A cluster listens on 127.0.0.1 only and has no unix socket, so no path is too long for one. Every call
//! blocks; async code wraps it in `spawn_blocking`. It must never serve data that anybody wants to keep.

mod binaries;
mod scratch;

use std::fs::{self, OpenOptions};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{env, thread};

use anyhow::{Context, Result, bail, ensure};

pub use binaries::Binaries;
pub use scratch::{ScratchFolder, sweep_stale};
use scratch::{keep, own_uid};

/// How often another free port is tried before a start is given up.
const PORT_ATTEMPTS: usize = 10;
/// Longest wait for a server to accept connections, or to end.
const SERVER_DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(10);
/// The longest tail of a log that an error message carries, in bytes.
const LOG_TAIL_BYTES: usize = 2_000;
/// Set for every cluster; [`ClusterOptions::settings`] come later and win.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_directories", ""),
    ("wal_level", "logical"),
    ("max_wal_senders", "40"),
    ("max_replication_slots", "40"),
    ("max_connections", "300"),
    ("shared_buffers", "128MB"),
    ("max_wal_size", "2GB"),
    ("timezone", "UTC"),
    ("log_line_prefix", "%m [%p] %a "),
];

/// Runs a program to its end; what it printed, or an error with its complaint.
fn stdout(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let said = command.output().with_context(|| format!("run {program}"))?;
    let complaint = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success(), "{program}: {}: {}", said.status, complaint.trim());
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

/// Sends a signal (`TERM`, `INT`, `QUIT`) to a process that the caller knows to be its own.
pub fn signal(pid: u32, name: &str) -> Result<()> {
    let script = ["-c", "kill -s \"$1\" \"$2\"", "sh", name, &pid.to_string()];
    stdout(Command::new("sh").args(script)).with_context(|| format!("send {name} to {pid}"))?;
    Ok(())
}

/// A port of 127.0.0.1 that was free a moment ago; whoever binds it must expect to be late.
pub fn free_port() -> Result<u16> {
    let socket = TcpListener::bind(("127.0.0.1", 0)).context("bind a free port")?;
    Ok(socket.local_addr()?.port())
}

/// The user and group that a server runs as when we are root: `postgres`, otherwise `nobody`.
fn unprivileged() -> Result<Option<(u32, u32)>> {
    if own_uid()? != 0 {
        return Ok(None);
    }
    let passwd = fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    let user = |name: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut ids = line.split(':').skip(2);
        Some((ids.next()?.parse().ok()?, ids.next()?.parse().ok()?))
    };
    let found = user("postgres").or_else(|| user("nobody"));
    Ok(Some(found.context("PostgreSQL does not run as root, and /etc/passwd has neither postgres nor nobody")?))
}

/// How clients prove who they are; written into `pg_hba.conf` by initdb.
#[derive(Clone, Debug, Default)]
pub enum Auth {
    /// Everybody on this machine is let in.
    #[default]
    Trust,
    /// SCRAM-SHA-256 with this password for the role `postgres`.
    Scram(String),
}

/// What may differ between clusters.
#[derive(Clone, Debug, Default)]
pub struct ClusterOptions {
    /// Lines of `postgresql.conf`, after and above the defaults of this file.
    pub settings: Vec<(String, String)>,
    /// How clients log in.
    pub auth: Auth,
}

/// How [`Cluster::stop`] ends a server (PostgreSQL docs, "Shutting Down the Server").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Sessions are disconnected, a checkpoint is written.
    Fast,
    /// No checkpoint: the next start recovers from the WAL, as after a crash.
    Immediate,
}

/// A running (or stopped) private server. Dropping it stops it at once and removes its folder, unless the
/// environment has `CARVEOUT_KEEP`.
#[derive(Debug)]
pub struct Cluster {
    /// TCP port on 127.0.0.1; stays the same over restarts.
    pub port: u16,
    /// The cluster's own folder: `data/` inside it is PGDATA, `postgres.log` the server's log.
    pub dir: PathBuf,
    binaries: Binaries,
    auth: Auth,
    account: Option<(u32, u32)>,
    postmaster: Mutex<Option<Child>>,
}

impl Cluster {
    /// Makes a cluster in `dir/name` and starts it; returns when it accepts connections. `dir` must be
    /// reachable by an unprivileged user when we are root: a [`ScratchFolder`] is.
    pub fn start(binaries: &Binaries, dir: &Path, name: &str, options: &ClusterOptions) -> Result<Cluster> {
        let own = dir.join(name);
        let account = unprivileged()?;
        fs::create_dir(&own).with_context(|| format!("create {}", own.display()))?;
        let postmaster = Mutex::new(None);
        let (binaries, auth) = (binaries.clone(), options.auth.clone());
        let mut cluster = Cluster { port: 0, dir: own, binaries, auth, account, postmaster };
        cluster.hand_over(&cluster.dir, 0o711)?;
        if cluster.account.is_some() {
            cluster.binaries = cluster.binaries.within_reach(&cluster.dir)?;
        }
        cluster.initdb(options).with_context(|| format!("initialize cluster {name}"))?;
        for _ in 0..PORT_ATTEMPTS {
            cluster.port = free_port()?;
            if cluster.launch().with_context(|| format!("start cluster {name}"))? {
                return Ok(cluster);
            }
        }
        bail!("cluster {name} found no free port in {PORT_ATTEMPTS} attempts")
    }

    /// Gives a file or folder to the server's user, with this mode.
    fn hand_over(&self, path: &Path, mode: u32) -> Result<()> {
        let permissions = PermissionsExt::from_mode(mode);
        fs::set_permissions(path, permissions).context("set the mode")?;
        if let Some((uid, gid)) = self.account {
            chown(path, Some(uid), Some(gid)).context("change the owner")?;
        }
        Ok(())
    }

    fn initdb(&self, options: &ClusterOptions) -> Result<()> {
        let mut initdb = self.command("initdb")?;
        initdb.env_remove("PGPORT"); // not chosen yet
        initdb.args("-D data -U postgres --no-locale -E UTF8 --no-sync -A".split(' '));
        match &self.auth {
            Auth::Trust => initdb.arg("trust"),
            Auth::Scram(password) => {
                let file = self.dir.join("password");
                fs::write(&file, password).context("write the password file")?;
                self.hand_over(&file, 0o600)?;
                initdb.args(["scram-sha-256", "--pwfile=password"])
            }
        };
        stdout(&mut initdb)?;
        let file = self.dir.join("data/postgresql.conf");
        let mut text = fs::read_to_string(&file).context("read postgresql.conf")?;
        for (name, value) in SETTINGS {
            text += &format!("{name} = '{value}'\n");
        }
        for (name, value) in &options.settings {
            text += &format!("{name} = '{}'\n", value.replace('\'', "''"));
        }
        fs::write(file, text).context("write postgresql.conf")
    }

    /// Starts the server and waits until it is ready. `false`: somebody else has the port.
    fn launch(&self) -> Result<bool> {
        let mut log = OpenOptions::new();
        let log = log.create(true).append(true).open(self.log_path()).context("open the log")?;
        let log_start = log.metadata()?.len() as usize;
        let said = || {
            let log = fs::read(self.log_path()).unwrap_or_default();
            let new = String::from_utf8_lossy(log.get(log_start..).unwrap_or_default());
            tail(&new).to_owned()
        };
        let mut postgres = self.command("postgres")?;
        // A group of its own: a Ctrl-C in the terminal is ours to handle, not the server's.
        postgres.process_group(0).args(["-p", &self.port.to_string(), "-D"]).arg(self.dir.join("data"));
        postgres.stdout(log.try_clone().context("share the log")?).stderr(log);
        let mut child = postgres.spawn().context("run postgres")?;
        let deadline = Instant::now() + SERVER_DEADLINE;
        while !self.ready(child.id()) {
            if let Some(status) = child.try_wait().context("wait for postgres")? {
                let said = said();
                if said.contains("could not create any TCP/IP sockets") {
                    return Ok(false);
                }
                bail!("postgres ended with {status}; its log ends with\n{said}");
            }
            if Instant::now() > deadline {
                kill(&mut child)?;
                bail!("postgres was not ready in {SERVER_DEADLINE:?}; its log ends with\n{}", said());
            }
            thread::sleep(POLL);
        }
        *self.postmaster() = Some(child);
        Ok(true)
    }

    fn postmaster(&self) -> MutexGuard<'_, Option<Child>> {
        self.postmaster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `postmaster.pid` names this process and its eighth line says ready (as `pg_ctl -w` reads it).
    fn ready(&self, pid: u32) -> bool {
        let text = fs::read_to_string(self.dir.join("data/postmaster.pid")).unwrap_or_default();
        let mut lines = text.lines().map(str::trim);
        lines.next() == Some(&pid.to_string()) && lines.nth(6) == Some("ready")
    }

    /// Address of a database, without a password: `postgresql://postgres@127.0.0.1:PORT/NAME?sslmode=disable`.
    pub fn url(&self, dbname: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{dbname}?sslmode=disable", self.port)
    }

    /// The server's own log.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }

    /// Pid of the running server; none after [`Cluster::stop`].
    pub fn postmaster_pid(&self) -> Option<u32> {
        self.postmaster().as_ref().map(Child::id)
    }

    /// Ends the server and waits for it; nothing to do when it is stopped. One that does not end is killed
    /// and reported.
    pub fn stop(&self, mode: StopMode) -> Result<()> {
        let child = self.postmaster().take();
        let Some(mut child) = child else {
            return Ok(());
        };
        let name = if mode == StopMode::Fast { "INT" } else { "QUIT" };
        let sent = signal(child.id(), name);
        let deadline = Instant::now() + SERVER_DEADLINE;
        while child.try_wait().context("wait for postgres")?.is_none() {
            if sent.is_err() || Instant::now() > deadline {
                kill(&mut child)?;
                sent?;
                bail!("postgres did not stop within {SERVER_DEADLINE:?} and was killed");
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Starts a stopped server on its old port; waits for the port if a client's socket holds it just now.
    pub fn start_again(&self) -> Result<()> {
        ensure!(self.postmaster_pid().is_none(), "the server on port {} is running", self.port);
        let deadline = Instant::now() + SERVER_DEADLINE;
        while !self.launch()? {
            ensure!(Instant::now() < deadline, "port {} is taken", self.port);
        }
        Ok(())
    }

    /// A fast stop and a start on the same port.
    pub fn restart(&self) -> Result<()> {
        self.stop(StopMode::Fast)?;
        self.start_again()
    }

    /// One of PostgreSQL's programs (`psql`, `pgbench`), as the server's user and in [`Cluster::dir`], with
    /// `PGHOST`, `PGPORT`, `PGUSER` and, if needed, `PGPASSWORD` set and no other `PG…` variable.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(self.binaries.program(program)?);
        if let Some((uid, gid)) = self.account {
            command.uid(uid).gid(gid);
        }
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        command.current_dir(&self.dir).env("HOME", &self.dir).env("LC_ALL", "C").stdin(Stdio::null());
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.port.to_string()).env("PGUSER", "postgres");
        if let Auth::Scram(password) = &self.auth {
            command.env("PGPASSWORD", password);
        }
        Ok(command)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.stop(StopMode::Immediate) {
            eprintln!("stop the server in {}: {error:#}", self.dir.display());
        }
        if !keep()
            && let Err(error) = fs::remove_dir_all(&self.dir)
        {
            eprintln!("could not remove {}: {error}", self.dir.display());
        }
    }
}

fn kill(child: &mut Child) -> Result<()> {
    child.kill().and_then(|()| child.wait()).context("kill postgres")?;
    Ok(())
}

/// The end of a log, for an error message.
fn tail(text: &str) -> &str {
    let start = text.ceil_char_boundary(text.len().saturating_sub(LOG_TAIL_BYTES));
    text[start..].trim()
}

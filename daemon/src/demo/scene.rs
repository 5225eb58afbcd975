//! The demo's two servers, its load and its daemon. Children end with the scene, whatever happens.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use schemas::status::{Status, TenantStatus};

use super::cluster::{Binaries, Cluster, ClusterOptions, ScratchFolder, free_port, signal};
use super::follow::{self, Application};
use super::shop;

/// Between two looks at the daemon's status.
const LOOK: Duration = Duration::from_millis(200);
/// Between two lines about the moves where they are not drawn over each other.
const BETWEEN_LINES: Duration = Duration::from_secs(3);
const DATABASE: &str = "shop";

/// What is played: whose tables, which tenants, which load.
pub struct Play {
    /// How many tenants share the database.
    pub tenants: u32,
    /// Those that move, and where to.
    pub moves: Vec<(String, &'static str)>,
    /// The load, for people.
    pub load: &'static str,
    /// Scripts with their weights; none is pgbench's own.
    scripts: Vec<(String, u32)>,
    /// What makes and fills the tables; empty: pgbench does.
    setup: Vec<String>,
    /// What an application writes that follows the routes.
    follows: follow::Script,
    /// The configuration's block `tenancy`.
    tenancy: String,
    /// The copy is slowed down, so that there is something to see and to kill.
    rows_per_second: u32,
}

impl Play {
    /// The shop's storefronts.
    pub fn shop(tenants: u32) -> Play {
        let policies = shop::POLICIES.iter().map(|(table, policy)| format!("    {table}: {policy}\n"));
        Play {
            tenants,
            moves: vec![(shop::tenant(7), "schema"), (shop::tenant(11), "database")],
            load: "the shop (22 kinds of transactions)",
            scripts: shop::load(tenants),
            setup: vec![shop::SCHEMA.to_owned(), shop::data(tenants, 300)],
            follows: follow::SHOP,
            tenancy: format!("  key: {}\n  tables:\n{}", shop::KEY, policies.collect::<String>()),
            rows_per_second: 6_000,
        }
    }

    /// pgbench's branches.
    pub fn pgbench(tenants: u32) -> Play {
        Play {
            tenants,
            moves: vec![("7".to_owned(), "schema"), ("11".to_owned(), "database")],
            load: "pgbench's own script",
            scripts: Vec::new(),
            setup: Vec::new(),
            follows: follow::PGBENCH,
            tenancy: "  key: bid\n".to_owned(),
            rows_per_second: 60_000,
        }
    }
}

/// Everything the demo starts.
pub struct Scene {
    daemon: Option<Child>,
    source: Cluster,
    target: Cluster,
    config: PathBuf,
    http: u16,
    began: Instant,
    /// When the moves were shown last.
    shown: Cell<Instant>,
    // Last: the folder goes when the servers are gone.
    folder: ScratchFolder,
}

impl Scene {
    /// Two clusters; the play's tables on the first.
    pub fn build(play: &Play) -> Result<Scene> {
        let began = Instant::now();
        let binaries = Binaries::find()?;
        let folder = ScratchFolder::create()?;
        let options = ClusterOptions::default();
        let source = Cluster::start(&binaries, folder.path(), "source", &options)?;
        let target = Cluster::start(&binaries, folder.path(), "target", &options)?;
        finish(source.command("createdb")?.arg(DATABASE))?;
        for (number, sql) in play.setup.iter().enumerate() {
            let path = folder.path().join(format!("setup-{number}.sql"));
            fs::write(&path, sql)?;
            finish(source.command("psql")?.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"]).arg(path).arg(DATABASE))?;
        }
        if play.setup.is_empty() {
            finish(source.command("pgbench")?.args(["-i", "-q", "-s", &play.tenants.to_string(), DATABASE]))?;
        }
        let http = free_port()?;
        let config = write_config(folder.path(), play, &source, &target, http)?;
        let scene = Scene { daemon: None, source, target, config, http, began, shown: Cell::new(began), folder };
        scene.say(&format!("two servers ({}); {} tenants in one database", binaries.version, play.tenants));
        Ok(scene)
    }

    /// A line of the report, with the seconds since the start.
    pub fn say(&self, line: &str) {
        println!("[{:6.1} s] {line}", self.began.elapsed().as_secs_f64());
    }

    /// The configuration's file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The daemon's address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }

    /// Runs one of our own commands; an error when it does not exit 0.
    pub fn carveout(&self, args: &[&str]) -> Result<()> {
        let output = self.try_carveout(args)?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "carveout {}: {}", args.join(" "), complaint.trim());
        Ok(())
    }

    /// Runs one of our own commands.
    pub fn try_carveout(&self, args: &[&str]) -> Result<Output> {
        self.command()?.args(args).output().with_context(|| format!("run carveout {}", args.join(" ")))
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("find the own program")?);
        command.arg("-c").arg(&self.config).env_remove("CARVEOUT_URL").env_remove("CARVEOUT_TOKEN");
        Ok(command)
    }

    /// Starts the daemon and waits until it is ready.
    pub fn start_daemon(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.folder.path().join("daemon.log"))?;
        let child = self.command()?.arg("run").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
        self.daemon = Some(child);
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.status().map_or(true, |status| status.source.state != "streaming") {
            let ended = self.daemon.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                bail!("the daemon ended at its start ({status}): {}", self.log_tail());
            }
            ensure!(Instant::now() < deadline, "the daemon was not ready within 30 s: {}", self.log_tail());
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("daemon.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// What the daemon says of itself.
    pub fn status(&self) -> Result<Status> {
        let output = self.try_carveout(&["status", "--output", "json"])?;
        serde_json::from_slice(&output.stdout).context("read the daemon's status")
    }

    /// Ends the daemon as a crash would.
    pub fn kill_daemon(&mut self) -> Result<()> {
        if let Some(mut child) = self.daemon.take() {
            child.kill().context("kill the daemon")?;
            child.wait().context("wait for the daemon")?;
        }
        Ok(())
    }

    /// Ends the daemon as an operator would.
    pub fn stop_daemon(&mut self) -> Result<()> {
        let Some(mut child) = self.daemon.take() else { return Ok(()) };
        signal(child.id(), "TERM")?;
        let status = child.wait().context("wait for the daemon")?;
        ensure!(status.success(), "the daemon ended with {status}: {}", self.log_tail());
        Ok(())
    }

    /// Waits until the daemon ends by itself (Ctrl-C reaches it too).
    pub fn wait_for_daemon(&mut self) -> Result<()> {
        if let Some(child) = &mut self.daemon {
            child.wait().context("wait for the daemon")?;
        }
        self.daemon = None;
        Ok(())
    }

    /// Waits for a condition, showing the moves meanwhile; a fault ends it.
    pub fn wait(&self, what: &str, patience: Duration, met: impl Fn(&[TenantStatus]) -> bool) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let tenants = self.status()?.tenants;
            self.show(&tenants);
            if let Some((tenant, fault)) = tenants.iter().find_map(|t| t.fault.as_ref().map(|fault| (&t.tenant, fault)))
            {
                bail!("tenant {tenant}: {}: {}; next: {}", fault.object, fault.message, fault.next);
            }
            if met(&tenants) {
                self.end_line();
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "waited {} s for {what}: {}", patience.as_secs(), self.log_tail());
            std::thread::sleep(LOOK);
        }
    }

    /// Shows the moves for a while; returns the longest lag that was seen, in seconds.
    pub fn keep_showing(&self, time: Duration) -> Result<f64> {
        let (end, most) = (Instant::now() + time, Cell::new(0.0_f64));
        self.wait("the time to pass", time + Duration::from_secs(60), |tenants| {
            tenants.iter().filter_map(|t| t.lag_seconds).for_each(|lag| most.set(most.get().max(lag)));
            Instant::now() >= end
        })?;
        Ok(most.get())
    }

    /// One line on a terminal, drawn over and over; elsewhere a line every now and then.
    fn show(&self, tenants: &[TenantStatus]) {
        let drawn = std::io::stdout().is_terminal();
        if !drawn && self.shown.get().elapsed() < BETWEEN_LINES {
            return;
        }
        self.shown.set(Instant::now());
        let moves: Vec<String> = tenants
            .iter()
            .map(|t| {
                format!(
                    "{} {} {}/{} rows, lag {:.1} s",
                    t.tenant,
                    t.phase,
                    t.rows_copied,
                    t.rows_total,
                    t.lag_seconds.unwrap_or(0.0)
                )
            })
            .collect();
        match drawn {
            true => print!("\r\x1b[K           {}", moves.join("   |   ")),
            false => moves.iter().for_each(|line| self.say(line)),
        }
        let _ = std::io::stdout().flush();
    }

    fn end_line(&self) {
        if std::io::stdout().is_terminal() {
            println!();
        }
    }

    /// An application of one tenant that follows the routes.
    pub fn start_application(&self, play: &Play, tenant: &str) -> Result<Application> {
        Application::start(play.follows, tenant, &self.source.url(DATABASE), &self.target.url("postgres"), 4)
    }

    /// Runs one of our own commands; the last line that it prints.
    pub fn last_line(&self, args: &[&str]) -> Result<String> {
        let output = self.try_carveout(args)?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "carveout {}: {}", args.join(" "), complaint.trim());
        let printed = String::from_utf8_lossy(&output.stdout);
        Ok(printed.trim().lines().last().unwrap_or_default().to_owned())
    }

    /// The play's scripts by pgbench, or its own, until it is stopped.
    pub fn start_load(&self, play: &Play, clients: u32) -> Result<Load> {
        let mut command = self.source.command("pgbench")?;
        command.args(["-n", "-c", &clients.to_string(), "-j", "2", "-T", "86400"]);
        for (number, (sql, weight)) in play.scripts.iter().enumerate() {
            let path = self.folder.path().join(format!("load-{number}.sql"));
            fs::write(&path, sql)?;
            command.arg("-f").arg(format!("{}@{weight}", path.display()));
        }
        command.arg(DATABASE);
        let errors = File::create(self.folder.path().join("pgbench.log"))?;
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn().context("start pgbench")?;
        Ok(Load { child: Some(child) })
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Err(error) = self.kill_daemon() {
            eprintln!("the daemon could not be ended: {error:#}");
        }
    }
}

/// The running load.
pub struct Load {
    child: Option<Child>,
}

impl Load {
    /// Ends it; an error when it had ended before, which it does when a transaction fails.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        if let Some(status) = child.try_wait()? {
            bail!("pgbench ended by itself: {status}");
        }
        signal(child.id(), "TERM")?;
        child.wait().context("wait for pgbench")?;
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("pgbench: {error:#}");
        }
    }
}

fn finish(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {:?}", command.get_program()))?;
    ensure!(output.status.success(), "{:?}: {}", command.get_program(), String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn write_config(folder: &Path, play: &Play, source: &Cluster, target: &Cluster, http: u16) -> Result<PathBuf> {
    let folder_text = folder.display();
    let Play { tenancy, rows_per_second, .. } = play;
    let text = format!(
        "source:\n  url: {source}\ntenancy:\n{tenancy}tenant_strategy:\n  database_config:\n    \
         tenant_schema_pattern: \"tenant_{{tenant}}\"\n    tenant_database_pattern: \"{target}\"\n\
         state_dir: {folder_text}/state\nlimits: {{copy_rows_per_second: {rows_per_second}}}\n\
         http: {{listen: \"127.0.0.1:{http}\", token_file: {folder_text}/token}}\n",
        source = source.url(DATABASE),
        target = target.url("tenant_{tenant}"),
    );
    let path = folder.join("carveout.yaml");
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

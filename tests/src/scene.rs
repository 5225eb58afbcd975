//! The scene that promises play in: a source cluster with a database `shop`, a target cluster, and a
//! configuration for a daemon between them. Most play on pgbench's tables, whose branches (`bid`) are the
//! tenants; the others bring tables of their own. It must never prepare anything that `carveout prepare` is
//! there for.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::{Auth, Binaries, Cluster, ClusterOptions, ScratchFolder, free_port};
use tokio_postgres::{Client, NoTls};

use crate::load::Load;

/// The shared database.
pub const DATABASE: &str = "shop";
/// The tables of pgbench: all of them have the tenant key.
pub const TABLES: [&str; 4] = ["pgbench_accounts", "pgbench_branches", "pgbench_history", "pgbench_tellers"];

/// Two running clusters and a folder. Dropping it ends and removes all of that.
#[derive(Debug)]
pub struct Scene {
    /// Has the database [`DATABASE`].
    pub source: Arc<Cluster>,
    /// Empty: what is moved to a database comes here, as `bid_<tenant>`. The source itself where one cluster
    /// is enough.
    pub target: Arc<Cluster>,
    /// Of the role `postgres`, where the clusters ask for one.
    passwords: [Option<String>; 2],
    // Last: a cluster's folder lies inside it.
    folder: ScratchFolder,
}

/// What a test wants different in the configuration file.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// Reach the source here (a proxy) and not at its port.
    pub source: Option<SocketAddr>,
    /// Reach the target here (a proxy) and not at its port.
    pub target: Option<SocketAddr>,
    /// Tenant and isolation (`schema`, `database`), for `tenant_overrides`.
    pub overrides: Vec<(String, String)>,
    /// The tenant key, where it is not `bid`.
    pub key: Option<String>,
    /// Table and policy (`{exclude: true}`), for `tenancy.tables`.
    pub tables: Vec<(String, String)>,
    /// What a tenant's schema and database are called, where it is not `bid_{tenant}`.
    pub names: Option<String>,
    /// Further lines of the block `tenant_strategy`, as they are.
    pub strategy: String,
    /// Further top-level lines of YAML, as they are.
    pub extra: String,
}

impl Scene {
    /// Both clusters with default settings, `pgbench -i -s scale`: so many tenants, 1 to `scale`, with
    /// 100,000 accounts each.
    pub async fn start(scale: u32) -> Result<Scene> {
        Scene::start_with(scale, ClusterOptions::default(), ClusterOptions::default()).await
    }

    /// The same with other settings of the servers.
    pub async fn start_with(scale: u32, source: ClusterOptions, target: ClusterOptions) -> Result<Scene> {
        let scene = Scene::empty(source, target).await?;
        let mut pgbench = scene.source.command("pgbench")?;
        pgbench.args(["-i", "-q", "-s", &scale.to_string(), DATABASE]);
        run(pgbench).await?;
        Ok(scene)
    }

    /// Two clusters, and no table in the shared database.
    pub async fn empty(source: ClusterOptions, target: ClusterOptions) -> Result<Scene> {
        let binaries = Binaries::find()?;
        Scene::of(binaries.clone(), source, binaries, target).await
    }

    /// The same with servers of these major versions, the source's first.
    pub async fn between(source: u32, target: u32) -> Result<Scene> {
        let (source, target) = (Binaries::of(source)?, Binaries::of(target)?);
        Scene::of(source, ClusterOptions::default(), target, ClusterOptions::default()).await
    }

    async fn of(one: Binaries, source: ClusterOptions, other: Binaries, target: ClusterOptions) -> Result<Scene> {
        let folder = ScratchFolder::create()?;
        let passwords = [password(&source), password(&target)];
        let start = |binaries: Binaries, name: &'static str, options: ClusterOptions| {
            let path = folder.path().to_owned();
            let cluster = tokio::task::spawn_blocking(move || Cluster::start(&binaries, &path, name, &options));
            async { cluster.await.context("join the cluster's start")? }
        };
        let (source, target) = tokio::try_join!(start(one, "source", source), start(other, "target", target))?;
        let scene = Scene { source: Arc::new(source), target: Arc::new(target), passwords, folder };
        scene.create_database().await?;
        Ok(scene)
    }

    /// One cluster that is source and target, and no table in the shared database.
    pub async fn single(options: ClusterOptions) -> Result<Scene> {
        let binaries = Binaries::find()?;
        let folder = ScratchFolder::create()?;
        let (path, password) = (folder.path().to_owned(), password(&options));
        let cluster = tokio::task::spawn_blocking(move || Cluster::start(&binaries, &path, "source", &options));
        let source = Arc::new(cluster.await.context("join the cluster's start")??);
        let scene = Scene { target: Arc::clone(&source), source, passwords: [password.clone(), password], folder };
        scene.create_database().await?;
        Ok(scene)
    }

    async fn create_database(&self) -> Result<()> {
        let mut createdb = self.source.command("createdb")?;
        createdb.arg(DATABASE);
        run(createdb).await
    }

    /// A folder for what the test wants to keep as long as the scene.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A session in the shared database.
    pub async fn source_client(&self) -> Result<Client> {
        session(&self.source, DATABASE, self.passwords[0].as_deref()).await
    }

    /// A session in a database of the target cluster.
    pub async fn target_client(&self, dbname: &str) -> Result<Client> {
        session(&self.target, dbname, self.passwords[1].as_deref()).await
    }

    /// Starts pgbench on the shared database; see [`Load::start`].
    pub async fn load(&self, clients: usize, rate: Option<u32>) -> Result<Load> {
        Load::start(&self.source, DATABASE, clients, rate).await
    }

    /// Writes `<name>.yaml` into the scene's folder, with a state directory, a token file and a port of its
    /// own, and returns its path.
    pub fn write_config(&self, name: &str, wanted: &Configuration) -> Result<PathBuf> {
        let path = self.path().join(format!("{name}.yaml"));
        let text = self.config_text(name, wanted)?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    fn config_text(&self, name: &str, wanted: &Configuration) -> Result<String> {
        let at = |proxy: Option<SocketAddr>, cluster: &Cluster| {
            proxy.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], cluster.port)))
        };
        let (source, target) = (at(wanted.source, &self.source), at(wanted.target, &self.target));
        let folder = self.path().display();
        let lines: Vec<String> =
            wanted.overrides.iter().map(|(tenant, isolation)| format!("    \"{tenant}\": {isolation}\n")).collect();
        let overrides =
            if lines.is_empty() { String::new() } else { format!("  tenant_overrides:\n{}", lines.concat()) };
        let lines: Vec<String> =
            wanted.tables.iter().map(|(table, policy)| format!("    {}: {policy}\n", yaml(table))).collect();
        let tables = if lines.is_empty() { String::new() } else { format!("  tables:\n{}", lines.concat()) };
        let key = yaml(wanted.key.as_deref().unwrap_or("bid"));
        let names = wanted.names.as_deref().unwrap_or("bid_{tenant}");
        let (schema, database) = (yaml(names), percent_encoded(names));
        Ok(format!(
            "source:\n  url: \"postgresql://postgres@{source}/{DATABASE}?sslmode=disable\"\n\
             tenancy:\n  key: {key}\n{tables}\
             tenant_strategy:\n{overrides}{}  database_config:\n    \
             tenant_database_pattern: \"postgresql://postgres@{target}/{database}?sslmode=disable\"\n    \
             tenant_schema_pattern: {schema}\n\
             state_dir: \"{folder}/{name}-state\"\n\
             http: {{listen: \"127.0.0.1:{}\", token_file: \"{folder}/{name}.token\"}}\n{}",
            wanted.strategy,
            free_port()?,
            wanted.extra,
        ))
    }
}

/// A text as YAML reads it back, whatever is in it: JSON's strings are YAML's.
fn yaml(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A part of a URL; the braces of a pattern stay.
fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'_' | b'{' | b'}' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

async fn run(command: Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let said = tokio::process::Command::from(command).output().await.with_context(|| format!("run {program}"))?;
    ensure!(said.status.success(), "{program}: {}", String::from_utf8_lossy(&said.stderr));
    Ok(())
}

fn password(options: &ClusterOptions) -> Option<String> {
    match &options.auth {
        Auth::Trust => None,
        Auth::Scram(password) => Some(password.clone()),
    }
}

/// Opens a session; the connection's task ends with the client.
pub async fn connect(url: &str) -> Result<Client> {
    start(url.parse()?).await.with_context(|| format!("connect to {url}"))
}

/// A session in a database of any name.
async fn session(cluster: &Cluster, dbname: &str, password: Option<&str>) -> Result<Client> {
    let mut config: tokio_postgres::Config = cluster.url("postgres").parse()?;
    config.dbname(dbname).password(password.unwrap_or_default());
    start(config).await.with_context(|| format!("connect to database {dbname} on port {}", cluster.port))
}

async fn start(config: tokio_postgres::Config) -> Result<Client> {
    let (client, connection) = config.connect(NoTls).await?;
    // How it ended shows in the client's next call.
    tokio::spawn(async move { connection.await.ok() });
    Ok(client)
}

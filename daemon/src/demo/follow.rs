//! The demo's application, as docs/operations.md teaches it: it writes where the route says, and looks the route up again when
//! it is told that its tenant does not live there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use connectors::postgres::{Client, client, fence};
use schemas::url::PgUrl;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

const ROUTE: &str = include_str!("follow/route.sql");
/// Between two tries of a client that found nobody.
const AGAIN: Duration = Duration::from_millis(5);
/// How long a client tries one write.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the application writes for a tenant, and how much of that is there; `{tenant}` stands for it.
#[derive(Clone, Copy)]
pub struct Script {
    write: &'static str,
    count: &'static str,
}

/// Of the shop.
pub const SHOP: Script =
    Script { write: include_str!("follow/shop.sql"), count: include_str!("follow/shop_count.sql") };
/// Of pgbench's tables.
pub const PGBENCH: Script =
    Script { write: include_str!("follow/pgbench.sql"), count: include_str!("follow/pgbench_count.sql") };

/// What a client was told.
#[derive(Debug, Default)]
struct Told {
    written: AtomicU64,
    /// Of those, where the tenant was not in the shared tables.
    moved: AtomicU64,
    refused: AtomicU64,
}

/// One tenant's clients.
pub struct Application {
    runtime: Handle,
    follower: Follower,
    told: Arc<Told>,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Result<()>>>,
}

/// How to find a tenant.
#[derive(Clone)]
struct Follower {
    tenant: String,
    script: Script,
    source: PgUrl,
    /// The server of databases.
    target: PgUrl,
}

/// A session where the tenant lives, and whether that is in the shared tables.
struct Home {
    client: Client,
    shared: bool,
}

impl Application {
    /// Starts some clients of a tenant.
    pub fn start(script: Script, tenant: &str, source: &str, target: &str, clients: u32) -> Result<Application> {
        let runtime = Handle::current();
        let follower = Follower { tenant: tenant.to_owned(), script, source: source.parse()?, target: target.parse()? };
        let (told, stop) = (Arc::<Told>::default(), Arc::new(AtomicBool::new(false)));
        let clients =
            (0..clients).map(|_| runtime.spawn(follower.clone().write(Arc::clone(&told), Arc::clone(&stop)))).collect();
        Ok(Application { runtime, follower, told, stop, clients })
    }

    /// Waits until so many more writes were acknowledged; where the tenant has moved to, if `moved`.
    pub fn progress(&self, writes: u64, moved: bool) -> Result<()> {
        let count = if moved { &self.told.moved } else { &self.told.written };
        let (wanted, deadline) = (count.load(Ordering::Relaxed) + writes, Instant::now() + PATIENCE);
        while count.load(Ordering::Relaxed) < wanted {
            ensure!(Instant::now() < deadline, "the application does not get on");
            if self.clients.iter().any(JoinHandle::is_finished) {
                bail!("a client of the application has ended");
            }
            std::thread::sleep(AGAIN);
        }
        Ok(())
    }

    /// Ends it; what it did, for people. An error when a write failed, or when what was acknowledged is not all there, once.
    pub fn stop(self) -> Result<String> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            self.runtime.block_on(client)??;
        }
        let count = self.follower.script.count.replace("{tenant}", &self.follower.tenant);
        let there: i64 = self.runtime.block_on(async {
            let home = self.follower.find().await?;
            anyhow::Ok(home.client.query_one(&count, &[]).await?.get(0))
        })?;
        let [written, moved, refused] =
            [&self.told.written, &self.told.moved, &self.told.refused].map(|count| count.load(Ordering::Relaxed));
        ensure!(there as u64 == written, "{written} writes were acknowledged, {there} are there");
        Ok(format!(
            "{written} writes acknowledged ({moved} where it had moved to), all there once; told {refused} times that it had moved"
        ))
    }
}

impl Follower {
    async fn write(self, told: Arc<Told>, stop: Arc<AtomicBool>) -> Result<()> {
        let write = self.script.write.replace("{tenant}", &self.tenant);
        let mut home = self.find().await?;
        let mut since = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            match home.client.batch_execute(&write).await {
                Ok(()) => {
                    told.written.fetch_add(1, Ordering::Relaxed);
                    told.moved.fetch_add(u64::from(!home.shared), Ordering::Relaxed);
                    since = Instant::now();
                }
                Err(error) if error.code().is_some_and(|code| code.code() == fence::REFUSED) => {
                    ensure!(since.elapsed() < PATIENCE, "the tenant lives nowhere");
                    told.refused.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(AGAIN).await;
                    home = self.find().await?;
                }
                Err(error) => return Err(error).context("the application's write failed"),
            }
        }
        Ok(())
    }

    /// Without a route the tenant is where it always was.
    async fn find(&self) -> Result<Home> {
        let source = client::connect(&self.source, "demo").await?;
        let (isolation, database, schema): (String, String, String) =
            match source.query_opt(ROUTE, &[&self.tenant]).await? {
                Some(row) => (row.get(0), row.get(1), row.get(2)),
                None => ("shared".to_owned(), String::new(), "public".to_owned()),
            };
        let client = match isolation.as_str() {
            "database" => client::connect(&self.target.with_dbname(&database), "demo").await?,
            _ => source,
        };
        client.execute("SELECT set_config('search_path', $1, false)", &[&schema]).await?;
        Ok(Home { client, shared: isolation == "shared" })
    }
}

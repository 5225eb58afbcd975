//! Where the tenant lives, as docs/cutover.md teaches: one resolver for all clients of a process; NOTIFY on both sides refreshes it,
//! and so does a write that was refused. It must never ask the daemon.

use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::stream::{StreamExt, poll_fn};
use schemas::url::PgUrl;
use tokio::sync::{Notify, watch};
use tokio_postgres::{AsyncMessage, Client, NoTls};

const ROUTE: &str =
    "SELECT isolation, database, coalesce(schema, 'public'), epoch FROM carveout.tenant_routes WHERE tenant = $1";
/// Between two looks at the route by who was refused where it says.
const AGAIN: Duration = Duration::from_millis(1);

/// Where a tenant lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    isolation: String,
    database: String,
    schema: String,
    /// Raised by each flip.
    pub epoch: i64,
}

impl Route {
    /// Whether it is in the shared tables.
    pub fn is_shared(&self) -> bool {
        self.isolation == "shared"
    }
}

/// One per process.
pub struct Resolver {
    tenant: String,
    source: PgUrl,
    target: PgUrl,
    /// What is asked by who was refused.
    shared: Client,
    route: watch::Sender<Route>,
}

impl Resolver {
    /// Without a route the tenant is where it always was.
    pub async fn start(tenant: &str, source: PgUrl, target: PgUrl) -> Result<Arc<Resolver>> {
        let (isolation, database) = ("shared".to_owned(), source.database().unwrap_or_default().to_owned());
        let at_home = Route { isolation, database, schema: "public".to_owned(), epoch: 0 };
        let shared = tests::scene::connect(&source.to_string()).await?;
        let (tenant, route) = (tenant.to_owned(), watch::Sender::new(at_home));
        let resolver = Arc::new(Resolver { tenant, source, target, shared, route });
        resolver.look_up(&resolver.shared).await?;
        Ok(resolver)
    }

    /// Hears of routes in this database too.
    pub async fn listen(self: &Arc<Self>, url: &PgUrl) -> Result<()> {
        let config: tokio_postgres::Config = url.to_string().parse()?;
        let (client, mut connection) = config.connect(NoTls).await.with_context(|| format!("connect to {url}"))?;
        let heard = Arc::new(Notify::new());
        let tell = Arc::clone(&heard);
        tokio::spawn(async move {
            let mut messages = poll_fn(move |context| connection.poll_message(context));
            while let Some(Ok(message)) = messages.next().await {
                if matches!(message, AsyncMessage::Notification(_)) {
                    tell.notify_one();
                }
            }
        });
        client.batch_execute("LISTEN carveout_routes").await.context("listen")?;
        tokio::spawn(follow(Arc::downgrade(self), client, heard));
        Ok(())
    }

    /// As far as is known.
    pub fn route(&self) -> Route {
        self.route.borrow().clone()
    }

    /// A write was refused where this route says: asks for another one.
    pub async fn refused(&self, route: &Route) -> Result<()> {
        if self.route.borrow().epoch == route.epoch {
            self.look_up(&self.shared).await?;
        }
        if self.route.borrow().epoch == route.epoch {
            tokio::time::sleep(AGAIN).await;
        }
        Ok(())
    }

    /// The route with the highest epoch counts.
    async fn look_up(&self, client: &Client) -> Result<()> {
        let Some(row) = client.query_opt(ROUTE, &[&self.tenant]).await.context("look up the route")? else {
            return Ok(());
        };
        let found = Route { isolation: row.get(0), database: row.get(1), schema: row.get(2), epoch: row.get(3) };
        self.route.send_if_modified(|route| {
            let newer = found.epoch > route.epoch;
            if newer {
                *route = found;
            }
            newer
        });
        Ok(())
    }

    /// A session there.
    pub async fn connect(&self, route: &Route) -> Result<Client> {
        let url = match route.isolation.as_str() {
            "database" => self.target.with_dbname(&route.database),
            _ => self.source.clone(),
        };
        let client = tests::scene::connect(&url.to_string()).await?;
        client.batch_execute(&format!("SET search_path = {}", route.schema)).await.context("set the schema")?;
        Ok(client)
    }
}

/// Looks a route up where one was announced.
async fn follow(resolver: Weak<Resolver>, client: Client, heard: Arc<Notify>) {
    loop {
        heard.notified().await;
        let Some(resolver) = resolver.upgrade() else { return };
        if let Err(error) = resolver.look_up(&client).await {
            return eprintln!("a listener ended: {error:#}");
        }
    }
}

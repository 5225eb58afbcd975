//! How long the writes of a tenant pause when they are moved, as its clients see it; and what other tenants notice of that.
//!
//! A tenant is cut over and rolled back, again and again, while its clients write at a steady rate and other tenants' do. A pause
//! reaches from the last acknowledgement of the side that is left to the first one of the other side. Nothing is subtracted: the
//! clients' transactions are one message each. What was acknowledged must be there in the end, once, or there are no figures.

mod clients;
mod figures;
mod report;
mod route;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::ClusterOptions;
use schemas::url::PgUrl;
use serde_json::{Value, json};
use tests::binary::cli;
use tests::daemon::Daemon;
use tests::oracle;
use tests::scene::{Configuration, Scene};
use tests::wait::until;

use self::clients::{Clients, KEPT, Ledger, Tenant};
use self::figures::{Stolen, Window};
use self::route::Resolver;
use super::size;

const SOON: Duration = Duration::from_secs(120);
/// The sessions of the tenant that moves, and of each other.
const SESSIONS: usize = 8;
const OTHERS_SESSIONS: usize = 2;
/// Tenants that stay.
const OTHERS: u32 = 4;
/// Writes a second of each.
const OTHERS_RATE: u32 = 50;
const OTHERS_ACCOUNTS: u64 = 10_000;
/// What belongs to a flip when it has been answered: the clients catch up, and the daemon clears up.
const AFTERMATH: Duration = Duration::from_secs(1);
/// Before the first flip, and before each other and each stretch without one, so that everything is at a steady pace and nothing is
/// left of the flip before: the daemon keeps connections for three seconds.
const WARM_UP: Duration = Duration::from_secs(5);
const SETTLE: Duration = Duration::from_secs(4);
/// For which the tenant's clients stop by themselves in some stretches without a flip: about as long as with sessions that are there.
const STALL: Duration = Duration::from_millis(50);

/// One cutover or rollback that was done.
pub struct Flip {
    pub is_rollback: bool,
    /// Whether the clients had sessions on the other side already.
    pub kept: bool,
    /// The epoch that it raised the route to.
    pub epoch: i64,
    pub report: Value,
    /// From the command to a while after its answer.
    pub busy: Window,
    /// As long, and nothing was asked; after each second pair.
    pub quiet: Option<Window>,
    /// As long, nothing was asked, but the tenant's clients stopped where a flip would have been, and whether they kept their
    /// sessions; after the others.
    pub stalled: Option<(Window, bool)>,
}

/// Two flips without sessions on the other side, two with them.
fn keeps_sessions(flip: u32) -> bool {
    flip % 4 >= 2
}

struct Stage {
    scene: Scene,
    daemon: Daemon,
    tenant: Tenant,
    /// `schema` or `database`.
    to: String,
}

pub async fn run() -> Result<()> {
    let (flips, to): (u32, String) = (size("BENCH_FLIPS", 300)?, size("BENCH_TO", "database".to_owned())?);
    let (rate, rows): (u32, u64) = (size("BENCH_RATE", 500)?, size("BENCH_ROWS", 100_000)?);
    let tenant = Tenant { id: 1, first: 0, accounts: rows, rate, sessions: SESSIONS };
    println!(
        "pauses: {flips} cutovers and rollbacks, in turn, of a tenant with {rows} accounts to a {to}; {rate} writes/s of it by {SESSIONS} \
         sessions, {OTHERS_RATE} of each of {OTHERS} other tenants"
    );
    let stage = Stage::open(tenant, to).await?;
    let (clients, others) = stage.clients().await?;
    clients.keep_sessions(keeps_sessions(0));
    let stolen = Stolen::watch();
    tokio::time::sleep(WARM_UP).await;
    let mut done = Vec::new();
    let mut refused = Vec::new();
    for flip in 0..flips {
        match stage.flip(flip, &clients).await? {
            Ok(flip) => done.push(flip),
            Err(why) => refused.push(why),
        }
        clients.check()?;
    }
    let ledger = clients.stop().await?;
    let mut ledgers = Vec::new();
    for (tenant, clients) in others {
        ledgers.push((tenant, clients.stop().await?));
    }
    stage.assert_correct(&ledger, &ledgers, done.last().is_some_and(|flip| !flip.is_rollback)).await?;
    println!("{} writes acknowledged, all there once; {} met a fence", ledger.numbers.len(), ledger.refused);
    for why in &refused {
        println!("one was refused: {why}");
    }
    let others = ledgers.into_iter().flat_map(|(_, ledger)| ledger.written).collect();
    report::print(&done, ledger.written, others, &stolen)
}

impl Stage {
    /// Everything in step.
    async fn open(tenant: Tenant, to: String) -> Result<Stage> {
        let scene = Scene::empty(ClusterOptions::default(), ClusterOptions::default()).await?;
        let sql = include_str!("pauses/tables.sql")
            .replace("{rows}", &tenant.accounts.to_string())
            .replace("{tenants}", &(OTHERS + 1).to_string())
            .replace("{kept}", &KEPT.to_string());
        let source = scene.source_client().await?;
        source.batch_execute(&sql).await.context("make the tables")?;
        source.batch_execute("VACUUM ANALYZE").await?;
        let tables = [("notes", "{via: account}"), ("kinds", "{reference: true}")];
        let tables = tables.map(|(table, policy)| (table.to_owned(), policy.to_owned())).to_vec();
        let config = scene.write_config("carveout", &Configuration { tables, ..Configuration::default() })?;
        let prepared = cli(&config, &["prepare", "--apply"]).await?;
        ensure!(prepared.status.success(), "prepare: {}", String::from_utf8_lossy(&prepared.stderr));
        let daemon = Daemon::start(&config).await?;
        let stage = Stage { scene, daemon, tenant, to };
        stage.ask("move", &json!({"to": stage.to})).await?.context("move")?;
        stage.phase(&["streaming", "ready"]).await?;
        Ok(stage)
    }

    /// Those of the tenant, and of each other one.
    async fn clients(&self) -> Result<(Clients, Vec<(Tenant, Clients)>)> {
        let (source, target) = self.urls()?;
        let id = self.tenant.id.to_string();
        let resolver = Resolver::start(&id, source.clone(), target.clone()).await?;
        resolver.listen(&source).await?;
        if self.to == "database" {
            resolver.listen(&target.with_dbname(&format!("bid_{id}"))).await?;
        }
        let clients = Clients::start(self.tenant, &resolver);
        let mut others = Vec::new();
        for id in 2..=OTHERS + 1 {
            let first = u64::from(id) * 100_000_000;
            let (rate, sessions) = (OTHERS_RATE, OTHERS_SESSIONS);
            let tenant = Tenant { id, first, accounts: OTHERS_ACCOUNTS, rate, sessions };
            let resolver = Resolver::start(&id.to_string(), source.clone(), target.clone()).await?;
            others.push((tenant, Clients::start(tenant, &resolver)));
        }
        Ok((clients, others))
    }

    fn urls(&self) -> Result<(PgUrl, PgUrl)> {
        Ok((self.scene.source.url("shop").parse()?, self.scene.target.url("postgres").parse()?))
    }

    /// One cutover or rollback, and a stretch of the same length without; or why it was refused.
    async fn flip(&self, number: u32, clients: &Clients) -> Result<Result<Flip, String>> {
        let kept = keeps_sessions(number);
        let is_rollback = self.status().await?["isolation"] != "shared";
        let from = Instant::now();
        let answer = self.ask(if is_rollback { "rollback" } else { "cutover" }, &json!({})).await?;
        let answered = from.elapsed();
        let report = match answer {
            Ok(report) => report,
            Err(why) => return Ok(Err(format!("{why:#}"))),
        };
        tokio::time::sleep(AFTERMATH).await;
        let busy = Window { from, to: Instant::now() };
        self.phase(if is_rollback { &["rolled_back"] } else { &["reversing"] }).await?;
        let (mut quiet, mut stalled) = (None, None);
        // Of each kind on both sides, and behind flips of both kinds.
        let stalls = (number / 4 % 2 == 1).then_some(number / 8 % 2 == 1);
        clients.keep_sessions(stalls.unwrap_or(kept));
        tokio::time::sleep(SETTLE).await;
        let (quiet_from, done) = (Instant::now(), clients.done());
        if let Some(kept) = stalls {
            tokio::time::sleep(busy.length() - AFTERMATH).await;
            clients.stall(STALL);
            tokio::time::sleep(AFTERMATH).await;
            stalled = Some((Window { from: quiet_from, to: Instant::now() }, kept));
        } else {
            tokio::time::sleep(busy.length()).await;
            quiet = Some(Window { from: quiet_from, to: Instant::now() });
        }
        ensure!(clients.done() > done, "the clients do not get on");
        let keeps = keeps_sessions(number + 1);
        clients.keep_sessions(keeps);
        tokio::time::sleep(SETTLE).await;
        let epoch = report["route"]["epoch"].as_i64().context("the report has no epoch")?;
        if number % 50 == 49 {
            eprintln!("{} flips, the last one took {answered:.1?}", number + 1);
        }
        Ok(Ok(Flip { is_rollback, kept, epoch, report, busy, quiet, stalled }))
    }

    /// What the daemon says; the inner error: that it was refused.
    async fn ask(&self, what: &str, body: &Value) -> Result<Result<Value>> {
        let answer = self.daemon.post(&format!("/v1/tenants/{}/{what}", self.tenant.id), body).await?;
        Ok(answer.success().and_then(|answer| answer.json()))
    }

    async fn status(&self) -> Result<Value> {
        self.daemon.tenant(&self.tenant.id.to_string()).await
    }

    async fn phase(&self, phases: &[&str]) -> Result<()> {
        until(&format!("{phases:?}"), SOON, async || {
            let status = self.status().await?;
            ensure!(status["phase"].as_str().is_some_and(|phase| phases.contains(&phase)), "{status}");
            Ok(())
        })
        .await
    }

    /// Both sides have the same, and all that was acknowledged; no other tenant was ever refused.
    async fn assert_correct(&self, ledger: &Ledger, others: &[(Tenant, Ledger)], moved: bool) -> Result<()> {
        let source = self.scene.source_client().await?;
        let (target, schema) = match self.to.as_str() {
            "database" => (self.scene.target_client("bid_1").await?, "public"),
            _ => (self.scene.source_client().await?, "bid_1"),
        };
        // Where it lives first: the other side may still be on its way.
        let sides = [(&source, "public"), (&target, schema)];
        let home = sides[usize::from(moved)];
        ledger.assert_held_by(home.0, home.1, &self.tenant).await.context("where the tenant lives")?;
        for (table, filter) in
            [("accounts", "bid = 1"), ("writes", "bid = 1"), ("notes", "account < 100000000"), ("kinds", "true")]
        {
            until(&format!("{table} the same on both sides"), SOON, async || {
                let (left, right) = (format!("public.{table}"), format!("{schema}.{table}"));
                oracle::assert_equal(&source, &left, filter, &target, &right).await
            })
            .await?;
        }
        for (tenant, ledger) in others {
            ensure!(ledger.refused == 0, "tenant {} was refused, and does not move", tenant.id);
            ledger.assert_held_by(&source, "public", tenant).await?;
        }
        self.daemon.assert_no_errors(&[])
    }
}

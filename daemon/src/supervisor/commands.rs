//! Commands that change moves: start or resume, verify, cancel.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use connectors::postgres::policy::{self, Owned};
use connectors::postgres::progress::Status;
use connectors::postgres::{self, catalog, client, prepare, slot, snapshot};
use schemas::config::{Isolation, Target};
use schemas::event::Detail;
use schemas::phase::Event;
use schemas::record::{Fault, MoveRecord, NamedTarget, OwnServer, Published};
use schemas::status::{CompletionReport, CutoverReport, Route, TenantStatus, VerifyReport};
use schemas::tenant::KeyType;
use schemas::url::{BadUrl, PgUrl};
use schemas::{Phase, TenantId};

use super::returning::meant;
use super::{Entry, Refusal, RefusalKind, Supervisor};
use crate::clock;
use crate::moves::complete;
use crate::moves::cutover::{self, NOT_EQUAL, Wish, cut_over};
use crate::moves::verify::verify;
use crate::moves::{Moving, StepError};
use crate::store::StoreError;

/// How long `cancel` waits for the target before it answers that it goes on in the background.
const CANCEL_PATIENCE: Duration = Duration::from_secs(30);

/// The key is an enum, and the tenant is none of its labels (`invalid_text_representation`).
const NO_LABEL: &str = "22P02";

/// What a move is planned from.
struct Plan {
    tables: Vec<Owned>,
    published: Published,
    /// A transaction id that was new when that was read.
    next_xid: u64,
    tenant: TenantId,
}

/// Where `move` is asked to bring a tenant; what is left out, the move that there is or the configuration decides.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The kind of target.
    pub to: Option<Isolation>,
    /// A server for this tenant.
    pub target: Option<NamedTarget>,
    /// Let it go on if a person holds it.
    pub resume: bool,
}

impl Wanted {
    /// Whether the move that there is goes to the wanted server, as far as one is wanted.
    pub(super) fn is_server_of(&self, record: &MoveRecord) -> bool {
        let named = record.server.as_ref().and_then(|server| server.named.as_ref());
        self.target.as_ref().is_none_or(|wanted| {
            named.is_some_and(|named| named.url == wanted.url && (wanted.password_file.is_none() || named == wanted))
        })
    }
}

impl Supervisor {
    /// Starts a move, or resumes it where it stopped. Asking twice changes nothing.
    pub async fn start_move(self: &Arc<Self>, tenant: &str, wanted: Wanted) -> Result<TenantStatus, Refusal> {
        // Looking at the tables may take long; others do not wait for it.
        let Plan { tables, published, next_xid, tenant } = self.plan(tenant).await?;
        let active = || self.find(&tenant.0).filter(|entry| entry.moving.record().phase != Phase::Cancelled);
        if let Some(entry) = active().filter(|_| wanted.to == Some(Isolation::Shared)) {
            self.may_return(&entry.moving.record()).await?;
        }
        let _one = self.commands.lock().await;
        let mut known = self.context.store.known_tables()?;
        let fresh_xid = known.see(&published, next_xid);
        self.context.store.put_known_tables(&known)?;
        let planned = (published, fresh_xid);
        match active() {
            Some(entry) if wanted.to == Some(Isolation::Shared) && !stands(&entry) => {
                self.return_home(&entry, planned).await?;
            }
            Some(entry) if self.goes_on(&entry.moving.record(), &wanted) => {
                self.next_stage(&entry.moving.record(), wanted).await?;
            }
            Some(entry) => self.resume_move(&entry, &wanted, &tables, planned).await?,
            None => self.new_move(&tenant, wanted, &tables, planned).await?,
        }
        self.tenant(&tenant.0).ok_or_else(|| not_found(&tenant.0))
    }

    async fn new_move(
        &self,
        tenant: &TenantId,
        wanted: Wanted,
        tables: &[Owned],
        (published, fresh_xid): (Published, u64),
    ) -> Result<(), Refusal> {
        let record = self.planned(tenant, wanted, tables)?;
        self.begin_move(MoveRecord { published, fresh_xid, ..record })
    }

    /// The record of a new move.
    pub(super) fn planned(&self, tenant: &TenantId, wanted: Wanted, tables: &[Owned]) -> Result<MoveRecord, Refusal> {
        let declared =
            || self.context.config.overrides().find(|(name, ..)| *name == tenant.0).map(|(_, isolation, _)| isolation);
        if wanted.to == Some(Isolation::Shared) {
            let message = "the tenant lives in the shared database";
            return Err(no("target", &tenant.0, message, "`carveout status` lists those that do not"));
        }
        let to = wanted.to.or_else(declared).filter(|to| *to != Isolation::Shared);
        let Some(to) = to else {
            return Err(Refusal {
                kind: RefusalKind::Invalid,
                ..no("target", &tenant.0, "it is not said where the tenant goes", "add --to schema or --to database")
            });
        };
        let (target, server) = self.place(tenant, to, wanted.target)?;
        if let Some(other) = self.neighbour(&target) {
            let message = format!("tenant \"{}\" ({}) goes to the same place", other.tenant, other.id);
            return Err(no("target", &tenant.0, &message, "choose a name pattern that tells the tenants apart"));
        }
        if to == Isolation::Schema {
            one_name_each(tables)?;
        }
        Ok(MoveRecord {
            id: self.context.store.next_move()?,
            tenant: tenant.clone(),
            to,
            server,
            database: target.database,
            schema: target.schema,
            phase: Phase::Planned,
            fault: None,
            stopped_at: None,
            paused: false,
            skipped: Vec::new(),
            tables: policy::names(tables),
            paths: policy::paths(tables),
            published: Published::default(),
            fresh_xid: 0,
            made_database: false,
            copy_again: false,
            rows_total: 0,
            rows_copied: 0,
            verified: None,
            noted: None,
            fenced: false,
            epoch: 0,
            rolled_back: false,
            returning: false,
            from: None,
            after: None,

            reverse: None,
            back: None,
            blocks: Vec::new(),
            history: Vec::new(),
            completion: None,
        })
    }

    /// Begins what is planned.
    pub(super) fn begin_move(&self, mut record: MoveRecord) -> Result<(), Refusal> {
        record.enter(clock::unix_micros());
        self.context.store.put_move(&record)?;
        let moving = Moving::new(record.clone(), self.context.events.clone());
        moving.tell("phase", Detail { phase: Some(record.stage()), ..Detail::default() });
        let entry = Entry { moving: Arc::new(moving), driver: Arc::new(Mutex::new(None)) };
        entry.moving.set_earlier(self.entry(record.after).map(|earlier| earlier.moving));
        self.lock().insert(record.id, entry.clone());
        self.spawn_driver(&entry);
        Ok(())
    }

    /// Where a new move goes, and the server of its own if it has one: that of `--target`, or of its override.
    fn place(
        &self,
        tenant: &TenantId,
        to: Isolation,
        named: Option<NamedTarget>,
    ) -> Result<(Target, Option<OwnServer>), Refusal> {
        let config = &self.context.config;
        let wrong = |message: String, next: &str| no("target", &tenant.0, &message, next);
        let url = named.as_ref().map(|named| {
            let url: Result<PgUrl, BadUrl> = named.url.parse();
            url.map(|url| url.or_password_file(named.password_file.as_ref()))
        });
        let url = url.transpose().map_err(|error| wrong(error.to_string(), "correct --target"))?;
        let own = url.is_some() || config.overrides().any(|(name, _, own)| own && name == tenant.0);
        let found = match &url {
            Some(url) => config.target_at(&tenant.0, to, Some(url)),
            None => config.target(&tenant.0, to),
        };
        let next = if url.is_some() { "correct --target" } else { "correct tenant_strategy" };
        let target = found.map_err(|error| wrong(error.to_string(), next))?;
        let server = own.then(|| OwnServer { host: target.url.host.clone(), port: target.url.port, named });
        Ok((target, server))
    }

    /// Who else goes to the same schema or database. Where another's server is not known any more, the names decide.
    fn neighbour(&self, target: &Target) -> Option<MoveRecord> {
        let goes_there = |record: &MoveRecord| {
            record.phase != Phase::Cancelled
                && (&record.database, &record.schema) == (&target.database, &target.schema)
                && self.context.target(record).map_or(true, |other| other.url.same_server(&target.url))
        };
        self.lock().values().map(|entry| entry.moving.record()).find(goes_there)
    }

    /// The tables that would move, and the tenant as PostgreSQL prints its key.
    async fn plan(&self, tenant: &str) -> Result<Plan, Refusal> {
        let config = &self.context.config;
        let source = client::connect(&config.source.url, "plan").await?;
        let policies = policy::resolve(catalog::tables(&source).await?, &config.tenancy);
        let wanted = prepare::wanted(&source, config, &policies.owned).await?;
        let blocking = policies
            .findings
            .into_iter()
            .chain(wanted)
            .find(|finding| finding.severity == schemas::status::Severity::Error);
        if let Some(finding) = blocking {
            let next = format!("`carveout check` lists everything; {}", finding.remedy);
            return Err(no("check", &finding.object, &finding.cause, &next));
        }
        let tenant = canonical(&policies.owned, tenant)?;
        if self.find(&tenant.0).is_none() && !has_rows(&policies.owned, &source, &tenant).await? {
            return Err(no(
                "empty",
                &tenant.0,
                "no table has a row of this tenant",
                "correct the tenant's name; a tenant can be moved once it has a row",
            ));
        }
        let mut nobodys = Vec::new();
        for owned in &policies.owned {
            if owned.has_null_tenant(&source).await? {
                nobodys.push(owned.table.name.to_string());
            }
        }
        if !nobodys.is_empty() {
            let next = "give them one; or set null_tenant: not_moving for each table under tenancy.tables, and start the daemon again";
            return Err(no("null_tenant", &nobodys.join(", "), "rows without a tenant", next));
        }
        let names = policy::names(&policies.owned);
        let mut published = slot::published(&source, &config.source.publication, &names).await?;
        for (table, published) in &mut published.tables {
            let owned = policies.owned.iter().find(|owned| &owned.table.name == table);
            published.found_by.retain(|(name, _)| owned.is_some_and(|owned| owned.is_by(name)));
        }
        let missing = names.iter().find(|name| !published.tables.iter().any(|(table, _)| table == *name));
        // After what is published was read: whoever was open at a change of it has a lower one.
        let next_xid = snapshot::next_xid(&source).await?;
        match missing {
            None => Ok(Plan { tables: policies.owned, published, next_xid, tenant }),
            Some(table) => {
                let next = "`carveout prepare --apply` publishes it; then move again";
                Err(no("check", &table.to_string(), "it is not in the publication", next))
            }
        }
    }

    /// Compares both sides at one position.
    pub async fn verify(self: &Arc<Self>, tenant: &str) -> Result<VerifyReport, Refusal> {
        let entry = self.find(tenant).ok_or_else(|| not_found(tenant))?;
        // In a task of its own: the lane is let go even when nobody waits for the answer any more.
        let (context, moving) = match entry.moving.way_back() {
            Some(reverse) => (Arc::clone(&reverse.context), Arc::clone(&reverse.moving)),
            None => (Arc::clone(&self.context), Arc::clone(&entry.moving)),
        };
        let report = tokio::spawn(async move { verify(&context, &moving).await }).await;
        report.map_err(|error| no("verify", tenant, &error.to_string(), "see the daemon's log"))?.map_err(Refusal::from)
    }

    /// Moves the writes, or moves them back, or does all of it but the flip.
    pub async fn cut_over(
        self: &Arc<Self>,
        tenant: &str,
        wish: Wish,
        max_pause: Duration,
    ) -> Result<CutoverReport, Refusal> {
        let entry = self.find(tenant).ok_or_else(|| not_found(tenant))?;
        // In a task of its own: what it holds is let go even when nobody waits for the answer any more.
        let supervisor = Arc::clone(self);
        let report = tokio::spawn(async move {
            let _turn = match cutover::turn(&entry.moving).await.map_err(Refusal::from) {
                Ok(turn) => turn,
                Err(refusal) => {
                    entry.moving.tell(wish.word(), refused(&refusal));
                    return Err(refusal);
                }
            };
            let before = entry.moving.record().phase;
            let meant = meant(wish, &entry.moving.record());
            let report = cut_over(&supervisor.context, &entry.moving, meant, max_pause).await.map_err(Refusal::from);
            let told = report.as_ref().map_or_else(refused, cut);
            entry.moving.tell(wish.word(), told);
            let _one = supervisor.commands.lock().await;
            // Its driver runs the lane that was; or the flip has to be looked for.
            let after = entry.moving.record();
            let anew = after.phase != before || report.is_err() && super::between_fences(after.phase);
            if anew && !*supervisor.stop.borrow() {
                Self::stop_driver(&entry).await;
                if !after.paused || super::between_fences(after.phase) {
                    supervisor.spawn_driver(&entry);
                }
            }
            report
        });
        report.await.map_err(|error| no("cutover", tenant, &error.to_string(), "see the daemon's log"))?
    }

    /// Where the tenant lives.
    pub fn route(&self, tenant: &str) -> Result<Route, Refusal> {
        let entry = self.find(tenant).ok_or_else(|| not_found(tenant))?;
        Ok(cutover::route(&self.context, &entry.moving)?)
    }

    /// Ends the move: the tenant stays in its target, and its rows at the source go. Asked again, it tells the same.
    pub async fn complete(self: &Arc<Self>, tenant: &str, keep_source: bool) -> Result<CompletionReport, Refusal> {
        let entry = self.find(tenant).ok_or_else(|| not_found(tenant))?;
        let record = entry.moving.record();
        if record.returning && matches!(record.phase, Phase::Following | Phase::Cancelling | Phase::Cancelled) {
            return self.complete_return(&entry, keep_source).await;
        }
        if record.returning && matches!(record.phase, Phase::Returning | Phase::Moved) {
            let next = "`carveout cutover` moves its writes, `carveout cancel` gives the return up";
            return Err(no("phase", &record.id.to_string(), "the tenant is on its way home", next));
        }
        if record.phase == Phase::Moved {
            let completion = complete::prepare(&self.context, &entry.moving, keep_source).await;
            let (completion, _held) = completion
                .map_err(Refusal::from)
                .inspect_err(|refusal| entry.moving.tell("complete", refused(refusal)))?;
            let _one = self.commands.lock().await;
            // Meanwhile somebody else may have moved the writes back, or ended the move.
            if entry.moving.record().phase == Phase::Moved {
                Self::stop_driver(&entry).await;
                let completed = entry.moving.advance_with(&self.context.store, Event::Complete, |record| {
                    (record.completion, record.paused) = (Some(completion), false);
                });
                self.spawn_driver(&entry);
                completed?;
            }
        } else if entry.moving.record().phase == Phase::Completing && entry.moving.record().fault.is_some() {
            complete::may_keep(&record, keep_source)?;
            let _one = self.commands.lock().await;
            Self::stop_driver(&entry).await;
            entry.moving.update(&self.context.store, |record| {
                record.fault = None;
                record.completion.iter_mut().for_each(|completion| completion.keep_source |= keep_source);
            })?;
            self.spawn_driver(&entry);
        }
        let phase = entry.moving.record().phase;
        if !matches!(phase, Phase::Completing | Phase::Completed) {
            let message = format!("the move is {}: its writes are not in the target", phase.shown(None, false));
            return Err(no("phase", &entry.moving.record().id.to_string(), &message, "`carveout cutover` moves them"));
        }
        entry.ended(Phase::Completed).await?;
        Ok(complete::report(&self.context, &entry.moving).await?)
    }

    /// Forgets the move and drops what it created.
    pub async fn cancel(self: &Arc<Self>, tenant: &str) -> Result<TenantStatus, Refusal> {
        let one = self.commands.lock().await;
        let entry = self.find(tenant).ok_or_else(|| not_found(tenant))?;
        if entry.moving.record().phase == Phase::Cancelled {
            return self.tenant(tenant).ok_or_else(|| not_found(tenant));
        }
        let record = entry.moving.record();
        let end = if record.returning && matches!(record.phase, Phase::Returning | Phase::Moved) {
            self.stay_away(&entry).await?;
            Phase::Completed
        } else {
            still_shared(&entry, "cancel")?;
            if record.returning && record.phase == Phase::Following && record.fault.is_none() {
                let next = "`carveout complete` compares once more and drops what it has left; `carveout rollback` takes it back there";
                return Err(no(
                    "phase",
                    &record.id.to_string(),
                    "the tenant has come home: there is nothing to cancel",
                    next,
                ));
            }
            Self::stop_driver(&entry).await;
            entry.moving.update(&self.context.store, |record| {
                if let Ok(phase) = record.phase.after(Event::Cancel) {
                    (record.fault, record.stopped_at, record.paused) = (None, None, false);
                    record.unproved();
                    record.phase = phase;
                }
            })?;
            self.spawn_driver(&entry);
            Phase::Cancelled
        };
        drop(one);
        // A target that is away is waited for in the background.
        if let Ok(ended) = tokio::time::timeout(CANCEL_PATIENCE, entry.ended(end)).await {
            ended?;
        }
        self.tenant(tenant).ok_or_else(|| not_found(tenant))
    }
}

/// What is told of a cutover, or of whatever else was asked for.
fn cut(report: &CutoverReport) -> Detail {
    Detail {
        status: Some(Status::Completed.word()),
        pause_ms: Some(report.pause_ms),
        lsn: Some(report.lsn),
        equal: report.verified.then_some(true),
        isolation: Some(report.route.isolation.clone()),
        route_epoch: Some(report.route.epoch),
        ..Detail::default()
    }
}

/// What is told of what was refused. Rows that differ are named to whoever asked, and to nobody else.
fn refused(Refusal { fault, .. }: &Refusal) -> Detail {
    let told = Detail { status: Some(Status::Failed.word()), ..Detail::default() }.because(fault);
    let cause = told.cause.filter(|_| fault.code != NOT_EQUAL);
    Detail { cause, ..told }
}

/// Whether a tenant that comes home does not get on.
fn stands(entry: &Entry) -> bool {
    let record = entry.moving.record();
    let lane = entry.moving.way_back().is_some_and(|back| back.moving.record().fault.is_some());
    record.returning && (record.fault.is_some() || record.paused || lane)
}

async fn has_rows(owned: &[Owned], source: &postgres::Client, tenant: &TenantId) -> Result<bool, Refusal> {
    for owned in owned {
        match owned.has_tenant(source, tenant).await {
            Ok(false) => {}
            Ok(true) => return Ok(true),
            Err(error) if error.sqlstate() == Some(NO_LABEL) => {
                return Err(no("tenant", &tenant.0, &error.to_string(), "name the tenant by its key's value"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// Refuses what is only for tenants whose writes are at the source, and are not being moved.
pub(super) fn still_shared(entry: &Entry, command: &str) -> Result<(), Refusal> {
    let record = entry.moving.record();
    let (why, next) = match record.phase {
        Phase::Moved => {
            ("its writes are in the target", "`carveout rollback` moves them back, `carveout complete` ends the move")
        }
        Phase::CuttingOver | Phase::RollingBack => ("its writes are being moved", "wait for that to end"),
        Phase::Completing | Phase::Completed => {
            ("the tenant stays in its target", "`carveout complete` shows the report")
        }
        _ => return Ok(()),
    };
    Err(no("phase", &record.id.to_string(), &format!("{why}: there is nothing to {command}"), next))
}

/// Every table's key type must know the tenant by the same text.
fn canonical(owned: &[Owned], tenant: &str) -> Result<TenantId, Refusal> {
    let mut found: Option<TenantId> = None;
    for (table, kind) in owned.iter().filter_map(|owned| Some((&owned.table.name, owned.key_type()?))) {
        let here = KeyType::canonical(kind, tenant).map_err(|error| Refusal {
            kind: RefusalKind::Invalid,
            ..no("tenant", &table.to_string(), &error.to_string(), "name the tenant by its key's value")
        })?;
        match &found {
            Some(other) if *other != here => {
                return Err(no(
                    "tenant",
                    &table.to_string(),
                    "its key has another type than other tables' keys",
                    "exclude the table, or give it the same key type",
                ));
            }
            _ => found = Some(here),
        }
    }
    found.ok_or_else(|| no("check", "tenancy.key", "no table can be moved", "`carveout check` says why"))
}

/// In one schema two tables cannot have the same name.
pub(super) fn one_name_each(tables: &[Owned]) -> Result<(), Refusal> {
    let mut names = HashSet::new();
    let parts = |owned: &'_ Owned| owned.table.partitions.iter().map(|part| part.name.clone()).collect::<Vec<_>>();
    let mut all = tables.iter().flat_map(|owned| std::iter::once(owned.table.name.clone()).chain(parts(owned)));
    match all.find(|name| !names.insert(name.name.clone())) {
        None => Ok(()),
        Some(twice) => Err(no(
            "target",
            &twice.to_string(),
            "another schema has a table of that name; a tenant's schema can hold only one",
            "move to a database, or exclude one of them",
        )),
    }
}

pub(super) fn no(code: &str, object: &str, message: &str, next: &str) -> Refusal {
    Refusal { kind: RefusalKind::Conflict, fault: Fault::new(code, object, message, next) }
}

pub(super) fn not_found(tenant: &str) -> Refusal {
    let fault = Fault::new(
        "not_found",
        tenant,
        "there is no move of this tenant",
        "`carveout status` lists the moves; `carveout move` starts one",
    );
    Refusal { kind: RefusalKind::NotFound, fault }
}

impl From<postgres::Error> for Refusal {
    fn from(error: postgres::Error) -> Self {
        let kind = if error.is_transient() { RefusalKind::Unavailable } else { RefusalKind::Conflict };
        Refusal {
            kind,
            fault: Fault::new("database", "source or target", error.to_string(), "mend the cause and try again"),
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        no("state", "state_dir", &error.to_string(), "make the state directory writable and try again")
    }
}

impl From<StepError> for Refusal {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Postgres(error) => error.into(),
            StepError::Store(error) => error.into(),
            StepError::Fault(fault) | StepError::Transaction(fault, _) | StepError::Broken(fault) => {
                Refusal { kind: RefusalKind::Conflict, fault }
            }
            StepError::Stopped => no("stopping", "daemon", "the daemon stops", "start it again"),
        }
    }
}

//! Decides which lanes a change belongs to, by the tenant key in the row itself or by the row that it refers
//! to, and writes it into their spools. Knows nothing of targets; never waits for anything but the page cache.

mod queue;
mod relation;
mod row;
mod stops;
mod via;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use connectors::postgres::apply::{Claim, Claims};
use connectors::postgres::pgoutput::{self, Old, Relation, Tuple};
use connectors::postgres::{Error, Result};
use schemas::config::NullTenant;
use schemas::record::{Fault, Published};
use schemas::tenant::KeyType;
use schemas::{Lsn, MoveId, TableName, TablePath, TenantId};

use crate::ownership::{Owner, Ownership, Reference};
use crate::spool::{self, SpoolWriter};
use relation::{Places, Routed};
use row::whole_row;
use stops::{changed_hands, incomplete};
use via::Settling;

/// A table whose rows belong to tenants.
#[derive(Clone, Debug)]
pub struct TableRoute {
    /// How a row's tenant is found.
    pub path: TablePath,
    /// What a row without a tenant means.
    pub null_tenant: NullTenant,
    /// The columns that name one row; empty where nothing does.
    pub row_key: Vec<String>,
    /// Rows may stay while the one that they refer to is deleted and made again in one transaction.
    pub may_outlive: bool,
    /// What the columns are as keys that say whose a row is, or that others refer to it by: by the number of the type,
    /// which only the catalogs know of types that people made.
    pub types: HashMap<u32, KeyType>,
}

/// An open lane, as the router sees it.
pub struct LaneEnd {
    /// The move.
    pub id: MoveId,
    /// Its tenant.
    pub tenant: TenantId,
    /// The tables that move, by number, with the names they had when that was planned.
    pub tables: BTreeMap<u32, TableName>,
    /// Which of them are partitioned.
    partitioned: BTreeSet<u32>,
    /// The writing end of its spool.
    pub spool: SpoolWriter,
    touched: bool,
    /// It was told to stop in the current transaction.
    told: bool,
}

impl LaneEnd {
    /// A lane whose spool is open.
    pub fn new(id: MoveId, tenant: TenantId, published: &Published, spool: SpoolWriter) -> Self {
        let tables = published.tables.iter().map(|(name, table)| (table.oid, name.clone())).collect();
        let partitioned = published.tables.iter().filter(|(_, table)| table.partitioned).map(|(_, table)| table.oid);
        let partitioned = partitioned.collect();
        LaneEnd { id, tenant, tables, partitioned, spool, touched: false, told: false }
    }

    /// Whether the relation is a table of the move; `None` when it is one by number or by name only.
    fn has(&self, relation: u32, name: &TableName) -> Option<bool> {
        match self.tables.get(&relation) {
            Some(known) => (known == name).then_some(true),
            None if self.tables.values().any(|known| known == name) => None,
            None => Some(false),
        }
    }
}

/// A lane whose spool cannot take more; it has been taken out of the router.
pub struct Broken {
    /// The lane.
    pub lane: LaneEnd,
    /// Why.
    pub fault: Fault,
}

/// Budgets of the spools, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// For one lane.
    pub per_tenant: u64,
    /// For all lanes together.
    pub total: u64,
}

/// The routing state of a pipeline.
pub struct Router {
    tables: BTreeMap<TableName, TableRoute>,
    lanes: BTreeMap<MoveId, LaneEnd>,
    relations: HashMap<u32, Arc<Routed>>,
    next_version: u64,
    /// The relation that was described last, until something else comes.
    described: Option<u32>,
    budget: Budget,
    ownership: Ownership,
    transaction: Option<Transaction>,
    settling: Settling,
    /// The end of the last transaction that was routed: what comes again is in the spools and in the index.
    passed: Lsn,
    broken: Vec<Broken>,
    quarantined: BTreeSet<MoveId>,
    /// Lanes that rows with others below them left or entered in this transaction.
    changed_hands: BTreeSet<MoveId>,
    /// Keys were lost since this was asked last.
    keys_lost: bool,
    /// A spool had no room on the disk: what was received since the last cut is not all there.
    full: bool,
}

#[derive(Clone, Copy)]
struct Transaction {
    xid: u32,
    commit_lsn: Lsn,
    commit_ts: i64,
    /// It was routed before the connection was lost.
    again: bool,
}

impl Router {
    /// A router for these tables, without lanes; what a large transaction leaves undecided is kept in `scratch`.
    pub fn new(tables: BTreeMap<TableName, TableRoute>, budget: Budget, scratch: PathBuf) -> Self {
        let (lanes, relations, broken) = (BTreeMap::new(), HashMap::new(), Vec::new());
        let quarantined = BTreeSet::new();
        let mut router = Router {
            tables,
            lanes,
            relations,
            next_version: 1,
            described: None,
            budget,
            ownership: Ownership::default(),
            transaction: None,
            settling: Settling::new(scratch),
            passed: Lsn::ZERO,
            broken,
            quarantined,
            changed_hands: BTreeSet::new(),
            keys_lost: false,
            full: false,
        };
        router.refer();
        router
    }

    /// The open lanes.
    pub fn lanes(&self) -> impl Iterator<Item = &LaneEnd> {
        self.lanes.values()
    }

    /// The open lanes, to sync their spools.
    pub fn lanes_mut(&mut self) -> impl Iterator<Item = &mut LaneEnd> {
        self.lanes.values_mut()
    }

    /// Which lane owns the rows that `via` tables refer to.
    pub fn ownership(&mut self) -> &mut Ownership {
        &mut self.ownership
    }

    /// Adds a lane; only between transactions, or it would miss the first half of one.
    pub fn open(&mut self, lane: LaneEnd, table: impl IntoIterator<Item = (TableName, TableRoute)>) {
        self.tables.extend(table);
        self.refer();
        let is_via = |name: &TableName| self.tables.get(name).is_some_and(|table| table.parent().is_some());
        if lane.tables.values().any(is_via) {
            self.ownership.open(lane.id);
        }
        self.quarantined.remove(&lane.id);
        self.lanes.insert(lane.id, lane);
        self.reroute();
    }

    /// Takes a lane out.
    pub fn close(&mut self, id: MoveId) -> Option<LaneEnd> {
        let lane = self.lanes.remove(&id);
        self.ownership.close(id);
        self.reroute();
        lane
    }

    /// Gives every table that others refer to its places in the index, from the top down.
    fn refer(&mut self) {
        let names: Vec<TableName> = self.tables.keys().cloned().collect();
        for name in names {
            self.parent(&name);
        }
    }

    /// What the rows of a `via` table refer to.
    fn parent(&mut self, table: &TableName) -> Option<Reference> {
        let (parent, columns) = self.tables.get(table)?.parent()?;
        let (parent, columns) = (parent.clone(), columns.to_vec());
        let above = self.parent(&parent);
        Some(self.ownership.reference(&parent, &columns, above))
    }

    /// Every lane that broke and was not opened again: an acknowledgement passes them only with a
    /// record that says so.
    pub fn quarantined(&self) -> Vec<MoveId> {
        self.quarantined.iter().copied().collect()
    }

    /// The lanes that broke since this was asked last.
    pub fn take_broken(&mut self) -> Vec<Broken> {
        std::mem::take(&mut self.broken)
    }

    /// Whether a transaction is open.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// Whether the disk had no room for what was received since the last [`Router::restart`].
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Forgets the open transaction and cuts it from the spools: the stream begins again. False when
    /// transactions went too that had been sealed but not shown to their lanes.
    pub fn restart(&mut self) -> bool {
        self.transaction = None;
        self.changed_hands.clear();
        self.described = None;
        self.relations.clear();
        self.settling.clear();
        let mut kept = !std::mem::take(&mut self.full);
        self.each_lane(|lane| {
            (lane.touched, lane.told) = (false, false);
            kept &= lane.spool.cut()?;
            Ok(())
        });
        if !kept {
            // The index has seen what the spools do not hold.
            self.ownership.lose();
            self.passed = Lsn::ZERO;
        }
        kept
    }

    /// Whether lanes' keys were lost since this was asked last: they have to be read again.
    pub fn take_keys_lost(&mut self) -> bool {
        std::mem::take(&mut self.keys_lost)
    }

    /// A transaction begins.
    pub fn begin(&mut self, xid: u32, commit_lsn: Lsn, commit_ts: i64) {
        let again = commit_lsn < self.passed;
        self.transaction = Some(Transaction { xid, commit_lsn, commit_ts, again });
    }

    /// The transaction is complete; true when it touched a lane.
    pub fn commit(&mut self, end: Lsn) -> Result<bool> {
        self.settle()?;
        self.transaction = None;
        for id in std::mem::take(&mut self.changed_hands) {
            self.keys_lost |= self.ownership.forget(id);
        }
        self.passed = self.passed.max(end);
        let mut touched = false;
        for lane in self.lanes.values_mut().filter(|lane| lane.touched) {
            (lane.touched, lane.told) = (false, false);
            touched = true;
            lane.spool.commit(end);
        }
        Ok(touched)
    }

    /// Shows the lanes what has been sealed, and holds the spools to their budget.
    pub fn flush(&mut self) {
        self.each_lane(|lane| lane.spool.flush());
        let mut sizes: Vec<(u64, MoveId)> =
            self.lanes.values().map(|lane| (lane.spool.state().bytes(), lane.id)).collect();
        sizes.sort_unstable();
        let mut total: u64 = sizes.iter().map(|(bytes, _)| bytes).sum();
        // The largest goes first; the others are not to suffer for it.
        for (bytes, id) in sizes.into_iter().rev() {
            let (limit, key) = match (bytes > self.budget.per_tenant, total > self.budget.total) {
                (true, _) => (self.budget.per_tenant, "limits.spool_per_tenant"),
                (false, true) => (self.budget.total, "limits.spool_total"),
                (false, false) => break,
            };
            total -= bytes;
            let fault = Fault::new(
                "spool_full",
                id.to_string(),
                format!("the target did not keep up: the spool has outgrown {key} ({limit} bytes)"),
                format!("mend the target or raise {key}, then `carveout move` copies the tenant again"),
            );
            self.break_lane(id, fault);
        }
    }

    /// Routes one change.
    pub fn change(&mut self, raw: &Bytes, message: pgoutput::Message<'_>) -> Result<()> {
        use pgoutput::Message as M;
        if !matches!(message, M::Relation(_) | M::Type { .. }) {
            self.described = None;
        }
        match message {
            // A copy: the message's bytes share a read buffer, which is not to be kept.
            M::Relation(relation) => self.learn(Bytes::copy_from_slice(raw), relation),
            M::Insert { relation, new } => self.row(raw, relation, None, Some(new))?,
            M::Delete { relation, old } => self.row(raw, relation, Some(old), None)?,
            M::Update { relation, old, new } => self.row(raw, relation, old, Some(new))?,
            M::Truncate { relations, .. } => relations.into_iter().for_each(|relation| self.truncate(relation)),
            M::Begin { .. } | M::Commit { .. } | M::Origin { .. } | M::Type { .. } | M::Logical { .. } => {}
        }
        Ok(())
    }

    fn row(&mut self, raw: &Bytes, relation: u32, old: Option<Old<'_>>, new: Option<Tuple<'_>>) -> Result<()> {
        let Some(routed) = self.relations.get(&relation).cloned() else { return Err(unknown_relation(relation)) };
        self.stop_faulty(&routed);
        self.settling.step();
        match routed.path {
            // Whoever has the table was told to stop.
            _ if !routed.carried => Ok(()),
            Places::Nowhere => Ok(()),
            Places::Everywhere => {
                routed.members.iter().for_each(|id| self.append(*id, &routed, &[], raw));
                Ok(())
            }
            Places::Key(place) => {
                let Ok((from, to)) = routed.by_key(place, old, new) else {
                    self.stop_untold(&routed);
                    return Ok(());
                };
                // An UPDATE without an old image changed nothing that says whose the row is.
                let from = from.or_else(|| to.clone().filter(|_| raw.first() == Some(&b'U')));
                self.deliver(&routed, raw, (from.as_ref(), old), (to.as_ref(), new));
                if self.note_referred(&routed, (from, old), (to, new)).is_err() {
                    self.stop_untold(&routed);
                }
                Ok(())
            }
            // Whose it is stands when the transaction ends.
            Places::Via { .. } => self.keep_for_commit(&routed, raw),
        }
    }

    /// Writes a row's change to whom it was and to whom it is now; `None`: it was not there, or is not any more.
    fn deliver(
        &mut self,
        routed: &Routed,
        raw: &[u8],
        (from, old): (Option<&Owner>, Option<Old<'_>>),
        (to, new): (Option<&Owner>, Option<Tuple<'_>>),
    ) {
        let (Some(before), Some(after)) = (from.or(to), to.or(from)) else { return };
        if *before == Owner::Null || *after == Owner::Null {
            self.stop_members(routed);
        }
        // A table that came after a move was planned is not part of it.
        let has = |id: &MoveId| routed.members.binary_search(id).is_ok();
        if let (true, Owner::Lane(id)) = (before == after, before) {
            return if has(id) {
                self.append(*id, routed, &[], raw)
            };
        }
        let mut lanes: Vec<MoveId> = [before, after].into_iter().filter_map(Owner::lane).filter(has).collect();
        if before.is_open() || after.is_open() {
            lanes.extend(routed.members.iter().filter(|id| self.ownership.is_undecided(**id)));
        }
        lanes.sort_unstable();
        lanes.dedup();
        for id in lanes {
            let claims = Claims { old: self.claim(routed, before, id), new: self.claim(routed, after, id) };
            match (&claims.old, &claims.new) {
                (Claim::No, Claim::No) => {}
                (Claim::Yes, Claim::Yes) => self.append(id, routed, &[], raw),
                (before, after) if before != after && self.takes_along(routed, after, old, new) => {
                    self.change_hands(id, routed, &claims, raw);
                }
                (Claim::Yes, Claim::No) => self.leave(id, routed, old),
                (Claim::No, Claim::Yes) => self.enter(id, routed, old, new),
                _ => self.append(id, routed, &claims.encoded(), raw),
            }
        }
    }

    /// Whether more than the change says goes with the row to the lane or from it: rows that hang on it, or large
    /// values that were not sent.
    fn takes_along(&self, routed: &Routed, after: &Claim, old: Option<Old<'_>>, new: Option<Tuple<'_>>) -> bool {
        let incomplete = || new.is_some_and(|new| whole_row(&routed.relation, old, new).is_none());
        !routed.referred.is_empty() || (*after != Claim::No && !routed.row_key.is_empty() && incomplete())
    }

    /// The lane sees to it that what hangs on the row goes with it. From here on the index does not know whose that
    /// is: the lane decides by its target until its keys are read again.
    fn change_hands(&mut self, id: MoveId, routed: &Routed, claims: &Claims, raw: &[u8]) {
        if routed.row_key.is_empty() {
            return self.stop(id, Some(&routed.name), changed_hands(&routed.name));
        }
        self.append_as(id, routed, &claims.encoded(), true, raw);
        if !routed.referred.is_empty() {
            self.changed_hands.insert(id);
        }
    }

    /// What an owner means to a lane.
    fn claim(&self, routed: &Routed, owner: &Owner, id: MoveId) -> Claim {
        match owner {
            Owner::Lane(lane) if *lane == id => Claim::Yes,
            // All rows of a decided lane are known.
            Owner::If(reference, key) if self.ownership.is_undecided(id) => {
                let Places::Via { parent, .. } = &routed.path else { return Claim::No };
                let steps = 1 + self.ownership.depth(*parent) - self.ownership.depth(*reference);
                Claim::If { steps: u8::try_from(steps).unwrap_or(u8::MAX), key: key.clone() }
            }
            _ => Claim::No,
        }
    }

    /// The row leaves the lane's tenant.
    fn leave(&mut self, id: MoveId, routed: &Routed, old: Option<Old<'_>>) {
        let Some(old) = old else { return };
        let mut delete = Vec::new();
        pgoutput::encode_delete(routed.relation.id, old, &mut delete);
        self.append(id, routed, &[], &delete);
    }

    /// The row enters the lane's tenant.
    fn enter(&mut self, id: MoveId, routed: &Routed, old: Option<Old<'_>>, new: Option<Tuple<'_>>) {
        let Some(new) = new else { return };
        match whole_row(&routed.relation, old, new) {
            Some(row) => {
                let mut insert = Vec::new();
                pgoutput::encode_insert(routed.relation.id, &row, &mut insert);
                self.append(id, routed, &[], &insert);
            }
            None => self.stop(id, Some(&routed.name), incomplete(routed, new)),
        }
    }

    /// A partition is described right behind the table that it is a part of, before its first row. Its rows come
    /// as that table's; every lane looks whether it knows it.
    fn note_partition(&mut self, table: u32, partition: &Relation) {
        let Some(routed) = self.relations.get(&table).cloned() else { return };
        // Old rows are written by one's identity and described by the other's: such a partition nobody knows.
        let number = if identity(partition) == identity(&routed.relation) { partition.id } else { 0 };
        let mut message = Vec::new();
        pgoutput::encode_partition(table, number, &mut message);
        // A TRUNCATE of several tables describes them one behind the other too.
        let partitioned = |id: &&MoveId| self.lanes.get(id).is_some_and(|lane| lane.partitioned.contains(&table));
        let members: Vec<MoveId> = routed.members.iter().filter(partitioned).copied().collect();
        members.iter().for_each(|id| self.append(*id, &routed, &[], &message));
    }

    fn learn(&mut self, description: Bytes, relation: Relation) {
        if let Some(table) = self.described.replace(relation.id) {
            self.note_partition(table, &relation);
        }
        if self.relations.get(&relation.id).is_some_and(|known| known.relation == relation) {
            return;
        }
        let version = self.next_version;
        self.next_version += 1;
        self.route(version, description, relation);
    }

    fn reroute(&mut self) {
        for (_, routed) in std::mem::take(&mut self.relations) {
            self.route(routed.version, routed.description.clone(), routed.relation.clone());
        }
    }

    /// Works out which lanes a relation's rows go to.
    fn route(&mut self, version: u64, description: Bytes, relation: Relation) {
        let name = TableName::new(&relation.schema, &relation.name);
        let parent = self.parent(&name);
        let route = self.tables.get(&name).map(|route| (route, parent));
        let routed = Routed::new((version, description), relation, route, &self.lanes, &self.ownership);
        self.relations.insert(routed.relation.id, Arc::new(routed));
    }

    /// Appends a change to a lane's spool.
    fn append(&mut self, id: MoveId, routed: &Routed, claims: &[u8], message: &[u8]) {
        self.append_as(id, routed, claims, false, message);
    }

    fn append_as(&mut self, id: MoveId, routed: &Routed, claims: &[u8], hands: bool, message: &[u8]) {
        let (Some(lane), Some(transaction)) = (self.lanes.get_mut(&id), self.transaction) else { return };
        let described = (routed.relation.id, routed.version);
        let written = lane.begin(transaction).and_then(|begun| match begun {
            true => lane.spool.change(described, &routed.description, claims, hands, message),
            false => Ok(()),
        });
        self.check_written(id, written);
    }

    fn stop(&mut self, id: MoveId, table: Option<&TableName>, fault: Fault) {
        let (Some(lane), Some(transaction)) = (self.lanes.get_mut(&id), self.transaction) else { return };
        let written =
            lane.begin(transaction).and_then(|begun| if begun { lane.spool.stop(table, &fault) } else { Ok(()) });
        self.check_written(id, written);
    }

    fn check_written(&mut self, id: MoveId, written: std::io::Result<()>) {
        match written {
            Err(error) if spool::is_full(&error) => self.full = true,
            Err(error) => self.break_lane(id, spool_failed(id, &error)),
            Ok(()) => {}
        }
    }

    fn each_lane(&mut self, mut act: impl FnMut(&mut LaneEnd) -> std::io::Result<()>) {
        let failed: Vec<(MoveId, std::io::Error)> =
            self.lanes.values_mut().filter_map(|lane| act(lane).err().map(|error| (lane.id, error))).collect();
        for (id, error) in failed {
            self.check_written(id, Err(error));
        }
    }

    /// Takes the lane out, alone and visibly; the others are not to suffer.
    pub fn break_lane(&mut self, id: MoveId, fault: Fault) {
        if let Some(lane) = self.close(id) {
            self.quarantined.insert(id);
            self.broken.push(Broken { lane, fault });
        }
    }
}

impl LaneEnd {
    fn begin(&mut self, transaction: Transaction) -> std::io::Result<bool> {
        let begun = self.spool.begin(transaction.xid, transaction.commit_lsn, transaction.commit_ts)?;
        self.touched |= begun;
        Ok(begun)
    }
}

impl TableRoute {
    /// What the rows refer to, where their tenant is found that way.
    fn parent(&self) -> Option<(&TableName, &[String])> {
        match &self.path {
            TablePath::Key(_) | TablePath::Reference => None,
            TablePath::Via { parent, referenced, .. } => Some((parent, referenced)),
        }
    }
}

fn spool_failed(id: MoveId, error: &std::io::Error) -> Fault {
    Fault::new(
        "spool_failed",
        id.to_string(),
        format!("its spool could not be written: {error}"),
        "make room in state_dir, then `carveout move` copies the tenant again",
    )
}

fn unknown_relation(relation: u32) -> Error {
    let why = format!("relation {relation} was not described before it was used");
    Error::protocol("route a change", why)
}

/// A change does not say whose the row is.
struct NoTenant;

/// What old rows of a relation carry.
fn identity(relation: &Relation) -> (u8, BTreeSet<&str>) {
    (
        relation.identity,
        relation.columns.iter().filter(|column| column.key).map(|column| column.name.as_str()).collect(),
    )
}

//! Decides, by the tenant key in the row itself, which lanes a change belongs to, and writes it
//! into their spools. Knows nothing of targets; never waits for anything but the page cache.

mod row;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use connectors::postgres::pgoutput::{self, Old, Relation, Tuple, Value};
use schemas::config::NullTenant;
use schemas::record::{Fault, Published};
use schemas::tenant::KeyType;
use schemas::{Lsn, MoveId, TableName, TenantId};

use crate::spool::{self, SpoolWriter};
use row::{shown, tuple_of, whole_row};

/// A table that carries the tenant key.
#[derive(Clone, Debug)]
pub struct TableRoute {
    /// The column with the tenant's key.
    pub key: String,
    /// What a row without a tenant means.
    pub null_tenant: NullTenant,
}

/// An open lane, as the router sees it.
pub struct LaneEnd {
    /// The move.
    pub id: MoveId,
    /// Its tenant.
    pub tenant: TenantId,
    /// The tables that move, by number, with the names they had when that was planned.
    pub tables: BTreeMap<u32, TableName>,
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
        LaneEnd { id, tenant, tables, spool, touched: false, told: false }
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

/// What is known of a relation of the stream.
struct Routed {
    version: u64,
    description: Bytes,
    name: TableName,
    /// Place of the tenant key, where the table is routed at all.
    key: Option<usize>,
    null_tenant: NullTenant,
    /// Key bytes, as the wire carries them, to lane.
    lanes: HashMap<Vec<u8>, MoveId>,
    /// Every lane that has the table.
    members: Vec<MoveId>,
    /// Lanes that have it and that its rows cannot be routed to, with the reason: a change stops them.
    faulty: Vec<(MoveId, Fault)>,
    relation: Relation,
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
    relations: HashMap<u32, Routed>,
    next_version: u64,
    budget: Budget,
    transaction: Option<Transaction>,
    broken: Vec<Broken>,
    quarantined: BTreeSet<MoveId>,
    /// A spool had no room on the disk: what was received since the last cut is not all there.
    full: bool,
}

#[derive(Clone, Copy)]
struct Transaction {
    xid: u32,
    commit_lsn: Lsn,
    commit_ts: i64,
}

impl Router {
    /// A router for these tables, without lanes.
    pub fn new(tables: BTreeMap<TableName, TableRoute>, budget: Budget) -> Self {
        let (lanes, relations, broken) = (BTreeMap::new(), HashMap::new(), Vec::new());
        let quarantined = BTreeSet::new();
        Router {
            tables,
            lanes,
            relations,
            next_version: 1,
            budget,
            transaction: None,
            broken,
            quarantined,
            full: false,
        }
    }

    /// The open lanes.
    pub fn lanes(&self) -> impl Iterator<Item = &LaneEnd> {
        self.lanes.values()
    }

    /// The open lanes, to sync their spools.
    pub fn lanes_mut(&mut self) -> impl Iterator<Item = &mut LaneEnd> {
        self.lanes.values_mut()
    }

    /// Adds a lane; only between transactions, or it would miss the first half of one.
    pub fn open(&mut self, lane: LaneEnd, table: impl IntoIterator<Item = (TableName, TableRoute)>) {
        self.tables.extend(table);
        self.quarantined.remove(&lane.id);
        self.lanes.insert(lane.id, lane);
        self.reroute();
    }

    /// Takes a lane out.
    pub fn close(&mut self, id: MoveId) -> Option<LaneEnd> {
        let lane = self.lanes.remove(&id);
        self.reroute();
        lane
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
        self.relations.clear();
        let mut kept = !std::mem::take(&mut self.full);
        self.each_lane(|lane| {
            (lane.touched, lane.told) = (false, false);
            kept &= lane.spool.cut()?;
            Ok(())
        });
        kept
    }

    /// A transaction begins.
    pub fn begin(&mut self, xid: u32, commit_lsn: Lsn, commit_ts: i64) {
        self.transaction = Some(Transaction { xid, commit_lsn, commit_ts });
    }

    /// The transaction is complete; true when it touched a lane.
    pub fn commit(&mut self, end: Lsn) -> bool {
        self.transaction = None;
        let mut touched = false;
        for lane in self.lanes.values_mut().filter(|lane| lane.touched) {
            (lane.touched, lane.told) = (false, false);
            touched = true;
            lane.spool.commit(end);
        }
        touched
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
    pub fn change(&mut self, raw: &Bytes, message: pgoutput::Message<'_>) -> connectors::postgres::Result<()> {
        use pgoutput::Message as M;
        match message {
            // A copy: the message's bytes share a read buffer, which is not to be kept.
            M::Relation(relation) => self.learn(Bytes::copy_from_slice(raw), relation),
            M::Insert { relation, new } => {
                self.stop_faulty(relation);
                let tenant = self.lane_of(relation, new)?;
                self.write(tenant, relation, &[raw]);
            }
            M::Delete { relation, old } => {
                self.stop_faulty(relation);
                let tenant = self.lane_of(relation, tuple_of(old))?;
                self.write(tenant, relation, &[raw]);
            }
            M::Update { relation, old, new } => {
                self.stop_faulty(relation);
                self.update(raw, relation, old, new)?;
            }
            M::Truncate { relations, .. } => relations.into_iter().for_each(|relation| self.truncate(relation)),
            M::Begin { .. } | M::Commit { .. } | M::Origin { .. } | M::Type { .. } | M::Logical { .. } => {}
        }
        Ok(())
    }

    fn update(
        &mut self,
        raw: &Bytes,
        relation: u32,
        old: Option<Old<'_>>,
        new: Tuple<'_>,
    ) -> connectors::postgres::Result<()> {
        // Without an old image the identity, and so the tenant, has not changed.
        let to = match self.lane_of(relation, new)? {
            Owner::Unchanged => match old {
                Some(old) => self.lane_of(relation, tuple_of(old))?,
                None => return Err(unknown_tenant(relation)),
            },
            owner => owner,
        };
        let from = match old {
            Some(old) => self.lane_of(relation, tuple_of(old))?,
            None => to,
        };
        if from == to {
            self.write(from, relation, &[raw]);
            return Ok(());
        }
        // The row leaves one tenant and enters another.
        if let (Some(old), Owner::Lane(_) | Owner::Nobody) = (old, from) {
            let mut delete = Vec::new();
            pgoutput::encode_delete(relation, old, &mut delete);
            self.write(from, relation, &[&delete]);
        }
        let Some(routed) = self.relations.get(&relation) else { return Err(unknown_relation(relation)) };
        match whole_row(&routed.relation, old, new) {
            Some(row) => {
                let mut insert = Vec::new();
                pgoutput::encode_insert(relation, &row, &mut insert);
                self.write(to, relation, &[&insert]);
            }
            None => {
                let (table, fault) = (routed.name.clone(), incomplete(routed, new));
                self.stop(to, Some(&table), fault);
            }
        }
        if from == Owner::Null || to == Owner::Null {
            self.write(Owner::Null, relation, &[]);
        }
        Ok(())
    }

    /// TRUNCATE names no tenant: it empties every one.
    fn truncate(&mut self, relation: u32) {
        self.stop_faulty(relation);
        let Some(routed) = self.relations.get(&relation) else { return };
        let fault = Fault::new(
            "truncate",
            routed.name.to_string(),
            "the table was truncated on the source, for every tenant",
            "`carveout cancel` the move, then `carveout move` it again",
        );
        let (members, table) = (routed.members.clone(), routed.name.clone());
        for id in members {
            self.stop(Owner::Lane(id), Some(&table), fault.clone());
        }
    }

    fn learn(&mut self, description: Bytes, relation: Relation) {
        if self.relations.get(&relation.id).is_some_and(|known| known.relation == relation) {
            return;
        }
        let name = TableName::new(&relation.schema, &relation.name);
        let version = self.next_version;
        self.next_version += 1;
        let routed = Routed {
            version,
            description,
            name,
            key: None,
            null_tenant: NullTenant::Stop,
            lanes: HashMap::new(),
            members: Vec::new(),
            faulty: Vec::new(),
            relation,
        };
        let id = routed.relation.id;
        self.relations.insert(id, routed);
        self.route(id);
    }

    fn reroute(&mut self) {
        let ids: Vec<u32> = self.relations.keys().copied().collect();
        ids.into_iter().for_each(|id| self.route(id));
    }

    /// Works out which lanes a relation's rows go to.
    fn route(&mut self, id: u32) {
        let Some(routed) = self.relations.get_mut(&id) else { return };
        let table = self.tables.get(&routed.name);
        let place = |table: &TableRoute| routed.relation.columns.iter().position(|column| column.name == table.key);
        routed.key = table.and_then(place);
        routed.null_tenant = table.map_or(NullTenant::Stop, |table| table.null_tenant);
        routed.lanes.clear();
        routed.members.clear();
        let kind = routed.key.and_then(|place| KeyType::from_oid(routed.relation.columns[place].type_oid));
        let mut unroutable = Vec::new();
        let mut replaced = Vec::new();
        for lane in self.lanes.values() {
            match lane.has(id, &routed.name) {
                Some(true) => routed.members.push(lane.id),
                Some(false) => continue,
                None => {
                    replaced.push(lane.id);
                    continue;
                }
            }
            // The old image must carry the key, or a DELETE would name no tenant.
            let carried = routed.key.is_some_and(|place| routed.relation.columns[place].key);
            match kind.filter(|_| carried).map(|kind| kind.encode(&lane.tenant)) {
                Some(Ok(bytes)) => drop(routed.lanes.insert(bytes, lane.id)),
                _ => unroutable.push(lane.id),
            }
        }
        let name = routed.name.to_string();
        let faults = |lanes: Vec<MoveId>, cause: &'static str, next: &'static str| {
            let name = name.clone();
            lanes.into_iter().map(move |id| (id, Fault::new("schema_changed", name.clone(), cause, next)))
        };
        routed.faulty = faults(
            unroutable,
            "its tenant key is gone, has another type, or left the replica identity",
            "`carveout cancel` the move, mend the configuration, then `carveout move`",
        )
        .chain(faults(
            replaced,
            "a table of the move was renamed, or another table has its name",
            "`carveout cancel` the move, name the tables as they are to be, then `carveout move`",
        ))
        .collect();
    }

    /// A change of the relation may be one of a lane that cannot be told its rows: that lane stops, whatever
    /// its copy holds.
    fn stop_faulty(&mut self, relation: u32) {
        let Some(routed) = self.relations.get(&relation).filter(|routed| !routed.faulty.is_empty()) else { return };
        for (id, fault) in routed.faulty.clone() {
            let told = self.lanes.get_mut(&id).is_none_or(|lane| std::mem::replace(&mut lane.told, true));
            if !told {
                self.stop(Owner::Lane(id), None, fault);
            }
        }
    }

    fn lane_of(&self, relation: u32, row: Tuple<'_>) -> connectors::postgres::Result<Owner> {
        let Some(routed) = self.relations.get(&relation) else {
            return Err(unknown_relation(relation));
        };
        let Some(place) = routed.key else { return Ok(Owner::Nobody) };
        let key = match row.get(place) {
            Some(Value::Binary(bytes) | Value::Text(bytes)) => bytes,
            Some(Value::Null) if routed.null_tenant == NullTenant::NotMoving => return Ok(Owner::Nobody),
            Some(Value::Null) => return Ok(Owner::Null),
            Some(Value::Unchanged) => return Ok(Owner::Unchanged),
            None => return Err(unknown_tenant(relation)),
        };
        Ok(routed.lanes.get(key).map_or(Owner::Nobody, |id| Owner::Lane(*id)))
    }

    /// Writes a message to its owner; a row without a tenant stops every move that has the table.
    fn write(&mut self, owner: Owner, relation: u32, message: &[&[u8]]) {
        match owner {
            Owner::Nobody | Owner::Unchanged => {}
            Owner::Null => {
                let Some(routed) = self.relations.get(&relation) else { return };
                let fault = Fault::new(
                    "null_tenant",
                    routed.name.to_string(),
                    "a row without a tenant was written on the source",
                    format!(
                        "give the rows a tenant, or set tenancy.tables.{}.null_tenant: not_moving; then cancel and move again",
                        routed.name.name
                    ),
                );
                let (members, table) = (routed.members.clone(), routed.name.clone());
                for id in members {
                    self.stop(Owner::Lane(id), Some(&table), fault.clone());
                }
            }
            Owner::Lane(id) => {
                let (Some(routed), Some(transaction)) = (self.relations.get(&relation), self.transaction) else {
                    return;
                };
                let described = (relation, routed.version);
                let Some(lane) = self.lanes.get_mut(&id) else { return };
                let written = lane.begin(transaction).and_then(|begun| match begun {
                    true => lane.spool.change(described, &routed.description, message),
                    false => Ok(()),
                });
                self.check_written(id, written);
            }
        }
    }

    fn stop(&mut self, owner: Owner, table: Option<&TableName>, fault: Fault) {
        let (Owner::Lane(id), Some(transaction)) = (owner, self.transaction) else { return };
        let Some(lane) = self.lanes.get_mut(&id) else { return };
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

/// Whose row it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Lane(MoveId),
    /// A tenant that is not moving, or a table that is not.
    Nobody,
    /// The key is NULL, and that stops the moves that have the table.
    Null,
    /// The key is stored out of line and was not sent.
    Unchanged,
}

fn incomplete(routed: &Routed, new: Tuple<'_>) -> Fault {
    let key = routed.relation.columns.iter().zip(new.iter()).filter(|(column, _)| column.key);
    let key: Vec<String> =
        key.map(|(column, value)| format!("{}={}", column.name, shown(column.type_oid, value))).collect();
    Fault::new(
        "toast",
        routed.name.to_string(),
        format!(
            "a row entered the tenant ({}), but the value of a large unchanged column was not sent with it",
            key.join(", ")
        ),
        format!("ALTER TABLE {} REPLICA IDENTITY FULL, then `carveout cancel` and `carveout move`", routed.name),
    )
}

fn spool_failed(id: MoveId, error: &std::io::Error) -> Fault {
    Fault::new(
        "spool_failed",
        id.to_string(),
        format!("its spool could not be written: {error}"),
        "make room in state_dir, then `carveout move` copies the tenant again",
    )
}

fn unknown_relation(relation: u32) -> connectors::postgres::Error {
    let why = format!("relation {relation} was not described before it was used");
    connectors::postgres::Error::protocol("route a change", why)
}

fn unknown_tenant(relation: u32) -> connectors::postgres::Error {
    let why = format!("a change of relation {relation} does not carry its tenant; its replica identity was changed");
    connectors::postgres::Error::state("route a change", why)
}

//! What is known of a relation of the stream, and which lanes its rows go to.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use connectors::postgres::apply::key_value;
use connectors::postgres::pgoutput::{Column, Old, Relation, Tuple, Value};
use schemas::config::NullTenant;
use schemas::record::Fault;
use schemas::tenant::KeyType;
use schemas::{MoveId, TableName, TablePath};

use super::row::tuple_of;
use super::{LaneEnd, NoTenant, TableRoute};
use crate::ownership::{Owner, Ownership, Reference};

/// A relation of the stream.
pub(super) struct Routed {
    pub version: u64,
    pub description: Bytes,
    pub name: TableName,
    pub path: Places,
    pub null_tenant: NullTenant,
    /// Every lane that has the table, in order.
    pub members: Vec<MoveId>,
    /// Lanes that have it and that its rows cannot be routed to, with the reason: a change stops them.
    pub faulty: Vec<(MoveId, Fault)>,
    /// How other tables refer to this one, with the places of the columns.
    pub referred: Vec<(Reference, Vec<usize>)>,
    /// Places of the columns that name a row; empty where nothing does.
    pub row_key: Vec<usize>,
    /// Whether old images carry all that routing takes.
    pub carried: bool,
    pub relation: Relation,
    /// What its columns are as keys, where they can be.
    pub kinds: Vec<Option<KeyType>>,
    /// Key bytes, in the wire's binary form, to lane.
    lanes: HashMap<Vec<u8>, MoveId>,
}

/// Where a row says whose it is.
pub(super) enum Places {
    /// Its table does not move.
    Nowhere,
    /// Nowhere: it is every tenant's.
    Everywhere,
    /// In its tenant key.
    Key(usize),
    /// In the row that these columns refer to.
    Via { columns: Vec<usize>, parent: Reference },
}

impl Routed {
    pub fn new(
        (version, description): (u64, Bytes),
        relation: Relation,
        table: Option<(&TableRoute, Option<Reference>)>,
        lanes: &BTreeMap<MoveId, LaneEnd>,
        ownership: &Ownership,
    ) -> Routed {
        let name = TableName::new(&relation.schema, &relation.name);
        let place = |name: &String| relation.columns.iter().position(|column| &column.name == name);
        let places = |names: &[String]| names.iter().map(place).collect::<Option<Vec<usize>>>();
        let path = match table {
            Some((TableRoute { path: TablePath::Key(column), .. }, _)) => place(column).map(Places::Key),
            Some((TableRoute { path: TablePath::Reference, .. }, _)) => Some(Places::Everywhere),
            Some((route, Some(parent))) => places(route.path.columns()).map(|columns| Places::Via { columns, parent }),
            _ => None,
        };
        let referred: Vec<_> =
            ownership.of_table(&name).map(|(reference, columns)| (reference, places(columns))).collect();
        let known = |oid: u32| table.and_then(|(route, _)| route.types.get(&oid).copied());
        let kind = |column: &Column| KeyType::from_oid(column.type_oid).or_else(|| known(column.type_oid));
        let mut routed = Routed {
            kinds: relation.columns.iter().map(kind).collect(),
            version,
            description,
            path: path.unwrap_or(Places::Nowhere),
            null_tenant: table.map_or(NullTenant::Stop, |(table, _)| table.null_tenant),
            members: Vec::new(),
            faulty: Vec::new(),
            row_key: match relation.identity {
                b'f' => table.and_then(|(table, _)| places(&table.row_key)).unwrap_or_default(),
                // What the old image carries.
                _ => (0..relation.columns.len()).filter(|place| relation.columns[*place].key).collect(),
            },
            lanes: HashMap::new(),
            carried: false,
            // The old image must carry them, or what a DELETE takes away could not be told.
            referred: Vec::new(),
            name,
            relation,
        };
        routed.carried = routed.carries_tenant();
        for (reference, places) in referred {
            match places.filter(|places| routed.carries(places)) {
                Some(places) => routed.referred.push((reference, places)),
                None => routed.carried = false,
            }
        }
        routed.find_lanes(lanes);
        routed
    }

    fn carries(&self, places: &[usize]) -> bool {
        places.iter().all(|place| self.relation.columns[*place].key)
    }

    /// Whether the old image says whose the row is.
    fn carries_tenant(&self) -> bool {
        match &self.path {
            Places::Nowhere => false,
            Places::Everywhere => true,
            Places::Key(place) => self.carries(&[*place]),
            Places::Via { columns, .. } => self.carries(columns),
        }
    }

    fn find_lanes(&mut self, lanes: &BTreeMap<MoveId, LaneEnd>) {
        let kind = match self.path {
            Places::Key(place) => self.kinds[place],
            _ => None,
        };
        let (mut unroutable, mut replaced) = (Vec::new(), Vec::new());
        for lane in lanes.values() {
            match lane.has(self.relation.id, &self.name) {
                Some(true) => self.members.push(lane.id),
                Some(false) => continue,
                None => {
                    replaced.push(lane.id);
                    continue;
                }
            }
            match (&self.path, kind.map(|kind| kind.encode(&lane.tenant))) {
                (Places::Key(_), Some(Ok(bytes))) if self.carried => drop(self.lanes.insert(bytes, lane.id)),
                (Places::Via { .. } | Places::Everywhere, _) if self.carried => {}
                _ => unroutable.push(lane.id),
            }
        }
        let name = self.name.to_string();
        let faults = |lanes: Vec<MoveId>, cause: &'static str, next: &'static str| {
            let name = name.clone();
            lanes.into_iter().map(move |id| (id, Fault::new("schema_changed", name.clone(), cause, next)))
        };
        self.faulty = faults(
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

    /// Whose a row with a tenant key was and is.
    pub fn by_key(
        &self,
        place: usize,
        old: Option<Old<'_>>,
        new: Option<Tuple<'_>>,
    ) -> Result<(Option<Owner>, Option<Owner>), NoTenant> {
        let from = old.map(|old| self.lane_of(place, tuple_of(old))).transpose()?;
        let to = new.map(|new| self.lane_of(place, new)).transpose()?;
        // A key that is stored out of line and did not change is only in the old image.
        match (from, to) {
            (None, Some(Owner::Unchanged)) => Err(NoTenant),
            (from, Some(Owner::Unchanged)) => Ok((from.clone(), from)),
            both => Ok(both),
        }
    }

    fn lane_of(&self, place: usize, row: Tuple<'_>) -> Result<Owner, NoTenant> {
        let key = match row.get(place).ok_or(NoTenant)? {
            Value::Null => return Ok(self.without_tenant()),
            Value::Unchanged => return Ok(Owner::Unchanged),
            value => key_value(self.kinds[place], value).ok_or(NoTenant)?,
        };
        Ok(self.lanes.get(key.as_ref()).map_or(Owner::Nobody, |id| Owner::Lane(*id)))
    }

    /// What a row is whose tenant is NULL.
    pub fn without_tenant(&self) -> Owner {
        match self.null_tenant {
            NullTenant::NotMoving => Owner::Nobody,
            NullTenant::Stop => Owner::Null,
        }
    }
}

//! Which lane owns a row that `via` tables refer to: key of the referred row to lane.
//!
//! Holds only rows of moving tenants, and is advanced at the end of each transaction. A lane's keys are not
//! known when it opens. They are read from its target, while every key that changes meanwhile is remembered:
//! what the stream said last about a key counts, and what the target says counts for the others.
//! Until then the lane is *undecided*: changes that may be its own are given to it, and it decides by its target.

mod keys;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use schemas::{MoveId, TableName};

pub use keys::{Keys, estimate};

/// A lane's number, packed: there is one for each key.
type Lane = [u8; 4];

/// Whose row it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A moving tenant's.
    Lane(MoveId),
    /// A tenant's that is not moving, or a table's that is not.
    Nobody,
    /// An undecided lane's if its target has the row with this key, and no other's.
    If(Reference, Bytes),
    /// The key is NULL, and that stops the moves that have the table.
    Null,
    /// The key is stored out of line and was not sent.
    Unchanged,
}

impl Owner {
    /// The lane, where it is one for certain.
    pub fn lane(&self) -> Option<MoveId> {
        match self {
            Owner::Lane(lane) => Some(*lane),
            _ => None,
        }
    }

    /// Whether only the lanes' targets can tell.
    pub fn is_open(&self) -> bool {
        matches!(self, Owner::If(..))
    }
}

/// A table with the columns by which others refer to it; a place in the list of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference(usize);

/// What is known of the keys of one [`Reference`].
struct Referred {
    table: TableName,
    columns: Vec<String>,
    /// What the table's own rows are found by, where that is a foreign key too.
    parent: Option<Reference>,
    owners: Keys<Lane>,
    /// For each lane whose keys are being read: the keys that changed since that began; with the foreign key, as
    /// long as that alone says whose the row is.
    touched: BTreeMap<MoveId, Keys<Option<Box<[u8]>>>>,
}

/// The index, and the lanes that have `via` tables.
#[derive(Default)]
pub struct Ownership {
    referred: Vec<Referred>,
    /// Lanes whose keys are all in the index.
    decided: BTreeSet<MoveId>,
    /// The others, and whether their keys are being read.
    undecided: BTreeMap<MoveId, bool>,
}

impl Ownership {
    /// The reference to a table by these columns; `parent` is the one that its own rows are found by.
    pub fn reference(&mut self, table: &TableName, columns: &[String], parent: Option<Reference>) -> Reference {
        let found = self.referred.iter().position(|known| &known.table == table && known.columns == columns);
        Reference(found.unwrap_or_else(|| {
            let (table, columns) = (table.clone(), columns.to_vec());
            self.referred.push(Referred { table, columns, parent, owners: Keys::default(), touched: BTreeMap::new() });
            self.referred.len() - 1
        }))
    }

    /// The references to a table, with their columns.
    pub fn of_table<'a>(&'a self, table: &'a TableName) -> impl Iterator<Item = (Reference, &'a [String])> {
        let all = self.referred.iter().enumerate().filter(move |(_, known)| &known.table == table);
        all.map(|(place, known)| (Reference(place), known.columns.as_slice()))
    }

    /// A lane with `via` tables opens: nothing is known of its keys.
    pub fn open(&mut self, lane: MoveId) {
        self.close(lane);
        self.undecided.insert(lane, false);
    }

    /// A lane closes.
    pub fn close(&mut self, lane: MoveId) {
        if self.decided.remove(&lane) || self.undecided.remove(&lane).is_some() {
            let name = pack(lane);
            for known in &mut self.referred {
                known.owners.retain(|owner| *owner != name);
                known.touched.remove(&lane);
            }
        }
    }

    /// Rows left the lane or entered it with what hangs on them: nothing is known of its keys any more. False where
    /// it has none.
    pub fn forget(&mut self, lane: MoveId) -> bool {
        let has_keys = self.decided.contains(&lane) || self.undecided.contains_key(&lane);
        if has_keys {
            self.open(lane);
        }
        has_keys
    }

    /// What was read of the stream does not count any more: every lane's keys have to be read again.
    pub fn lose(&mut self) {
        self.undecided.values_mut().for_each(|reading| *reading = false);
        self.undecided.extend(std::mem::take(&mut self.decided).into_iter().map(|lane| (lane, false)));
        for known in &mut self.referred {
            (known.owners, known.touched) = (Keys::default(), BTreeMap::new());
        }
    }

    /// Whether the lane decides by its target.
    pub fn is_undecided(&self, lane: MoveId) -> bool {
        self.undecided.contains_key(&lane)
    }

    /// Whose the row with this key is.
    pub fn owner(&self, reference: Reference, key: &[u8]) -> Owner {
        match self.referred[reference.0].owners.get(key) {
            Some(lane) => Owner::Lane(unpack(*lane)),
            None if self.undecided.is_empty() => Owner::Nobody,
            None => Owner::If(reference, Bytes::copy_from_slice(key)),
        }
    }

    /// The transaction has ended, and this is whose the row with this key is now; `None`: it is gone. A row whose
    /// owner is unknown comes with its own foreign key.
    pub fn settle(&mut self, reference: Reference, key: &[u8], now: Option<&Owner>, foreign_key: Option<&[u8]>) {
        let known = &mut self.referred[reference.0];
        match now {
            // A lane that was closed in this transaction has no rows any more.
            Some(Owner::Lane(lane)) if self.decided.contains(lane) || self.undecided.contains_key(lane) => {
                known.owners.insert(key, pack(*lane))
            }
            _ => known.owners.remove(key),
        }
        let unknown = matches!(now, Some(Owner::If(..)));
        for touched in known.touched.values_mut() {
            touched.insert(key, foreign_key.filter(|_| unknown).map(Box::from));
        }
    }

    /// The lane's keys will be read from its target, which holds everything up to here: from now on what changes
    /// is remembered. Returns what to read; `None` when the lane has nothing to read.
    pub fn begin_reading(&mut self, lane: MoveId) -> Option<Vec<(Reference, TableName, Vec<String>)>> {
        *self.undecided.get_mut(&lane)? = true;
        for known in &mut self.referred {
            known.touched.insert(lane, Keys::default());
        }
        let all = self.referred.iter().enumerate();
        Some(all.map(|(place, known)| (Reference(place), known.table.clone(), known.columns.clone())).collect())
    }

    /// Takes a key that the lane's target has; false when the lane's keys are not being read any more.
    pub fn add(&mut self, lane: MoveId, reference: Reference, key: &[u8]) -> bool {
        let reading = self.undecided.get(&lane) == Some(&true);
        if let Some(known) = self.referred.get_mut(reference.0).filter(|_| reading)
            && known.touched.get(&lane).is_none_or(|touched| touched.get(key).is_none())
        {
            known.owners.insert(key, pack(lane));
        }
        reading
    }

    /// Every key of the lane's target was added: the lane is decided from here on. Or not every key could be, and
    /// those that were are forgotten. Returns whether the lane is decided.
    pub fn end_reading(&mut self, lane: MoveId, complete: bool) -> bool {
        if self.undecided.get(&lane) != Some(&true) {
            return self.decided.contains(&lane);
        }
        if !complete {
            self.open(lane);
            return false;
        }
        self.undecided.remove(&lane);
        self.decided.insert(lane);
        let name = pack(lane);
        // From the top down: what is above says whose the rows below are.
        let mut order: Vec<usize> = (0..self.referred.len()).collect();
        order.sort_by_key(|place| self.depth(Reference(*place)));
        for place in order {
            let Some(touched) = self.referred[place].touched.remove(&lane) else { continue };
            let Some(parent) = self.referred[place].parent else { continue };
            let above = &self.referred[parent.0].owners;
            let is_ours = |foreign_key: &[u8]| above.get(foreign_key) == Some(&name);
            let ours = touched.iter().filter(|(_, foreign_key)| foreign_key.as_deref().is_some_and(is_ours));
            let ours: Vec<Box<[u8]>> = ours.map(|(key, _)| key.into()).collect();
            for key in ours {
                self.referred[place].owners.insert(&key, name);
            }
        }
        true
    }

    /// How many foreign keys lead from the table to one that names its tenants.
    pub fn depth(&self, reference: Reference) -> usize {
        self.referred[reference.0].parent.map_or(0, |parent| 1 + self.depth(parent))
    }

    /// Keys in the index.
    pub fn count(&self) -> usize {
        self.referred.iter().map(|known| known.owners.count()).sum()
    }

    /// Memory that the index takes.
    pub fn bytes(&self) -> u64 {
        let touched = |known: &Referred| known.touched.values().map(Keys::bytes).sum::<u64>();
        self.referred.iter().map(|known| known.owners.bytes() + touched(known)).sum()
    }
}

fn pack(lane: MoveId) -> Lane {
    // Moves are numbered one by one: there are never four billion.
    u32::try_from(lane.0).unwrap_or(u32::MAX).to_be_bytes()
}

fn unpack(lane: Lane) -> MoveId {
    MoveId(u32::from_be_bytes(lane).into())
}

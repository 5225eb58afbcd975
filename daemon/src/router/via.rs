//! Rows whose tenant is found through the row that they refer to. They are kept until their transaction ends:
//! a deferred constraint lets a row come before the one that it refers to, a cascade takes that one away first.
//! Then they are routed from the top down, by what the transaction did to the rows that they refer to.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use connectors::postgres::apply::{key_bytes, key_value};
use connectors::postgres::pgoutput::{self, Message, Old, Tuple, Value};
use connectors::postgres::{Error, Result};
use schemas::{MoveId, TableName};

use super::queue::Queue;
use super::relation::{Places, Routed};
use super::row::tuple_of;
use super::stops::changed_hands;
use super::{NoTenant, Router};
use crate::ownership::{Keys, Owner, Reference};
use crate::spool;

/// What waits for the end of the transaction.
pub(super) struct Settling {
    scratch: PathBuf,
    /// By depth and relation: the changes, under each description that the relation had in the transaction.
    kept: BTreeMap<(usize, u32), Vec<Part>>,
    /// What the transaction did to rows that others refer to.
    events: BTreeMap<Reference, Keys<Event>>,
    /// Rows that came in this transaction and refer to one that had several tenants in it, by relation and key
    /// (all of the row where it has none): whose they are, in the order in which they came.
    created: HashMap<(u32, Vec<u8>), VecDeque<Owner>>,
    /// The change that is being routed, counted from the transaction's beginning.
    place: u64,
}

/// Changes of a relation under one description.
type Part = (Arc<Routed>, Queue);

/// What a transaction did to a row that others refer to.
struct Event {
    /// Whose it was one after the other, from its first tenant on.
    first: Life,
    later: Vec<Life>,
    /// Its own foreign key, while nothing else says whose it is.
    foreign_key: Option<Box<[u8]>>,
}

/// A row from its coming to its end.
struct Life {
    owner: Owner,
    /// The change that took it away.
    end: Option<u64>,
}

impl Event {
    fn lives(&self) -> impl Iterator<Item = &Life> {
        std::iter::once(&self.first).chain(&self.later)
    }

    fn last(&mut self) -> &mut Life {
        self.later.last_mut().unwrap_or(&mut self.first)
    }

    /// Whose it is when the transaction ends.
    fn now(&self) -> Option<Owner> {
        let last = self.later.last().unwrap_or(&self.first);
        last.end.is_none().then(|| last.owner.clone())
    }

    /// Whose a row is that comes in the change at `place` and refers to this one: what refers to it goes with it,
    /// and what comes before it waits for it.
    fn at(&self, place: u64) -> Owner {
        let lasting = self.lives().find(|life| life.end.is_none_or(|end| end > place));
        lasting.or(self.later.last()).unwrap_or(&self.first).owner.clone()
    }
}

/// The columns of a key in a row.
#[derive(PartialEq, Eq)]
enum Key {
    Bytes(Vec<u8>),
    Null,
    /// A column is stored out of line and was not sent; or its type is no key's any more.
    Unsent,
}

impl Settling {
    pub fn new(scratch: PathBuf) -> Self {
        let (kept, events, created) = (BTreeMap::new(), BTreeMap::new(), HashMap::new());
        Settling { scratch, kept, events, created, place: 0 }
    }

    pub fn clear(&mut self) {
        self.kept.clear();
        self.events.clear();
        self.created.clear();
        self.place = 0;
    }

    /// The next change comes.
    pub fn step(&mut self) {
        self.place += 1;
    }

    fn removed(&mut self, reference: Reference, key: &[u8], owner: Owner) {
        let end = Some(self.place);
        let events = self.events.entry(reference).or_default();
        match events.get_mut(key) {
            Some(event) => (event.last().end, event.foreign_key) = (end, None),
            None => {
                let first = Life { owner, end };
                events.insert(key, Event { first, later: Vec::new(), foreign_key: None });
            }
        }
    }

    fn added(&mut self, reference: Reference, key: &[u8], owner: Owner, foreign_key: Option<Box<[u8]>>) {
        let (nobody, life) = (owner == Owner::Nobody, Life { owner, end: None });
        let events = self.events.entry(reference).or_default();
        match events.get_mut(key) {
            Some(event) => {
                event.later.push(life);
                event.foreign_key = foreign_key;
            }
            // The index does not hold it, and nothing else has to know.
            None if nobody => {}
            None => events.insert(key, Event { first: life, later: Vec::new(), foreign_key }),
        }
    }
}

impl Router {
    /// Keeps a change until its transaction ends.
    pub(super) fn keep_for_commit(&mut self, routed: &Arc<Routed>, raw: &[u8]) -> Result<()> {
        let Places::Via { parent, .. } = &routed.path else { return Ok(()) };
        // What was routed before is in the spools, or in the copies of lanes that opened later.
        if self.transaction.is_none_or(|transaction| transaction.again) || self.full {
            return Ok(());
        }
        let depth = self.ownership.depth(*parent);
        let parts = self.settling.kept.entry((depth, routed.relation.id)).or_default();
        if parts.last().is_none_or(|(known, _)| !Arc::ptr_eq(known, routed)) {
            parts.push((Arc::clone(routed), Queue::default()));
        }
        let Some((_, queue)) = parts.last_mut() else { return Ok(()) };
        let kept = queue.push(self.settling.place, raw, &self.settling.scratch);
        self.scratch_written(kept)
    }

    fn scratch_written(&mut self, result: io::Result<()>) -> Result<()> {
        match result {
            Err(error) if spool::is_full(&error) => self.full = true,
            result => result.map_err(|error| Error::connection("keep a transaction in state_dir", error))?,
        }
        Ok(())
    }

    /// The transaction is complete: routes what was kept, from the top down, and advances the index.
    pub(super) fn settle(&mut self) -> Result<()> {
        if self.full {
            self.settling.clear();
            return Ok(());
        }
        // What is routed here may be referred to by what follows.
        for parts in std::mem::take(&mut self.settling.kept).into_values() {
            for (routed, queue) in parts {
                let mut queue = queue.read();
                loop {
                    match queue.next() {
                        Ok(Some((place, raw))) => {
                            self.settling.place = place;
                            self.via(&routed, &raw)?;
                        }
                        Ok(None) => break,
                        Err(error) => return Err(Error::connection("read a transaction from state_dir", error)),
                    }
                }
            }
        }
        let events = std::mem::take(&mut self.settling.events);
        for (reference, events) in &events {
            for (key, event) in events.iter() {
                if event.later.iter().any(|life| life.owner != event.first.owner) {
                    self.outlived(*reference, event);
                }
                self.ownership.settle(*reference, key, event.now().as_ref(), event.foreign_key.as_deref());
            }
        }
        self.settling.clear();
        Ok(())
    }

    /// A row was deleted and made again for another tenant: rows that may have stayed meanwhile changed hands
    /// without a word. Where only its target could tell a lane whether it is concerned, it is.
    fn outlived(&mut self, reference: Reference, event: &Event) {
        let below: Vec<TableName> = self.outliving(reference);
        let mut lanes: Vec<MoveId> = event.lives().filter_map(|life| life.owner.lane()).collect();
        if event.lives().any(|life| life.owner.is_open()) {
            lanes.extend(self.lanes.keys().filter(|id| self.ownership.is_undecided(**id)));
        }
        for table in below {
            for id in &lanes {
                self.stop(*id, Some(&table), changed_hands(&table));
            }
        }
    }

    /// The tables whose rows may stay while the row that they refer to is deleted and made again.
    fn outliving(&mut self, reference: Reference) -> Vec<TableName> {
        let tables = self.tables.iter().filter(|(_, route)| route.may_outlive);
        let names: Vec<TableName> = tables.map(|(name, _)| name.clone()).collect();
        names.into_iter().filter(|name| self.parent(name) == Some(reference)).collect()
    }

    /// Routes a kept change.
    fn via(&mut self, routed: &Routed, raw: &[u8]) -> Result<()> {
        let (old, new) = match pgoutput::decode(raw)? {
            Message::Insert { new, .. } => (None, Some(new)),
            Message::Delete { old, .. } => (Some(old), None),
            Message::Update { old, new, .. } => (old, Some(new)),
            other => return Err(Error::protocol("route a change", format!("unexpected {other:?}"))),
        };
        let before = old.map(tuple_of);
        let is_update = raw.first() == Some(&b'U');
        // Without an old image the foreign key and the row's key are the same.
        let was = before.or(new.filter(|_| is_update));
        let from = was.map(|row| self.whose(routed, row, None, false)).transpose();
        let to = new.map(|row| self.whose(routed, row, before, true)).transpose();
        let noted = match (from, to) {
            (Ok(from), Ok(to)) => {
                self.deliver(routed, raw, (from.as_ref(), old), (to.as_ref(), new));
                self.note_referred(routed, (from, old), (to, new))
            }
            _ => Err(NoTenant),
        };
        if noted.is_err() {
            self.stop_untold(routed);
        }
        Ok(())
    }

    /// Whose a row is that refers to another; `new`: as the transaction leaves it, otherwise as it found it.
    fn whose(
        &mut self,
        routed: &Routed,
        row: Tuple<'_>,
        other: Option<Tuple<'_>>,
        new: bool,
    ) -> std::result::Result<Owner, NoTenant> {
        let Places::Via { columns, parent } = &routed.path else { return Ok(Owner::Nobody) };
        let key = match key(routed, row, other, columns) {
            Key::Bytes(key) => key,
            Key::Null => return Ok(routed.without_tenant()),
            Key::Unsent => return Err(NoTenant),
        };
        let Some(event) = self.settling.events.get(parent).and_then(|events| events.get(&key)) else {
            return Ok(self.ownership.owner(*parent, &key));
        };
        let (first, at) = (event.first.owner.clone(), event.at(self.settling.place));
        if event.later.iter().all(|life| life.owner == first) {
            return Ok(first);
        }
        // The row that it refers to was deleted and made again for another tenant. What was there before went with
        // it; what came in this transaction was told whose it is.
        let created = self.settling.created.entry((routed.relation.id, name_of(routed, row, other))).or_default();
        if new {
            created.push_back(at.clone());
            return Ok(at);
        }
        Ok(created.pop_front().unwrap_or(first))
    }

    /// Notes what a change does to a row that others refer to.
    pub(super) fn note_referred(
        &mut self,
        routed: &Routed,
        (from, old): (Option<Owner>, Option<Old<'_>>),
        (to, new): (Option<Owner>, Option<Tuple<'_>>),
    ) -> std::result::Result<(), NoTenant> {
        if self.transaction.is_none_or(|transaction| transaction.again) {
            return Ok(());
        }
        let before = old.map(tuple_of);
        let refers = |row: Tuple<'_>, other| match &routed.path {
            Places::Via { columns, .. } => key(routed, row, other, columns),
            _ => Key::Null,
        };
        // The index may know the row by its foreign key alone.
        let stays = from == to && before.map(|row| refers(row, None)) == new.map(|row| refers(row, before));
        for (reference, places) in &routed.referred {
            let was = before.map(|row| key(routed, row, None, places));
            let is = new.map(|row| key(routed, row, before, places));
            let same = match (&was, &is) {
                (Some(was), Some(is)) => was == is && stays,
                // An UPDATE without an old image changed neither the key nor the tenant.
                (None, Some(_)) => from.is_some(),
                _ => false,
            };
            if same {
                continue;
            }
            if let (Some(Key::Bytes(key)), Some(owner)) = (&was, &from) {
                self.settling.removed(*reference, key, plain(owner));
            }
            match (is, &to) {
                (Some(Key::Bytes(key)), Some(owner)) => {
                    let foreign_key = foreign_key(routed, owner, new, before);
                    self.settling.added(*reference, &key, plain(owner), foreign_key);
                }
                (Some(Key::Unsent), _) => return Err(NoTenant),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The foreign key of a row whose owner only that can tell later.
fn foreign_key(routed: &Routed, owner: &Owner, new: Option<Tuple<'_>>, old: Option<Tuple<'_>>) -> Option<Box<[u8]>> {
    let (Places::Via { columns, .. }, Owner::If(..)) = (&routed.path, owner) else { return None };
    match key(routed, new?, old, columns) {
        Key::Bytes(bytes) => Some(bytes.into()),
        _ => None,
    }
}

/// A row without a tenant is nobody's to those that refer to it.
fn plain(owner: &Owner) -> Owner {
    match owner {
        Owner::Null | Owner::Unchanged => Owner::Nobody,
        owner => owner.clone(),
    }
}

/// A column; what is stored out of line and did not change is taken from the other image.
fn value<'a>(row: Tuple<'a>, other: Option<Tuple<'a>>, place: usize) -> Option<Value<'a>> {
    match row.get(place) {
        Some(Value::Unchanged) => other.and_then(|row| row.get(place)),
        value => value,
    }
}

/// The key that `places` form: the bytes of one column, or of several with their lengths.
fn key(routed: &Routed, row: Tuple<'_>, other: Option<Tuple<'_>>, places: &[usize]) -> Key {
    let mut values = Vec::with_capacity(places.len());
    for place in places {
        let value = match value(row, other, *place) {
            Some(Value::Null) => return Key::Null,
            Some(value) => key_value(routed.relation.columns[*place].type_oid, value),
            None => None,
        };
        let Some(value) = value else { return Key::Unsent };
        values.push(value);
    }
    Key::Bytes(key_bytes(values.iter().map(AsRef::as_ref)))
}

/// What names a row: its key, or without one all that is in it.
fn name_of(routed: &Routed, row: Tuple<'_>, other: Option<Tuple<'_>>) -> Vec<u8> {
    let all: Vec<usize> = (0..routed.relation.columns.len()).collect();
    let places = if routed.row_key.is_empty() { &all } else { &routed.row_key };
    let mut name = Vec::new();
    for place in places {
        let bytes = match value(row, other, *place) {
            Some(Value::Binary(bytes) | Value::Text(bytes)) => Some(bytes),
            Some(Value::Null | Value::Unchanged) | None => None,
        };
        name.extend_from_slice(&bytes.map_or(u32::MAX, |bytes| bytes.len() as u32).to_be_bytes());
        name.extend_from_slice(bytes.unwrap_or_default());
    }
    name
}

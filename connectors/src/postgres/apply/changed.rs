//! Which rows a lane has changed since a moment, by their keys: what is compared once more before the writes move.
//!
//! A key too many does no harm, one too few would. So they are noted before the group is committed and before it is
//! decided whose the rows are; and where a row has no key, or too many have changed, the whole table counts as changed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use schemas::TableName;
use schemas::record::ChangedKeys;
use tokio_postgres::types::BorrowToSql;

use super::super::catalog::{Column, Table};
use super::super::pgoutput::Value;
use super::super::quote::{ident, table as qualified};
use super::super::{Error, Result};
use super::hands::{Name, after_name, before_name, read, written};
use super::sets::{array, arrays};
use super::target::{Form, Mapped, Op, Raw, bytes_of};

/// Keys of all tables of a lane that are remembered, and what they take: of what comes beyond, only the table is.
const MOST_KEYS: usize = 100_000;
const MOST_BYTES: usize = 16 << 20;
/// What a value takes beside its bytes.
const BESIDE: usize = 128;

/// Which rows of a table.
#[derive(Clone)]
pub enum Rows {
    /// Those with these keys.
    Keys(Keys),
    /// Any: they have no key, or too many have changed.
    All,
}

/// Keys of one table.
#[derive(Clone)]
pub struct Keys {
    columns: Vec<String>,
    names: HashSet<Name>,
}

/// What a lane notes. It stops when nobody has this any more.
#[derive(Default)]
pub struct Changed(Mutex<Noted>);

#[derive(Default)]
struct Noted {
    tables: HashMap<TableName, Rows>,
    keys: usize,
    bytes: usize,
    closed: bool,
}

impl Changed {
    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on, and nothing from before.
    pub fn begin(&self) {
        *self.noted() = Noted::default();
    }

    /// The lane has noted everything up to here, and notes the rest elsewhere.
    pub fn close(&self) {
        self.noted().closed = true;
    }

    /// Whether it did; otherwise another lane may have gone on without noting.
    pub fn is_closed(&self) -> bool {
        self.noted().closed
    }

    /// What has changed, by the lane's names of the tables.
    pub fn tables(&self) -> Vec<(TableName, Rows)> {
        self.noted().tables.iter().map(|(table, rows)| (table.clone(), rows.clone())).collect()
    }

    /// Everything, to be written down, of tables with more keys than `most` only that; `None` where some is noted elsewhere.
    pub fn kept(&self, most: usize) -> Option<Vec<(TableName, Option<ChangedKeys>)>> {
        let noted = self.noted();
        let keys = |rows: &Rows| match rows {
            Rows::Keys(keys) if keys.len() > most => None,
            Rows::Keys(Keys { columns, names }) => {
                Some(ChangedKeys { columns: columns.clone(), names: names.iter().map(written).collect() })
            }
            Rows::All => None,
        };
        (!noted.closed).then(|| noted.tables.iter().map(|(table, rows)| (table.clone(), keys(rows))).collect())
    }

    /// The same read back, for a lane that goes on noting.
    pub fn of(kept: Vec<(TableName, Option<ChangedKeys>)>) -> Changed {
        let mut noted = Noted::default();
        for (table, keys) in kept {
            let Some(ChangedKeys { columns, names }) = keys else {
                noted.all(&table);
                continue;
            };
            let names: HashSet<Name> = names.into_iter().map(read).collect();
            noted.keys += names.len();
            noted.bytes += names.iter().map(weight).sum::<usize>();
            noted.tables.insert(table, Rows::Keys(Keys { columns, names }));
        }
        Changed(Mutex::new(noted))
    }

    /// How many keys of each table, with `None` where all rows count.
    pub fn sizes(&self) -> Vec<(TableName, Option<usize>)> {
        let size = |rows: &Rows| match rows {
            Rows::Keys(keys) => Some(keys.len()),
            Rows::All => None,
        };
        self.noted().tables.iter().map(|(table, rows)| (table.clone(), size(rows))).collect()
    }

    /// What the keys take.
    pub fn bytes(&self) -> usize {
        self.noted().bytes
    }

    /// The rows of these changes, before and after each.
    pub(super) fn note<'c, 'a: 'c>(&self, changes: impl Iterator<Item = (&'c Mapped, &'c Op<'a>)>) {
        let mut noted = self.noted();
        for (table, op) in changes {
            noted.note(table, op);
        }
    }

    /// Every row of these tables.
    pub(super) fn note_all(&self, tables: impl Iterator<Item = TableName>) {
        let mut noted = self.noted();
        tables.for_each(|table| noted.all(&table));
    }
}

impl Noted {
    fn all(&mut self, table: &TableName) {
        if let Some(Rows::Keys(keys)) = self.tables.insert(table.clone(), Rows::All) {
            self.keys -= keys.len();
            self.bytes -= keys.names.iter().map(weight).sum::<usize>();
        }
    }

    fn note(&mut self, table: &Mapped, op: &Op<'_>) {
        if matches!(self.tables.get(&table.source), Some(Rows::All)) {
            return;
        }
        if !is_named(table, op) {
            return self.all(&table.source);
        }
        self.push(table, before_name(table, op));
        if let Op::Update { new, .. } = op {
            self.push(table, after_name(table, new));
        }
    }

    fn push(&mut self, table: &Mapped, name: Name) {
        let columns = || table.name.iter().map(|place| table.columns[*place].name.clone());
        let none = || Rows::Keys(Keys { columns: columns().collect(), names: HashSet::new() });
        let Rows::Keys(keys) = self.tables.entry(table.source.clone()).or_insert_with(none) else { return };
        // The key is another now: what was noted does not say which rows are meant.
        if !keys.columns.iter().cloned().eq(columns()) {
            return self.all(&table.source);
        }
        let bytes = weight(&name);
        if keys.names.insert(name) {
            self.keys += 1;
            self.bytes += bytes;
        }
        if self.keys > MOST_KEYS || self.bytes > MOST_BYTES {
            self.all(&table.source);
        }
    }
}

fn weight(name: &Name) -> usize {
    name.iter().map(|(_, value)| BESIDE + value.len()).sum()
}

/// Whether the rows of the change have names of which a set can be made: `unnest` takes arrays and composites apart.
fn is_named(table: &Mapped, op: &Op<'_>) -> bool {
    let plain = |place: &usize| !matches!(table.columns[*place].category.as_str(), "A" | "C");
    let full = |row: Vec<Value<'_>>| row.iter().all(|value| bytes_of(value).is_some());
    let has_values = match op {
        Op::Insert(new) => full(table.name_of(new)),
        Op::Update { key, new, .. } => full(table.name_in(key)) && full(table.name_of(new)),
        Op::Delete { key, .. } => full(table.name_in(key)),
    };
    !table.name.is_empty() && table.name.iter().all(plain) && has_values
}

impl Keys {
    /// No key of these columns.
    pub fn none(columns: Vec<String>) -> Keys {
        Keys { columns, names: HashSet::new() }
    }

    /// What they are keys of.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The keys, those of one form together: an array has one form.
    pub(in super::super) fn alike(&self) -> Vec<Alike<'_>> {
        let mut forms: BTreeMap<Vec<bool>, Vec<&Name>> = BTreeMap::new();
        for name in &self.names {
            forms.entry(name.iter().map(|(form, _)| *form == Form::Text).collect()).or_default().push(name);
        }
        if forms.is_empty() {
            forms.insert(vec![false; self.columns.len()], Vec::new());
        }
        forms.into_iter().map(|(text, names)| Alike { columns: &self.columns, text, names }).collect()
    }
}

/// Keys whose values came in the same forms.
pub(in super::super) struct Alike<'k> {
    columns: &'k [String],
    text: Vec<bool>,
    names: Vec<&'k Name>,
}

/// Rows by their keys, for FROM, with what it takes.
pub(in super::super) struct Picked {
    pub from: String,
    params: Vec<(Bytes, Form)>,
}

impl Picked {
    pub fn params(&self) -> impl ExactSizeIterator<Item = impl BorrowToSql> {
        self.params.iter().map(|(array, form)| Raw(Some(array), *form))
    }
}

impl Alike<'_> {
    /// The rows of `table` that have one of the keys. Types that people made have other numbers, and may have other names, on
    /// the other side: they are the table's own. OFFSET 0 has each key looked up by itself: by statistics that are a little
    /// old the planner may otherwise hold every row of the tenant against every key.
    pub fn pick(&self, table: &Table) -> Result<Picked> {
        let own = |name: &String| {
            let lost = || Error::state(format!("compare rows of {}", table.name), format!("column \"{name}\" is gone"));
            table.column(name).cloned().ok_or_else(lost)
        };
        let columns: Vec<Column> = self.columns.iter().map(own).collect::<Result<_>>()?;
        let places: Vec<usize> = (0..columns.len()).collect();
        let keys: Vec<String> = places.iter().map(|place| format!("k{place}")).collect();
        let same: Vec<String> =
            self.columns.iter().zip(&keys).map(|(name, key)| format!("t.{} = v.{key}", ident(name))).collect();
        let from = format!(
            "(SELECT t.* FROM (SELECT DISTINCT * FROM unnest({}) v({})) v,
                     LATERAL (SELECT t.* FROM {} t WHERE {} OFFSET 0) t) t",
            arrays(&columns, &places),
            keys.join(", "),
            qualified(&table.name),
            same.join(" AND ")
        );
        let param = |place: usize| {
            let values: Vec<Value<'_>> = self.names.iter().map(|name| Value::Binary(&name[place].1)).collect();
            let form = if self.text[place] { Form::Text } else { Form::Binary };
            (array(form, &columns[place], values.iter()), form)
        };
        Ok(Picked { from, params: places.iter().map(|place| param(*place)).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of two columns, with a key of those at these places.
    fn mapped(key: &[usize]) -> Mapped {
        let column = |name: &str| Column {
            name: name.to_owned(),
            number: 1,
            type_oid: 17,
            typmod: -1,
            array_oid: 1001,
            type_sql: "bytea".to_owned(),
            type_name: "pg_catalog.bytea".to_owned(),
            base_name: "pg_catalog.bytea".to_owned(),
            key: None,
            category: "U".to_owned(),
            built_in: true,
            text_only: false,
            delimiter: b',',
            not_null: true,
            default: None,
            identity: String::new(),
            generated: String::new(),
            collation: None,
            owned_sequence: None,
            sequence_options: None,
        };
        Mapped {
            oid: 1,
            source: TableName::new("public", "things"),
            target: TableName::new("public", "things"),
            columns: vec![column("id"), column("note")],
            key: key.to_vec(),
            name: key.to_vec(),
            indexed: Vec::new(),
            whole_rows: false,
            full: true,
            above: Vec::new(),
            refers: Vec::new(),
            referred: Vec::new(),
        }
    }

    fn row<'a>(id: &'a [u8], note: &'a [u8]) -> Vec<Value<'a>> {
        vec![Value::Binary(id), Value::Binary(note)]
    }

    fn noted(changed: &Changed) -> Vec<Vec<u8>> {
        let [(_, Rows::Keys(keys))] = &changed.tables()[..] else { panic!("not one table's keys") };
        let mut names: Vec<Vec<u8>> = keys.names.iter().map(|name| name[0].1.to_vec()).collect();
        names.sort();
        names
    }

    #[test]
    fn every_change_is_noted_by_its_key_and_a_changed_key_by_both() {
        let (table, changed) = (mapped(&[0]), Changed::default());
        let key = |id| vec![Value::Binary(id)];
        let ops = [
            Op::Insert(row(b"1", b"a")),
            Op::Update { key: key(b"1"), old: None, new: row(b"1", b"b") },
            Op::Update { key: key(b"2"), old: None, new: row(b"3", b"b") },
            Op::Delete { key: key(b"4"), old: None },
        ];
        changed.note(ops.iter().map(|op| (&table, op)));
        assert_eq!(noted(&changed), [b"1", b"2", b"3", b"4"]);
        assert_eq!(changed.sizes()[0].1, Some(4));
        changed.begin();
        assert!(changed.tables().is_empty() && !changed.is_closed());
    }

    #[test]
    fn what_is_kept_is_read_back_and_goes_on() {
        let (table, changed) = (mapped(&[0]), Changed::default());
        let insert = |id| Op::Insert(vec![Value::Binary(id), Value::Null]);
        changed
            .note([(&table, &insert(b"1")), (&table, &Op::Insert(vec![Value::Text(b"2"), Value::Null]))].into_iter());
        let kept = changed.kept(2).unwrap();
        assert!(!format!("{kept:?}").contains("49"), "it shows a key: {kept:?}");
        let again = Changed::of(kept);
        again.note([(&table, &insert(b"1")), (&table, &insert(b"3"))].into_iter());
        assert_eq!(noted(&again), [b"1", b"2", b"3"]);
        let [(_, Rows::Keys(keys))] = &again.tables()[..] else { panic!("not one table's keys") };
        assert_eq!(keys.alike().len(), 2, "a form was lost");
        let sizes = |changed: &Changed| {
            let noted = changed.noted();
            (noted.keys, noted.bytes)
        };
        let (two, three) = (sizes(&changed), sizes(&again));
        assert_eq!((two.0, three.0, two.1 / 2), (2, 3, three.1 / 3));

        again.note([(&mapped(&[]), &insert(b"1"))].into_iter());
        for kept in [again.kept(9), changed.kept(1)] {
            let any = Changed::of(kept.expect("it is open"));
            assert!(matches!(&any.tables()[..], [(_, Rows::All)]), "no key, or too many");
        }
        changed.close();
        assert!(changed.kept(9).is_none(), "noted elsewhere");
    }

    #[test]
    fn a_row_without_a_key_and_one_too_many_make_it_the_whole_table() {
        let keyless = mapped(&[]);
        let changed = Changed::default();
        changed.note([(&keyless, &Op::Insert(row(b"1", b"a")))].into_iter());
        assert_eq!(changed.sizes()[0].1, None);

        let (table, changed) = (mapped(&[0]), Changed::default());
        for n in 0..MOST_KEYS as u32 {
            changed.note([(&table, &Op::Insert(row(&n.to_be_bytes(), b"")))].into_iter());
        }
        assert_eq!(changed.sizes()[0].1, Some(MOST_KEYS));
        // The same once more is not one more.
        changed.note([(&table, &Op::Insert(row(&7u32.to_be_bytes(), b"")))].into_iter());
        assert_eq!(changed.sizes()[0].1, Some(MOST_KEYS));
        changed.note([(&table, &Op::Insert(row(&u32::MAX.to_be_bytes(), b"")))].into_iter());
        assert_eq!(changed.sizes()[0].1, None);
        let (keys, bytes) = {
            let noted = changed.noted();
            (noted.keys, noted.bytes)
        };
        assert_eq!((keys, bytes), (0, 0));
        let large = vec![0; MOST_BYTES];
        changed.begin();
        changed.note([(&table, &Op::Insert(row(&large, b"")))].into_iter());
        assert_eq!(changed.sizes()[0].1, None);
    }

    #[test]
    fn a_table_whose_key_has_changed_is_compared_whole() {
        let changed = Changed::default();
        changed.note([(&mapped(&[0]), &Op::Insert(row(b"1", b"a")))].into_iter());
        changed.note([(&mapped(&[1]), &Op::Insert(row(b"1", b"a")))].into_iter());
        assert_eq!(changed.sizes()[0].1, None);
    }
}

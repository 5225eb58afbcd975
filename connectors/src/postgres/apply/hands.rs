//! Rows that change hands. An UPDATE that gives a row to another tenant says nothing of what hangs on it, and may
//! leave out large values. The lane that loses it deletes the row and all below it. For the lane that gets it the row
//! *arrives*: it is written down, is not in the target yet, and what happens to it and below it is passed over, until
//! the lane stands exactly where a snapshot of the source shows it. Then row and subtree are read under that snapshot.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, pin_mut};
use schemas::url::PgUrl;
use schemas::{TableName, TenantId};
use tokio_postgres::types::{FromSql, Type};

use super::super::catalog::Table;
use super::super::pgoutput::{Column, Relation, Value};
use super::super::policy::Owned;
use super::super::quote::{ident, idents, table as qualified};
use super::super::snapshot::HeldSnapshot;
use super::super::tree::{self, Top};
use super::super::{Doing, Error, Result};
use super::claim::key_value;
use super::sets::{self, array, arrays};
use super::target::{Change, Form, Mapped, Op, Raw, Row, Targets, bytes_of};
use super::{Session, whole};

/// Rows of the source that are applied at a time.
const AT_A_TIME: usize = 1000;

/// What rows that arrived are read from.
pub struct Origin {
    /// The source.
    pub url: PgUrl,
    /// The target holds exactly what it shows.
    pub held: HeldSnapshot,
    /// The tables of the move.
    pub tables: Vec<Owned>,
    /// The tenant.
    pub tenant: TenantId,
}

/// The values that name a row, each in the form in which it came; those that can be keys in binary.
pub(super) type Name = Vec<(Form, Bytes)>;

/// Rows that arrived and are not in the target yet, by table.
pub(super) type Arriving = HashMap<TableName, HashSet<Name>>;

/// Values of a row, by place.
type Known = HashMap<usize, (Form, Bytes)>;

/// Rows of the group in hand that leave the tenant or arrive, with what hangs on them.
#[derive(Default)]
pub(super) struct Hands {
    pub leaving: Vec<(Arc<Mapped>, Known)>,
    /// What those are called: they are in the target until the group ends.
    pub left: HashSet<(TableName, Name)>,
    pub arriving: Arriving,
    /// What others refer to and the transaction in hand has touched: whether it was in the target when that began.
    pub began: HashMap<(TableName, Vec<String>, Bytes), bool>,
    /// Rows as the transaction in hand has made them, and how many are alike: several where a table has no key.
    pub made: HashMap<(TableName, Name), usize>,
    /// Rows leave, or arrive, or have arrived: what hangs on those that did is not in the target either, whosever it
    /// is by the stream.
    pub careful: bool,
}

/// A name as it is written down: each value behind a letter for its form.
pub(super) fn written(name: &Name) -> Vec<Vec<u8>> {
    let letter = |form| if form == Form::Text { b't' } else { b'b' };
    name.iter().map(|(form, value)| [&[letter(*form)], value.as_ref()].concat()).collect()
}

/// The same read back.
pub(super) fn read(written: Vec<Vec<u8>>) -> Name {
    let form = |letter: &u8| if *letter == b't' { Form::Text } else { Form::Binary };
    let value = |value: Vec<u8>| (value.first().map_or(Form::Binary, form), Bytes::from(value).slice(1..));
    written.into_iter().filter(|value| !value.is_empty()).map(value).collect()
}

fn named<'a>(table: &Mapped, places: impl Iterator<Item = usize>, row: &Row<'a>) -> Name {
    let value = |(place, value): (usize, &Value<'a>)| match key_value(table.columns[place].key, *value) {
        Some(key) => (Form::Binary, Bytes::copy_from_slice(&key)),
        None => (form_of(value), Bytes::copy_from_slice(bytes_of(value).unwrap_or_default())),
    };
    places.zip(row).map(value).collect()
}

fn form_of(value: &Value<'_>) -> Form {
    if matches!(value, Value::Text(_)) { Form::Text } else { Form::Binary }
}

/// What the row is called before the change, or by it where it is new; where it has no name, all of it.
pub(super) fn before_name(table: &Mapped, op: &Op<'_>) -> Name {
    match op {
        Op::Insert(new) => after_name(table, new),
        Op::Delete { old: Some(old), .. } | Op::Update { old: Some(old), .. } if table.name.is_empty() => {
            named(table, 0.., old)
        }
        Op::Delete { key, .. } | Op::Update { key, .. } => {
            named(table, table.name.iter().copied(), &table.name_in(key))
        }
    }
}

/// What the row is called as it is.
pub(super) fn after_name(table: &Mapped, row: &Row<'_>) -> Name {
    match table.name.is_empty() {
        true => named(table, 0.., row),
        false => named(table, table.name.iter().copied(), &table.name_of(row)),
    }
}

impl Hands {
    /// The row leaves; `old` is all of it where the identity is FULL.
    pub fn leave(&mut self, table: &Arc<Mapped>, key: &Row<'_>, old: Option<&Row<'_>>) {
        self.left.insert((table.source.clone(), named(table, table.name.iter().copied(), &table.name_in(key))));
        let from_key = table.key.iter().copied().zip(key);
        let from_old = old.into_iter().flatten().enumerate();
        let values = from_old
            .chain(from_key)
            .filter_map(|(place, value)| Some((place, (form_of(value), Bytes::copy_from_slice(bytes_of(value)?)))));
        let values = values.collect();
        self.leaving.push((Arc::clone(table), values));
    }

    /// The row arrives. What the transaction itself put below it goes: it comes with the rest.
    pub fn arrive(&mut self, table: &Arc<Mapped>, new: &Row<'_>) -> Result<()> {
        self.leave(table, &table.key_of(new)?, Some(new));
        self.arriving.entry(table.source.clone()).or_default().insert(after_name(table, new));
        Ok(())
    }

    /// Whether a row of that name left in this group: another one of the name cannot come yet, with what hangs on it.
    pub fn has_left(&self, table: &Mapped, new: &Row<'_>) -> bool {
        !self.left.is_empty() && self.left.contains(&(table.source.clone(), after_name(table, new)))
    }

    /// A transaction begins.
    pub fn begin(&mut self) {
        self.began.clear();
        self.made.clear();
    }

    /// Whether the change is one of a row that has arrived, and will be read as it is then.
    fn awaits(&self, before: &Arriving, table: &Mapped, op: &Op<'_>) -> bool {
        if table.name.is_empty() || (before.is_empty() && self.arriving.is_empty()) {
            return false;
        }
        let name = before_name(table, op);
        let has = |all: &Arriving| all.get(&table.source).is_some_and(|names| names.contains(&name));
        has(before) || has(&self.arriving)
    }

    /// The same; where the row gets another name, that one is awaited too.
    pub fn passes_over(&mut self, before: &Arriving, table: &Arc<Mapped>, op: &Op<'_>) -> Result<bool> {
        let passes = self.awaits(before, table, op);
        if let Op::Update { key, new, .. } = op
            && passes
            && table.name_in(key) != table.name_in(&table.key_of(new)?)
        {
            self.arrive(table, new)?;
        }
        Ok(passes)
    }

    /// Deletes what left with all below it. Returns how many rows.
    pub async fn delete(&mut self, session: &mut Session<'_>, targets: &Targets) -> Result<u64> {
        let mut deleted = 0;
        for (table, values) in std::mem::take(&mut self.leaving) {
            // From below upwards: what is above says what is below.
            for below in targets.tree(&table.source).iter().rev() {
                let named = |table: &TableName| qualified(targets.target(table).unwrap_or(table));
                let leaving = Leaving { table: &table, params: RefCell::default() };
                let condition = tree::below(targets.paths(), &named, below, &table.source, &leaving);
                let Some(condition) = condition else { continue };
                let target = targets.target(below)?;
                let sql = format!("DELETE FROM {} WHERE {condition}", qualified(target));
                let statement = session.statements.get(session.client, sql, target).await?;
                let params = leaving.params.into_inner();
                let null = (Form::Text, None);
                let value = |place| values.get(place).map_or(null, |(form, value)| (*form, Some(value.as_ref())));
                let params = params.iter().map(value).map(|(form, value)| Raw(value, form));
                let doing = || format!("delete from {target} what went to another tenant");
                deleted += session.client.execute_raw(&statement, params).await.doing(doing())?;
            }
        }
        Ok(deleted)
    }
}

/// Reads what arrived with all below it. Returns how many rows.
pub(super) async fn fetch(
    session: &mut Session<'_>,
    targets: &Targets,
    arriving: &Arriving,
    from: &Origin,
) -> Result<u64> {
    let mut fetched = 0;
    // From the top down: what arrived below a row that arrived comes with it, and once more by itself.
    let mut order: Vec<_> = arriving.iter().collect();
    order.sort_by_cached_key(|(table, _)| (tree::depth(targets.paths(), table), (*table).clone()));
    for (source, names) in order {
        if whole::awaited(arriving, source) {
            // With types that have changed on the source the bytes would mean something else.
            targets.map(&described(&from.owned(source)?.table))?;
            fetched += whole::fetch(session, source, targets.target(source)?, from).await?;
            continue;
        }
        // An array has one form, and the stream may have changed its own meanwhile.
        let mut forms: HashMap<Vec<Form>, Vec<&Name>> = HashMap::new();
        for name in names {
            forms.entry(name.iter().map(|(form, _)| *form).collect()).or_default().push(name);
        }
        for (forms, names) in forms {
            fetched += from.fetch(session, (targets, arriving), source, &forms, &names).await?;
        }
    }
    Ok(fetched)
}

/// A row that leaves. It need not be in the target: it may have come and gone in the same transaction.
struct Leaving<'a> {
    table: &'a Mapped,
    /// The places of the values that the statement takes.
    params: RefCell<Vec<usize>>,
}

impl Leaving<'_> {
    fn param(&self, place: usize) -> String {
        let mut params = self.params.borrow_mut();
        params.push(place);
        format!("${}::{}", params.len(), self.table.columns[place].type_name)
    }
}

impl Top for Leaving<'_> {
    fn rows(&self) -> String {
        let name = |place: &usize| format!("{} = {}", ident(&self.table.columns[*place].name), self.param(*place));
        self.table.name.iter().map(name).collect::<Vec<_>>().join(" AND ")
    }

    fn values(&self, referenced: &[String]) -> String {
        let places = self.table.referred.iter().find(|(columns, _)| columns == referenced).map(|(_, places)| places);
        let values: Vec<String> = places.into_iter().flatten().map(|place| self.param(*place)).collect();
        format!("(({}))", values.join(", "))
    }
}

/// Rows that enter, on the source.
struct Entering {
    table: String,
    rows: String,
}

impl Top for Entering {
    fn rows(&self) -> String {
        self.rows.clone()
    }

    fn values(&self, referenced: &[String]) -> String {
        let columns = idents(referenced.iter().map(String::as_str));
        format!("(SELECT {columns} FROM {} WHERE {})", self.table, self.rows)
    }
}

impl Origin {
    pub(super) fn owned(&self, table: &TableName) -> Result<&Owned> {
        let found = self.tables.iter().find(|owned| &owned.table.name == table);
        found.ok_or_else(|| Error::state(format!("read rows of {table}"), "the table is not part of this move"))
    }

    /// Reads rows of one table, called by names of these forms, with all below them.
    async fn fetch(
        &self,
        session: &mut Session<'_>,
        (targets, arriving): (&Targets, &Arriving),
        source: &TableName,
        forms: &[Form],
        names: &[&Name],
    ) -> Result<u64> {
        let root = self.owned(source)?;
        let table = Arc::new(targets.map(&described(&root.table))?);
        let columns = idents(table.name.iter().map(|place| table.columns[*place].name.as_str()));
        let named = format!("({columns}) IN (SELECT * FROM unnest({}))", arrays(&table.columns, &table.name));
        let column = |(n, form): (usize, &Form)| {
            let value = |name: &&'_ Name| -> Option<Bytes> { name.get(n).map(|(_, value)| value.clone()) };
            let values: Vec<Bytes> = names.iter().filter_map(value).collect();
            let values: Vec<Value<'_>> = values.iter().map(|value| Value::Binary(value)).collect();
            (array(*form, &table.columns[table.name[n]], values.iter()), *form)
        };
        let params: Vec<(Bytes, Form)> = forms.iter().enumerate().map(column).collect();
        // What is left of it, wherever it hung.
        let sql = format!("DELETE FROM {} WHERE {named}", qualified(&table.target));
        let doing = || format!("make room in {} for rows that arrived", table.target);
        let statement = session.statements.get(session.client, sql, &table.target).await?;
        session.client.execute_raw(&statement, raw(&params)).await.doing(doing())?;
        let rows = format!("{named} AND {}", root.filter(&self.tenant));
        let entering = Entering { table: qualified(source), rows };
        let mut fetched = 0;
        // What is read again as a whole is not what its partitions here say, and may hold rows that are gone.
        for name in targets.tree(source).into_iter().filter(|name| !whole::awaited(arriving, name)) {
            let condition = tree::below(targets.paths(), &qualified, &name, source, &entering);
            let Some(condition) = condition else { continue };
            fetched += self.read(session, targets, (source, self.owned(&name)?), &condition, &params).await?;
        }
        Ok(fetched)
    }

    async fn read(
        &self,
        session: &mut Session<'_>,
        targets: &Targets,
        (root, owned): (&TableName, &Owned),
        condition: &str,
        params: &[(Bytes, Form)],
    ) -> Result<u64> {
        let doing = || format!("read rows of {} that came to the tenant", owned.table.name);
        let mapped = Arc::new(targets.map(&described(&owned.table))?);
        // A row is of one form; as text where a column has no other.
        let text = owned.table.is_text();
        let column = |column: &super::super::catalog::Column| match text {
            true => format!("{}::text", ident(&column.name)),
            false => ident(&column.name),
        };
        let columns: Vec<String> = owned.table.stored().map(column).collect();
        let columns = columns.join(", ");
        let sql = format!("SELECT {columns} FROM {} WHERE {condition}", qualified(&owned.table.name));
        let statement = self.held.client.prepare(&sql).await.doing(doing())?;
        let found = self.held.client.query_raw(&statement, raw(params)).await;
        let found = found.doing(doing())?.chunks(AT_A_TIME);
        pin_mut!(found);
        let mut read = 0;
        while let Some(some) = found.next().await {
            let some = some.into_iter().collect::<std::result::Result<Vec<_>, _>>().doing(doing())?;
            let row = |row: &'_ tokio_postgres::Row| -> Result<Vec<Option<Vec<u8>>>> {
                let value = |place| row.try_get::<_, Option<Undecoded>>(place).map(|value| value.map(|value| value.0));
                (0..row.len()).map(value).collect::<std::result::Result<_, _>>().doing(doing())
            };
            let some = some.iter().map(row).collect::<Result<Vec<_>>>()?;
            let changes: Vec<Change<'_>> = some
                .iter()
                .map(|row| {
                    let value = |value| if text { Value::Text(value) } else { Value::Binary(value) };
                    let row = row.iter().map(|bytes| bytes.as_deref().map_or(Value::Null, value)).collect();
                    Change { table: Arc::clone(&mapped), op: Op::Insert(row), first: false }
                })
                .collect();
            if &owned.table.name == root {
                // Rows that came below it while it was not there.
                let mut hands = Hands::default();
                for change in &changes {
                    if let Op::Insert(row) = &change.op {
                        hands.leave(&mapped, &Vec::new(), Some(row));
                    }
                }
                hands.delete(session, targets).await?;
            }
            sets::apply(session, &changes).await?;
            read += changes.len() as u64;
        }
        Ok(read)
    }
}

fn raw(params: &[(Bytes, Form)]) -> impl ExactSizeIterator<Item = Raw<'_>> {
    params.iter().map(|(array, form)| Raw(Some(array), *form))
}

/// A table as the stream would describe it.
fn described(table: &Table) -> Relation {
    let key = table.row_key();
    let column = |column: &super::super::catalog::Column| Column {
        key: key.is_some_and(|key| key.columns.contains(&column.name)),
        name: column.name.clone(),
        type_oid: column.type_oid,
        typmod: column.typmod,
    };
    Relation {
        id: table.oid,
        schema: table.name.schema.clone(),
        name: table.name.name.clone(),
        identity: table.identity.bytes().next().unwrap_or(b'd'),
        columns: table.stored().map(column).collect(),
    }
}

/// A value in the wire's binary form.
struct Undecoded(Vec<u8>);

impl<'a> FromSql<'a> for Undecoded {
    fn from_sql(_: &Type, raw: &'a [u8]) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Undecoded(raw.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

impl Targets {
    /// The tables of a tree, from the top down.
    pub(super) fn tree(&self, root: &TableName) -> Vec<TableName> {
        let leads = |table: &&TableName| tree::leads(self.paths(), table, root);
        let mut tables: Vec<TableName> = self.paths().keys().filter(leads).cloned().collect();
        tables.sort_by_cached_key(|table| (tree::depth(self.paths(), table), table.clone()));
        tables
    }
}

//! The target's tables as the applier sees them: how a source relation's columns map to target
//! columns, which of them name a row, and the prepared statements.
//!
//! Columns are mapped by name, never by position; a difference in names or types stops the lane.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use schemas::{TableName, TablePath};
use tokio_postgres::types::{Format, IsNull, ToSql, Type};
use tokio_postgres::{Client, Statement};

use super::super::catalog::{self, Column, Table};
use super::super::pgoutput::{Old, Relation, Tuple, Value};
use super::super::provision::objects::type_names;
use super::super::{Doing, Error, Result};
use super::SinkPlan;

/// One column's value in a row; borrowed from the message.
pub(super) type Row<'a> = Vec<Value<'a>>;

/// In which form the values of a row came: all in the same, but for NULL and what was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    Binary,
    Text,
}

impl Form {
    /// `None` where the row has no value.
    pub fn of(row: &Row<'_>) -> Option<Form> {
        row.iter().find_map(|value| match value {
            Value::Binary(_) => Some(Form::Binary),
            Value::Text(_) => Some(Form::Text),
            Value::Null | Value::Unchanged => None,
        })
    }
}

/// A decoded change of a table.
pub(super) struct Change<'a> {
    pub table: Arc<Mapped>,
    pub op: Op<'a>,
    /// The first one of its transaction.
    pub first: bool,
}

/// What happens to a row. Rows have the columns of [`Mapped::columns`].
#[derive(Clone)]
pub(super) enum Op<'a> {
    Insert(Row<'a>),
    /// `old` is the whole old row where the identity is FULL; `key` names the old row.
    Update {
        key: Row<'a>,
        old: Option<Row<'a>>,
        new: Row<'a>,
    },
    /// `old` as above.
    Delete {
        key: Row<'a>,
        old: Option<Row<'a>>,
    },
}

/// A source relation, mapped to its table in the target.
pub(super) struct Mapped {
    /// The same for equal definitions within a session; statements are cached by it.
    pub oid: u32,
    pub source: TableName,
    pub target: TableName,
    /// The source's columns in the order of its tuples, as the target describes them.
    pub columns: Vec<Column>,
    /// Places in `columns` that name a row; empty where the table has no key.
    pub key: Vec<usize>,
    /// The fewest of those that name it at every moment.
    pub name: Vec<usize>,
    /// Places in `columns` that help to find a row that is named by all its values.
    pub indexed: Vec<usize>,
    /// Whether a column cannot be updated by a set: arrays and composites (`unnest` would take them apart) and,
    /// outside the key, GENERATED ALWAYS AS IDENTITY (which UPDATE refuses).
    pub whole_rows: bool,
    /// Whether the identity is FULL.
    pub full: bool,
    /// The rows that a row's tenant is found by: what it refers to, what that one refers to, and so on.
    pub above: Vec<Referred>,
    /// Places of the columns that refer to the first of those.
    pub refers: Vec<usize>,
    /// The columns by which other tables refer to this one, with their places.
    pub referred: Vec<(Vec<String>, Vec<usize>)>,
}

/// A table that others refer to.
pub(super) struct Referred {
    /// The table, on the source and in the target.
    pub table: TableName,
    pub target: TableName,
    /// The columns by which it is referred to, and what they are in the target.
    pub columns: Vec<String>,
    pub types: Vec<Column>,
}

impl Referred {
    /// The table and the columns, as the source names them.
    pub fn name(&self) -> (TableName, Vec<String>) {
        (self.table.clone(), self.columns.clone())
    }
}

/// The tables of a lane.
pub struct Targets {
    tables: HashMap<TableName, (TableName, Table)>,
    paths: HashMap<TableName, TablePath>,
    relations: HashMap<u32, Known>,
    /// What types that people made are called, by number: here, and on the source.
    types: HashMap<u32, String>,
    source_types: Arc<HashMap<u32, String>>,
}

/// A relation as the source described it last. It is mapped when a change needs it: a description
/// that no change uses any more may not fit the target.
struct Known {
    definition: Relation,
    mapped: Option<Arc<Mapped>>,
}

impl Targets {
    /// Reads the target's tables.
    pub async fn load(client: &Client, plan: &SinkPlan) -> Result<Targets> {
        let names: Vec<TableName> = plan.tables.iter().map(|(table, _)| plan.target_name(table)).collect();
        let schemas: Vec<String> = names.iter().map(|name| name.schema.clone()).collect();
        let mut found: HashMap<TableName, Table> =
            catalog::tables_in(client, &schemas).await?.into_iter().map(|table| (table.name.clone(), table)).collect();
        let mut tables = HashMap::new();
        for ((source, _), target) in plan.tables.iter().zip(names) {
            let Some(table) = found.remove(&target) else {
                return Err(Error::state(
                    format!("open the target of {source}"),
                    format!("table {target} does not exist"),
                ));
            };
            tables.insert(source.clone(), (target, table));
        }
        let paths = plan.tables.iter().cloned().collect();
        let types = type_names(client).await?;
        Ok(Targets { tables, paths, relations: HashMap::new(), types, source_types: Arc::clone(&plan.types) })
    }

    /// Takes a Relation message: new, repeated, or changed by DDL on the source.
    pub(super) fn learn(&mut self, relation: Relation) {
        if self.relations.get(&relation.id).is_none_or(|known| known.definition != relation) {
            self.relations.insert(relation.id, Known { definition: relation, mapped: None });
        }
    }

    /// How the tenants of the tables' rows are found.
    pub(super) fn paths(&self) -> &HashMap<TableName, TablePath> {
        &self.paths
    }

    /// What a table of the source is called in the target.
    pub(super) fn target(&self, source: &TableName) -> Result<&TableName> {
        let found = self.tables.get(source).map(|(target, _)| target);
        found.ok_or_else(|| Error::state(format!("find {source} in the target"), "it is not part of this move"))
    }

    /// Maps the source's columns to the target's, by name.
    pub(super) fn map(&self, relation: &Relation) -> Result<Mapped> {
        let source = TableName::new(&relation.schema, &relation.name);
        let doing = || format!("map the columns of {source}");
        let Some((target, table)) = self.tables.get(&source) else {
            return Err(Error::state(doing(), "the table is not part of this move (renamed on the source?)"));
        };
        let mut columns = Vec::with_capacity(relation.columns.len());
        for column in &relation.columns {
            match table.column(&column.name) {
                Some(own) if own.typmod == column.typmod && self.same_type(own.type_oid, column.type_oid) => {
                    columns.push(own.clone())
                }
                Some(_) => {
                    return Err(Error::state(
                        doing(),
                        format!("column \"{}\" has another type in the target", column.name),
                    ));
                }
                None => {
                    return Err(Error::state(
                        doing(),
                        format!("column \"{}\" does not exist in the target", column.name),
                    ));
                }
            }
        }
        if let Some(missing) = table.stored().find(|own| !relation.columns.iter().any(|c| c.name == own.name)) {
            return Err(Error::state(doing(), format!("column \"{}\" is no longer there on the source", missing.name)));
        }
        let key = key_places(table, relation, &source)?;
        let awkward = |(place, column): (usize, &Column)| {
            matches!(column.category.as_str(), "A" | "C") || (column.identity == "a" && !key.contains(&place))
        };
        Ok(Mapped {
            oid: relation.id,
            indexed: indexed_places(table, relation),
            name: table
                .best_key()
                .and_then(|best| places(&source, &columns, &best.columns).ok())
                .filter(|best| best.iter().all(|place| key.contains(place)))
                .unwrap_or_else(|| key.clone()),
            whole_rows: columns.iter().enumerate().any(awkward),
            key,
            full: relation.identity == b'f',
            above: self.above(&source)?,
            refers: match self.paths.get(&source) {
                Some(TablePath::Via { columns: names, .. }) => places(&source, &columns, names)?,
                _ => Vec::new(),
            },
            referred: self.referred(&source, &columns)?,
            target: target.clone(),
            source: source.clone(),
            columns,
        })
    }

    /// Types that people made are the same by name; an unknown one is another.
    fn same_type(&self, own: u32, source: u32) -> bool {
        match (self.types.get(&own), self.source_types.get(&source)) {
            (Some(own), Some(source)) => own == source,
            (None, None) => own == source,
            _ => false,
        }
    }

    /// What the rows of a table refer to, step by step.
    fn above(&self, source: &TableName) -> Result<Vec<Referred>> {
        let mut above = Vec::new();
        let mut from = source;
        while let Some(TablePath::Via { parent, referenced, .. }) = self.paths.get(from) {
            let missing = |what: String| Error::state(format!("map the columns of {source}"), what);
            let Some((target, table)) = self.tables.get(parent) else {
                return Err(missing(format!("table {parent}, which it refers to, is not part of this move")));
            };
            let column = |name: &String| {
                let found = table.column(name).cloned();
                found.ok_or_else(|| missing(format!("column \"{name}\" of {target} is gone")))
            };
            let types = referenced.iter().map(column).collect::<Result<_>>()?;
            above.push(Referred { table: parent.clone(), target: target.clone(), columns: referenced.clone(), types });
            from = parent;
        }
        Ok(above)
    }

    /// How other tables of the move refer to a table.
    fn referred(&self, source: &TableName, columns: &[Column]) -> Result<Vec<(Vec<String>, Vec<usize>)>> {
        let mut lists: Vec<&Vec<String>> = Vec::new();
        for path in self.paths.values() {
            if let TablePath::Via { parent, referenced, .. } = path
                && parent == source
                && !lists.contains(&referenced)
            {
                lists.push(referenced);
            }
        }
        lists.into_iter().map(|names| Ok((names.clone(), places(source, columns, names)?))).collect()
    }

    /// The name of a relation of the stream.
    pub(super) fn described(&self, oid: u32) -> Result<TableName> {
        let known = self.relations.get(&oid).ok_or_else(|| undescribed(oid))?;
        Ok(TableName::new(&known.definition.schema, &known.definition.name))
    }

    fn relation(&mut self, oid: u32) -> Result<Arc<Mapped>> {
        let known = self.relations.get(&oid).ok_or_else(|| undescribed(oid))?;
        if let Some(mapped) = &known.mapped {
            return Ok(Arc::clone(mapped));
        }
        let mapped = Arc::new(self.map(&known.definition)?);
        if let Some(known) = self.relations.get_mut(&oid) {
            known.mapped = Some(Arc::clone(&mapped));
        }
        Ok(mapped)
    }

    pub(super) fn insert<'a>(&mut self, relation: u32, new: Tuple<'a>) -> Result<(Arc<Mapped>, Op<'a>)> {
        let table = self.relation(relation)?;
        let new = table.row(new)?;
        if new.contains(&Value::Unchanged) {
            return Err(Error::protocol(format!("insert into {}", table.target), "the new row is not complete"));
        }
        Ok((table, Op::Insert(new)))
    }

    pub(super) fn update<'a>(
        &mut self,
        relation: u32,
        old: Option<Old<'a>>,
        new: Tuple<'a>,
    ) -> Result<(Arc<Mapped>, Op<'a>)> {
        let table = self.relation(relation)?;
        let mut new = table.row(new)?;
        let (identity, full) = match old {
            None => (None, false),
            Some(Old::Key(old)) => (Some(table.row(old)?), false),
            Some(Old::Full(old)) => (Some(table.row(old)?), true),
        };
        // A column of the key that is stored out of line and did not change is only in the old image.
        for place in &table.key {
            if let (Value::Unchanged, Some(old)) = (new[*place], &identity) {
                new[*place] = old[*place];
            }
        }
        let key = table.key_of(identity.as_ref().unwrap_or(&new))?;
        let old = identity.filter(|_| full);
        Ok((table, Op::Update { key, old, new }))
    }

    pub(super) fn delete<'a>(&mut self, relation: u32, old: Old<'a>) -> Result<(Arc<Mapped>, Op<'a>)> {
        let table = self.relation(relation)?;
        let (row, full) = match old {
            Old::Key(old) => (table.row(old)?, false),
            Old::Full(old) => (table.row(old)?, true),
        };
        let key = table.key_of(&row)?;
        Ok((table, Op::Delete { key, old: full.then_some(row) }))
    }
}

fn undescribed(relation: u32) -> Error {
    Error::protocol("apply a change", format!("relation {relation} was not described before it was used"))
}

/// Where these columns are.
fn places(source: &TableName, columns: &[Column], names: &[String]) -> Result<Vec<usize>> {
    let place = |name: &String| {
        columns.iter().position(|column| &column.name == name).ok_or_else(|| {
            Error::state(format!("map the columns of {source}"), format!("column \"{name}\" is no longer there"))
        })
    };
    names.iter().map(place).collect()
}

/// Which columns name a row: the replica identity's; under FULL the target's best key.
fn key_places(table: &Table, relation: &Relation, source: &TableName) -> Result<Vec<usize>> {
    let place = |name: &String| relation.columns.iter().position(|column| &column.name == name);
    if relation.identity != b'f' {
        let places: Vec<usize> = (0..relation.columns.len()).filter(|place| relation.columns[*place].key).collect();
        return match places.is_empty() {
            true => Err(Error::state(format!("map the key of {source}"), "the table has no replica identity")),
            false => Ok(places),
        };
    }
    Ok(table.best_key().map(|key| key.columns.iter().filter_map(place).collect()).unwrap_or_default())
}

/// Columns of the primary key that is not fit to name a row: it is deferrable, but has an index.
fn indexed_places(table: &Table, relation: &Relation) -> Vec<usize> {
    let place = |name: &String| relation.columns.iter().position(|column| &column.name == name);
    let key = table.keys.iter().find(|key| key.primary && !key.identifies);
    key.map(|key| key.columns.iter().filter_map(place).collect()).unwrap_or_default()
}

impl Mapped {
    fn row<'a>(&self, tuple: Tuple<'a>) -> Result<Row<'a>> {
        let row: Row<'a> = tuple.iter().collect();
        if row.len() != self.columns.len() {
            let why = format!("a row has {} columns, its description {}", row.len(), self.columns.len());
            return Err(Error::protocol(format!("read a change of {}", self.source), why));
        }
        let as_text = |(value, column): &(&Value<'_>, &Column)| match value {
            Value::Text(_) => true,
            value => column.text_only && bytes_of(value).is_some(),
        };
        if row.iter().any(|value| matches!(value, Value::Binary(_)))
            && let Some((_, column)) = row.iter().zip(&self.columns).find(as_text)
        {
            // In binary it may be an object's number on the source.
            let why = format!(
                "the change came in binary, but column \"{}\" travels as text: its type was changed meanwhile",
                column.name
            );
            return Err(Error::unusable(format!("read a change of {}", self.source), why));
        }
        Ok(row)
    }

    /// The key's values of a row; the whole row where there is no key.
    pub fn key_of<'a>(&self, row: &Row<'a>) -> Result<Row<'a>> {
        if self.key.is_empty() {
            return match self.full {
                true => Ok(Vec::new()),
                false => Err(Error::state(format!("name a row of {}", self.source), "the table has no key")),
            };
        }
        let key: Row<'a> = self.key.iter().map(|place| row[*place]).collect();
        if key.iter().any(|value| bytes_of(value).is_none()) {
            return Err(Error::state(format!("name a row of {}", self.source), "a column of its key has no value"));
        }
        Ok(key)
    }

    /// The values that name a row at every moment.
    pub fn name_of<'a>(&self, row: &Row<'a>) -> Row<'a> {
        self.name.iter().map(|place| row[*place]).collect()
    }

    /// The same from the values of its key.
    pub fn name_in<'a>(&self, key: &Row<'a>) -> Row<'a> {
        let places = self.key.iter().zip(key);
        let value =
            |place: &usize| places.clone().find(|(own, _)| *own == place).map_or(Value::Null, |(_, value)| *value);
        self.name.iter().map(value).collect()
    }

    /// Whether a column of the key is GENERATED ALWAYS AS IDENTITY, which UPDATE refuses to set.
    pub fn key_is_generated(&self) -> bool {
        self.key.iter().any(|place| self.columns[*place].identity == "a")
    }

    /// Whether UPDATE refuses to set some column outside the key.
    pub fn refuses_update(&self) -> bool {
        let outside = |(place, column): (usize, &Column)| column.identity == "a" && !self.key.contains(&place);
        self.columns.iter().enumerate().any(outside)
    }

    /// Places of the columns that an UPDATE may set: those with a value, outside the key.
    pub fn settable(&self, row: &Row<'_>) -> Vec<usize> {
        (0..row.len()).filter(|place| row[*place] != Value::Unchanged && !self.key.contains(place)).collect()
    }
}

/// Prepared statements of a connection, by their text.
#[derive(Default)]
pub(super) struct Statements(HashMap<String, Statement>);

/// The most statements kept: tables times the sets of unchanged columns that occur.
const MOST_STATEMENTS: usize = 1000;

impl Statements {
    /// The statement with this text, prepared once.
    pub async fn get(&mut self, client: &Client, sql: String, table: &TableName) -> Result<Statement> {
        if let Some(statement) = self.0.get(&sql) {
            return Ok(statement.clone());
        }
        if self.0.len() >= MOST_STATEMENTS {
            self.0.clear();
        }
        let statement = client.prepare(&sql).await.doing(format!("prepare a statement for {table}"))?;
        self.0.insert(sql, statement.clone());
        Ok(statement)
    }
}

/// A parameter in the form in which it came, passed on undecoded.
pub(super) struct Raw<'a>(pub Option<&'a [u8]>, pub Form);

impl<'a> From<&Value<'a>> for Raw<'a> {
    fn from(value: &Value<'a>) -> Self {
        // NULL as text: in binary the server asks for the type's receive function all the same.
        Raw(bytes_of(value), if matches!(value, Value::Binary(_)) { Form::Binary } else { Form::Text })
    }
}

/// Without the bytes: a row's values never reach a log, at no level.
impl std::fmt::Debug for Raw<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.map_or(0, <[u8]>::len))
    }
}

impl ToSql for Raw<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> std::result::Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self.0 {
            None => Ok(IsNull::Yes),
            Some(bytes) => {
                out.put_slice(bytes);
                Ok(IsNull::No)
            }
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        match self.1 {
            Form::Binary => Format::Binary,
            Form::Text => Format::Text,
        }
    }

    fn to_sql_checked(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> std::result::Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.to_sql(ty, out)
    }
}

/// The bytes of a value; `None` is NULL.
pub(super) fn bytes_of<'a>(value: &Value<'a>) -> Option<&'a [u8]> {
    match value {
        Value::Binary(bytes) | Value::Text(bytes) => Some(bytes),
        Value::Null | Value::Unchanged => None,
    }
}

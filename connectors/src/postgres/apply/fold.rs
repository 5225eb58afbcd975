//! Folds the changes of one table so that each key is deleted, updated and inserted at most once.
//! The rows at the end are the same as after applying them one by one; what this cannot promise
//! is refused, and the group is replayed row by row.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::pgoutput::Value;
use super::super::{Error, Result};
use super::target::{Form, Mapped, Op, Row};

/// What becomes of one key.
#[derive(Default)]
pub(super) struct Fate<'a> {
    /// The row that was there goes.
    pub delete: bool,
    /// The row that was there gets these values (`Unchanged` where it keeps its own).
    pub update: Option<Row<'a>>,
    /// A row comes.
    pub insert: Option<Row<'a>>,
}

/// The changes of one table.
pub(super) struct Folded<'a> {
    pub table: Arc<Mapped>,
    pub fates: Vec<(Row<'a>, Fate<'a>)>,
    /// The form of all values.
    pub form: Form,
    places: HashMap<Vec<u8>, usize>,
}

impl<'a> Folded<'a> {
    pub fn new(table: Arc<Mapped>) -> Self {
        Folded { table, fates: Vec::new(), form: Form::Binary, places: HashMap::new() }
    }

    /// Takes the next change in order.
    pub fn push(&mut self, op: &Op<'a>) -> Result<()> {
        self.same_form(op)?;
        if self.table.key.is_empty() {
            return match op {
                Op::Insert(row) => {
                    self.fates.push((Vec::new(), Fate { insert: Some(row.clone()), ..Fate::default() }));
                    Ok(())
                }
                _ => Err(self.cannot("it has no key")),
            };
        }
        match op {
            Op::Insert(row) => {
                let key = self.table.key_of(row)?;
                self.insert(key, row.clone())
            }
            Op::Delete { key, .. } => self.delete(key.clone()),
            Op::Update { key, old, new } => {
                let new_key = self.table.key_of(new)?;
                // Another key, or a column that a set cannot update: the old row goes and the whole
                // new row comes.
                if &new_key == key && !self.table.whole_rows {
                    return self.update(key.clone(), new.clone());
                }
                let whole = self.complete(key, old.as_ref(), new)?;
                self.delete(key.clone())?;
                self.insert(new_key, whole)
            }
        }
    }

    /// Keys are compared as they came, so all must have come in one form.
    fn same_form(&mut self, op: &Op<'a>) -> Result<()> {
        let (Op::Insert(row) | Op::Update { key: row, .. } | Op::Delete { key: row, .. }) = op;
        match Form::of(row) {
            Some(form) if self.fates.is_empty() => self.form = form,
            Some(form) if form != self.form => return Err(self.cannot("some came as text, others in binary")),
            _ => {}
        }
        Ok(())
    }

    fn cannot(&self, why: &str) -> Error {
        Error::mismatch(format!("fold the changes of {}", self.table.target), why)
    }

    fn fate(&mut self, key: Row<'a>) -> &mut Fate<'a> {
        let name = key_bytes(&key);
        let place = *self.places.entry(name).or_insert_with(|| {
            self.fates.push((key, Fate::default()));
            self.fates.len() - 1
        });
        &mut self.fates[place].1
    }

    fn insert(&mut self, key: Row<'a>, row: Row<'a>) -> Result<()> {
        let taken = self.cannot("a key is inserted that is there");
        let fate = self.fate(key);
        if fate.insert.is_some() || fate.update.is_some() {
            return Err(taken);
        }
        fate.insert = Some(row);
        Ok(())
    }

    fn delete(&mut self, key: Row<'a>) -> Result<()> {
        let gone = self.cannot("a key is deleted twice");
        let fate = self.fate(key);
        if fate.insert.take().is_some() {
            return Ok(());
        }
        if fate.delete {
            return Err(gone);
        }
        fate.update = None;
        fate.delete = true;
        Ok(())
    }

    fn update(&mut self, key: Row<'a>, new: Row<'a>) -> Result<()> {
        let gone = self.cannot("a key is updated that is gone");
        let fate = self.fate(key);
        match (&mut fate.insert, &mut fate.update, fate.delete) {
            (Some(row), ..) | (None, Some(row), _) => merge(row, new),
            (None, None, true) => return Err(gone),
            (None, None, false) => fate.update = Some(new),
        }
        Ok(())
    }

    /// The new row with every unchanged value filled in from what is known of the old one.
    fn complete(&self, key: &Row<'a>, old: Option<&Row<'a>>, new: &Row<'a>) -> Result<Row<'a>> {
        let fate = self.places.get(&key_bytes(key)).map(|place| &self.fates[*place].1);
        let known = fate.and_then(|fate| fate.insert.as_ref().or(fate.update.as_ref()));
        let mut whole = new.clone();
        for (place, value) in whole.iter_mut().enumerate().filter(|(_, value)| **value == Value::Unchanged) {
            let from = [old, known].into_iter().flatten().map(|row| row[place]);
            match from.into_iter().find(|value| *value != Value::Unchanged) {
                Some(found) => *value = found,
                None => return Err(self.cannot("an unchanged value is not at hand")),
            }
        }
        Ok(whole)
    }
}

/// Later values win; unchanged ones stay.
fn merge<'a>(row: &mut Row<'a>, new: Row<'a>) {
    for (value, new) in row.iter_mut().zip(new) {
        if new != Value::Unchanged {
            *value = new;
        }
    }
}

/// The key's values as one string of bytes: lengths, then bytes.
fn key_bytes(key: &Row<'_>) -> Vec<u8> {
    let mut name = Vec::with_capacity(16 * key.len());
    for value in key {
        let bytes = super::target::bytes_of(value).unwrap_or_default();
        name.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        name.extend_from_slice(bytes);
    }
    name
}

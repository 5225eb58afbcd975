//! Row images as pgoutput sends them (PostgreSQL manual, "Logical Replication Message Formats",
//! TupleData), kept as the bytes on the wire. Nothing here ever prints a value.

use std::fmt;

use super::read::{Reader, broken};
use crate::postgres::Result;

/// One column of a row image.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// NULL; in an [`Old::Key`] also every column outside the replica identity.
    Null,
    /// A TOAST value that the statement did not touch and the server did not send. It is not NULL.
    Unchanged,
    /// The type's output function; also within a binary stream, for types without a send function.
    Text(&'a [u8]),
    /// The type's send function: the bytes that COPY BINARY and binary parameters take.
    Binary(&'a [u8]),
}

impl<'a> Value<'a> {
    /// Reads one column. The kinds are those of TupleData: 'n', 'u', 't', 'b'.
    fn read(from: &mut Reader<'a>) -> Result<Self> {
        let kind = from.u8()?;
        let mut sized = || from.count32().and_then(|len| from.bytes(len));
        match kind {
            b'n' => Ok(Value::Null),
            b'u' => Ok(Value::Unchanged),
            b't' => sized().map(Value::Text),
            b'b' => sized().map(Value::Binary),
            other => Err(broken(format_args!("unknown column kind {other}"))),
        }
    }

    /// Writes the column as it is on the wire. PostgreSQL limits a value to 1 GiB.
    pub(super) fn write(self, out: &mut Vec<u8>) {
        let (kind, bytes) = match self {
            Value::Null => return out.push(b'n'),
            Value::Unchanged => return out.push(b'u'),
            Value::Text(bytes) => (b't', bytes),
            Value::Binary(bytes) => (b'b', bytes),
        };
        out.push(kind);
        out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        out.extend_from_slice(bytes);
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("Null"),
            Value::Unchanged => f.write_str("Unchanged"),
            Value::Text(bytes) => write!(f, "Text({} bytes)", bytes.len()),
            Value::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
        }
    }
}

/// A row image: an Int16 count and its columns, exactly as on the wire. Checked whole when it is
/// parsed, so that reading it later cannot fail.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    len: usize,
    raw: &'a [u8],
}

impl<'a> Tuple<'a> {
    /// Takes a tuple from the front of `bytes`, and returns it with what follows it.
    pub fn parse(bytes: &'a [u8]) -> Result<(Tuple<'a>, &'a [u8])> {
        let mut from = Reader::new(bytes);
        let len = from.count16()?;
        for _ in 0..len {
            Value::read(&mut from)?;
        }
        let raw = Reader::new(bytes).bytes(bytes.len() - from.rest().len())?;
        Ok((Tuple { len, raw }, from.rest()))
    }

    /// How many columns there are, in the order of the Relation message.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none: a table without columns is legal.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The column at `index`. Walks the columns before it: to read several, use [`Tuple::iter`].
    pub fn get(&self, index: usize) -> Option<Value<'a>> {
        self.iter().nth(index)
    }

    /// The columns in order.
    pub fn iter(&self) -> Values<'a> {
        Values { left: self.len, from: Reader::new(self.raw.get(2..).unwrap_or_default()) }
    }

    /// The count and the columns as they are on the wire; [`Tuple::parse`] reads them again.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }
}

impl fmt::Debug for Tuple<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tuple({} columns, {} bytes)", self.len, self.raw.len())
    }
}

impl<'a> IntoIterator for Tuple<'a> {
    type Item = Value<'a>;
    type IntoIter = Values<'a>;

    fn into_iter(self) -> Values<'a> {
        self.iter()
    }
}

/// The columns of a [`Tuple`], in order.
#[derive(Clone)]
pub struct Values<'a> {
    left: usize,
    from: Reader<'a>,
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        Value::read(&mut self.from).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Values<'_> {}

/// What a row was before an update or delete; which one is sent is the table's replica identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Old<'a> {
    /// The identity columns; the others are [`Value::Null`] whatever they were. Under DEFAULT and
    /// USING INDEX: with a DELETE always, with an UPDATE only when an identity column changed.
    Key(Tuple<'a>),
    /// The whole row, with its TOAST values. Under FULL: with every UPDATE and DELETE.
    Full(Tuple<'a>),
}

impl<'a> Old<'a> {
    /// The columns that were sent.
    pub fn tuple(&self) -> Tuple<'a> {
        match *self {
            Old::Key(tuple) | Old::Full(tuple) => tuple,
        }
    }
}

//! Reads the fields of a message from the front of a slice. Every read is checked against what is
//! left, and nothing is allocated here: a count or a length in a message is a claim, not a fact.

use std::str;

use crate::postgres::{Error, Result};

/// What is left of one message.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the front of `bytes`.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// The bytes not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or_else(|| broken("it ends too early"))?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or_else(|| broken("it ends too early"))?;
        self.rest = rest;
        Ok(*bytes)
    }

    /// Int8, unsigned: flags and kinds.
    pub(super) fn u8(&mut self) -> Result<u8> {
        self.array().map(|[byte]| byte)
    }

    /// Int32, unsigned: object and transaction identifiers.
    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Int32, signed: type modifiers.
    pub(super) fn i32(&mut self) -> Result<i32> {
        self.array().map(i32::from_be_bytes)
    }

    /// Int64, unsigned: positions.
    pub(super) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// Int64, signed: times.
    pub(super) fn i64(&mut self) -> Result<i64> {
        self.array().map(i64::from_be_bytes)
    }

    /// Int16 that counts something.
    pub(super) fn count16(&mut self) -> Result<usize> {
        let count = i16::from_be_bytes(self.array()?);
        usize::try_from(count).map_err(|_| broken("a count is negative"))
    }

    /// Int32 that counts something, or is a length in bytes.
    pub(super) fn count32(&mut self) -> Result<usize> {
        usize::try_from(self.i32()?).map_err(|_| broken("a length is negative"))
    }

    /// String: UTF-8 (the connection asks for it) up to a zero byte.
    pub(super) fn text(&mut self) -> Result<&'a str> {
        let end = self.rest.iter().position(|&byte| byte == 0).ok_or_else(|| broken("a name has no end"))?;
        let bytes = self.bytes(end)?;
        self.bytes(1)?;
        str::from_utf8(bytes).map_err(|_| broken("a name is not UTF-8"))
    }

    /// Ends the message: bytes left over mean that it was not understood.
    pub(super) fn end(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(broken("it has bytes after its end")) }
    }
}

/// A message that is not what the protocol says. `why` never quotes the message: it holds values.
#[cold]
pub(super) fn broken(why: impl std::fmt::Display) -> Error {
    Error::protocol("decode pgoutput message", why)
}

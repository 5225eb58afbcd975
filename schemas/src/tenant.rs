//! Tenants and moves: what they are called, and how a tenant's key looks on the wire.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A tenant, named by its key's text form (`7`, `550e8400-e29b-41d4-a716-446655440000`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TenantId(pub String);

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A move's number; people see `m7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MoveId(pub u64);

impl fmt::Display for MoveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m{}", self.0)
    }
}

impl FromStr for MoveId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix('m').and_then(|digits| digits.parse().ok());
        number.map(MoveId).ok_or_else(|| format!("\"{text}\" is not a move (expected a form like m7)"))
    }
}

impl Serialize for MoveId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() { to.collect_str(self) } else { self.0.serialize(to) }
    }
}

impl<'de> Deserialize<'de> for MoveId {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        if from.is_human_readable() {
            String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
        } else {
            u64::deserialize(from).map(MoveId)
        }
    }
}

/// The types a tenant key may have, or a domain over one of them. Values are equal when [`KeyType::compared`] of their
/// bytes on the wire is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// `smallint`
    Int2,
    /// `integer`
    Int4,
    /// `bigint`
    Int8,
    /// `uuid`
    Uuid,
    /// `text` and `character varying`
    Text,
    /// `character`, of any length: blanks at the end say nothing
    Char,
    /// An enum: on the wire its label
    Enum,
}

/// All of them, for people.
pub const KEY_TYPES: &str = "smallint, integer, bigint, uuid, text, varchar, char or a domain over one of them, or an enum \
                             (text under a nondeterministic collation is not)";

/// The text cannot be a key of that type.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("tenant \"{tenant}\" is not a value of type {expected}")]
pub struct BadKey {
    tenant: String,
    expected: &'static str,
}

impl KeyType {
    /// The key type behind the `pg_type.oid` of a type that comes with PostgreSQL; `None` for the others, of which the
    /// catalogs have to be asked.
    pub fn from_oid(oid: u32) -> Option<KeyType> {
        match oid {
            21 => Some(KeyType::Int2),
            23 => Some(KeyType::Int4),
            20 => Some(KeyType::Int8),
            2950 => Some(KeyType::Uuid),
            25 | 1043 => Some(KeyType::Text),
            1042 => Some(KeyType::Char),
            _ => None,
        }
    }

    /// The type's name in PostgreSQL.
    pub fn name(self) -> &'static str {
        match self {
            KeyType::Int2 => "smallint",
            KeyType::Int4 => "integer",
            KeyType::Int8 => "bigint",
            KeyType::Uuid => "uuid",
            KeyType::Text => "text",
            KeyType::Char => "character",
            KeyType::Enum => "an enum",
        }
    }

    /// The tenant as PostgreSQL would print it: `007` becomes `7`, a uuid lower case with dashes.
    pub fn canonical(self, tenant: &str) -> Result<TenantId, BadKey> {
        let bad = || BadKey { tenant: tenant.to_owned(), expected: self.name() };
        let text = match self {
            KeyType::Int2 => tenant.parse::<i16>().map_err(|_| bad())?.to_string(),
            KeyType::Int4 => tenant.parse::<i32>().map_err(|_| bad())?.to_string(),
            KeyType::Int8 => tenant.parse::<i64>().map_err(|_| bad())?.to_string(),
            KeyType::Uuid => {
                let bytes = parse_uuid(tenant).ok_or_else(bad)?;
                let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
                [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
            }
            KeyType::Text | KeyType::Char | KeyType::Enum if tenant.contains('\0') => return Err(bad()),
            KeyType::Text | KeyType::Enum => tenant.to_owned(),
            KeyType::Char => tenant.trim_end_matches(' ').to_owned(),
        };
        if text.is_empty() {
            return Err(bad());
        }
        Ok(TenantId(text))
    }

    /// The tenant as the wire's binary format carries it.
    pub fn encode(self, tenant: &TenantId) -> Result<Vec<u8>, BadKey> {
        let bad = || BadKey { tenant: tenant.0.clone(), expected: self.name() };
        self.binary(&tenant.0).ok_or_else(bad)
    }

    /// The binary form of a key that the wire carried as text.
    pub fn binary(self, text: &str) -> Option<Vec<u8>> {
        Some(match self {
            KeyType::Int2 => text.parse::<i16>().ok()?.to_be_bytes().to_vec(),
            KeyType::Int4 => text.parse::<i32>().ok()?.to_be_bytes().to_vec(),
            KeyType::Int8 => text.parse::<i64>().ok()?.to_be_bytes().to_vec(),
            KeyType::Uuid => parse_uuid(text)?.to_vec(),
            KeyType::Text | KeyType::Char | KeyType::Enum => self.compared(text.as_bytes()).to_vec(),
        })
    }

    /// What of a value's binary form is compared: all of it, of a `character` without the blanks that fill it up.
    pub fn compared(self, bytes: &[u8]) -> &[u8] {
        match self {
            KeyType::Char => &bytes[..bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1)],
            _ => bytes,
        }
    }
}

/// The 16 bytes of a uuid written with or without dashes, in any case.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
    if digits.len() != 32 || text.len() > 36 {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        let value = |digit: u8| (digit as char).to_digit(16);
        *byte = (value(pair[0])? * 16 + value(pair[1])?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_canonical() {
        assert_eq!(KeyType::Int4.canonical("007").unwrap().0, "7");
        let uuid = KeyType::Uuid.canonical("550E8400E29B41D4A716446655440000").unwrap();
        assert_eq!(uuid.0, "550e8400-e29b-41d4-a716-446655440000");
        assert_eq!(KeyType::Uuid.encode(&uuid).unwrap()[..2], [0x55, 0x0e]);
        for (kind, text) in [
            (KeyType::Int4, "7; DROP"),
            (KeyType::Int2, "40000"),
            (KeyType::Uuid, "7"),
            (KeyType::Text, ""),
            (KeyType::Char, "  "),
        ] {
            assert!(kind.canonical(text).is_err(), "{text}");
        }
    }

    #[test]
    fn blanks_at_the_end_of_a_char_say_nothing() {
        let tenant = KeyType::Char.canonical(" ab  ").unwrap();
        assert_eq!(tenant.0, " ab");
        for form in [" ab", " ab  "] {
            assert_eq!(KeyType::Char.compared(form.as_bytes()), KeyType::Char.encode(&tenant).unwrap());
        }
        assert_eq!(KeyType::Char.compared(b"ab\t "), b"ab\t");
        assert_eq!(KeyType::Text.compared(b"ab "), b"ab ");
    }

    proptest! {
        #[test]
        fn canonical_never_panics_and_is_stable(text in ".*") {
            use KeyType::{Char, Enum, Int2, Int4, Int8, Text, Uuid};
            for kind in [Int2, Int4, Int8, Uuid, Text, Char, Enum] {
                if let Ok(tenant) = kind.canonical(&text) {
                    prop_assert_eq!(kind.canonical(&tenant.0), Ok(tenant.clone()));
                    prop_assert!(kind.encode(&tenant).is_ok());
                }
            }
        }
    }
}

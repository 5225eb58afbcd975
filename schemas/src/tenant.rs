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

/// The types a tenant key may have. Their bytes on the wire are compared as they are, so each must
/// have exactly one binary form per value.
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
}

/// The text cannot be a key of that type.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("tenant \"{tenant}\" is not a value of type {expected}")]
pub struct BadKey {
    tenant: String,
    expected: &'static str,
}

impl KeyType {
    /// The key type behind a `pg_type.oid`; `None` for types that cannot be a tenant key yet.
    pub fn from_oid(oid: u32) -> Option<KeyType> {
        match oid {
            21 => Some(KeyType::Int2),
            23 => Some(KeyType::Int4),
            20 => Some(KeyType::Int8),
            2950 => Some(KeyType::Uuid),
            25 | 1043 => Some(KeyType::Text),
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
            KeyType::Text if tenant.is_empty() || tenant.contains('\0') => return Err(bad()),
            KeyType::Text => tenant.to_owned(),
        };
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
            KeyType::Text => text.as_bytes().to_vec(),
        })
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
        for (kind, text) in
            [(KeyType::Int4, "7; DROP"), (KeyType::Int2, "40000"), (KeyType::Uuid, "7"), (KeyType::Text, "")]
        {
            assert!(kind.canonical(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn canonical_never_panics_and_is_stable(text in ".*") {
            for kind in [KeyType::Int2, KeyType::Int4, KeyType::Int8, KeyType::Uuid, KeyType::Text] {
                if let Ok(tenant) = kind.canonical(&text) {
                    prop_assert_eq!(kind.canonical(&tenant.0), Ok(tenant.clone()));
                    prop_assert!(kind.encode(&tenant).is_ok());
                }
            }
        }
    }
}

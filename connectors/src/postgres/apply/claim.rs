//! Whose a row is, as far as the source's log tells: for lanes that do not know all their rows yet.

use std::borrow::Cow;

use bytes::{Buf, BufMut, Bytes};
use schemas::tenant::KeyType;

use super::super::pgoutput::Value;
use super::super::{Error, Result};

/// Whether a row is this lane's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is another's.
    No,
    /// It is.
    Yes,
    /// It is when the target has the row with this key, so many foreign keys up from the row's own table. The
    /// transaction does not touch that one.
    If {
        /// 1 is the table that the row itself refers to.
        steps: u8,
        /// The bytes of one column, or of several with their lengths.
        key: Bytes,
    },
}

/// The claims to the old and to the new row of a change; to a row that is not there as to the other one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// To the row before the change.
    pub old: Claim,
    /// To the row after it.
    pub new: Claim,
}

impl Claims {
    /// Both as bytes.
    pub fn encoded(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for claim in [&self.old, &self.new] {
            match claim {
                Claim::No => out.push(0),
                Claim::Yes => out.push(1),
                Claim::If { steps, key } => {
                    out.extend_from_slice(&[2, *steps]);
                    out.extend_from_slice(&(key.len() as u32).to_be_bytes());
                    out.extend_from_slice(key);
                }
            }
        }
        out
    }

    /// Reads both back; never panics, whatever the bytes.
    pub fn decode(bytes: &Bytes) -> Result<Claims> {
        let mut from = bytes.clone();
        let claims = read(&mut from).and_then(|old| Some(Claims { old, new: read(&mut from)? }));
        claims.filter(|_| from.is_empty()).ok_or_else(|| Error::protocol("read a claim", "it has an unknown form"))
    }
}

fn read(from: &mut Bytes) -> Option<Claim> {
    match from.try_get_u8().ok()? {
        0 => Some(Claim::No),
        1 => Some(Claim::Yes),
        2 => {
            let steps = from.try_get_u8().ok()?;
            let length = from.try_get_u32().ok()? as usize;
            (from.len() >= length).then(|| Claim::If { steps, key: from.split_to(length) })
        }
        _ => None,
    }
}

/// A value of a key in the form in which keys are compared ([`KeyType::compared`]), whatever form it came in;
/// `None` for NULL, for what was not sent, and where the type is no key's.
pub fn key_value(kind: Option<KeyType>, value: Value<'_>) -> Option<Cow<'_, [u8]>> {
    match value {
        Value::Binary(bytes) => Some(Cow::Borrowed(kind?.compared(bytes))),
        Value::Text(text) => kind?.binary(str::from_utf8(text).ok()?).map(Cow::Owned),
        Value::Null | Value::Unchanged => None,
    }
}

/// The key that some columns' values form.
pub fn key_bytes<'v>(values: impl ExactSizeIterator<Item = &'v [u8]>) -> Vec<u8> {
    let several = values.len() > 1;
    let mut key = Vec::with_capacity(16);
    for value in values {
        if several {
            key.put_u32(value.len() as u32);
        }
        key.put_slice(value);
    }
    key
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim() -> impl Strategy<Value = Claim> {
        let key = (any::<u8>(), any::<Vec<u8>>()).prop_map(|(steps, key)| Claim::If { steps, key: key.into() });
        prop_oneof![Just(Claim::No), Just(Claim::Yes), key]
    }

    proptest! {
        #[test]
        fn a_key_is_the_same_in_both_forms(small: i16, number: i32, large: i64, uuid: [u8; 16], text: String) {
            let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
            let dashed = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
            for (kind, text, binary) in [
                (KeyType::Int2, small.to_string(), small.to_be_bytes().to_vec()),
                (KeyType::Int4, number.to_string(), number.to_be_bytes().to_vec()),
                (KeyType::Int8, large.to_string(), large.to_be_bytes().to_vec()),
                (KeyType::Uuid, dashed, uuid.to_vec()),
                (KeyType::Text, text.clone(), text.clone().into_bytes()),
                (KeyType::Enum, text.clone(), text.clone().into_bytes()),
                (KeyType::Char, text.clone(), format!("{text}   ").into_bytes()),
            ] {
                let as_text = key_value(Some(kind), Value::Text(text.as_bytes()));
                prop_assert!(as_text.is_some());
                prop_assert_eq!(as_text, key_value(Some(kind), Value::Binary(&binary)));
            }
            // What is no key cannot be compared.
            prop_assert!(key_value(None, Value::Text(b"1")).is_none() && key_value(None, Value::Binary(b"1")).is_none());
        }

        #[test]
        fn claims_come_back((old, new) in (claim(), claim())) {
            let claims = Claims { old, new };
            prop_assert_eq!(Claims::decode(&claims.encoded().into()).unwrap(), claims);
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Claims::decode(&bytes.into());
        }
    }
}

//! What the router does with a row: find its old image, complete it, name it for people.

use connectors::postgres::pgoutput::{Old, Tuple, Value};
use schemas::tenant::KeyType;

/// The old image, whichever kind it is.
pub(super) fn tuple_of(old: Old<'_>) -> Tuple<'_> {
    match old {
        Old::Key(tuple) | Old::Full(tuple) => tuple,
    }
}

/// The new row with unchanged values taken from the full old one; `None` when one is not at hand.
pub(super) fn whole_row<'a>(old: Option<Old<'a>>, new: Tuple<'a>) -> Option<Vec<Value<'a>>> {
    let full = match old {
        Some(Old::Full(tuple)) => Some(tuple),
        _ => None,
    };
    let mut before = full.as_ref().map(Tuple::iter);
    let row = new.iter().map(|value| {
        let old = before.as_mut().and_then(Iterator::next);
        match value {
            Value::Unchanged => old.filter(|old| *old != Value::Unchanged),
            value => Some(value),
        }
    });
    row.collect()
}

/// A key's value for people; only plain types are spelled out.
pub(super) fn shown(type_oid: u32, value: Value<'_>) -> String {
    match (KeyType::from_oid(type_oid), value) {
        (Some(KeyType::Int2 | KeyType::Int4 | KeyType::Int8), Value::Binary(bytes)) if bytes.len() <= 8 => {
            let negative = bytes.first().is_some_and(|byte| *byte >= 0x80);
            let mut wide = [if negative { 0xFF } else { 0 }; 8];
            wide[8 - bytes.len()..].copy_from_slice(bytes);
            i64::from_be_bytes(wide).to_string()
        }
        (Some(KeyType::Text), Value::Binary(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        (_, Value::Binary(bytes)) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        _ => "?".to_owned(),
    }
}

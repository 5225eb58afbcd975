//! What the router does with a row: find its old image, complete it, name it for people.

use connectors::postgres::pgoutput::{Old, Relation, Tuple, Value};
use schemas::tenant::KeyType;

/// The old image, whichever kind it is.
pub(super) fn tuple_of(old: Old<'_>) -> Tuple<'_> {
    match old {
        Old::Key(tuple) | Old::Full(tuple) => tuple,
    }
}

/// The new row with unchanged values taken from the old one, of which an identity by index sends the key
/// columns only; `None` when a value is not at hand.
pub(super) fn whole_row<'a>(relation: &Relation, old: Option<Old<'a>>, new: Tuple<'a>) -> Option<Vec<Value<'a>>> {
    let full = matches!(old, Some(Old::Full(_)));
    let before = old.map(tuple_of);
    let row = new.iter().enumerate().map(|(place, value)| match value {
        Value::Unchanged => {
            let sent = full || relation.columns.get(place).is_some_and(|column| column.key);
            before.as_ref().filter(|_| sent)?.iter().nth(place).filter(|old| *old != Value::Unchanged)
        }
        value => Some(value),
    });
    row.collect()
}

/// A key's value for people; only numbers and uuids are spelled out.
pub(super) fn shown(kind: Option<KeyType>, value: Value<'_>) -> String {
    match (kind, value) {
        (Some(KeyType::Int2 | KeyType::Int4 | KeyType::Int8), Value::Binary(bytes)) if bytes.len() <= 8 => {
            let negative = bytes.first().is_some_and(|byte| *byte >= 0x80);
            let mut wide = [if negative { 0xFF } else { 0 }; 8];
            wide[8 - bytes.len()..].copy_from_slice(bytes);
            i64::from_be_bytes(wide).to_string()
        }
        (Some(KeyType::Uuid), Value::Binary(bytes)) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        (Some(KeyType::Int2 | KeyType::Int4 | KeyType::Int8 | KeyType::Uuid), Value::Text(text)) => {
            String::from_utf8_lossy(text).into_owned()
        }
        // A text may be a person's name or address.
        _ => "…".to_owned(),
    }
}

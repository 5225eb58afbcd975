//! The configuration file as a tree that knows where everything stands.
//!
//! serde-saphyr reads the YAML (anchors, merge keys, limits); the tree keeps each value's own
//! spelling (`007` stays `007`) and its place, and takes the environment in. It decides no types.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{NonFiniteFloatPolicy, Spanned, UserMessageFormatter, options};

use super::env::{self, Environment};
use super::error::{ConfigError, Place};

/// Said of a key that the reader or the tree has seen before.
const TWICE: &str = "stands twice";

/// A value and where it begins.
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// What a value can be.
pub(super) enum Value {
    /// `~`, `null`, or nothing at all.
    Null,
    /// Any scalar. `written` is what the file says where the environment changed it.
    Text { text: String, written: Option<String> },
    /// A list.
    List(Vec<Node>),
    /// A block of keys, each once.
    Map(Vec<(Key, Node)>),
}

/// A key and where it begins. Keys are taken literally, the environment does not change them.
pub(super) struct Key {
    pub(super) place: Place,
    pub(super) text: String,
}

impl Node {
    /// Reads a file.
    pub(super) fn read(text: &str, environment: Environment) -> Result<Node, ConfigError> {
        let options = options! {
            with_snippet: false,
            reject_unsupported_tags: true,
            non_finite_float_policy: NonFiniteFloatPolicy::AsString,
            // They carry nothing here, and only so many in a row would be taken.
            emit_comments: false,
        };
        let raw = serde_saphyr::from_str_with_options(text, options).map_err(|error| not_yaml(text, &error))?;
        settle(text, environment, raw)
    }

    /// The value under a chain of keys.
    pub(super) fn get(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, key| match &node.value {
            Value::Map(entries) => entries.iter().find(|(known, _)| known.text == *key).map(|(_, value)| value),
            _ => None,
        })
    }

    /// The place of the value under a chain of keys, or of what is nearest to it.
    pub(super) fn place_of(&self, path: &[&str]) -> Place {
        let nearest = (0..=path.len()).rev().find_map(|length| self.get(&path[..length]));
        nearest.unwrap_or(self).place
    }
}

/// The reader's complaint with its place in front, and a hint at the most likely trap.
fn not_yaml(text: &str, error: &serde_saphyr::Error) -> ConfigError {
    let place =
        error.location().map_or(Place { line: 1, column: 1 }, |at| Place { line: at.line(), column: at.column() });
    if let serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } = error {
        return ConfigError::new(place, &[key], TWICE);
    }
    let mut message = error.render_with_formatter(&UserMessageFormatter);
    if let Some(end) = message.find(" at line ") {
        message.truncate(end);
    }
    let index = usize::try_from(place.line).unwrap_or(1).saturating_sub(1);
    if text.lines().nth(index).is_some_and(|line| line.contains("${")) {
        message.push_str(" (between { } or [ ] a ${NAME} needs quotes: \"${NAME}\")");
    }
    ConfigError::new(place, &[], message)
}

/// Gives scalars their spelling, replaces variables, and refuses a key that stands twice.
fn settle(text: &str, environment: Environment, raw: Spanned<Raw>) -> Result<Node, ConfigError> {
    let place = place(&raw.referenced);
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Typed(value) => Value::Text { text: spelling(text, &raw.defined).unwrap_or(value), written: None },
        Raw::Text(value) => {
            match env::replace(&value, environment).map_err(|message| ConfigError::new(place, &[], message))? {
                Some(replaced) => Value::Text { text: replaced, written: Some(value) },
                None => Value::Text { text: value, written: None },
            }
        }
        Raw::List(items) => {
            let settled = items
                .into_iter()
                .enumerate()
                .map(|(index, item)| settle(text, environment, item).map_err(|error| error.below(index)));
            Value::List(settled.collect::<Result<_, _>>()?)
        }
        Raw::Map(entries) => Value::Map(settle_entries(text, environment, entries)?),
    };
    Ok(Node { place, value })
}

fn settle_entries(
    text: &str,
    environment: Environment,
    entries: Vec<RawEntry>,
) -> Result<Vec<(Key, Node)>, ConfigError> {
    let mut seen = HashSet::new();
    let mut settled = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        let key = Key { place: place(&key.referenced), text: key.value };
        if !seen.insert(key.text.clone()) {
            return Err(ConfigError::new(key.place, &[&key.text], TWICE));
        }
        if key.text.contains("${") {
            return Err(ConfigError::new(key.place, &[&key.text], "variables are replaced in values, not in keys"));
        }
        let value = settle(text, environment, value).map_err(|error| error.below(&key.text))?;
        settled.push((key, value));
    }
    Ok(settled)
}

fn place(location: &serde_saphyr::Location) -> Place {
    Place { line: location.line(), column: location.column() }
}

/// A plain scalar as the file spells it.
fn spelling(text: &str, location: &serde_saphyr::Location) -> Option<String> {
    let start = usize::try_from(location.span().byte_offset()?).ok()?;
    let length = usize::try_from(location.span().byte_len()?).ok()?;
    let spelled = text.get(start..start.checked_add(length)?)?;
    // A quoted scalar with a tag (`!!int "5"`) is better taken as the reader understood it.
    (!spelled.starts_with(['"', '\''])).then(|| spelled.to_owned())
}

type RawEntry = (Spanned<String>, Spanned<Raw>);

/// What serde-saphyr hands over before types are decided.
enum Raw {
    Null,
    /// A scalar that looks like a number or a boolean.
    Typed(String),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<RawEntry>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}

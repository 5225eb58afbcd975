//! serde's view of the tree: the Rust type says what a scalar's text has to be, and every error gets
//! its place and its key on the way out.

use std::slice;

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::error::{ConfigError, quoted};
use super::yaml::{Key, Node, Value};

/// Reads one value of the tree.
#[derive(Clone, Copy)]
pub(super) struct Reader<'de>(pub(super) &'de Node);

impl<'de> Reader<'de> {
    fn text(self) -> Result<&'de str, ConfigError> {
        match &self.0.value {
            Value::Text { text, .. } => Ok(text),
            Value::Null => Err(Error::custom("has no value")),
            Value::List(_) => Err(Error::custom("expected one value, found a list")),
            Value::Map(_) => Err(Error::custom("expected one value, found a block of keys")),
        }
    }

    /// Reads the value with what knows its type, and says in errors where it stood.
    fn pass<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, ConfigError> {
        seed.deserialize(self).map_err(|error| {
            let error = error.at(self.0.place);
            match &self.0.value {
                Value::Text { text, written: Some(written) } => error.hide(text, written),
                _ => error,
            }
        })
    }
}

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = ConfigError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        match &self.0.value {
            Value::Null => visitor.visit_unit(),
            Value::Text { text, .. } => visitor.visit_borrowed_str(text),
            Value::List(items) => visitor.visit_seq(Items(items.iter().enumerate())),
            Value::Map(entries) => visitor.visit_map(Entries { rest: entries.iter(), value: None }),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        match self.text()? {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            other => Err(Error::custom(format!("{} is neither true nor false", quoted(other)))),
        }
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        let text = self.text()?;
        let digits = Some(text).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        match digits.and_then(|digits| digits.parse().ok()) {
            Some(number) => visitor.visit_u64(number),
            None => Err(Error::custom(format!("{} is not a whole number", quoted(text)))),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        visitor.visit_borrowed_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        self.deserialize_str(visitor)
    }

    /// Absent is what has no value, also by an empty variable (`password_file: ${FILE:-}`).
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        match &self.0.value {
            Value::Null => visitor.visit_none(),
            Value::Text { text, written: Some(_) } if text.is_empty() => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        match &self.0.value {
            Value::Null => visitor.visit_seq(Items([].iter().enumerate())),
            Value::List(_) => self.deserialize_any(visitor),
            _ => Err(Error::custom("expected a list")),
        }
    }

    /// A block all of whose keys are commented out has the defaults.
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        match &self.0.value {
            Value::Null => visitor.visit_map(Entries { rest: [].iter(), value: None }),
            Value::Map(_) => self.deserialize_any(visitor),
            _ => Err(Error::custom("expected a block of keys")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        let word: StrDeserializer<'_, ConfigError> = self.text()?.into_deserializer();
        visitor.visit_enum(word)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u128 f32 f64 char bytes byte_buf unit unit_struct tuple
        tuple_struct identifier ignored_any
    }
}

/// A block's keys and values.
struct Entries<'de> {
    rest: slice::Iter<'de, (Key, Node)>,
    value: Option<&'de (Key, Node)>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = ConfigError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ConfigError> {
        self.value = self.rest.next();
        let Some((key, _)) = self.value else { return Ok(None) };
        let text: StrDeserializer<'_, ConfigError> = key.text.as_str().into_deserializer();
        seed.deserialize(text).map(Some).map_err(|error| error.at(key.place))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ConfigError> {
        let (key, value) = self.value.take().ok_or_else(|| ConfigError::custom("a value was read before its key"))?;
        Reader(value).pass(seed).map_err(|error| error.below(&key.text))
    }
}

/// A list's values.
struct Items<'de>(std::iter::Enumerate<slice::Iter<'de, Node>>);

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = ConfigError;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, ConfigError> {
        let Some((index, item)) = self.0.next() else { return Ok(None) };
        Reader(item).pass(seed).map(Some).map_err(|error| error.below(index))
    }
}

//! Which rows belong to which tenant: the tenant key and what differs from table to table.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::units::{is_name, name};

/// The `tenancy` block.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenancy {
    /// The column that names a row's tenant in most tables.
    #[serde(deserialize_with = "name")]
    pub key: String,
    /// What differs, by `table` or `schema.table`. Tables that have the key need no entry.
    #[serde(default, deserialize_with = "tables")]
    pub tables: BTreeMap<String, TablePolicy>,
}

/// What a table is to a tenant. At most one of `key`, `via`, `reference` and `exclude` is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "WrittenPolicy")]
pub struct TablePolicy {
    /// This table's own tenant key, where it is called differently.
    pub key: Option<String>,
    /// The foreign key's columns that lead to a table with a tenant; never empty.
    pub via: Option<Vec<String>>,
    /// Belongs to all tenants: copied whole and followed.
    pub reference: bool,
    /// Left out.
    pub exclude: bool,
    /// What a row without a tenant means.
    pub null_tenant: NullTenant,
}

/// What a row means whose tenant key is NULL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NullTenant {
    /// Every move that includes the table stops.
    #[default]
    Stop,
    /// The row is nobody's and stays.
    NotMoving,
}

/// A [`TablePolicy`] as it is written, before the contradictions are refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPolicy {
    key: Option<String>,
    #[serde(default, deserialize_with = "columns")]
    via: Option<Vec<String>>,
    #[serde(default)]
    reference: bool,
    #[serde(default)]
    exclude: bool,
    #[serde(default)]
    null_tenant: NullTenant,
}

impl TryFrom<WrittenPolicy> for TablePolicy {
    type Error = String;

    fn try_from(written: WrittenPolicy) -> Result<Self, String> {
        let WrittenPolicy { key, via, reference, exclude, null_tenant } = written;
        let given = [("key", key.is_some()), ("via", via.is_some()), ("reference", reference), ("exclude", exclude)];
        let given: Vec<&str> = given.into_iter().filter_map(|(name, given)| given.then_some(name)).collect();
        if given.len() > 1 {
            return Err(format!(
                "{} contradict each other (allowed is one of key, via, reference and exclude)",
                given.join(" and ")
            ));
        }
        if !key.iter().chain(via.iter().flatten()).all(|column| is_name(column)) {
            return Err("a column's name is 1 to 63 bytes".to_owned());
        }
        if via.as_ref().is_some_and(Vec::is_empty) {
            return Err("via names no column".to_owned());
        }
        Ok(TablePolicy { key, via, reference, exclude, null_tenant })
    }
}

/// The policies, with keys that can be the name of a table.
fn tables<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, TablePolicy>, D::Error> {
    let tables = BTreeMap::<String, TablePolicy>::deserialize(from)?;
    let possible = |table: &&String| table.splitn(2, '.').all(is_name);
    match tables.keys().find(|table| !possible(table)) {
        Some(table) => Err(D::Error::custom(format!("\"{table}\" is not a table (expected table or schema.table)"))),
        None => Ok(tables),
    }
}

/// One column or a list of them.
fn columns<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    struct Columns;

    impl<'de> Visitor<'de> for Columns {
        type Value = Option<Vec<String>>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a column or a list of columns")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_str<E>(self, column: &str) -> Result<Self::Value, E> {
            Ok(Some(vec![column.to_owned()]))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut columns = Vec::new();
            while let Some(column) = list.next_element()? {
                columns.push(column);
            }
            Ok(Some(columns))
        }
    }

    from.deserialize_any(Columns)
}

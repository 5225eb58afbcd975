//! The `tenant_strategy` block: the users' own format, name for name.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{Error, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::units::{Span, between};
use crate::url::PgUrl;

/// How a tenant is kept apart from the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// In the tables of all tenants.
    #[default]
    Shared,
    /// In a schema of its own.
    Schema,
    /// In a database of its own.
    Database,
}

impl Isolation {
    /// The word that files, commands and JSON use.
    pub fn as_str(self) -> &'static str {
        match self {
            Isolation::Shared => "shared",
            Isolation::Schema => "schema",
            Isolation::Database => "database",
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The `tenant_strategy` block.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantStrategy {
    /// What a tenant without an override is. Not used yet.
    pub default_type: Isolation,
    /// From where on a tenant should leave the shared tables. Not used yet.
    pub migration_thresholds: Thresholds,
    /// Tenants that are declared to move, by their key's text form as written.
    pub tenant_overrides: BTreeMap<String, Override>,
    /// Where targets are and what they are called.
    pub database_config: DatabaseConfig,
    /// How a move is done.
    pub migration_config: MigrationConfig,
}

/// `migration_thresholds`: a number of rows for any table, and `avg_query_time`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// Rows, by table (`customers`, `orders`).
    pub rows: BTreeMap<String, u64>,
    /// The mean time of the tenant's queries.
    pub avg_query_time: Option<Span>,
}

impl<'de> Deserialize<'de> for Thresholds {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = Thresholds;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a number of rows by table")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Thresholds, A::Error> {
                let mut thresholds = Thresholds::default();
                while let Some(key) = entries.next_key::<String>()? {
                    if key == "avg_query_time" {
                        thresholds.avg_query_time = entries.next_value()?;
                    } else if let Some(rows) = entries.next_value()? {
                        thresholds.rows.insert(key, rows);
                    }
                }
                Ok(thresholds)
            }
        }

        from.deserialize_map(Keys)
    }
}

/// One tenant's declared place: `database`, or `{type: database, database_url: …, password_file: …}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// What the tenant shall be.
    pub isolation: Isolation,
    /// A server of its own; may be a pattern. Says where its password lies, where it has none itself.
    pub database_url: Option<PgUrl>,
}

/// The long form of an [`Override`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LongOverride {
    r#type: Isolation,
    database_url: Option<PgUrl>,
    password_file: Option<PathBuf>,
}

impl<'de> Deserialize<'de> for Override {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Forms;

        impl<'de> Visitor<'de> for Forms {
            type Value = Override;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("shared, schema, database, or a block with type and database_url")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Override, E> {
                let word: StrDeserializer<'_, E> = word.into_deserializer();
                Ok(Override { isolation: Isolation::deserialize(word)?, database_url: None })
            }

            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Override, A::Error> {
                let long = LongOverride::deserialize(MapAccessDeserializer::new(entries))?;
                if long.r#type == Isolation::Shared && long.database_url.is_some() {
                    return Err(A::Error::custom("a shared tenant has no database_url"));
                }
                let file = long.password_file.as_ref();
                match &long.database_url {
                    None if file.is_some() => {
                        return Err(A::Error::custom("password_file is for a database_url, which is missing"));
                    }
                    Some(url) if file.is_some() && url.password.is_some() => {
                        return Err(A::Error::custom("database_url has a password and password_file names one too"));
                    }
                    _ => {}
                }
                let database_url = long.database_url.map(|url| url.or_password_file(file));
                Ok(Override { isolation: long.r#type, database_url })
            }
        }

        from.deserialize_any(Forms)
    }
}

/// `database_config`. How names are made from the patterns stands in [`super::Config::target`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatabaseConfig {
    /// The database that gets the tenants' schemas; `source.url` when not given.
    pub shared_database_url: Option<PgUrl>,
    /// Where a tenant's own database is and what it is called; `source.url`'s server and the
    /// tenant's name when not given.
    pub tenant_database_pattern: Option<PgUrl>,
    /// What a tenant's schema is called; `tenant_{tenant}` when not given.
    pub tenant_schema_pattern: Option<String>,
    /// Holds the password for the URLs of this block and of overrides that have none.
    pub password_file: Option<PathBuf>,
    /// A role that may create databases.
    pub admin_url: Option<PgUrl>,
    /// Copy and apply together.
    #[serde(deserialize_with = "between::<1, 1_000, _, _>")]
    pub max_connections_per_tenant: u32,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        DatabaseConfig {
            shared_database_url: None,
            tenant_database_pattern: None,
            tenant_schema_pattern: None,
            password_file: None,
            admin_url: None,
            max_connections_per_tenant: 20,
        }
    }
}

/// `migration_config`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MigrationConfig {
    /// Most rows applied per target transaction, unless one source transaction is larger.
    #[serde(deserialize_with = "between::<1, 1_000_000, _, _>")]
    pub batch_size: u32,
    /// Not used yet.
    pub validation_enabled: bool,
    /// Not used yet.
    pub rollback_enabled: bool,
    /// How long the reverse side is meant to be kept after a cutover. Not used yet.
    pub dual_write_duration: Span,
}

impl Default for MigrationConfig {
    fn default() -> Self {
        MigrationConfig {
            batch_size: 1_000,
            validation_enabled: true,
            rollback_enabled: true,
            dual_write_duration: Span(Duration::from_secs(24 * 60 * 60)),
        }
    }
}

//! The configuration file: its types, its defaults, and how it is read.
//!
//! The environment comes in as a closure and secrets stay in files that somebody else opens: nothing
//! here touches the machine. Every mistake is answered with line, column and key.

mod check;
mod env;
mod error;
mod pattern;
mod read;
mod service;
mod strategy;
mod target;
mod tenancy;
#[cfg(test)]
mod tests;
mod units;
mod unused;
mod yaml;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

pub use env::Environment;
pub use error::{ConfigError, Place};
pub use pattern::NameError;
pub use service::{Hooks, Http, Kafka, Limits, Log, LogFormat, Metrics, SourceLimits};
pub use strategy::{DatabaseConfig, Isolation, MigrationConfig, Override, TenantStrategy, Thresholds};
pub use target::Target;
pub use tenancy::{NullTenant, TablePolicy, Tenancy};
pub use units::{BadSize, BadSpan, ByteSize, Span};

use crate::tenant::{BadKey, KeyType};
use crate::url::PgUrl;
use units::{name, not_empty, slot_name};

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The shared database.
    pub source: Source,
    /// Whose rows are whose.
    pub tenancy: Tenancy,
    /// Who moves where.
    #[serde(default)]
    pub tenant_strategy: TenantStrategy,
    /// Whether `run` starts the moves that `tenant_overrides` declares.
    #[serde(default)]
    pub auto_start: bool,
    /// The daemon's records and spools.
    #[serde(default = "default_state_dir", deserialize_with = "not_empty")]
    pub state_dir: PathBuf,
    /// What the daemon may use.
    #[serde(default)]
    pub limits: Limits,
    /// Status, commands and metrics.
    #[serde(default)]
    pub http: Http,
    /// How metrics are labelled.
    #[serde(default)]
    pub metrics: Metrics,
    /// Programs around a step.
    #[serde(default)]
    pub hooks: Hooks,
    /// Kafka as a sink.
    #[serde(default)]
    pub kafka: Option<Kafka>,
    /// What is logged, and how.
    #[serde(default)]
    pub log: Log,
    /// See [`Config::unused`].
    #[serde(skip)]
    unused: Vec<String>,
}

/// The `source` block.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The shared database and a role that may replicate.
    pub url: PgUrl,
    /// Holds the password when `url` has none.
    pub password_file: Option<PathBuf>,
    /// The replication slot.
    #[serde(default = "default_name", deserialize_with = "slot_name")]
    pub slot: String,
    /// The publication.
    #[serde(default = "default_name", deserialize_with = "name")]
    pub publication: String,
    /// Whether standbys keep a copy of the slot (`FAILOVER`, since PostgreSQL 17).
    #[serde(default)]
    pub failover: bool,
}

fn default_name() -> String {
    "carveout".to_owned()
}

fn default_state_dir() -> PathBuf {
    PathBuf::from("./carveout-state")
}

/// An override's tenant cannot be one, or two overrides are one tenant's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadOverride {
    /// The text is no value of the tenant key's type.
    #[error("tenant_strategy.tenant_overrides: {0}")]
    Key(#[from] BadKey),
    /// `7` and `007`, or a uuid in two spellings.
    #[error("tenant_strategy.tenant_overrides: tenant \"{0}\" stands twice, in two spellings")]
    Twice(String),
}

impl Config {
    /// Reads a file's text. `environment` answers for `${NAME}`, which is replaced in values only:
    /// `${NAME}` and `${NAME:-default}` (also when empty), `$$` for a single `$`.
    pub fn parse(text: &str, environment: Environment) -> Result<Config, ConfigError> {
        let file = yaml::Node::read(text, environment)?;
        let mut config = Config::deserialize(read::Reader(&file)).map_err(|error| error.at(file.place))?;
        check::check(&config, &file)?;
        config.spread_password_files();
        config.unused = unused::keys(&file);
        Ok(config)
    }

    /// Says at every URL without a password where its block keeps it.
    fn spread_password_files(&mut self) {
        let Source { url, password_file, .. } = &mut self.source;
        *url = url.or_password_file(password_file.as_ref());
        let strategy = &mut self.tenant_strategy;
        let targets = &mut strategy.database_config;
        let file = targets.password_file.as_ref();
        let block = [&mut targets.shared_database_url, &mut targets.tenant_database_pattern, &mut targets.admin_url];
        let overrides = strategy.tenant_overrides.values_mut().map(|declared| &mut declared.database_url);
        block.into_iter().chain(overrides).flatten().for_each(|url| *url = url.or_password_file(file));
    }

    /// The dotted keys that the file sets and this version does not use yet.
    pub fn unused(&self) -> Vec<String> {
        self.unused.clone()
    }

    /// The declared tenants: id as written, isolation, and whether it has a `database_url` of its own.
    pub fn overrides(&self) -> impl Iterator<Item = (&str, Isolation, bool)> {
        let declared = &self.tenant_strategy.tenant_overrides;
        declared.iter().map(|(tenant, place)| (tenant.as_str(), place.isolation, place.database_url.is_some()))
    }

    /// Spells the overrides' tenants as PostgreSQL prints the key's type, which is only known once
    /// the source has been seen. Before that, a tenant in another spelling misses its `database_url`.
    pub fn canonical_overrides(&mut self, key: KeyType) -> Result<(), BadOverride> {
        let mut spelled = BTreeMap::new();
        for (tenant, place) in &self.tenant_strategy.tenant_overrides {
            let canonical = key.canonical(tenant)?.0;
            if spelled.insert(canonical.clone(), place.clone()).is_some() {
                return Err(BadOverride::Twice(canonical));
            }
        }
        self.tenant_strategy.tenant_overrides = spelled;
        Ok(())
    }
}

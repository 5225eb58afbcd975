//! The blocks about the daemon itself: limits, HTTP, metrics, hooks, Kafka, log.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::units::{ByteSize, Span, address, at_least_1mib, between, not_empty};

/// The `limits` block. All bounds are the daemon's, over all tenants, unless they say otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Queues and indexes in memory.
    #[serde(deserialize_with = "at_least_1mib")]
    pub memory: ByteSize,
    /// One tenant's changes on disk; beyond, its move needs a new copy.
    #[serde(deserialize_with = "at_least_1mib")]
    pub spool_per_tenant: ByteSize,
    /// All tenants' changes on disk.
    #[serde(deserialize_with = "at_least_1mib")]
    pub spool_total: ByteSize,
    /// Tables copied at the same time.
    #[serde(deserialize_with = "between::<1, 64, _, _>")]
    pub copy_parallel: u32,
    /// Rows copied per second; 0 is as fast as it goes.
    #[serde(deserialize_with = "between::<0, 1_000_000_000, _, _>")]
    pub copy_rows_per_second: u32,
    /// What the source may be busy with while it is copied from.
    pub source: SourceLimits,
    /// Connections to targets.
    #[serde(deserialize_with = "between::<1, 10_000, _, _>")]
    pub target_connections: u32,
    /// Slots in target databases for the way back. Not used yet.
    #[serde(deserialize_with = "between::<0, 10_000, _, _>")]
    pub reverse_slots: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            memory: ByteSize::mebibytes(256),
            spool_per_tenant: ByteSize::gibibytes(10),
            spool_total: ByteSize::gibibytes(50),
            copy_parallel: 4,
            copy_rows_per_second: 0,
            source: SourceLimits::default(),
            target_connections: 64,
            reverse_slots: 20,
        }
    }
}

/// `limits.source`: a copy stands still while the source is beyond one of these. 0 is no limit.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceLimits {
    /// Sessions of others that run a statement.
    #[serde(deserialize_with = "between::<0, 1_000_000, _, _>")]
    pub active_sessions: u32,
    /// Sessions of others that wait for a lock.
    #[serde(deserialize_with = "between::<0, 1_000_000, _, _>")]
    pub waiting_sessions: u32,
    /// How far the standby that is furthest behind may be behind.
    pub replica_lag: Span,
}

impl Default for SourceLimits {
    fn default() -> Self {
        SourceLimits { active_sessions: 0, waiting_sessions: 0, replica_lag: Span(Duration::ZERO) }
    }
}

impl SourceLimits {
    /// Whether there is one.
    pub fn any(&self) -> bool {
        *self != SourceLimits::default()
    }
}

/// The `http` block.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Where the daemon listens.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// Holds the token for commands; made with mode 0600 when it is missing.
    #[serde(deserialize_with = "not_empty")]
    pub token_file: PathBuf,
}

impl Default for Http {
    fn default() -> Self {
        Http { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8377)), token_file: PathBuf::from("./token") }
    }
}

/// The `metrics` block.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Whether metrics carry the label `tenant`.
    pub per_tenant: bool,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics { per_tenant: true }
    }
}

/// The `hooks` block: programs with their arguments, run around a step. `{tenant}` in an argument is the tenant.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hooks {
    /// Before a cutover closes the tenant.
    pub before_cutover: Option<Vec<String>>,
    /// After the flip.
    pub after_cutover: Option<Vec<String>>,
    /// Before a rollback closes the tenant.
    pub before_rollback: Option<Vec<String>>,
    /// After the flip back.
    pub after_rollback: Option<Vec<String>>,
    /// Before the source's rows are deleted.
    pub before_complete: Option<Vec<String>>,
    /// After they are.
    pub after_complete: Option<Vec<String>>,
}

/// Shows no arguments: they may hold secrets.
impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").finish_non_exhaustive()
    }
}

/// The `kafka` block. Not used yet.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kafka {
    /// `host:port`, several with commas.
    #[serde(deserialize_with = "not_empty")]
    pub brokers: String,
    /// The topic's name by `{schema}` and `{table}`.
    #[serde(default = "Kafka::default_topic", deserialize_with = "not_empty")]
    pub topic: String,
    /// Whether every change goes through Kafka to workers, instead of from the daemon to the target.
    #[serde(default)]
    pub relay: bool,
}

impl Kafka {
    fn default_topic() -> String {
        "carveout.{schema}.{table}".to_owned()
    }
}

/// The `log` block.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// What is written: a level, or directives as `tracing` knows them (`info,carveout=debug`).
    #[serde(deserialize_with = "not_empty")]
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Log { format: LogFormat::Text, level: "info".to_owned() }
    }
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

//! PostgreSQL: the replication connection (ours, on postgres-protocol) and every ordinary query
//! (tokio-postgres). All SQL text of the project is below this folder.

pub mod apply;
pub mod catalog;
pub mod checksum;
pub mod client;
mod collisions;
pub mod control;
pub mod copy;
pub mod error;
pub mod fence;
mod grants;
pub mod load;
pub mod password;
pub mod pgoutput;
pub mod policy;
pub mod preflight;
pub mod prepare;
pub mod progress;
pub mod proposal;
pub mod provision;
pub mod purge;
pub mod quote;
pub mod reverse;
pub mod sequences;
pub mod slot;
pub mod snapshot;
pub mod spare;
pub mod stream;
mod tls;
mod tree;
pub mod types;
pub mod version;
pub mod wire;

pub use error::{Doing, Error, Result};
pub use tokio_postgres::Client;

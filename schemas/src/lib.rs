//! Every shape that crosses a boundary: positions, tenants, snapshots, change messages' meaning,
//! move phases, stored records, configuration and status.
//!
//! No sockets, no clock, no tokio, no SQL: everything here is pure and can be tested by itself.

pub mod config;
pub mod event;
pub mod lsn;
pub mod phase;
pub mod record;
pub mod snapshot;
pub mod status;
pub mod table;
pub mod tenant;
pub mod url;

pub use lsn::Lsn;
pub use phase::Phase;
pub use snapshot::Snapshot;
pub use table::{TableName, TablePath};
pub use tenant::{MoveId, TenantId};

//! Where a tenant goes, and at what rate: servers of its own, moves that are held and let go, copies that give way
//! to the source's load.

mod hold;
mod load;
mod server;

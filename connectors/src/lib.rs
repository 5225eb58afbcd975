//! Everything with a socket: PostgreSQL as source and as target. Knows nothing of moves.

pub mod postgres;

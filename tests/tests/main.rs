//! One module per promise.

#![allow(clippy::too_many_lines, reason = "a promise is one story, told from top to bottom")]

mod cancel;
mod carve;
mod chinook;
mod cutover;
mod faults;
mod fence;
mod hands;
mod join;
mod kills;
mod life;
mod memory;
mod partitions;
mod pgbench;
mod place;
mod provision;
mod purge;
mod reference;
mod rehearse;
mod rows;
mod sequences;
mod settle;
mod shape;
mod shop;
mod spare;
mod stages;
mod surface;
mod synchronous;
mod tls;
mod types;
mod verifier;
mod versions;
mod via;

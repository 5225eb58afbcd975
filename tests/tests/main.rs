//! One module per promise.
mod carve;
mod faults;
mod join;
mod kills;
mod memory;
mod pgbench;
mod rows;
mod settle;
mod surface;
mod synchronous;

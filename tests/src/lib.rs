//! The harness that the promises in `tests/tests/` stand on: it speaks to real PostgreSQL servers and to
//! the built binary, and it judges by means of its own. It must never take the product's word for
//! something that it can look up itself: the oracle computes its digests, the configuration is written
//! as a person would write it, the daemon is reached over HTTP and the command line only.
//!
//! | module | gives |
//! |---|---|
//! | [`scene`] | one or two private clusters, pgbench's tables or none, a configuration file |
//! | [`load`] | unmodified pgbench writing while a test does its work |
//! | [`binary`] | where `target/release/carveout` is, and one run of a command |
//! | [`daemon`] | `carveout run` as a process: start, kill, terminate, ask |
//! | [`http`] | the few lines of HTTP/1.1 that asking takes |
//! | [`proxy`] | a TCP proxy that delays, swallows, refuses and cuts |
//! | [`oracle`] | whether a tenant is the same on both sides |
//! | [`wait`] | a condition with a deadline, in place of a sleep |
//! | [`seed`] | random numbers that can be had again |
//! | [`hostile`] | a schema with names and columns that are hard to take along |
//! | [`workload`] | a random application that writes to it |
//!
//! The private clusters themselves are the demo's: `daemon::demo::cluster`.

pub mod binary;
pub mod daemon;
pub mod hostile;
pub mod http;
pub mod load;
pub mod oracle;
pub mod proxy;
pub mod scene;
pub mod seed;
pub mod wait;
pub mod workload;

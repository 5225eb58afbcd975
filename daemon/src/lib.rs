//! The program: pipeline, router, spools, lanes, moves, and what people touch. Contains no SQL.

pub mod ack;
pub mod cli;
pub mod clock;
pub mod demo;
pub mod events;
mod gently;
pub mod http;
pub mod lane;
mod lanes;
pub mod load;
pub mod metrics;
pub mod moves;
pub mod ownership;
pub mod pipeline;
pub mod router;
pub mod spool;
pub mod stop;
pub mod store;
pub mod supervisor;
pub mod throttle;

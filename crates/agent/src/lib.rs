//! Beside the resource: holds the tunnel, serves SSH sessions, records them.
//!
//! [`service`] builds and runs an SSH Service; `tunnel` and `direct` bring it connections, [`ssh`] serves one
//! connection from its first byte to the recording, [`record`], [`spool`] and [`events`] keep what must not be lost until the
//! cluster has it. What is known of the cluster is `client`'s cache: sessions open while every Auth Service is away.
//! Nothing here opens a store, and nothing listens when the host joined by tunnel.

mod direct;
pub mod events;
mod follow;
pub mod metrics;
mod proxies;
pub mod record;
pub mod rescue;
pub mod service;
pub mod spool;
pub mod ssh;
mod tunnel;
pub mod world;

pub use metrics::Metrics;
pub use service::{Agent, AgentError, Config, World};

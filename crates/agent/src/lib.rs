//! Beside the resource: holds the tunnel, serves SSH sessions, records them.
//!
//! [`service`] builds and runs an SSH Service; [`tunnel`] and [`direct`] bring it connections, [`ssh`] serves one
//! connection from its first byte to the recording, [`record`], [`spool`] and [`events`] keep what must not be lost until the
//! cluster has it. What the service needs of the cluster are the two traits of [`world`]; [`cluster`] implements them over
//! `client`. Nothing here opens a store, and nothing listens when the host joined by tunnel.

pub mod events;
pub mod record;
pub mod spool;
pub mod ssh;
pub mod world;

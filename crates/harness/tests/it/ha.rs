//! Several of each: Auth Services on one store, Proxies before the same hosts, and what goes on when some or all of a kind are gone.
//!
//! `moving` has the Auth Services in this process, where each step can be chosen; the others run real processes, those with
//! several Auth Services over a real etcd or PostgreSQL.

mod autonomy;
mod failover;
mod load;
mod many;
mod moving;
mod proxies;
mod recordings;
pub(crate) mod servers;
mod storm;
mod witness;

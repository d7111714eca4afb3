//! The only way to talk to a cluster from outside: API client, watch-fed cache, profiles and keys, login, connect.
//!
//! Members (`proxy`, `agent`) use [`host`], [`api`], [`cache`] and [`presence`]; `tsh` and `tctl` use [`profile`], [`login`],
//! [`connect`], [`ssh`] and [`identity_file`]. Nothing here decides who may do what: that is `rules`, which this crate does
//! not know. What is decided here is whom *we* believe: [`trust`].

pub mod api;
pub mod cache;
pub mod connect;
pub mod credentials;
pub mod host;
pub mod identity_file;
pub mod keys;
pub mod known_proxies;
pub mod login;
pub mod presence;
pub mod profile;
pub mod ssh;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod trust;

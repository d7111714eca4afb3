//! Whole rounds of an updater over real files, real signatures and real archives; the network, the service and the clock are a
//! [`host::Host`]'s. With real processes: crate `harness`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests and their helpers fail by panicking"
)]

mod attacks;
mod host;
mod ways;

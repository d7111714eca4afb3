//! Whole rounds of an updater over real files, real signatures and real archives; the network, the service and the clock are a
//! [`host::Host`]'s. With real processes: crate `harness`.

mod attacks;
mod host;
mod ways;

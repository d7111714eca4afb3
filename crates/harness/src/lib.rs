//! Whole clusters for tests and benches: real processes, real OpenSSH, nothing faked.
//!
//! [`cluster`] starts the program beside the running test (`target/<profile>/lockgate`) as services with their own
//! directories and free ports; [`person`] is somebody with a login; [`run`] runs any command with a deadline; [`binary`] finds the
//! program, and builds it as another version for the version matrix; [`live`] puts another in its place while it runs; [`fuzz`] throws broken bytes at parsers. What is waited
//! for is polled with a deadline ([`wait`]), never slept for.
#![allow(
    clippy::panic,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "test code: it fails by panicking, and shows the services' logs when it does"
)]

pub mod binary;
pub mod cluster;
pub mod fuzz;
pub mod live;
pub mod person;
pub mod process;
pub mod run;
pub mod wait;

pub use cluster::{Cluster, Setup};
pub use person::Person;
pub use run::{Ran, Run};
pub use wait::eventually;

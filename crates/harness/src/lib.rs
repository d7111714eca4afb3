//! Whole clusters for tests and benches: real processes, real OpenSSH.

pub mod fuzz;

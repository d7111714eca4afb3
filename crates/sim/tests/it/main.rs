//! Many worlds, each played twice. `SIM_SEEDS` and `SIM_AGENTS` make them more and larger; `make sim` does.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "helpers of tests are test code too")]

mod seeds;

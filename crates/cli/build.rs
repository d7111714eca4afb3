//! Bakes the version in. `LOCKGATE_TEST_VERSION` makes a binary claim another number, for the version matrix only: an
//! optimised (release) build refuses it, so that no shipped program can lie about what it is.
#![allow(clippy::panic, clippy::print_stdout, reason = "a build script speaks to cargo on standard output and stops a build by panicking")]

use std::{env, process::Command};

fn main() {
    println!("cargo::rerun-if-env-changed=LOCKGATE_TEST_VERSION");
    let package = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let version = match env::var("LOCKGATE_TEST_VERSION") {
        Ok(test) if env::var("PROFILE").as_deref() == Ok("release") => {
            panic!("LOCKGATE_TEST_VERSION={test} is refused in release builds")
        }
        Ok(test) => test,
        Err(_) => package,
    };
    println!("cargo::rustc-env=LOCKGATE_VERSION={version}");
    let git = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok().filter(|out| out.status.success());
    let reference = git.and_then(|out| String::from_utf8(out.stdout).ok()).map_or_else(|| "unknown".into(), |text| text.trim().to_owned());
    println!("cargo::rustc-env=LOCKGATE_GITREF={reference}");
}

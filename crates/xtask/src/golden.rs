//! `cargo xtask golden [--check]`: the Rust of the API from its `.proto`, written into `crates/wire` and checked in.
//!
//! Checked in, so that nobody who builds Lockgate needs a compiler of protocol buffers, and so that a change of the API
//! shows in review as the change of code that it is. With `--check` nothing is written and a difference is a fault.
//! Promises: the same `.proto` gives the same bytes on every machine (maps are ordered, the text goes through rustfmt with
//! the rules of this repository). Transport stays out: `wire` has no sockets, callers bring a channel.

use crate::run::{Root, capture};
use anyhow::{Context, Result, bail};
use prost_types::FileDescriptorSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What is generated: the source, the package it declares, and the file that comes out.
const PROTO_DIR: &str = "crates/wire/proto";
const PROTO_FILE: &str = "lockgate/v1/api.proto";
const PACKAGE_FILE: &str = "lockgate.v1.rs";
const OUTPUT: &str = "crates/wire/src/api/generated.rs";

const HEADER: &str = "\
//! The API's messages, client and server, generated from `crates/wire/proto/lockgate/v1/api.proto`.
//!
//! Do not edit: change the `.proto` and run `cargo xtask golden`. `cargo xtask check` compares the two.
//! Numbers of fields are frozen once released; what may change and how is said in the `.proto` itself.

#![allow(clippy::all, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, unused_qualifications, unreachable_pub)]
#![allow(missing_docs, rustdoc::all)]

";

/// Writes the generated code, or with `check` compares it with what is there.
pub(crate) fn golden(root: &Root, check: bool) -> Result<()> {
    let wanted = generate(root)?;
    let path = root.path(OUTPUT);
    let present = fs::read_to_string(&path).unwrap_or_default();
    if present == wanted {
        return Ok(());
    }
    if check {
        bail!("{OUTPUT} is not what {PROTO_DIR}/{PROTO_FILE} generates: {}; run `cargo xtask golden`", first_difference(&present, &wanted));
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&path, wanted).with_context(|| format!("could not write {OUTPUT}"))
}

/// The compiled `.proto`.
pub(crate) fn descriptors(root: &Root) -> Result<FileDescriptorSet> {
    let include = root.path(PROTO_DIR);
    // The miette report carries file, line and column; Debug prints them.
    protox::compile([include.join(PROTO_FILE)], [&include]).map_err(|fault| anyhow::anyhow!("{fault:?}"))
}

fn generate(root: &Root) -> Result<String> {
    let descriptors = descriptors(root)?;
    let scratch = tempfile::tempdir()?;
    tonic_prost_build::configure()
        .out_dir(scratch.path())
        .build_client(true)
        .build_server(true)
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .bytes(".")
        .btree_map(".")
        .compile_fds(descriptors)
        .context("could not generate code from the descriptors")?;
    let code = fs::read_to_string(scratch.path().join(PACKAGE_FILE))
        .with_context(|| format!("the .proto does not declare the package that gives {PACKAGE_FILE}"))?;
    let file = scratch.path().join("generated.rs");
    fs::write(&file, format!("{HEADER}{code}"))?;
    format(root, &file)?;
    Ok(fs::read_to_string(&file)?)
}

fn format(root: &Root, file: &Path) -> Result<()> {
    let mut command = Command::new("rustfmt");
    command.arg("--edition").arg("2024").arg("--config-path").arg(root.path("rustfmt.toml")).arg(file);
    capture(&mut command).map(drop)
}

/// Names the first line that differs, for a message that fits on one line.
pub(crate) fn first_difference(present: &str, wanted: &str) -> String {
    let pairs = present.lines().zip(wanted.lines()).enumerate();
    for (index, (left, right)) in pairs {
        if left != right {
            return format!("line {} is `{}`, should be `{}`", index + 1, left.trim(), right.trim());
        }
    }
    format!("it has {} lines, should have {}", present.lines().count(), wanted.lines().count())
}

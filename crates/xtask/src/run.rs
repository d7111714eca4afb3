//! Where the repository is, and running another program from it.
//!
//! Every command runs at the repository's root, so that relative paths in messages are the ones a reader can open.
//! What a program printed is shown only when it failed: a clean check is a short one.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The repository's top directory.
pub(crate) struct Root(PathBuf);

impl Root {
    /// Found from where this crate was compiled; two levels up.
    pub(crate) fn find() -> Result<Root> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let top = here.ancestors().nth(2).context("xtask does not lie in crates/xtask")?;
        Ok(Root(top.to_path_buf()))
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.0.join(relative)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.0
    }

    /// `cargo` at the root, the same one that started us.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.0);
        command
    }
}

/// Runs to the end and returns standard output; when the program fails, the error holds everything it printed.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let shown = format!("{:?}", command.get_program());
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("could not start {shown}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    let faults = String::from_utf8_lossy(&output.stderr);
    bail!("{}\n{}{}", output.status, printed, faults)
}

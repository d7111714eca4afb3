//! What a command needs that works on the Auth Service's own files while no Auth Service runs: its settings, and the right to them.

use super::{
    StartArgs,
    process::{DataLock, make_private},
    settings,
};
use std::path::PathBuf;
use types::Public;

/// The place of an Auth Service that does not run. The data directory is this process's as long as this lives.
pub(crate) struct Offline {
    pub(crate) data_dir: PathBuf,
    pub(crate) storage: auth::Storage,
    _alone: DataLock,
}

/// Reads the configuration as `lockgate start` would, makes the data directory and takes it. Opens nothing in it.
pub(crate) fn take(config: Option<PathBuf>, data_dir: Option<PathBuf>) -> Result<Offline, Public> {
    let settings = settings::resolve(&StartArgs { config, data_dir, ..StartArgs::default() })?;
    make_private(&settings.data_dir)?;
    let alone = DataLock::take(&settings.data_dir)?;
    make_private(&settings.data_dir.join("auth"))?;
    Ok(Offline { data_dir: settings.data_dir, storage: settings.auth.storage, _alone: alone })
}

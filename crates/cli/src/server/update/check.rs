//! `lockgate update check`: whether this program could run here. Changes nothing and opens no port.
//!
//! It starts, reads the configuration, reads the host's certificate and, where an Auth Service keeps its state here, the control
//! record of that, and knocks at a Proxy. What is wrong with the release or what it finds is *failed*; a Proxy that does not answer
//! is *unclear*, since the network may be away.

use super::{WhereArgs, world::Checked, world::Door};
use crate::{
    config::{self, Config},
    exit::{Could as _, Outcome},
    output::write_out,
};
use agent::rescue::RescueError;
use net::{dial::DialError, frame::FrameError};
use std::{path::Path, process::ExitCode};
use types::{Code, Public};

/// Why it could not run.
enum Why {
    Failed(String),
    Unclear(String),
}

impl From<Public> for Why {
    fn from(public: Public) -> Self {
        Self::Failed(public.message)
    }
}

pub(super) fn check(place: &WhereArgs) -> Outcome {
    let (verdict, why) = match tried(place) {
        Ok(()) => ("passed", String::new()),
        Err(Why::Failed(why)) => ("failed", why),
        Err(Why::Unclear(why)) => ("unclear", why),
    };
    let checked = Checked { version: crate::version(), verdict: verdict.into(), why };
    let text = serde_json::to_string(&checked).unwrap_or_default();
    write_out(&format!("{text}\n")).could("say whether this release could run").map(|()| ExitCode::SUCCESS)
}

fn tried(place: &WhereArgs) -> Result<(), Why> {
    let file = place.config.clone().or_else(|| Some(config::DEFAULT_PATH.into()).filter(|path: &std::path::PathBuf| path.exists()));
    if let Some(path) = &file {
        let faults = Config::load(path)?.check();
        if !faults.is_empty() {
            return Err(Why::Failed(format!("{}: {}", path.display(), faults.join("; "))));
        }
    }
    let settings = place.settings()?;
    store(&settings.data_dir.join("auth/state.db"))?;
    let credentials = settings.credentials()?;
    let runtime = crate::connection::runtime()?;
    let knocked = runtime.block_on(Door::new(credentials, settings.proxies).open());
    match knocked {
        Ok(_) => Ok(()),
        Err(error) if away(&error) => Err(Why::Unclear(error.public().message)),
        Err(error) => Err(Why::Failed(error.public().message)),
    }
}

/// Whether the network may be to blame.
fn away(error: &RescueError) -> bool {
    match error {
        RescueError::Dial(DialError::Resolve { .. } | DialError::Unreachable { .. } | DialError::Timeout { .. }) => true,
        RescueError::Frame(FrameError::Timeout | FrameError::Io(_)) => true,
        RescueError::Refused(public) => public.is(Code::Unreachable) || public.is(Code::Unavailable),
        _ => false,
    }
}

/// The control record of an Auth Service's own file, read without a change of it (rules G2 and G5).
fn store(path: &Path) -> Result<(), Why> {
    if !path.exists() {
        return Ok(());
    }
    let Some(bytes) = store::sqlite::peek(path).map_err(|error| Why::Failed(error.to_string()))? else { return Ok(()) };
    let record = store::control::parse(&bytes).map_err(Why::Failed)?;
    upgrade::control::may_start(Some(&record), &crate::version()).map(drop)?;
    Ok(())
}

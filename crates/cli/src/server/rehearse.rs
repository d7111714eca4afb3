//! `lockgate rehearse --store=FILE`: this release's migrations, there and back, on a copy of a store (design 3.6).
//!
//! Other releases run it and read the one line of JSON that it prints (`auth::Rehearsed`); it only grows.

use crate::{
    connection::runtime,
    exit::{Could as _, Outcome},
    output::write_out,
};
use std::{path::Path, process::ExitCode, sync::Arc, time::Instant};
use store::{Sqlite, Store};
use types::{Code, Public};

pub(super) fn rehearse(path: &Path) -> Outcome {
    const COULD: &str = "rehearse the upgrade";
    if !path.is_file() {
        return Err(Public::new(Code::Usage, format!("{}: there is no such file", path.display()))).could(COULD);
    }
    if !path.with_file_name(auth::REHEARSAL).exists() {
        let refused = Public::new(Code::Usage, format!("{} is not marked as a copy that is nobody's", path.display()));
        return Err(refused.hint("the upgrade rehearses by itself, on what a backup brought back")).could(COULD);
    }
    let registry = upgrade::migrate::registry().map_err(|error| Public::new(Code::Internal, error.to_string())).could(COULD)?;
    let began = Instant::now();
    let opened = Sqlite::open(path, Arc::new(store::System)).map_err(|error| Public::new(Code::StoreBroken, error.to_string()));
    let store: Arc<dyn Store> = Arc::new(opened.could(COULD)?);
    let said = runtime().could(COULD)?.block_on(async {
        let said = migrate::rehearse(store.clone(), &registry, &crate::version()).await;
        store.close().await;
        said
    });
    let seconds = began.elapsed().as_secs();
    let told = match said {
        Ok(seen) => auth::Rehearsed { failed: seen.failed.unwrap_or_default(), bad_rows: seen.bad_rows, rows: seen.rows, seconds },
        Err(error) => auth::Rehearsed { failed: error.to_string(), seconds, ..auth::Rehearsed::default() },
    };
    let line = serde_json::to_string(&told).map_err(|error| Public::new(Code::Internal, error.to_string())).could(COULD)?;
    write_out(&format!("{line}\n")).could(COULD).map(|()| ExitCode::SUCCESS)
}

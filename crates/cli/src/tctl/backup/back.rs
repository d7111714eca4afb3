//! `tctl backup restore` and `drill`: from the file to a cluster.

use super::{Bar, FileArgs, read::head_json, size};
use crate::{
    connection::runtime,
    exit::{Could as _, Failure, Outcome},
    output::{Format, Style, show_value, write_out},
    server::offline,
    tctl::Global,
};
use auth::backup::{Drilled, Progress, RestoreError, Restored, Stage, Terms};
use backup::{Trust, Unlock};
use net::clock::SystemClock;
use serde_json::{Value, json};
use std::{future::Future, path::Path, process::ExitCode, sync::Arc, time::Duration};
use types::{Code, Public, Time};

pub(super) fn terms(args: &FileArgs, unlock: Unlock, trust: Trust) -> Terms {
    let now = Time::from(std::time::SystemTime::now());
    Terms { unlock, trust, ca_pin: args.ca_pin.clone(), version: crate::version(), now }
}

/// Runs with a line that says how far it has come: each stage by itself.
async fn shown<T>(progress: &Progress, work: impl Future<Output = T>) -> T {
    let mut bar: Option<(Stage, Bar)> = None;
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = tick.tick() => {
                let (stage, done, total) = progress.so_far();
                if bar.as_ref().is_none_or(|(shown, _)| *shown != stage) {
                    let what = match stage {
                        Stage::Proving => "Proving",
                        Stage::Writing => "Writing",
                        Stage::Comparing => "Comparing",
                        Stage::Using => "Using",
                    };
                    bar = Some((stage, Bar::new(what, total)));
                }
                if let Some((_, bar)) = &mut bar {
                    bar.show(done, "");
                }
            }
        }
    }
}

/// `tctl backup restore`
pub(super) fn restore(global: &Global, args: &FileArgs, any_signer: bool, format: Format) -> Outcome {
    let could = || args.what("restore");
    let trust = args.trust()?;
    if trust == Trust::Any && args.ca_pin.is_none() && !any_signer {
        let found = backup::inspect(args.open()?).map_err(|error| error.public()).could(could())?;
        let cause = Public::new(Code::Usage, "it was not said whose backup this must be")
            .hint(format!("it names {} as its signer; if that is what you noted: --signer={0}", found.signer.fingerprint()));
        return Err(Failure::new(could(), cause));
    }
    let terms = terms(args, args.must_unlock()?, trust);
    let file = args.open()?;
    let place = offline::take(global.config.clone(), global.data_dir.clone()).could("use the data directory")?;
    let progress = Arc::new(Progress::default());
    let restored = runtime().could(could())?.block_on(async {
        let store = auth::open_storage(&place.storage, SystemClock::shared()).await.map_err(|error| error.public())?;
        let restored = shown(&progress, auth::backup::restore(store.clone(), file, terms, progress.clone())).await;
        store.close().await;
        restored.map_err(|error| error.public())
    });
    let restored = restored.could(could())?;
    if format != Format::Text {
        return show_value(format, &restored_json(&restored)).could("print the result").map(|()| ExitCode::SUCCESS);
    }
    let mut text = restored_text(&restored);
    let done = Style::of_stdout().green(&format!("Restored into {}", place.data_dir.display()));
    let fenced = format!("every Auth Service that lived before is fenced (epoch {})", restored.epoch);
    match &restored.first {
        None => text.push_str(&format!("{done}. Start the Auth Service on it: {fenced}.\n")),
        Some(first) => {
            let hint = first.hint.as_deref().map(|hint| format!(" ({hint})")).unwrap_or_default();
            text.push_str(&format!("{done}: {fenced}.\n! This release does not start on it yet: {}{hint}.\n", first.message));
        }
    }
    text.push_str(&format!(
        "The pins are unchanged: {}\nIts address may be new: agents and Proxies find it where their configuration says. Nobody needs a new token.\n",
        restored.pins.join(" ")
    ));
    write_out(&text).could("print the result").map(|()| ExitCode::SUCCESS)
}

fn restored_json(restored: &Restored) -> Value {
    json!({"head": head_json(&restored.head), "manifest": restored.manifest, "summary": restored.summary, "skipped": restored.skipped,
        "pins": restored.pins, "epoch": restored.epoch, "items": restored.items, "expired": restored.expired,
        "content": restored.compared.content, "compared": restored.compared.records, "first": restored.first})
}

fn restored_text(restored: &Restored) -> String {
    let mut text = format!(
        "Backup {} of cluster \"{}\", made {}\n{} items were written; {} of them do not expire and were read back and compared.\n",
        restored.head.id,
        restored.head.cluster,
        restored.head.created.whole_seconds(),
        restored.items,
        restored.compared.records
    );
    if restored.expired > 0 {
        text.push_str(&format!("{} items had expired since and were left out.\n", restored.expired));
    }
    if !restored.skipped.is_empty() {
        text.push_str(&format!("! sections of a newer release were left out: {:?}\n", restored.skipped));
    }
    if let Some(audit) = &restored.manifest.audit {
        text.push_str(&format!(
            "The audit log goes on behind event {}; the earlier events are in the old log's files only.\n",
            audit.index
        ));
    }
    text
}

/// `tctl backup drill`
pub(super) fn drill(args: &FileArgs, scratch: Option<&Path>, format: Format) -> Outcome {
    let could = || format!("{} in a drill", args.what("restore"));
    let terms = terms(args, args.must_unlock()?, args.trust()?);
    let file = args.open()?;
    let base = scratch.map_or_else(std::env::temp_dir, Path::to_owned);
    let progress = Arc::new(Progress::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().could(could())?;
    let drilled: Result<Drilled, RestoreError> = runtime.block_on(async {
        let work = auth::backup::drill(&base, file, terms, SystemClock::shared(), progress.clone());
        Box::pin(shown(&progress, work)).await
    });
    runtime.shutdown_timeout(Duration::from_secs(2));
    let drilled = drilled.map_err(|error| error.public()).could(could())?;
    if format != Format::Text {
        let value = json!({"restored": restored_json(&drilled.restored), "users": drilled.users, "roles": drilled.roles,
            "certificate": drilled.certificate, "audit": drilled.audit});
        return show_value(format, &value).could("print the result").map(|()| ExitCode::SUCCESS);
    }
    let mut text = restored_text(&drilled.restored);
    text.push_str(&format!("An administrator was let in and read {} users and {} roles.\n", drilled.users, drilled.roles));
    match &drilled.certificate {
        Some(user) => text.push_str(&format!("A certificate of one minute was issued for {user}, and its holder was let in.\n")),
        None => text.push_str("No user could have a certificate; none was issued.\n"),
    }
    if !drilled.audit.is_empty() {
        text.push_str(&format!("The audit log holds: {}.\n", drilled.audit));
    }
    text.push_str(&format!(
        "{}: {} of content came back. The scratch directory is removed.\n",
        Style::of_stdout().green("The drill passed"),
        size(drilled.restored.compared.bytes)
    ));
    write_out(&text).could("print the result").map(|()| ExitCode::SUCCESS)
}

//! `tctl backup verify` and `inspect`: what can be said of a file without a cluster.

use super::{Bar, FileArgs, size};
use crate::{
    exit::{Could as _, Failure, Outcome},
    output::{Format, Style, show_value, write_out},
};
use backup::{Head, Lock, Trust};
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    io::{BufReader, Read, Seek, SeekFrom},
    process::ExitCode,
};
use types::{Code, Public};

/// Shows how far a reader has come.
struct Watched<R> {
    inner: R,
    at: u64,
    bar: Bar,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(into)?;
        self.at += count as u64;
        self.bar.show(self.at, "");
        Ok(count)
    }
}
impl<R: Seek> Seek for Watched<R> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.at = self.inner.seek(to)?;
        Ok(self.at)
    }
}

fn watched(file: &FileArgs) -> Result<BufReader<Watched<std::fs::File>>, Failure> {
    let inner = file.open()?;
    let total = inner.metadata().ok().map(|meta| meta.len());
    Ok(BufReader::with_capacity(1 << 20, Watched { inner, at: 0, bar: Bar::new("Reading", total) }))
}

/// What a head says, for scripts.
pub(super) fn head_json(head: &Head) -> Value {
    let lock = match &head.lock {
        Lock::Unencrypted => json!("none"),
        Lock::Passphrase => json!("passphrase"),
        Lock::Recipients(recipients) => json!(recipients),
    };
    json!({"format": head.format, "id": head.id.to_string(), "cluster": head.cluster, "cluster_id": head.cluster_id,
        "product": head.product, "created": head.created, "signer": head.signer.fingerprint().to_string(), "encryption": lock})
}

fn head_text(head: &Head) -> String {
    let lock = match &head.lock {
        Lock::Unencrypted => "none".to_owned(),
        Lock::Passphrase => "to a passphrase".to_owned(),
        Lock::Recipients(recipients) => format!("to {}", recipients.join(", ")),
    };
    format!(
        "Cluster     {} ({})\nCreated     {} by Lockgate {}\nId          {}\nSigner      {}\nEncryption  {lock}\n",
        head.cluster,
        head.cluster_id,
        head.created.whole_seconds(),
        head.product,
        head.id,
        head.signer.fingerprint()
    )
}

/// What is in a file that was opened.
#[derive(Default)]
struct Contents {
    json: Value,
    text: String,
}

fn opened<R>(verified: &backup::Verified<R>) -> Contents {
    let (manifest, summary) = (verified.manifest(), verified.summary());
    let mut text = format!(
        "Revision    {} of {} at epoch {}\nRecords     {}, {}\nContent     {}\n",
        manifest.revision,
        manifest.driver,
        manifest.epoch,
        summary.records,
        size(summary.bytes),
        summary.content
    );
    if let Some(level) = manifest.cluster_version {
        // Writing into a String cannot fail.
        let _infallible = writeln!(text, "Formats     {}.{}", level.major, level.step);
    }
    if let Some(audit) = &manifest.audit {
        let _infallible = writeln!(text, "Audit log   up to event {}, hash {}", audit.index, audit.hash);
    }
    for (kind, count) in &summary.kinds {
        let _infallible = writeln!(text, "  {count:>8}  {kind}");
    }
    if !verified.skipped().is_empty() {
        let _infallible = writeln!(text, "! sections of a newer release were left out: {:?}", verified.skipped());
    }
    let json = json!({"manifest": manifest, "summary": summary, "skipped": verified.skipped(), "bytes": verified.bytes(),
        "digest": verified.digest().to_string()});
    Contents { json, text }
}

/// `tctl backup verify`
pub(super) fn verify(args: &FileArgs, format: Format) -> Outcome {
    let (trust, unlock) = (args.trust()?, args.unlock()?);
    let could = || args.what("verify");
    let (head, bytes, contents) = match unlock {
        Some(unlock) => {
            pinned(args, &unlock, &trust).could(could())?;
            let verified = backup::verify(watched(args)?, &unlock, &trust).map_err(|error| error.public()).could(could())?;
            (verified.head().clone(), verified.bytes(), Some(opened(&verified)))
        }
        None if args.ca_pin.is_some() => return Err(Failure::new(could(), needs_key())),
        None => {
            let checked = backup::check(watched(args)?, &trust).map_err(|error| error.public()).could(could())?;
            (checked.head, checked.bytes, None)
        }
    };
    if format != Format::Text {
        let value = json!({"intact": true, "opened": contents.is_some(), "signer_checked": trust != Trust::Any,
            "head": head_json(&head), "bytes": bytes, "contents": contents.map(|contents| contents.json)});
        return show_value(format, &value).could("print the result").map(|()| ExitCode::SUCCESS);
    }
    let style = Style::of_stdout();
    let mut text = head_text(&head);
    match &contents {
        Some(contents) => {
            text.push_str(&contents.text);
            let _infallible = writeln!(text, "{}: all {} were read and proven.", style.green("The backup is intact"), size(bytes));
        }
        None => {
            let _infallible = writeln!(
                text,
                "{}: {} are whole, in order and signed. What is inside was not opened: give --identity-file or --passphrase-file.",
                style.green("The file is intact"),
                size(bytes)
            );
        }
    }
    if trust == Trust::Any && args.ca_pin.is_none() {
        text.push_str("Anybody can sign a file: compare the signer with what you noted, or give it as --signer.\n");
    }
    write_out(&text).could("print the result").map(|()| ExitCode::SUCCESS)
}

fn needs_key() -> Public {
    Public::new(Code::BackupKey, "a pin is compared with the key inside the backup")
        .hint("give --identity-file or --passphrase-file, or --signer in place of --ca-pin")
}

/// Whether the authority's key inside belongs to the pin that was given.
#[cfg(feature = "server")]
fn pinned(args: &FileArgs, unlock: &backup::Unlock, trust: &Trust) -> Result<(), Public> {
    if args.ca_pin.is_none() {
        return Ok(());
    }
    let terms = super::back::terms(args, unlock.clone(), trust.clone());
    let file = std::fs::File::open(args.path()).map_err(|error| crate::exit::io(&error))?;
    auth::backup::restore::prove(file, &terms, &Default::default()).map(|_| ()).map_err(|error| error.public())
}
#[cfg(not(feature = "server"))]
fn pinned(args: &FileArgs, _: &backup::Unlock, _: &Trust) -> Result<(), Public> {
    match args.ca_pin {
        None => Ok(()),
        Some(_) => Err(crate::exit::usage("this program has no Auth Service in it and cannot compare pins; give --signer")),
    }
}

/// `tctl backup inspect`
pub(super) fn inspect(args: &FileArgs, format: Format) -> Outcome {
    let could = || args.what("inspect");
    let given = args.identity_file.is_some() || args.passphrase_file.is_some();
    let (head, contents) = if given {
        let (trust, unlock) = (args.trust()?, args.must_unlock()?);
        let verified = backup::verify(watched(args)?, &unlock, &trust).map_err(|error| error.public()).could(could())?;
        (verified.head().clone(), Some(opened(&verified)))
    } else {
        (backup::inspect(args.open()?).map_err(|error| error.public()).could(could())?, None)
    };
    if format != Format::Text {
        let value = json!({"proven": contents.is_some(), "head": head_json(&head), "contents": contents.map(|contents| contents.json)});
        return show_value(format, &value).could("print the file").map(|()| ExitCode::SUCCESS);
    }
    let rest = contents.map_or_else(|| "Nothing of it was proven: tctl backup verify\n".to_owned(), |contents| contents.text);
    write_out(&(head_text(&head) + &rest)).could("print the file").map(|()| ExitCode::SUCCESS)
}

//! `lockgate release …`: a folder of releases with signed metadata, for whoever publishes (docs/updates.md).
//!
//! The folder is a mirror as Proxies serve it, so it can be copied to one as it is, by whatever copies files. What is signed and how
//! is `release::repository`'s.

use crate::{
    exit::{Could as _, Failure, Outcome},
    output::{Format, Style, show_value, write_out},
};
use clap::{Args, Subcommand};
use net::clock::{Clock as _, SystemClock};
use release::{
    Folder, Trust,
    keys::{Signer, Verifier},
    repository::{self, Done, Lives, Vouchers},
};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};
use types::{Code, Public, Ttl};

/// More signatures are needed.
const WAITING: u8 = 2;

#[derive(Subcommand, Debug)]
pub(crate) enum Release {
    /// Makes a signer's key: the private half in FILE, mode 0600, the public half in FILE.pub
    Keygen {
        /// Must not be there yet
        file: PathBuf,
    },
    /// Begins a repository, or its next root: who vouches for releases, and how many of them it takes
    #[command(
        after_help = "Then sign: lockgate release sign DIR --key=… with enough keys, of the root before too.\n\nExamples:\n  lockgate release init /srv/releases --signer=a.pub --signer=b.pub --signer=c.pub --threshold=2 --online=online.pub"
    )]
    Init(InitArgs),
    /// Signs what lies in the folder: a new root, new releases, and how fresh all of it is
    #[command(
        after_help = "Each signer may do this on a machine of his own, with the folder carried between; the key for freshness comes last, and again before it runs out.\n\nExamples:\n  lockgate release sign /srv/releases --key=a.key --key=b.key\n  lockgate release sign /srv/releases --key=online.key\n\nExit status: 0 all is in force, 2 something waits for more signatures."
    )]
    Sign(SignArgs),
    /// Shows who vouches for a folder's releases, and which they are; checks it as a host would
    Show {
        /// The folder
        dir: PathBuf,
        /// The root file to begin with; the folder's first when absent
        #[arg(long)]
        root: Option<PathBuf>,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
}

#[derive(Args, Debug)]
pub(crate) struct InitArgs {
    /// The folder
    dir: PathBuf,
    /// Public key of somebody who vouches for releases; repeated
    #[arg(long, required = true)]
    signer: Vec<PathBuf>,
    /// How many of them it takes
    #[arg(long)]
    threshold: u64,
    /// Public key that says how fresh the metadata is; may be on a machine
    #[arg(long, required = true)]
    online: Vec<PathBuf>,
    /// How long the root is believed
    #[arg(long, default_value = "365d")]
    life: Ttl,
}

#[derive(Args, Debug)]
pub(crate) struct SignArgs {
    /// The folder
    dir: PathBuf,
    /// Private key; repeated
    #[arg(long, required = true)]
    key: Vec<PathBuf>,
    /// How long the list of releases is believed
    #[arg(long, default_value = "90d")]
    life: Ttl,
    /// How long its freshness is believed: within that time it must be signed again
    #[arg(long, default_value = "7d")]
    fresh: Ttl,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
}

pub(crate) fn run(what: &Release) -> Outcome {
    match what {
        Release::Keygen { file } => keygen(file),
        Release::Init(args) => init(args),
        Release::Sign(args) => sign(args),
        Release::Show { dir, root, format } => show(dir, root.as_deref(), *format),
    }
}

fn keygen(file: &Path) -> Outcome {
    let (signer, public) = Signer::generate(file).map_err(|error| error.public()).could("make a key")?;
    let text = format!("Made {} (keep it) and {} (give it away): key {}\n", file.display(), public.display(), signer.verifier().name());
    write_out(&text).could("print").map(|()| ExitCode::SUCCESS)
}

fn verifiers(paths: &[PathBuf]) -> Result<Vec<Verifier>, Public> {
    paths.iter().map(|path| Verifier::load(path).map_err(|error| error.public())).collect()
}

fn init(args: &InitArgs) -> Outcome {
    const COULD: &str = "begin the repository";
    let vouchers = Vouchers {
        signers: verifiers(&args.signer).could(COULD)?,
        threshold: args.threshold,
        online: verifiers(&args.online).could(COULD)?,
    };
    let lives = Lives { root: args.life.0, ..Lives::default() };
    let folder = Folder(args.dir.clone());
    let version = repository::init(&folder, &vouchers, &lives, SystemClock.now()).map_err(|error| error.public()).could(COULD)?;
    let text = format!("Root {version} waits for {} signatures: lockgate release sign {} --key=…\n", args.threshold, args.dir.display());
    write_out(&text).could("print").map(|()| ExitCode::SUCCESS)
}

fn sign(args: &SignArgs) -> Outcome {
    const COULD: &str = "sign the releases";
    let keys: Result<Vec<Signer>, Public> = args.key.iter().map(|path| Signer::load(path).map_err(|error| error.public())).collect();
    let keys = keys.could(COULD)?;
    let lives = Lives { targets: args.life.0, fresh: args.fresh.0, ..Lives::default() };
    let runtime = crate::connection::runtime().could(COULD)?;
    let folder = Folder(args.dir.clone());
    let keys: Vec<&Signer> = keys.iter().collect();
    let done = runtime.block_on(repository::sign(&folder, &keys, &lives, SystemClock.now()));
    let done = done.map_err(|error| error.public()).could(COULD)?;
    let status = if done.waits.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(WAITING) };
    if args.format != Format::Text {
        return show_value(args.format, &done).could("print what was signed").map(|()| status);
    }
    write_out(&told(&done)).could("print what was signed").map(|()| status)
}

fn told(done: &Done) -> String {
    let names = done.releases.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut text = format!("Releases: {}\n", if names.is_empty() { "none" } else { &names });
    done.published.iter().for_each(|name| text.push_str(&format!("In force: {name}\n")));
    for (name, has, needs) in &done.waits {
        text.push_str(&format!("{name} has {has} of {needs} signatures\n"));
    }
    text
}

fn show(dir: &Path, root: Option<&Path>, format: Format) -> Outcome {
    const COULD: &str = "show the releases";
    let folder = Folder(dir.to_owned());
    let shown = repository::show(&folder).map_err(|error| error.public()).could(COULD)?;
    let Some(shown) = shown else {
        let none = Public::new(Code::NotFound, format!("{} has no root in force", dir.display()));
        return Err(Failure::new(COULD, none.hint("lockgate release init, then lockgate release sign")));
    };
    // As a host that never saw anything of it: nothing is remembered.
    let scratch = std::env::temp_dir().join(format!("lockgate-release-{}", uuid::Uuid::new_v4()));
    let first = root.map_or_else(|| dir.join("metadata/1.root.json"), Path::to_owned);
    let runtime = crate::connection::runtime().could(COULD)?;
    let verified = runtime.block_on(async {
        let trust = Trust::open(&first, &scratch)?;
        release::verify(&trust, Arc::new(folder)).await
    });
    let _ = std::fs::remove_dir_all(&scratch);
    let vouched = verified.map_err(|error| error.public()).could(COULD)?;
    if format != Format::Text {
        let offers: Vec<_> = vouched
            .offers
            .iter()
            .map(|offer| json!({"version": offer.version, "file": offer.file, "sha256": offer.archive, "size": offer.size, "product": offer.edition, "os": offer.os, "arch": offer.arch, "minimum_source": offer.minimum_source}))
            .collect();
        let value = json!({"root": shown, "expires": vouched.expires, "releases": offers});
        return show_value(format, &value).could(COULD).map(|()| ExitCode::SUCCESS);
    }
    let good = Style::of_stdout().green("Genuine:");
    let mut text = format!(
        "{good} {} of {} signers ({}), root {}, believed until {}.\n",
        shown.threshold,
        shown.signers.len(),
        shown.signers.join(", "),
        shown.root_version,
        vouched.expires.whole_seconds()
    );
    for offer in &vouched.offers {
        text.push_str(&format!("  {:<16} {:>11}  {}\n", offer.version, offer.size, offer.file));
    }
    write_out(&text).could(COULD).map(|()| ExitCode::SUCCESS)
}

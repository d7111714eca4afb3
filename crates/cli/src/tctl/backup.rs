//! `tctl backup …`: the cluster's state in one file, and back. Runbook: docs/backup.md.
//!
//! `create` asks the Auth Service and writes what it streams beside the file's place, reads it again, and renames it; `verify` and
//! `inspect` need no cluster; `restore` works offline on the host of the new Auth Service; `drill` restores where it disturbs nobody.
//! A file may lie in a bucket: it is fetched first, and `ls` shows what is there. Keys and passphrases come from files or the terminal,
//! never from arguments. Parts: `made` (create, keygen), `read` (verify, inspect), `back` (restore, drill), `away` (ls, fetching).

#[cfg(feature = "server")]
mod away;
#[cfg(feature = "server")]
mod back;
mod made;
mod read;

use super::Global;
use crate::{
    exit::{Could as _, Failure, Outcome, usage},
    output::Format,
};
use backup::{PrivateKey, Trust, Unlock};
use clap::{Args, Subcommand};
use std::{
    fs::File,
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use types::{Code, Public, Secret};

#[derive(Subcommand, Debug)]
pub(crate) enum Backup {
    /// Writes the cluster's state into one encrypted, signed file
    #[command(
        after_help = "Examples:\n  tctl backup keygen --out=backup.key\n  tctl backup create --out=lg.lgbackup --recipient=age1...\n  tctl backup create --out=lg.lgbackup --passphrase-file=/run/secrets/backup"
    )]
    Create(CreateArgs),
    /// Proves a file without a cluster: with the key all of it, without one that it is whole and who signed it
    Verify {
        #[command(flatten)]
        file: FileArgs,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Prints what a file says about itself; with the key also what is in it
    Inspect {
        #[command(flatten)]
        file: FileArgs,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Fills the empty store of a new Auth Service; run it on that service's host before its first start
    #[cfg(feature = "server")]
    #[command(
        after_help = "The store is the one of --config or --data-dir, of whatever type: so a cluster moves between drivers.\n\nExamples:\n  tctl backup restore lg.lgbackup --identity-file=backup.key --signer=SHA256:... --data-dir=/var/lib/lockgate"
    )]
    Restore {
        #[command(flatten)]
        file: FileArgs,
        /// Accepts whoever signed; only for a file that you made yourself
        #[arg(long)]
        any_signer: bool,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Restores into a scratch directory, starts an Auth Service there, uses it, and removes everything
    #[cfg(feature = "server")]
    Drill {
        #[command(flatten)]
        file: FileArgs,
        /// Where the scratch directory is made; it holds the cluster's keys while the drill runs
        #[arg(long)]
        scratch_dir: Option<PathBuf>,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Lists the complete backups in a directory or bucket
    #[cfg(feature = "server")]
    #[command(after_help = "Examples:\n  tctl backup ls --config=/etc/lockgate.yaml\n  tctl backup ls s3://lockgate-backups/prod")]
    Ls {
        /// A directory, or s3://bucket/prefix; else where the configuration sends backups
        place: Option<String>,
        #[command(flatten)]
        remote: RemoteArgs,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Makes a key that backups are encrypted to: the private half into a file, the public half printed
    Keygen {
        /// File for the private key; made with mode 0600, never overwritten
        #[arg(short, long)]
        out: PathBuf,
    },
}

/// Flags of `tctl backup create`.
#[derive(Args, Debug)]
#[group(id = "protection", required = true, multiple = true)]
pub(crate) struct CreateArgs {
    /// File; replaced only by a complete backup
    #[arg(short, long)]
    pub(crate) out: PathBuf,
    /// Whom it is encrypted to, age1...; may be repeated, each one can open it
    #[arg(long, group = "protection", conflicts_with_all = ["passphrase_file", "unencrypted"])]
    pub(crate) recipient: Vec<String>,
    /// File whose first line is the passphrase; - asks on the terminal
    #[arg(long, group = "protection", conflicts_with = "unencrypted")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Does not encrypt: whoever reads the file has the cluster's private keys
    #[arg(long, group = "protection")]
    pub(crate) unencrypted: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// How a bucket is reached; what is not given is taken from the configuration, if that names the same bucket.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct RemoteArgs {
    /// s3: the bucket's region
    #[arg(long)]
    pub(crate) region: Option<String>,
    /// s3: https://host[:port] of a server that is not Amazon's
    #[arg(long)]
    pub(crate) endpoint: Option<String>,
    /// s3: file with aws_access_key_id and aws_secret_access_key; else the environment
    #[arg(long)]
    pub(crate) credentials_file: Option<PathBuf>,
}

/// A file, what opens it, and who must have signed it.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FileArgs {
    /// The backup: a file, or s3://bucket/prefix/name
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    /// Where it was fetched to
    #[arg(skip)]
    pub(crate) fetched: Option<PathBuf>,
    /// File with the private key, as `keygen` or age-keygen writes it
    #[arg(long, conflicts_with = "passphrase_file")]
    pub(crate) identity_file: Option<PathBuf>,
    /// File whose first line is the passphrase; - asks on the terminal
    #[arg(long)]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Who must have signed: SHA256:..., as `create` and `tctl auth export --type=host --fingerprint` print it; may be repeated
    #[arg(long)]
    pub(crate) signer: Vec<String>,
    /// Pin of the cluster's authority, sha256:<hex>, whose key must be in the backup; needs the backup's key
    #[arg(long)]
    pub(crate) ca_pin: Option<String>,
}

impl FileArgs {
    /// Where its bytes are on this machine.
    fn path(&self) -> &Path {
        self.fetched.as_deref().unwrap_or(&self.file)
    }

    fn open(&self) -> Result<File, Failure> {
        File::open(self.path()).could(format!("open {}", self.file.display()))
    }

    fn trust(&self) -> Result<Trust, Failure> {
        let pins = self.signer.iter().map(|text| text.parse()).collect::<Result<Vec<_>, _>>();
        let pins = pins.map_err(|error: backup::BadFingerprint| usage(error.to_string())).could("read --signer")?;
        Ok(if pins.is_empty() { Trust::Any } else { Trust::Pinned(pins) })
    }

    /// What opens the file, if anything was given or the file needs nothing.
    fn unlock(&self) -> Result<Option<Unlock>, Failure> {
        if let Some(path) = &self.identity_file {
            let text = std::fs::read_to_string(path).map(Secret::new).could(format!("read {}", path.display()))?;
            let keys = PrivateKey::read_all(&text).map_err(|error| usage(error.to_string())).could(format!("read {}", path.display()))?;
            return Ok(Some(Unlock::Keys(keys)));
        }
        if let Some(path) = &self.passphrase_file {
            return Ok(Some(Unlock::Passphrase(passphrase(path, false)?)));
        }
        let head = backup::inspect(self.open()?).map_err(|error| error.public()).could(self.what("read"))?;
        match head.lock {
            backup::Lock::Unencrypted => Ok(Some(Unlock::Unencrypted)),
            backup::Lock::Passphrase if std::io::stdin().is_terminal() => Ok(Some(Unlock::Passphrase(passphrase(Path::new("-"), false)?))),
            backup::Lock::Passphrase | backup::Lock::Recipients(_) => Ok(None),
        }
    }

    /// The same where nothing can be done without.
    fn must_unlock(&self) -> Result<Unlock, Failure> {
        self.unlock()?.ok_or_else(|| {
            let cause = Public::new(Code::BackupKey, "the backup is encrypted, and nothing was given to open it");
            Failure::new(self.what("open"), cause.hint("give --identity-file or --passphrase-file"))
        })
    }

    fn what(&self, verb: &str) -> String {
        format!("{verb} {}", self.file.display())
    }
}

/// The first line of a file, or what is typed.
fn passphrase(path: &Path, twice: bool) -> Result<Secret, Failure> {
    let told = || "read the passphrase";
    if path == Path::new("-") {
        let first = Secret::new(rpassword::prompt_password("Passphrase of the backup: ").could(told())?);
        if twice {
            let again = Secret::new(rpassword::prompt_password("Once more: ").could(told())?);
            if first.expose() != again.expose() {
                return Err(Failure::new(told(), usage("the two are not the same")));
            }
        }
        return Ok(first);
    }
    let text = Secret::new(std::fs::read_to_string(path).could(format!("read {}", path.display()))?);
    match text.expose().lines().next().filter(|line| !line.is_empty()) {
        Some(line) => Ok(Secret::new(line)),
        None => Err(Failure::new(told(), usage(format!("the first line of {} is empty", path.display())))),
    }
}

pub(crate) fn run(global: &Global, what: &Backup) -> Outcome {
    match what {
        Backup::Create(args) => made::create(global, args),
        Backup::Verify { file, format } => with_file(global, file, |file| read::verify(file, *format)),
        Backup::Inspect { file, format } => with_file(global, file, |file| read::inspect(file, *format)),
        #[cfg(feature = "server")]
        Backup::Restore { file, any_signer, format } => with_file(global, file, |file| back::restore(global, file, *any_signer, *format)),
        #[cfg(feature = "server")]
        Backup::Drill { file, scratch_dir, format } => with_file(global, file, |file| back::drill(file, scratch_dir.as_deref(), *format)),
        #[cfg(feature = "server")]
        Backup::Ls { place, remote, format } => away::ls(global, place.as_deref(), remote, *format),
        Backup::Keygen { out } => made::keygen(out),
    }
}

/// Does something with a file of this machine; one that lies in a bucket is fetched for as long as that takes.
fn with_file(global: &Global, args: &FileArgs, work: impl FnOnce(&FileArgs) -> Outcome) -> Outcome {
    if !args.file.as_os_str().as_encoded_bytes().starts_with(b"s3://") {
        return work(args);
    }
    #[cfg(feature = "server")]
    {
        let fetched = away::fetch(global, args)?;
        work(&FileArgs { fetched: Some(fetched.path().to_owned()), ..args.clone() })
    }
    #[cfg(not(feature = "server"))]
    {
        let (_, _) = (global, work);
        Err(Failure::new(args.what("fetch"), usage("this program has no Auth Service in it and fetches nothing; use another tool first")))
    }
}

/// A line that says how far something has come; on a terminal only, at most ten times a second.
pub(super) struct Bar {
    what: &'static str,
    total: Option<u64>,
    shown: Option<Instant>,
    began: Instant,
    terminal: bool,
}

impl Bar {
    fn new(what: &'static str, total: Option<u64>) -> Self {
        Self {
            what,
            total: total.filter(|total| *total > 0),
            shown: None,
            began: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
        }
    }

    fn show(&mut self, done: u64, more: &str) {
        if !self.terminal || self.shown.is_some_and(|shown| shown.elapsed() < Duration::from_millis(100)) {
            return;
        }
        self.shown = Some(Instant::now());
        eprint!("\r\x1b[K{}", self.line(done, more));
        let _unseen = std::io::stderr().flush();
    }

    fn line(&self, done: u64, more: &str) -> String {
        let rate = size(done.saturating_mul(1000) / u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).max(1));
        match self.total {
            Some(total) => {
                let filled = usize::try_from(done.min(total).saturating_mul(24) / total).unwrap_or(0);
                let percent = done.min(total).saturating_mul(100) / total;
                format!("{} [{}{}] {percent:>3} %  {}, {rate}/s{more}", self.what, "=".repeat(filled), " ".repeat(24 - filled), size(done))
            }
            // It has not begun, or does not count.
            None if done == 0 => self.what.to_owned(),
            None => format!("{} {}, {rate}/s{more}", self.what, size(done)),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

/// `12.3 MiB`
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut tenths, mut unit) = (bytes.saturating_mul(10), 0);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 { format!("{bytes} {name}") } else { format!("{}.{} {name}", tenths / 10, tenths % 10) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let check = |bytes: u64, text: &str| assert_eq!(size(bytes), text);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1024, "1.0 KiB");
        check(1_600_000, "1.5 MiB");
        check(u64::MAX, "1677721.5 TiB");
    }

    #[test]
    fn a_bar_never_runs_over_its_end() {
        let bar = Bar::new("x", Some(10));
        assert!(bar.line(5, "").contains("[============            ]  50 %"), "{}", bar.line(5, ""));
        assert!(bar.line(20, ", 3 items").contains("100 %") && bar.line(20, ", 3 items").ends_with(", 3 items"));
    }
}

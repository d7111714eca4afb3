//! `tctl backup create` and `keygen`.

use super::{Bar, CreateArgs, passphrase, size};
use crate::{
    exit::{Could as _, Failure, Outcome},
    output::{Format, Style, show_value, write_out},
    tctl::{Global, connect},
};
use backup::{PrivateKey, Trust};
use rand::Rng as _;
use serde_json::Value;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};
use types::{Code, Public};
use wire::api::CreateBackupRequest;

/// `tctl backup keygen`
pub(super) fn keygen(out: &Path) -> Outcome {
    let key = PrivateKey::generate(&mut |bytes| rand::rng().fill_bytes(bytes));
    let recipient =
        key.recipient().ok_or_else(|| Failure::new("make a key", Public::new(Code::Internal, "the library of cryptography failed")))?;
    let could = || format!("write {}", out.display());
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(out).could(could())?;
    let text = format!("# public key: {recipient}\n{}\n", key.to_text().expose());
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).could(could())?;
    write_out(&format!(
        "The private key is in {}. Keep it away from the cluster: without it no backup can be restored, and with it every one can be read.\nRecipient: {recipient}\n",
        out.display()
    ))
    .could("print")?;
    Ok(ExitCode::SUCCESS)
}

/// `tctl backup create`
pub(super) fn create(global: &Global, args: &CreateArgs) -> Outcome {
    for recipient in &args.recipient {
        let parsed = recipient.parse::<backup::Recipient>();
        parsed.map_err(|error| crate::exit::usage(error.to_string())).could("read --recipient")?;
    }
    let secret = args.passphrase_file.as_deref().map(|path| passphrase(path, true)).transpose()?;
    let request = CreateBackupRequest {
        recipients: args.recipient.clone(),
        passphrase: secret.map(|secret| secret.expose().to_owned()).unwrap_or_default(),
        unencrypted: args.unencrypted,
    };
    let could = || "make the backup";
    let beside = Beside::new(&args.out).could(format!("write {}", args.out.display()))?;
    let connection = connect::open(global)?;
    let told: Value = connection.run(receive(&connection, request, &beside)).could(could())?;
    beside.settle(&told).could(could())?;
    let text = |pointer: &str| told.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let number = |pointer: &str| told.pointer(pointer).and_then(Value::as_u64).unwrap_or_default();
    if args.format != Format::Text {
        return show_value(args.format, &told).could("print the result").map(|()| ExitCode::SUCCESS);
    }
    let style = Style::of_stdout();
    write_out(&format!(
        "{} {}: {}, {} records at revision {}\nId      {}\nDigest  {}\nSigner  {}\n",
        style.green("Made"),
        args.out.display(),
        size(number("/bytes")),
        number("/summary/records"),
        number("/manifest/revision"),
        text("/id"),
        text("/digest"),
        text("/signer"),
    ))
    .could("print the result")?;
    if args.unencrypted {
        write_out(&format!("{} it is not encrypted: whoever reads it has the cluster's private keys.\n", style.bold("!")))
            .could("print the result")?;
    }
    write_out("Note the signer where you keep the key: a restore asks for it. Recordings and the audit log's files are not in it.\n")
        .could("print the result")?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the stream down; what its last piece says.
async fn receive(connection: &crate::connection::Connection, request: CreateBackupRequest, beside: &Beside) -> Result<Value, Public> {
    let unwritten = |error: io::Error| Public::new(Code::BackupIo, format!("{}: {error}", beside.fresh.display()));
    let mut stream = connection.api().create_backup(request).await?;
    let mut file = BufWriter::with_capacity(1 << 20, beside.file.try_clone().map_err(unwritten)?);
    let mut bar = Bar::new("Writing", None);
    let mut bytes = 0u64;
    loop {
        let chunk = stream.next().await?;
        file.write_all(&chunk.data).map_err(unwritten)?;
        bytes += chunk.data.len() as u64;
        bar.show(bytes, "");
        if !chunk.written.is_empty() {
            file.flush().map_err(unwritten)?;
            return serde_json::from_slice(&chunk.written)
                .map_err(|_| Public::new(Code::Malformed, "the Auth Service's summary of the backup cannot be read"));
        }
    }
}

/// A file that is not yet in its place, and goes if it never gets there.
struct Beside {
    place: PathBuf,
    fresh: PathBuf,
    file: File,
}

impl Beside {
    fn new(place: &Path) -> io::Result<Self> {
        let mut name = place.as_os_str().to_owned();
        name.push(format!(".{}.new", uuid::Uuid::new_v4().simple()));
        let fresh = PathBuf::from(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&fresh)?;
        Ok(Self { place: place.to_owned(), fresh, file })
    }

    /// Reads again what lies on the disk now, and renames it.
    fn settle(&self, told: &Value) -> Result<(), Public> {
        let failed = |error: io::Error| Public::new(Code::BackupIo, format!("{}: {error}", self.place.display()));
        self.file.sync_all().map_err(failed)?;
        let file = File::open(&self.fresh).map_err(failed)?;
        let checked = backup::check(BufReader::with_capacity(1 << 20, file), &Trust::Any).map_err(|error| error.public())?;
        if told["digest"].as_str() != Some(checked.digest.to_string().as_str()) {
            return Err(Public::new(Code::BackupDamaged, "what was written is not what the Auth Service sent"));
        }
        fs::rename(&self.fresh, &self.place).map_err(failed)?;
        let parent = self.place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|directory| directory.sync_all()).map_err(failed)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Already renamed, unless something failed.
        let _gone = fs::remove_file(&self.fresh);
    }
}

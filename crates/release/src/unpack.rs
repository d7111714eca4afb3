//! Taking an archive apart: exactly what `cargo xtask dist` writes, and nothing that could leave the folder.
//!
//! gzip around ustar with folders, plain files and links to a neighbour. The vendor signed the archive, so this is the second fence
//! and not the first; a general reader of archives would have more to go wrong (links out of the folder, owners, devices, extended
//! headers that two readers understand in two ways). The bytes are checked and unpacked in one reading.

use miniz_oxide::inflate::decompress_to_vec_with_limit;
use sha2::Digest as _;
use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, symlink},
    path::{Component, Path, PathBuf},
};
use types::Sha256;

/// Bytes of an archive, before and after.
const MAX_PACKED: u64 = 512 << 20;
const MAX_UNPACKED: usize = 1 << 30;
const MAX_ENTRIES: usize = 10_000;
const BLOCK: usize = 512;
/// Before the compressed bytes, and after them.
const GZIP_HEAD: usize = 10;
const GZIP_TAIL: usize = 8;

/// Why an archive was not taken apart.
#[derive(Debug, thiserror::Error)]
pub enum BadArchive {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it has another digest than was signed")]
    Digest,
    #[error("it is larger than a release can be")]
    TooLarge,
    #[error("it is not an archive as releases are packed: {0}")]
    Format(&'static str),
    #[error("it has an entry that does not belong there: {0}")]
    Entry(String),
}

/// Unpacks into a folder that is made for it. The archive's own top folder is left out.
pub fn unpack(archive: &Path, wanted: &Sha256, into: &Path) -> Result<(), BadArchive> {
    if fs::metadata(archive)?.len() > MAX_PACKED {
        return Err(BadArchive::TooLarge);
    }
    // What was hashed is what is unpacked: the file is not read a second time.
    let packed = fs::read(archive)?;
    if <[u8; 32]>::from(sha2::Sha256::digest(&packed)) != *wanted.bytes() {
        return Err(BadArchive::Digest);
    }
    let tar = gunzip(&packed)?;
    drop(packed);
    fs::create_dir_all(into)?;
    let (mut rest, mut entries) = (tar.as_slice(), 0usize);
    while let Some((header, after)) = rest.split_at_checked(BLOCK) {
        if header.iter().all(|byte| *byte == 0) {
            return if entries > 0 { Ok(()) } else { Err(BadArchive::Format("it is empty")) };
        }
        entries = entries.saturating_add(1);
        if entries > MAX_ENTRIES {
            return Err(BadArchive::TooLarge);
        }
        let entry = Entry::read(header)?;
        let (body, _) = after.split_at_checked(entry.size).ok_or(BadArchive::Format("it ends too early"))?;
        entry.write(body, into)?;
        rest = after.get(entry.size.next_multiple_of(BLOCK)..).ok_or(BadArchive::Format("it ends too early"))?;
    }
    Err(BadArchive::Format("it ends too early"))
}

/// A gzip file with one member and none of the optional fields. Its check sum says less than the digest that was compared.
fn gunzip(packed: &[u8]) -> Result<Vec<u8>, BadArchive> {
    let Some([0x1f, 0x8b, 8, 0, ..]) = packed.first_chunk::<GZIP_HEAD>() else { return Err(BadArchive::Format("it is not gzip")) };
    let end = packed.len().saturating_sub(GZIP_TAIL);
    let deflated = packed.get(GZIP_HEAD..end).ok_or(BadArchive::Format("it ends too early"))?;
    decompress_to_vec_with_limit(deflated, MAX_UNPACKED).map_err(|error| match error.status {
        miniz_oxide::inflate::TINFLStatus::HasMoreOutput => BadArchive::TooLarge,
        _ => BadArchive::Format("the compressed bytes cannot be read"),
    })
}

enum Kind {
    Dir,
    File { executable: bool },
    Link(String),
}

struct Entry {
    /// Below the archive's top folder; empty for that folder.
    path: PathBuf,
    kind: Kind,
    size: usize,
}

impl Entry {
    fn read(header: &[u8]) -> Result<Self, BadArchive> {
        let field = |from: usize, to: usize| header.get(from..to).unwrap_or_default();
        let sum: u32 = header.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
        if field(257, 262) != b"ustar" || octal(field(148, 156)) != usize::try_from(sum).ok() {
            return Err(BadArchive::Format("an entry's header does not hold"));
        }
        let (name, prefix) = (text(field(0, 100))?, text(field(345, 500))?);
        let whole = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        let bad = || BadArchive::Entry(whole.chars().flat_map(char::escape_default).take(120).collect());
        let mut parts = Path::new(&whole).components();
        if !matches!(parts.next(), Some(Component::Normal(_))) || !parts.clone().all(|part| matches!(part, Component::Normal(_))) {
            return Err(bad());
        }
        let size = octal(field(124, 136)).ok_or(BadArchive::Format("an entry's size cannot be read"))?;
        let kind = match field(156, 157) {
            b"5" => Kind::Dir,
            b"0" => Kind::File { executable: octal(field(100, 108)).is_some_and(|mode| mode & 0o100 != 0) },
            b"2" => {
                let target = text(field(157, 257))?;
                let neighbour = matches!(Path::new(&target).components().collect::<Vec<_>>().as_slice(), [Component::Normal(_)]);
                if neighbour { Kind::Link(target) } else { return Err(bad()) }
            }
            _ => return Err(bad()),
        };
        let size = if matches!(kind, Kind::File { .. }) { size } else { 0 };
        Ok(Self { path: parts.as_path().to_owned(), kind, size })
    }

    fn write(&self, body: &[u8], into: &Path) -> Result<(), BadArchive> {
        if self.path.as_os_str().is_empty() {
            return Ok(());
        }
        let path = into.join(&self.path);
        // Only folders that this archive made: a link that stands for one would be found here.
        let parent = path.parent().unwrap_or(into);
        fs::create_dir_all(parent)?;
        if !fs::canonicalize(parent)?.starts_with(fs::canonicalize(into)?) {
            return Err(BadArchive::Entry(self.path.display().to_string()));
        }
        match &self.kind {
            Kind::Dir => fs::create_dir_all(&path)?,
            Kind::File { executable } => {
                let mode = if *executable { 0o755 } else { 0o644 };
                OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?.write_all(body)?;
            }
            Kind::Link(target) => symlink(target, &path)?,
        }
        Ok(())
    }
}

/// Text up to the first zero byte.
fn text(field: &[u8]) -> Result<String, BadArchive> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    let found = field.get(..end).unwrap_or_default();
    String::from_utf8(found.to_vec()).map_err(|_| BadArchive::Format("a name is not UTF-8"))
}

fn octal(field: &[u8]) -> Option<usize> {
    let digits = std::str::from_utf8(field).ok()?.trim_matches(|c: char| c == '\0' || c == ' ');
    usize::from_str_radix(digits, 8).ok()
}

#[cfg(test)]
#[path = "unpack/tests.rs"]
mod tests;

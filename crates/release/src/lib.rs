//! Which bytes are genuine: repositories of releases with signed metadata (TUF), and what a host keeps of them.
//!
//! [`verify`](fn@verify) believes a repository: signatures up to a threshold, expiry, versions that never go back; out come the
//! archives that the vendor vouches for. [`repository`] makes one and signs it anew, for whoever publishes. [`unpack`] takes an
//! archive apart, [`Versions`] keeps releases side by side with a link that names the one to run. The rules of TUF are the crate
//! `tough`'s, so that nobody has to trust our reading of them; what a host then does is decided in `upgrade::updater`. Nothing here
//! opens a socket: bytes come from a [`Source`]. Caller: `cli`.

pub mod keys;
mod offer;
pub mod repository;
pub mod round;
mod source;
pub mod testing;
mod unpack;
mod verify;
mod versions;

pub use offer::{EDITION, Manifest};
pub use source::{Folder, Source, SourceError};
pub use unpack::{BadArchive, unpack};
pub use verify::{Trust, Untrusted, Vouched, verify};
pub use versions::{PROGRAM, VersionError, Versions};

/// For those who implement [`Source`] and [`round::World`].
pub use tough::async_trait;

use sha2::Digest as _;
use std::{fs::File, io, io::Read as _, path::Path};
use types::Sha256;

/// The digest of a file's bytes.
pub fn digest_of(path: &Path) -> io::Result<Sha256> {
    let (mut file, mut hash, mut block) = (File::open(path)?, sha2::Sha256::new(), vec![0; 256 * 1024]);
    loop {
        match file.read(&mut block)? {
            0 => return Ok(Sha256::new(hash.finalize().into())),
            read => hash.update(block.get(..read).unwrap_or_default()),
        }
    }
}

//! Backups in a directory: written beside their place, flushed to the disk, renamed.
//!
//! The directory is made with mode 0700 if it is not there, the files with 0600. What is being written begins with a dot and ends
//! with `.new`, so that neither people nor retention take it for a backup.

use super::PlaceError;
use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

#[derive(Clone, Debug)]
pub(super) struct Dir(pub(super) PathBuf);

/// Runs where blocking harms nobody.
async fn blocking<T: Send + 'static>(path: &Path, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, PlaceError> {
    let failed =
        |error: io::Error| PlaceError { missing: error.kind() == io::ErrorKind::NotFound, ..PlaceError::new(path.display(), error) };
    tokio::task::spawn_blocking(work).await.map_err(|error| PlaceError::new(path.display(), error))?.map_err(failed)
}

fn fresh_name(name: &str) -> String {
    format!(".{name}.new")
}

impl Dir {
    pub(super) async fn list(&self) -> Result<Vec<(String, u64)>, PlaceError> {
        let dir = self.0.clone();
        let work = move || {
            let mut found = Vec::new();
            let entries = match fs::read_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                let about = entry.metadata()?;
                if let (true, Ok(name)) = (about.is_file(), entry.file_name().into_string()) {
                    found.push((name, about.len()));
                }
            }
            Ok(found)
        };
        blocking(&self.0, work).await
    }

    pub(super) async fn begin(&self, name: &str) -> Result<Fresh, PlaceError> {
        let (dir, fresh, place) = (self.0.clone(), self.0.join(fresh_name(name)), self.0.join(name));
        let work = move || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
            let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
            Ok(Fresh { file: Some(BufWriter::with_capacity(1 << 20, file)), fresh, place })
        };
        blocking(&self.0, work).await
    }

    pub(super) async fn clear(&self, name: &str) -> Result<(), PlaceError> {
        self.remove(&fresh_name(name)).await
    }

    pub(super) async fn remove(&self, name: &str) -> Result<(), PlaceError> {
        let path = self.0.join(name);
        let gone = path.clone();
        let work = move || match fs::remove_file(&gone) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        blocking(&path, work).await
    }

    pub(super) async fn read(&self, name: &str) -> Result<(Box<dyn Read + Send>, u64), PlaceError> {
        let path = self.0.join(name);
        let there = path.clone();
        let work = move || {
            let file = File::open(&there)?;
            let bytes = file.metadata()?.len();
            Ok((Box::new(BufReader::with_capacity(1 << 20, file)) as Box<dyn Read + Send>, bytes))
        };
        blocking(&path, work).await
    }
}

/// A file that is not in its place yet, and goes if it never gets there.
pub(super) struct Fresh {
    file: Option<BufWriter<File>>,
    fresh: PathBuf,
    place: PathBuf,
}

impl Fresh {
    pub(super) async fn complete(mut self) -> Result<(), PlaceError> {
        let path = self.place.clone();
        let work = move || {
            let Some(mut file) = self.file.take() else { return Ok(()) };
            file.flush()?;
            file.get_ref().sync_all()?;
            fs::rename(&self.fresh, &self.place)?;
            File::open(self.place.parent().unwrap_or(Path::new(".")))?.sync_all()
        };
        blocking(&path, work).await
    }
}

impl Write for Fresh {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_mut().map_or(Ok(0), |file| file.write(bytes))
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        // Renamed, unless something failed.
        let _gone = fs::remove_file(&self.fresh);
    }
}

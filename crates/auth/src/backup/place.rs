//! Where backups lie: a directory, or a bucket of an S3-compatible store below a prefix.
//!
//! A [`Place`] is what the configuration says; [`Opened`] is the same with credentials read. A backup is written through an
//! [`Upload`] and is there under its name only after [`Upload::complete`]; one that is dropped or aborted leaves nothing that counts as
//! a backup. Whoever lists sees complete files of our naming only (`<cluster>-<time>.lgbackup`). Parts: `dir`, `bucket` (objects over
//! `http`). Who calls: `schedule`, and `tctl backup` for files that lie in a bucket.

mod bucket;
mod dir;
mod http;

pub use bucket::{Bucket, Credentials};

use std::{
    fmt,
    io::{Read, Write},
    path::PathBuf,
    str::FromStr,
};
use types::{Code, Public, Time};

/// Behind the time in a file's name.
const SUFFIX: &str = ".lgbackup";

/// Where to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    Dir(PathBuf),
    Bucket(Bucket),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => write!(f, "{}", path.display()),
            Self::Bucket(bucket) => write!(f, "{bucket}"),
        }
    }
}

/// Why a text names no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is neither a directory nor s3://bucket/prefix: {why}")]
pub struct BadPlace {
    text: String,
    why: &'static str,
}

impl FromStr for Place {
    type Err = BadPlace;
    /// `s3://bucket/prefix`, else a directory.
    fn from_str(text: &str) -> Result<Self, BadPlace> {
        let bad = |why| BadPlace { text: text.to_owned(), why };
        match text.split_once("://") {
            None if text.is_empty() => Err(bad("it is empty")),
            None => Ok(Self::Dir(text.into())),
            Some(("s3", rest)) => Bucket::parse(rest).map(Self::Bucket).map_err(bad),
            Some(_) => Err(bad("only s3:// is known")),
        }
    }
}

/// Why a place could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {why}")]
pub struct PlaceError {
    pub place: String,
    pub why: String,
    /// That what was asked for is not there.
    pub missing: bool,
}

impl PlaceError {
    fn new(place: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self { place: place.to_string(), why: why.to_string(), missing: false }
    }
    pub fn public(&self) -> Public {
        Public::new(Code::BackupIo, self.to_string())
    }
}

/// One complete file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Found {
    /// When its making began, by its name.
    pub made: Time,
    pub name: String,
    pub bytes: u64,
}

/// A place with what is needed to use it.
#[derive(Clone, Debug)]
pub struct Opened(Inner);

#[derive(Clone, Debug)]
enum Inner {
    Dir(dir::Dir),
    Bucket(bucket::Objects),
}

impl Opened {
    /// Reads credentials; asks nobody yet.
    pub async fn new(place: &Place) -> Result<Self, PlaceError> {
        Ok(Self(match place {
            Place::Dir(path) => Inner::Dir(dir::Dir(path.clone())),
            Place::Bucket(bucket) => Inner::Bucket(bucket::Objects::open(bucket).await?),
        }))
    }

    /// The complete backups of a cluster (of all clusters without one), oldest first.
    pub async fn list(&self, cluster: Option<&str>) -> Result<Vec<Found>, PlaceError> {
        let named = match &self.0 {
            Inner::Dir(dir) => dir.list().await?,
            Inner::Bucket(objects) => objects.list().await?,
        };
        let ours = |(name, bytes): (String, u64)| Some(Found { made: time_of(&name, cluster)?, name, bytes });
        let mut found: Vec<Found> = named.into_iter().filter_map(ours).collect();
        found.sort();
        Ok(found)
    }

    /// Begins a file that is not there before it is complete.
    pub async fn begin(&self, name: &str) -> Result<Upload, PlaceError> {
        Ok(Upload(match &self.0 {
            Inner::Dir(dir) => Kind::File(dir.begin(name).await?),
            Inner::Bucket(objects) => Kind::Parts(Box::new(objects.begin(name).await?)),
        }))
    }

    /// Removes the rest of an upload whose maker has died, by its name and [`Upload::id`].
    pub async fn clear(&self, name: &str, id: &str) -> Result<(), PlaceError> {
        match &self.0 {
            Inner::Dir(dir) => dir.clear(name).await,
            Inner::Bucket(objects) => objects.clear(name, id).await,
        }
    }

    pub async fn remove(&self, name: &str) -> Result<(), PlaceError> {
        match &self.0 {
            Inner::Dir(dir) => dir.remove(name).await,
            Inner::Bucket(objects) => objects.remove(name).await,
        }
    }

    /// A file from its beginning, and its length. Reading blocks, and must not be done on a thread that runs tasks.
    pub async fn read(&self, name: &str) -> Result<(Box<dyn Read + Send>, u64), PlaceError> {
        match &self.0 {
            Inner::Dir(dir) => dir.read(name).await,
            Inner::Bucket(objects) => objects.read(name).await,
        }
    }
}

/// A file on its way. Writing blocks, and must not be done on a thread that runs tasks.
pub struct Upload(Kind);

enum Kind {
    File(dir::Fresh),
    Parts(Box<bucket::Parts>),
}

impl Upload {
    /// By which [`Opened::clear`] finds it when this process dies.
    pub fn id(&self) -> String {
        match &self.0 {
            Kind::File(_) => String::new(),
            Kind::Parts(parts) => parts.id(),
        }
    }

    /// From here on it is there under its name.
    pub async fn complete(self) -> Result<(), PlaceError> {
        match self.0 {
            Kind::File(fresh) => fresh.complete().await,
            Kind::Parts(parts) => parts.complete().await,
        }
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match &mut self.0 {
            Kind::File(fresh) => fresh.write(bytes),
            Kind::Parts(parts) => parts.write(bytes),
        }
    }
    fn flush(&mut self) -> std::io::Result<()> {
        match &mut self.0 {
            Kind::File(fresh) => fresh.flush(),
            // A part has a smallest size: what waits goes out at the end.
            Kind::Parts(_) => Ok(()),
        }
    }
}

/// The name of a backup begun at that time: `demo-20261122T180000Z.lgbackup`.
pub(crate) fn name_of(cluster: &str, time: Time) -> String {
    format!("{cluster}-{}{SUFFIX}", time.whole_seconds().to_string().replace(['-', ':'], ""))
}

/// The time in a name of ours.
fn time_of(name: &str, cluster: Option<&str>) -> Option<Time> {
    let (of, stamp) = name.strip_suffix(SUFFIX)?.rsplit_once('-')?;
    if cluster.is_some_and(|cluster| cluster != of) || of.is_empty() || stamp.len() != 16 {
        return None;
    }
    let part = |from: usize, to: usize| stamp.get(from..to);
    let (year, month, day) = (part(0, 4)?, part(4, 6)?, part(6, 8)?);
    let (hour, minute, second) = (part(9, 11)?, part(11, 13)?, part(13, 15)?);
    let time: Time = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z").parse().ok()?;
    (name_of(of, time) == name).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_directory_or_a_bucket() {
        let check = |text: &str, expected: Result<&str, &str>| {
            let parsed = text.parse::<Place>();
            let shown = parsed.as_ref().map(ToString::to_string).map_err(|error| error.why);
            assert_eq!(shown.as_deref().map_err(|why| *why), expected, "{text}");
        };
        check("/srv/backups", Ok("/srv/backups"));
        check("s3://lockgate", Ok("s3://lockgate"));
        check("s3://lockgate/a/b/", Ok("s3://lockgate/a/b"));
        check("", Err("it is empty"));
        check("gs://x", Err("only s3:// is known"));
        check("s3://", Err("the bucket's name is missing"));
        check("s3:///x", Err("the bucket's name is missing"));
        check("s3://Bucket_/x", Err("a bucket's name has 3 to 63 of the characters a-z, 0-9, . and -"));
        check("s3://bucket/a//b", Err("the prefix has an empty part, or . or .."));
        check("s3://bucket/../b", Err("the prefix has an empty part, or . or .."));
    }

    #[test]
    fn only_names_of_this_form_are_backups() {
        let time = Time::from_unix(1_800_000_000);
        let check = |name: &str, cluster: Option<&str>, expected: Option<Time>| assert_eq!(time_of(name, cluster), expected, "{name}");
        let name = name_of("demo", time);
        assert_eq!(name, "demo-20270115T080000Z.lgbackup");
        check(&name, Some("demo"), Some(time));
        check(&name, None, Some(time));
        check(&name, Some("demo2"), None);
        check(&name_of("a-b", time), Some("a-b"), Some(time));
        check(&name_of("a-b", time), Some("b"), None);
        for other in [
            "demo-notes.lgbackup",
            "demo-20270115T080000Z.txt",
            ".demo-20270115T080000Z.lgbackup.new",
            "demo-20271315T080000Z.lgbackup",
            "-20270115T080000Z.lgbackup",
            "demo-20270115x080000y.lgbackup",
        ] {
            check(other, None, None);
        }
    }
}

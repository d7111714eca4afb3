//! Backups in a bucket of an S3-compatible store: uploaded in parts while they are made, there only when all parts are.
//!
//! A part waits in memory while the one before it is on its way, so that memory stays the same for any size (about three parts). An upload
//! that fails is aborted at once; one whose process died is aborted by whoever comes next, who knows its id from the store
//! (`turn`). Parts travel with SHA-256 in their signature: a server takes none that changed on the way. Signing, retries with
//! jitter and the ways of a cloud to hand out credentials are `object_store`'s; connections are ours (`http`).

use super::{PlaceError, http::Connections};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use net::task::Group;
use object_store::{
    BackoffConfig, ObjectStore, ObjectStoreExt as _, PutPayload, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    multipart::{MultipartStore as _, PartId},
    path::Path as ObjectPath,
};
use std::{
    fmt,
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};
use types::Secret;

/// Bytes of a part. S3 wants 5 MiB at least and takes 10,000 parts: a backup has 156 GiB at most.
const PART: usize = 16 << 20;
const MAX_PARTS: usize = 10_000;

/// Where, and who asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bucket {
    pub name: String,
    /// Without slashes at its ends; may be empty.
    pub prefix: String,
    /// Default: what the environment says, else `us-east-1`.
    pub region: Option<String>,
    /// `https://host[:port]` of a server that is not Amazon's.
    pub endpoint: Option<String>,
    pub credentials: Credentials,
}

/// Where the credentials come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Credentials {
    /// `AWS_ACCESS_KEY_ID` and the like, else what the machine or container has been given by its cloud.
    Environment,
    /// `aws_access_key_id = …`, `aws_secret_access_key = …`, perhaps `aws_session_token = …`, as in `~/.aws/credentials`.
    File(PathBuf),
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        write!(f, "s3://{}{slash}{}", self.name, self.prefix)
    }
}

impl Bucket {
    /// `bucket/prefix`
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let (name, prefix) = text.split_once('/').unwrap_or((text, ""));
        if name.is_empty() {
            return Err("the bucket's name is missing");
        }
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        if !(3..=63).contains(&name.len()) || !name.bytes().all(fits) {
            return Err("a bucket's name has 3 to 63 of the characters a-z, 0-9, . and -");
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        if !prefix.is_empty() && prefix.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err("the prefix has an empty part, or . or ..");
        }
        let (name, prefix) = (name.to_owned(), prefix.to_owned());
        Ok(Self { name, prefix, region: None, endpoint: None, credentials: Credentials::Environment })
    }
}

/// A bucket with credentials.
#[derive(Clone, Debug)]
pub(super) struct Objects {
    s3: Arc<AmazonS3>,
    about: String,
    prefix: String,
}

impl Objects {
    pub(super) async fn open(bucket: &Bucket) -> Result<Self, PlaceError> {
        let about = bucket.to_string();
        let failed = |why: &dyn fmt::Display| PlaceError::new(&about, why);
        let retry = RetryConfig {
            max_retries: 4,
            retry_timeout: Duration::from_secs(60),
            backoff: BackoffConfig { init_backoff: Duration::from_millis(200), max_backoff: Duration::from_secs(5), base: 2. },
        };
        let connections = Connections::new().map_err(|error| failed(&error))?;
        // One by one: not every server that speaks S3 takes a list of what to delete.
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(&bucket.name).with_retry(retry).with_disable_bulk_delete(true);
        builder = builder.with_http_connector(connections);
        if let Some(region) = &bucket.region {
            builder = builder.with_region(region);
        }
        if let Some(endpoint) = &bucket.endpoint {
            builder = builder.with_endpoint(endpoint).with_virtual_hosted_style_request(false);
        }
        if let Credentials::File(path) = &bucket.credentials {
            let path = path.clone();
            let read = tokio::task::spawn_blocking(move || Keys::read(&path)).await.map_err(|error| failed(&error))?;
            let keys = read.map_err(|why| failed(&why))?;
            builder = builder.with_access_key_id(keys.id).with_secret_access_key(keys.secret.expose());
            if let Some(token) = keys.token {
                builder = builder.with_token(token.expose());
            }
        }
        let s3 = Arc::new(builder.build().map_err(|error| failed(&error))?);
        Ok(Self { s3, about, prefix: bucket.prefix.clone() })
    }

    fn path(&self, name: &str) -> ObjectPath {
        let full = if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) };
        ObjectPath::from(full)
    }

    fn failed(&self, error: &object_store::Error) -> PlaceError {
        explain(&self.about, error)
    }

    /// Names and lengths of the objects directly below the prefix.
    pub(super) async fn list(&self) -> Result<Vec<(String, u64)>, PlaceError> {
        let below = (!self.prefix.is_empty()).then(|| ObjectPath::from(self.prefix.as_str()));
        let mut listed = self.s3.list(below.as_ref());
        let mut found = Vec::new();
        while let Some(object) = listed.try_next().await.map_err(|error| self.failed(&error))? {
            let full = object.location.as_ref();
            let name =
                if self.prefix.is_empty() { Some(full) } else { full.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('/')) };
            if let Some(name) = name.filter(|name| !name.contains('/')) {
                found.push((name.to_owned(), object.size));
            }
        }
        Ok(found)
    }

    pub(super) async fn begin(&self, name: &str) -> Result<Parts, PlaceError> {
        let path = self.path(name);
        let id = self.s3.create_multipart(&path).await.map_err(|error| self.failed(&error))?;
        let (parts, queue) = mpsc::channel(1);
        let (told, result) = oneshot::channel();
        let group = Group::new("backup upload");
        let (objects, to, of) = (self.clone(), path.clone(), id.clone());
        group.spawn("parts", async move {
            let sent = objects.send(&to, &of, queue).await;
            let _unheard = told.send(sent);
        });
        Ok(Parts {
            objects: self.clone(),
            path,
            id,
            waiting: BytesMut::new(),
            parts: Some(parts),
            result: Some(result),
            runtime: Handle::current(),
            group,
        })
    }

    async fn send(&self, path: &ObjectPath, id: &String, mut queue: mpsc::Receiver<Bytes>) -> Result<Vec<PartId>, PlaceError> {
        let mut done = Vec::new();
        while let Some(part) = queue.recv().await {
            if done.len() == MAX_PARTS {
                return Err(PlaceError::new(&self.about, format!("the backup is larger than {MAX_PARTS} parts of {} MiB", PART >> 20)));
            }
            let sent = self.s3.put_part(path, id, done.len(), PutPayload::from(part)).await;
            done.push(sent.map_err(|error| self.failed(&error))?);
        }
        Ok(done)
    }

    /// Gives an upload up. Whatever it had sent is gone then.
    pub(super) async fn clear(&self, name: &str, id: &str) -> Result<(), PlaceError> {
        if id.is_empty() {
            return Ok(());
        }
        match self.s3.abort_multipart(&self.path(name), &id.to_owned()).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    pub(super) async fn remove(&self, name: &str) -> Result<(), PlaceError> {
        match self.s3.delete(&self.path(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    pub(super) async fn read(&self, name: &str) -> Result<(Box<dyn Read + Send>, u64), PlaceError> {
        let got = self.s3.get(&self.path(name)).await.map_err(|error| self.failed(&error))?;
        let bytes = got.meta.size;
        let about = self.about.clone();
        let pieces = got.into_stream().map_err(move |error| io::Error::other(explain(&about, &error))).boxed();
        Ok((Box::new(Pieces { pieces, left: Bytes::new(), runtime: Handle::current() }), bytes))
    }
}

/// An upload in parts. It is aborted unless it was completed.
pub(super) struct Parts {
    objects: Objects,
    path: ObjectPath,
    id: String,
    waiting: BytesMut,
    parts: Option<mpsc::Sender<Bytes>>,
    result: Option<oneshot::Receiver<Result<Vec<PartId>, PlaceError>>>,
    runtime: Handle,
    group: Group,
}

impl Parts {
    pub(super) fn id(&self) -> String {
        self.id.clone()
    }

    pub(super) async fn complete(mut self) -> Result<(), PlaceError> {
        let last = self.waiting.split().freeze();
        if let Some(parts) = self.parts.take() {
            // When the sending has ended early, it says why below.
            let _why = parts.send(last).await;
        }
        let broke = || PlaceError::new(&self.objects.about, "the upload broke off");
        let result = self.result.take().ok_or_else(broke)?;
        let parts = result.await.map_err(|_| broke())??;
        self.objects.s3.complete_multipart(&self.path, &self.id, parts).await.map_err(|error| self.objects.failed(&error))?;
        self.id.clear();
        Ok(())
    }

    /// Hands a full part over; when no more are taken, says why.
    fn pass_on(&mut self, part: Bytes) -> io::Result<()> {
        let sent = self.parts.as_ref().map(|parts| self.runtime.block_on(parts.send(part)));
        if matches!(sent, Some(Ok(()))) {
            return Ok(());
        }
        self.parts = None;
        let why = self.result.take().and_then(|result| self.runtime.block_on(result).ok()).and_then(Result::err);
        Err(why.map_or_else(|| io::Error::new(io::ErrorKind::BrokenPipe, "the upload has ended"), io::Error::other))
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.get(..bytes.len().min(PART - self.waiting.len())).unwrap_or_default();
        if self.waiting.capacity() < PART {
            self.waiting.reserve(PART);
        }
        self.waiting.extend_from_slice(taken);
        if self.waiting.len() == PART {
            let part = std::mem::take(&mut self.waiting).freeze();
            self.pass_on(part)?;
        }
        Ok(taken.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.group.abort();
        if self.id.is_empty() {
            return;
        }
        // Best effort: a server that cannot be reached is asked again by whoever makes the next backup.
        let (objects, path, id) = (self.objects.clone(), self.path.clone(), std::mem::take(&mut self.id));
        let aborting = Group::new("backup abort");
        let held = aborting.clone();
        let _entered = self.runtime.enter();
        aborting.spawn("abort", async move {
            let _held = held;
            if let Err(error) = objects.s3.abort_multipart(&path, &id).await {
                tracing::warn!(error = %objects.failed(&error), "an upload could not be aborted");
            }
        });
    }
}

/// A blocking reader of an object.
struct Pieces {
    pieces: BoxStream<'static, io::Result<Bytes>>,
    left: Bytes,
    runtime: Handle,
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.left.is_empty() {
            match self.runtime.block_on(self.pieces.try_next())? {
                Some(piece) => self.left = piece,
                None => return Ok(0),
            }
        }
        let count = into.len().min(self.left.len());
        let taken = self.left.split_to(count);
        into.get_mut(..count).unwrap_or_default().copy_from_slice(&taken);
        Ok(count)
    }
}

/// What a file of credentials says.
struct Keys {
    id: String,
    secret: Secret,
    token: Option<Secret>,
}

impl Keys {
    fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let mode = std::fs::metadata(path).map_err(|error| format!("{shown}: {error}"))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(format!("{shown} has mode {:04o}, others may read it: chmod 600 {shown}", mode & 0o7777));
        }
        let text = Secret::new(std::fs::read_to_string(path).map_err(|error| format!("{shown}: {error}"))?);
        Self::parse(text.expose()).map_err(|why| format!("{shown}: {why}"))
    }

    /// The first section of a file as the cloud's own tools keep it, or lines without any section.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (mut id, mut secret, mut token, mut sections) = (None, None, None, 0);
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';'])) {
            sections += usize::from(line.starts_with('['));
            if sections > 1 {
                break;
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            match key.trim() {
                "aws_access_key_id" => id = Some(value.trim().to_owned()),
                "aws_secret_access_key" => secret = Some(Secret::new(value.trim())),
                "aws_session_token" => token = Some(Secret::new(value.trim())),
                _ => {}
            }
        }
        let id = id.ok_or("there is no aws_access_key_id in it")?;
        Ok(Self { id, secret: secret.ok_or("there is no aws_secret_access_key in it")?, token })
    }
}

/// What a person can do something about: the server's own code and words, else the innermost fault.
fn explain(about: &str, error: &object_store::Error) -> PlaceError {
    let missing = matches!(error, object_store::Error::NotFound { .. });
    let (mut innermost, mut chain): (&dyn std::error::Error, String) = (error, error.to_string());
    while let Some(source) = innermost.source() {
        innermost = source;
        chain = format!("{chain}: {innermost}");
    }
    let tag = |name: &str| {
        let (_, rest) = chain.split_once(&format!("<{name}>"))?;
        Some(rest.split_once(&format!("</{name}>"))?.0.to_owned())
    };
    let said = tag("Message").unwrap_or_default();
    let why = match tag("Code") {
        Some(code) => match code.as_str() {
            "NoSuchBucket" => "the bucket does not exist".to_owned(),
            "NoSuchKey" => "there is no such file".to_owned(),
            "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken" => {
                format!("the server does not accept the credentials ({code}: {said})")
            }
            "AccessDenied" => format!("the credentials do not allow it ({code}: {said})"),
            "PermanentRedirect" | "AuthorizationHeaderMalformed" => format!("the bucket is in another region ({code}: {said})"),
            _ => format!("the server says {code}: {said}"),
        },
        None if missing => "there is no such file".to_owned(),
        // What was asked for was not the object but the right to it.
        None if chain.contains("//169.254.") => {
            format!("no credentials: none are in a file or the environment, and this machine has been given none ({innermost})")
        }
        None => innermost.to_string(),
    };
    PlaceError { missing, ..PlaceError::new(about, why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_as_other_tools_keep_them() {
        let check = |text: &str, expected: Result<(&str, &str, Option<&str>), &str>| {
            let keys = Keys::parse(text);
            let shown = keys.as_ref().map(|keys| (keys.id.as_str(), keys.secret.expose(), keys.token.as_ref().map(Secret::expose)));
            assert_eq!(shown.map_err(|why| *why), expected, "{text}");
        };
        check("aws_access_key_id = A\naws_secret_access_key=B", Ok(("A", "B", None)));
        check(
            "# mine\n[default]\naws_access_key_id=A\naws_secret_access_key = B=\naws_session_token=T\nregion = x\n[other]\naws_access_key_id=C",
            Ok(("A", "B=", Some("T"))),
        );
        check("[default]\naws_access_key_id=A", Err("there is no aws_secret_access_key in it"));
        check("", Err("there is no aws_access_key_id in it"));
    }

    #[test]
    fn a_file_of_credentials_that_others_may_read_is_refused_with_the_cure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        std::fs::write(&path, "aws_access_key_id=A\naws_secret_access_key=B").unwrap();
        let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o640);
        let why = Keys::read(&path).err().unwrap();
        assert!(why.contains("has mode 0640") && why.contains("chmod 600"), "{why}");
        mode(0o600);
        assert!(Keys::read(&path).is_ok());
        assert!(Keys::read(&dir.path().join("none")).err().unwrap().contains("No such file"));
    }
}

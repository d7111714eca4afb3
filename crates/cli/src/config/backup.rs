//! `auth_service.backup`: backups that the Auth Service makes by itself. Guide: docs/backup.md.
//!
//! `to` is a directory or `s3://bucket/prefix`; the keys `region`, `endpoint` and `credentials_file` belong to the second, and are faults
//! beside the first, so that nobody believes in a setting that does nothing.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use types::Ttl;

/// Backups made by themselves, to a directory or a bucket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Backup {
    /// How often, e.g. `6h`. Default: 24h.
    pub(crate) every: Option<String>,
    /// Where to: a directory, made with mode 0700, best on another disk; or `s3://bucket/prefix`.
    pub(crate) to: Option<String>,
    /// How many are kept. Default: 14.
    pub(crate) keep: Option<usize>,
    /// Whom they are encrypted to, `age1…`, as `tctl backup keygen` prints it. At least one.
    pub(crate) recipients: Vec<String>,
    /// s3: the bucket's region. Default: what the environment says, else us-east-1.
    pub(crate) region: Option<String>,
    /// s3: `https://host[:port]` of a server that is not Amazon's.
    pub(crate) endpoint: Option<String>,
    /// s3: file with `aws_access_key_id` and `aws_secret_access_key`, mode 0600. Default: the environment, else what the cloud gave the machine.
    pub(crate) credentials_file: Option<PathBuf>,
}

/// The shortest interval.
const LEAST: Duration = Duration::from_secs(60);

impl Backup {
    /// Faults of meaning: the key and why.
    pub(super) fn check(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        match self.every.as_deref().map(str::parse::<Ttl>) {
            Some(Err(error)) => faults.push(("auth_service.backup.every", error.to_string())),
            Some(Ok(every)) if every.0 < LEAST => faults.push(("auth_service.backup.every", "is shorter than a minute".into())),
            Some(Ok(_)) | None => {}
        }
        match self.to.as_deref().map(place_of) {
            None => faults.push(("auth_service.backup.to", "is missing".into())),
            Some(Err(why)) => faults.push(("auth_service.backup.to", why)),
            Some(Ok(true)) => {}
            Some(Ok(false)) => {
                let keys = [
                    ("auth_service.backup.region", self.region.is_some()),
                    ("auth_service.backup.endpoint", self.endpoint.is_some()),
                    ("auth_service.backup.credentials_file", self.credentials_file.is_some()),
                ];
                faults.extend(
                    keys.into_iter().filter(|(_, given)| *given).map(|(key, _)| (key, "belongs to s3://, and `to` is a directory".into())),
                );
            }
        }
        if self.endpoint.as_deref().is_some_and(|endpoint| !endpoint.starts_with("https://") && !endpoint.starts_with("http://")) {
            faults.push(("auth_service.backup.endpoint", "begins with neither https:// nor http://".into()));
        }
        if self.keep == Some(0) {
            faults.push(("auth_service.backup.keep", "keeps nothing".into()));
        }
        if self.recipients.is_empty() {
            faults.push((
                "auth_service.backup.recipients",
                "is missing: backups hold the cluster's private keys; make one: tctl backup keygen".into(),
            ));
        }
        for recipient in &self.recipients {
            if let Err(error) = recipient.parse::<backup::Recipient>() {
                faults.push(("auth_service.backup.recipients", error.to_string()));
            }
        }
        faults
    }

    /// Relative paths are relative to the configuration's directory.
    pub(super) fn resolve_paths(&mut self, directory: &Path) {
        if let Some(file) = self.credentials_file.as_mut().filter(|file| file.is_relative()) {
            *file = directory.join(&*file);
        }
        if let Some(to) = self.to.as_mut().filter(|to| !to.is_empty() && !to.contains("://") && Path::new(to).is_relative()) {
            *to = directory.join(&*to).display().to_string();
        }
    }

    /// The directory or bucket.
    #[cfg(feature = "server")]
    fn place(&self) -> Option<auth::backup::Place> {
        use auth::backup::place::{Credentials, Place};
        Some(match self.to.as_deref()?.parse().ok()? {
            Place::Dir(dir) => Place::Dir(dir),
            Place::Bucket(mut bucket) => {
                (bucket.region, bucket.endpoint) = (self.region.clone(), self.endpoint.clone());
                if let Some(file) = &self.credentials_file {
                    bucket.credentials = Credentials::File(file.clone());
                }
                Place::Bucket(bucket)
            }
        })
    }

    /// What is to be done; `None` where [`Backup::check`] finds faults.
    #[cfg(feature = "server")]
    pub(crate) fn schedule(&self) -> Option<auth::backup::Schedule> {
        Some(auth::backup::Schedule {
            every: self.every.as_deref().map_or(Some(Ttl::hours(24)), |text| text.parse().ok())?.0,
            place: self.place()?,
            keep: self.keep.unwrap_or(14),
            recipients: self.recipients.iter().map(|text| text.parse().ok()).collect::<Option<_>>()?,
        })
    }
}

/// Whether a place is a bucket, or why it is no place.
#[cfg(feature = "server")]
fn place_of(text: &str) -> Result<bool, String> {
    match text.parse() {
        Ok(auth::backup::Place::Dir(_)) => Ok(false),
        Ok(auth::backup::Place::Bucket(_)) => Ok(true),
        Err(error) => Err(error.to_string()),
    }
}
#[cfg(not(feature = "server"))]
fn place_of(text: &str) -> Result<bool, String> {
    Ok(text.starts_with("s3://"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_needs_a_place_and_somebody_who_can_open_the_files() {
        let check = |yaml: &str, expected: &[&str]| {
            let backup: Backup = serde_saphyr::from_str(yaml).unwrap();
            let keys: Vec<_> = backup.check().into_iter().map(|(key, _)| key.trim_start_matches("auth_service.backup.")).collect();
            assert_eq!(keys, expected, "{yaml}");
        };
        let good = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";
        check(&format!("{{to: /b, recipients: [{good}]}}"), &[]);
        check(&format!("{{to: 's3://bkt/a', region: r, endpoint: 'https://x', credentials_file: /c, recipients: [{good}]}}"), &[]);
        check(&format!("{{to: 'gs://bkt', endpoint: x, recipients: [{good}]}}"), &["to", "endpoint"]);
        check(
            &format!("{{to: /b, region: r, endpoint: 'https://x', credentials_file: /c, recipients: [{good}]}}"),
            &["region", "endpoint", "credentials_file"],
        );
        check(&format!("{{every: 6h, to: /b, keep: 3, recipients: [{good}]}}"), &[]);
        check("{every: soon, keep: 0}", &["every", "to", "keep", "recipients"]);
        check("{every: 5s, to: /b, recipients: [age1x]}", &["every", "recipients"]);
    }
}

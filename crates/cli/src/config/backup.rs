//! `auth_service.backup`: backups that the Auth Service makes by itself. Guide: docs/backup.md.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};
use types::Ttl;

/// Backups made by themselves, into a directory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Backup {
    /// How often, e.g. `6h`. Default: 24h.
    pub(crate) every: Option<String>,
    /// Where to; made with mode 0700. Best on another disk, or copied away from there.
    pub(crate) dir: Option<PathBuf>,
    /// How many are kept. Default: 14.
    pub(crate) keep: Option<usize>,
    /// Whom they are encrypted to, `age1…`, as `tctl backup keygen` prints it. At least one.
    pub(crate) recipients: Vec<String>,
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
        if self.dir.is_none() {
            faults.push(("auth_service.backup.dir", "is missing".into()));
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

    /// What is to be done; `None` where [`Backup::check`] finds faults.
    #[cfg(feature = "server")]
    pub(crate) fn schedule(&self) -> Option<auth::backup::Schedule> {
        Some(auth::backup::Schedule {
            every: self.every.as_deref().map_or(Some(Ttl::hours(24)), |text| text.parse().ok())?.0,
            dir: self.dir.clone()?,
            keep: self.keep.unwrap_or(14),
            recipients: self.recipients.iter().map(|text| text.parse().ok()).collect::<Option<_>>()?,
        })
    }
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
        check(&format!("{{dir: /b, recipients: [{good}]}}"), &[]);
        check(&format!("{{every: 6h, dir: /b, keep: 3, recipients: [{good}]}}"), &[]);
        check("{every: soon, keep: 0}", &["every", "dir", "keep", "recipients"]);
        check("{every: 5s, dir: /b, recipients: [age1x]}", &["every", "recipients"]);
    }
}

//! The directive in force, as hosts get it here: the cluster's signed words, unread and unchanged.
//!
//! Asked of the Auth Service when a host asks, and kept for a while: a fleet that looks each few minutes costs the Auth Service one
//! question. While it is away what it said last is handed out; a host judges generation, expiry and signature itself. It is of no use
//! to whoever reads it but that it names host ids, so it is for members alone.

use super::mirror::Opened;
use crate::Shared;
use bytes::Bytes;
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use types::{Code, Public, ResourceName, Time, kind::singleton, update::UpdateDirective};

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(20);
/// For the Auth Service to answer.
const DEADLINE: Duration = Duration::from_secs(4);

/// What was asked last, and when; none when the cluster directs nothing.
#[derive(Default)]
pub(super) struct Held(Mutex<Option<(Time, Option<Bytes>)>>);

impl Held {
    fn last(&self) -> Option<(Time, Option<Bytes>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The file `wire::directive::FILE`.
pub(super) async fn open(shared: &Shared) -> Result<Opened, Public> {
    let (held, now) = (&shared.rescue.directive, shared.clock.now());
    let last = held.last();
    // A clock that went back makes nothing fresh.
    if let Some((at, directive)) = &last
        && *at <= now
        && now.since(*at) < FRESH
    {
        return handed(directive.clone());
    }
    match tokio::time::timeout(DEADLINE, ask(shared)).await {
        Ok(Ok(directive)) => {
            *held.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, directive.clone()));
            handed(directive)
        }
        Ok(Err(error)) if last.is_none() => Err(error),
        Err(_) if last.is_none() => Err(Public::new(Code::Timeout, "the Auth Service does not answer").hint("try again later")),
        Ok(Err(_)) | Err(_) => handed(last.and_then(|(_, directive)| directive)),
    }
}

fn handed(directive: Option<Bytes>) -> Result<Opened, Public> {
    let none = || Public::new(Code::NotFound, "the cluster directs nothing").hint("an administrator does: tctl update target");
    directive.map(Opened::from).ok_or_else(none)
}

async fn ask(shared: &Shared) -> Result<Option<Bytes>, Public> {
    let name = ResourceName::new(singleton::UPDATE_DIRECTIVE).map_err(|error| Public::new(Code::Internal, error.to_string()))?;
    let found = shared.api.find::<UpdateDirective>(&name).await;
    match found {
        Ok(found) => Ok(found.and_then(|found| serde_json::to_vec(&found.spec.signed).ok()).map(Bytes::from)),
        // An Auth Service of a release before directives lets nobody read them.
        Err(error) if error.is(Code::AccessDenied) => Ok(None),
        Err(error) => Err(error),
    }
}

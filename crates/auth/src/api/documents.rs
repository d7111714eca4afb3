//! Documents over the API, generic over kinds: get, list, create, update, delete.
//!
//! Rights are `rules::documents`'s. A document that the caller may not see is absent for him. Unknown fields pass through
//! untouched, since documents stay JSON; kinds this release does not know can be read, changed and deleted, but not made.
//! Every write is conditional, shown by lists before it is answered, and recorded.

use super::check;
use crate::{
    birth::{DYNAMIC, ORIGIN},
    core::{Call, Fault, malformed},
    hosts, invites,
    presence::settle,
    updates,
};
use rules::{
    Verb,
    documents::{decide_read, decide_write},
};
use store::documents::WriteError;
use types::{
    Document, EventKind, Labels, Metadata, ResourceName, UserName,
    document::{Revision, Spec},
    kind::{AuthPreference, Member, Node, User},
};
use wire::api as pb;

/// What the control record is called over the API.
const CONTROL: &str = "control";
/// Documents in a page when the caller does not say.
const DEFAULT_PAGE: usize = 1000;
/// A page never comes near the largest message.
const MAX_PAGE_BYTES: usize = 6 << 20;

pub(crate) async fn get(call: Call, ask: pb::GetRequest) -> Result<pb::DocumentReply, Fault> {
    let permit = decide_read(call.caller()?, &ask.kind, Verb::Read)?;
    let name = ResourceName::new(&ask.name)?;
    if ask.kind == CONTROL {
        return control(&call);
    }
    let found = call.core.documents.get(&ask.kind, &name).await?;
    match found.filter(|document| permit.shows(document)) {
        Some(document) => Ok(pb::DocumentReply { document: document.to_json().into() }),
        None => Err(WriteError::NotFound(format!("{}/{name}", ask.kind)).into()),
    }
}

/// The control record, to read: it is written by upgrades alone.
fn control(call: &Call) -> Result<pb::DocumentReply, Fault> {
    let known = call.core.mirror.control();
    let Some(record) = known.as_ref() else { return Err(malformed("the control record has not been read yet")) };
    let metadata = Metadata::named(ResourceName::new(CONTROL)?);
    let spec = serde_json::to_value(record).map_err(|_| malformed("the control record cannot be shown"))?;
    let document = Document { kind: CONTROL.into(), version: "v1".into(), metadata, spec, extra: types::Extra::new() };
    Ok(pb::DocumentReply { document: document.to_json().into() })
}

pub(crate) async fn list(call: Call, ask: pb::ListRequest) -> Result<pb::ListReply, Fault> {
    let permit = decide_read(call.caller()?, &ask.kind, Verb::List)?;
    let limit = match usize::try_from(ask.limit) {
        Ok(0) => DEFAULT_PAGE,
        Ok(limit) => limit.min(store::MAX_PAGE),
        Err(_) => store::MAX_PAGE,
    };
    let after = if ask.page.is_empty() {
        None
    } else {
        Some(ResourceName::new(&ask.page).map_err(|_| malformed("the page token cannot be read"))?)
    };
    let labels: Labels = ask.labels.into_iter().collect();
    let wanted = |document: &Document| labels.iter().all(|(key, value)| document.metadata.labels.get(key) == Some(value));
    let view =
        call.core.mirror.view(&ask.kind, after.as_ref(), limit, MAX_PAGE_BYTES, |document| wanted(document) && permit.shows(document));
    let next_page = if view.more {
        view.entries.last().map(|entry| entry.document.metadata.name.to_string()).unwrap_or_default()
    } else {
        String::new()
    };
    Ok(pb::ListReply {
        documents: view.entries.iter().map(|entry| entry.json.clone()).collect(),
        next_page,
        skipped: u32::try_from(view.skipped).unwrap_or(u32::MAX),
        revision: view.revision,
    })
}

pub(crate) async fn create(call: Call, ask: pb::WriteRequest) -> Result<pb::DocumentReply, Fault> {
    let mut document = Document::from_json(&ask.document)?;
    let permit = decide_write(call.caller()?, &document.kind, Verb::Create, &document.metadata.name)?;
    check::new_document(&call, &document)?;
    document.metadata.revision = None;
    if let Some(user) = user_of(&document) {
        // What an earlier holder of the name left behind must not be the new one's.
        if call.core.user(&user).is_none() {
            invites::purge(&call, &user).await?;
        }
        document = created_by(document, &call.name());
    }
    document = updates::sealed(&call, document).await?;
    let written = call.core.documents.create(&document).await?;
    settle(&call.core, &written).await;
    record(&call, EventKind::ResourceCreate, &permit.kind, &permit.name).await?;
    Ok(pb::DocumentReply { document: written.to_json().into() })
}

pub(crate) async fn update(call: Call, ask: pb::WriteRequest) -> Result<pb::DocumentReply, Fault> {
    let mut document = Document::from_json(&ask.document)?;
    let permit = decide_write(call.caller()?, &document.kind, Verb::Update, &document.metadata.name)?;
    check::changed_document(&call, &document)?;
    if document.kind == AuthPreference::KIND {
        document.metadata.labels.insert(ORIGIN.into(), DYNAMIC.into());
    }
    document = updates::sealed(&call, document).await?;
    let written = call.core.documents.update(&document).await?;
    settle(&call.core, &written).await;
    record(&call, EventKind::ResourceUpdate, &permit.kind, &permit.name).await?;
    Ok(pb::DocumentReply { document: written.to_json().into() })
}

pub(crate) async fn delete(call: Call, ask: pb::DeleteRequest) -> Result<pb::Empty, Fault> {
    let name = ResourceName::new(&ask.name)?;
    let permit = decide_write(call.caller()?, &ask.kind, Verb::Delete, &name)?;
    check::deleted_document(&ask.kind)?;
    check::unused(&call, &ask.kind, &name)?;
    let revision = (!ask.revision.is_empty()).then(|| Revision(ask.revision.clone()));
    let deleted = call.core.documents.delete(&ask.kind, &name, revision.as_ref()).await;
    match deleted {
        // A host that fell silent has no document any more, but still its id and its names.
        Err(WriteError::NotFound(_)) if of_a_host(&call, &ask.kind, &name).await? => {}
        Err(error) => return Err(error.into()),
        Ok(_) => {
            of_a_host(&call, &ask.kind, &name).await?;
        }
    }
    if ask.kind == User::KIND
        && let Ok(user) = UserName::new(&name)
    {
        invites::purge(&call, &user).await?;
    }
    if let Ok(revision) = call.core.documents.store().revision().await {
        call.core.mirror.reached(revision).await;
    }
    record(&call, EventKind::ResourceDelete, &permit.kind, &permit.name).await?;
    Ok(pb::Empty {})
}

/// Strikes a host off the books with its document. Says whether it was there.
async fn of_a_host(call: &Call, kind: &str, name: &ResourceName) -> Result<bool, Fault> {
    match name.as_str().parse() {
        Ok(id) if kind == Member::KIND || kind == Node::KIND => hosts::remove(&call.core, id).await,
        Ok(_) | Err(_) => Ok(false),
    }
}

fn user_of(document: &Document) -> Option<UserName> {
    (document.kind == User::KIND).then(|| UserName::new(&document.metadata.name).ok()).flatten()
}

fn created_by(mut document: Document, who: &str) -> Document {
    if let Some(spec) = document.spec.as_object_mut() {
        spec.insert("created_by".into(), who.into());
    }
    document
}

async fn record(call: &Call, kind: EventKind, document: &str, name: &ResourceName) -> Result<(), Fault> {
    Ok(call.core.audit.record(call.event(kind).with("kind", document).with("name", name.as_str())).await?)
}

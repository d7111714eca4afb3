//! Moves the admission windows of the control record: one conditional write, behind the barrier (design 3.3).
//!
//! A widening waits until every Auth Service that has a seat acknowledged the present windows, or lost its seat; what is decided is
//! [`upgrade::barrier`]'s, from the record, the seats and the members as the store has them at that moment. The record is written
//! only if it is still the one that was judged. Callers: whoever upgrades the cluster.

use crate::{
    core::{Core, Fault},
    seat,
    vault::VaultError,
};
use std::time::Duration;
use store::control::{self, WriteControlError};
use tokio::time::Instant;
use types::{Code, ControlRecord, Public, Resource, document::Spec, kind::Member};
use upgrade::barrier::{Move, Refused, change};

/// A seat that nobody renews has lapsed by then.
const PATIENCE: Duration = seat::LEASE.saturating_mul(2);
const LOOK: Duration = Duration::from_millis(100);

/// Makes the move; waits for the barrier for so long, at most twice a seat's lease.
pub(crate) async fn move_windows(core: &Core, wanted: &Move, patience: Duration) -> Result<ControlRecord, Fault> {
    let end = Instant::now() + patience.min(PATIENCE);
    loop {
        let stored = control::read(core.documents.store().as_ref()).await.map_err(|error| Fault::Internal(error.to_string()))?;
        let stored = stored.ok_or_else(|| Fault::Internal("the control record is gone".into()))?;
        let (seats, members) = (seat::all(core).await?, members(core).await?);
        match change(&stored.record, wanted, &seats, &members) {
            Ok(mut next) => {
                (next.written_by, next.written_at) = (Some(core.version.to_string()), Some(core.now()));
                match control::update(core.documents.store().as_ref(), &stored, &next, core.documents.writer()).await {
                    Ok(done) => {
                        tracing::info!(generation = done.record.window_gen, ?wanted, "moved the admission windows");
                        return Ok(done.record);
                    }
                    // Somebody was quicker: what he left is judged anew.
                    Err(WriteControlError::Conflict) if Instant::now() < end => {}
                    Err(WriteControlError::Commit(error)) => return Err(VaultError::from(error).into()),
                    Err(error) => return Err(Public::new(Code::Conflict, error.to_string()).into()),
                }
            }
            Err(Refused::Behind { .. }) if Instant::now() < end => tokio::time::sleep(LOOK).await,
            Err(refused) => {
                return Err(Public::new(Code::VersionWindow, refused.to_string()).hint("see who runs what: tctl inventory ls").into());
            }
        }
    }
}

/// From the store itself: the mirror may be behind.
async fn members(core: &Core) -> Result<Vec<Resource<Member>>, Fault> {
    let (mut all, mut page) = (Vec::new(), None);
    loop {
        let listing = core.documents.list(Member::KIND, page.as_ref(), store::MAX_PAGE, |_| true).await?;
        all.extend(listing.documents.into_iter().filter_map(|document| Resource::from_document(document).ok()));
        page = listing.next;
        if page.is_none() {
            return Ok(all);
        }
    }
}

//! A way that is in use is watched: when its user, his roles or a lock say no, it ends, whatever the host thinks of it.
//!
//! An honest host sees the same change, tells the user why and ends the session itself; it is given [`GRACE`] for that.
//! Then the bytes are cut here, because a host that is old, stolen or cut off from the cluster must not keep a locked
//! user's session alive. What the Proxy cannot know, it leaves to the host: the login (it stands inside SSH), and
//! everything about the host but its labels. A host whose document runs out goes on with the labels it had: it may only be
//! cut off from the Auth Service, which ends no session.

use super::Visitor;
use crate::Shared;
use net::shutdown::Shutdown;
use rules::{CurrentUser, Denied, RoleSet, access, lock};
use std::{convert::Infallible, future::pending, time::Duration};
use types::{HostId, Labels, ResourceName, Time};

/// For an honest host to end the session itself: its programs get `HUP`, and after 3 seconds `KILL`.
const GRACE: Duration = Duration::from_secs(4);
/// The clock may be moved: looked at again at least so often.
const AGAIN: Duration = Duration::from_secs(30);

/// Who uses a way to which host.
pub(crate) struct Stay {
    pub(crate) visitor: Visitor,
    pub(crate) host: HostId,
    /// As last seen.
    pub(crate) labels: Labels,
}

impl Stay {
    /// Throws `cut` when the Proxy stops, or some time after the way may no longer be used. Never ends by itself.
    pub(crate) async fn watch(mut self, shared: &Shared, cut: &Shutdown) -> Infallible {
        let denied = tokio::select! {
            () = shared.shutdown.stopping() => {
                cut.stop();
                return pending().await;
            }
            denied = self.until_denied(shared) => denied,
        };
        tokio::select! {
            () = shared.shutdown.stopping() => {}
            () = tokio::time::sleep(GRACE) => {
                shared.record.cut(&self.visitor.user, self.visitor.peer, self.host, &denied.public());
            }
        }
        cut.stop();
        pending().await
    }

    async fn until_denied(&mut self, shared: &Shared) -> Denied {
        let mut policy = shared.policy.subscribe();
        loop {
            // Seen before it is judged: what changes meanwhile comes round again.
            policy.borrow_and_update();
            let wait = match self.judge(shared) {
                Ok(None) => AGAIN,
                Ok(Some(end)) => end.since(shared.clock.now()).clamp(Duration::from_millis(10), AGAIN),
                Err(denied) => return denied,
            };
            tokio::select! {
                Ok(()) = policy.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// The questions of [`super::decide`] once more, for the host that was chosen; the answer is until when it is yes. A
    /// certificate that ended since matters only if a role says so, as on hosts.
    fn judge(&mut self, shared: &Shared) -> Result<Option<Time>, Denied> {
        let (cache, now, user) = (&shared.cache, shared.clock.now(), &self.visitor.user);
        if let Some(node) = cache.node(&self.host) {
            self.labels = node.metadata.labels.clone();
        }
        let document = cache.user(&ResourceName::from(&user.user));
        let roles = RoleSet::resolve(user, cache.roles(), CurrentUser::from(document.as_deref()));
        let end = roles.options().disconnect_expired_cert.then_some(user.expires);
        let just_before = user.expires.minus(Duration::from_secs(1));
        let then = if end.is_some() { now } else { now.min(just_before) };
        access::in_force(cache.cluster(), user, Some(self.visitor.peer.ip()), then)?;
        lock::check(&cache.locks(), &lock::Subject { identity: user, login: None, host: Some(self.host) }, now)?;
        if !roles.can_see_node(&self.labels) {
            return Err(Denied::Node { asked: self.host.to_string() });
        }
        Ok(end)
    }
}

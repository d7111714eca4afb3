//! Heartbeats: each process tells the Auth Service that it lives, and hears what its operator should know.
//!
//! The Auth Service says when the next one is due; a fleet that started together is spread by jitter. Missing a few changes
//! nothing for users: sessions do not depend on heartbeats. `cli` runs one per process; what is sent comes from a closure,
//! so that labels and states of the moment are in it.

use crate::api::Api;
use net::{backoff::Backoff, shutdown::Shutdown};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use std::time::Duration;
use tokio::sync::watch;
use types::{
    Public, Resource,
    kind::{Member, Node},
};
use wire::api as pb;

/// Never faster than this, whatever the server asks.
const SHORTEST: Duration = Duration::from_secs(1);
/// Never slower than this.
const LONGEST: Duration = Duration::from_secs(600);

/// What one heartbeat says.
#[derive(Clone, Debug)]
pub struct Beat {
    pub member: Resource<Member>,
    /// For a process with an SSH Service.
    pub node: Option<Resource<Node>>,
    /// Port of the direct listener; 0 when reached by tunnel.
    pub ssh_port: u16,
}

/// How it goes, for health and for alerts.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Pulse {
    /// The last heartbeat was taken.
    pub alive: bool,
    /// Why not.
    pub error: Option<Public>,
    /// Lines for whoever runs this process.
    pub notices: Vec<String>,
    /// Where the Proxies of the cluster are.
    pub proxies: Vec<String>,
}

/// Sends one heartbeat; the answer is when the next is due, and what is told.
pub async fn beat(api: &Api, beat: &Beat) -> Result<(Duration, Pulse), Public> {
    let request = pb::HeartbeatRequest {
        member: beat.member.to_document().to_json().into(),
        node: beat.node.as_ref().map(|node| node.to_document().to_json().into()).unwrap_or_default(),
        ssh_port: u32::from(beat.ssh_port),
    };
    let reply = api.heartbeat(request).await?;
    let pulse = Pulse { alive: true, error: None, notices: reply.notices, proxies: reply.proxies };
    Ok((Duration::from_secs(reply.interval).clamp(SHORTEST, LONGEST), pulse))
}

/// Sends heartbeats until stopped: at once, then as the server asks, and once more when draining begins, so that the
/// cluster knows. `describe` makes each one; it gets the word for `Member::state`.
pub async fn run(
    api: Api,
    mut describe: impl FnMut(&'static str) -> Beat + Send,
    pulse: watch::Sender<Pulse>,
    seed: u64,
    shutdown: Shutdown,
) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut backoff = Backoff::new(SHORTEST, Duration::from_secs(60), seed);
    // Of who knows no Proxy yet, whose rescue would fail without one: it asks again sooner, and less often with time.
    let mut asking = Backoff::new(SHORTEST, Duration::from_secs(60), seed);
    loop {
        let draining = shutdown.is_draining();
        let state = if draining { "draining" } else { "active" };
        let now = describe(state);
        let sent = tokio::select! {
            () = shutdown.stopping() => return,
            sent = beat(&api, &now) => sent,
        };
        let wait = match sent {
            Ok((interval, fresh)) => {
                backoff.reset();
                let alone = fresh.proxies.is_empty() && pulse.borrow().proxies.is_empty();
                tell(&pulse, fresh);
                let due = interval.mul_f64(random.random_range(0.8..=1.2));
                if alone { due.min(asking.next()) } else { due }
            }
            Err(error) => {
                let wait = backoff.next();
                tracing::warn!(%error, ?wait, "heartbeat failed");
                pulse.send_modify(|pulse| (pulse.alive, pulse.error) = (false, Some(error)));
                wait
            }
        };
        tokio::select! {
            () = shutdown.stopping() => return,
            () = shutdown.draining(), if !draining => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Logs notices once, not at each heartbeat.
fn tell(pulse: &watch::Sender<Pulse>, fresh: Pulse) {
    pulse.send_if_modified(|now| {
        for notice in fresh.notices.iter().filter(|notice| !now.notices.contains(notice)) {
            tracing::warn!(notice, "notice from the Auth Service");
        }
        let changed = *now != fresh;
        *now = fresh;
        changed
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeAuth;
    use types::{Document, HostId, Metadata, SystemRole, Time, Version};

    fn beat_of(state: &str) -> Beat {
        let member = Member {
            hostname: "node1".into(),
            roles: [SystemRole::Node].into(),
            version: Version::new(1, 0, 0),
            boot_id: "b".into(),
            started: Time::EPOCH,
            last_seen: Time::EPOCH,
            state: state.into(),
            skips_version_check: false,
            labels: Default::default(),
            platform: Default::default(),
            capabilities: Vec::new(),
            extra: Default::default(),
        };
        Beat { member: Resource::new(Metadata::named(&HostId::from_uuid(uuid::Uuid::nil())), member), node: None, ssh_port: 0 }
    }

    fn states(fake: &FakeAuth) -> Vec<String> {
        let state = |beat: &pb::HeartbeatRequest| Document::from_json(&beat.member).unwrap().spec["state"].as_str().unwrap().to_owned();
        fake.heartbeats().iter().map(state).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn heartbeats_go_on_through_an_outage_and_the_last_one_says_draining() {
        let fake = FakeAuth::new();
        let (shutdown, pulse) = (Shutdown::new(), watch::Sender::new(Pulse::default()));
        let mut felt = pulse.subscribe();
        fake.notify(&["upgrade soon"]);
        let running = run(fake.api(), beat_of, pulse, 3, shutdown.clone());
        let story = async {
            felt.wait_for(|pulse| pulse.alive).await.unwrap();
            assert_eq!(felt.borrow().notices, ["upgrade soon"]);
            fake.go_away();
            felt.wait_for(|pulse| !pulse.alive && pulse.error.is_some()).await.unwrap();
            fake.come_back();
            felt.wait_for(|pulse| pulse.alive).await.unwrap();
            let mut moved = fake.moved();
            shutdown.drain();
            moved.wait_for(|_| states(&fake).iter().any(|state| state == "draining")).await.unwrap();
            shutdown.stop();
        };
        tokio::join!(running, story);
        let states = states(&fake);
        assert_eq!((states.first().unwrap().as_str(), states.last().unwrap().as_str()), ("active", "draining"));
    }
}

//! One connection of `tsh` with ALPN `lockgate-ssh`: one question, one answer, then the bytes are the host's.
//!
//! Accept, identify (TLS), hello, decide, act, record: in this order, in [`serve`]. The other half is `client::connect`.

use super::{Visitor, carry, connect};
use crate::Shared;
use net::{
    IoStream,
    frame::{read_frame, write_frame},
};
use rules::{Denied, cert::Refused};
use std::{net::SocketAddr, time::Duration};
use tokio::io::AsyncWriteExt as _;
use types::{Code, Identity, Public, UserIdentity};
use wire::route::{Dial, Dialed, decode, encode};

/// For the question, and for taking the answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// Only people, and machines acting as users, have a way to hosts; a member's certificate is none.
fn identify(identity: Option<Identity>) -> Result<UserIdentity, Denied> {
    match identity {
        Some(Identity::User(user)) => Ok(user),
        Some(Identity::Host(_)) => Err(Refused::Kind { found: "host", wanted: "user" }.into()),
        None => Err(Refused::NoIdentity.into()),
    }
}

/// Serves a connection that TLS has checked and that has shaken hands.
pub(crate) async fn serve(shared: &Shared, mut stream: IoStream, identity: Option<Identity>, peer: SocketAddr) {
    let user = match identify(identity) {
        Ok(user) => user,
        Err(denied) => {
            let error = denied.public();
            shared.record.stranger(peer, "lockgate-ssh", &error);
            return refuse(stream, error).await;
        }
    };
    let visitor = Visitor { user, peer };
    let asked = match read(shared, &mut stream).await {
        Ok(asked) => asked,
        Err(Some(error)) => return refuse(stream, error).await,
        Err(None) => return,
    };
    match connect(shared, &visitor, &asked).await {
        Ok(way) => {
            let answer = encode(&Dialed::Connected { host_id: way.host(), hostname: way.hostname.clone() });
            if write_frame(&mut stream, &answer, DEADLINE).await.is_ok() {
                carry(shared, stream, way).await;
            }
        }
        Err(error) => {
            shared.record.access_denied(&visitor.user, peer, &asked, &error);
            refuse(stream, error).await;
        }
    }
}

/// The question: what the user asks for, as one text. `None` when there is nobody to answer.
async fn read(shared: &Shared, stream: &mut IoStream) -> Result<String, Option<Public>> {
    let frame = read_frame(stream, DEADLINE).await.map_err(|error| {
        tracing::debug!(%error, "no target");
        None
    })?;
    let malformed = |_| Some(Public::new(Code::Malformed, "the target cannot be read; it is a host's name or id"));
    let Dial { target, cluster, .. } = decode::<Dial>(&frame).map_err(malformed)?;
    let asked = target.to_string();
    match cluster {
        Some(cluster) if cluster != *shared.cache.cluster() => Err(Some(Denied::Node { asked }.public())),
        Some(_) | None => Ok(asked),
    }
}

async fn refuse(mut stream: IoStream, error: Public) {
    if write_frame(&mut stream, &encode(&Dialed::Refused(error)), DEADLINE).await.is_ok() {
        let _ = tokio::time::timeout(DEADLINE, stream.shutdown()).await;
    }
}

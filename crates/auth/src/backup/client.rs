//! A client of the Auth Service that a drill has started: over TLS on loopback, as any administrator would come.

use futures::FutureExt as _;
use net::{
    clock::SharedClock,
    hello::HelloPolicy,
    swap::Swap,
    tls::{self, Authorities, TlsIdentity, Trust},
};
use tonic::transport::Channel;
use types::{ClusterName, Code, Public, Resource, SystemRole, Version, kind::CertAuthority, version::Direction};
use wire::{
    api::{self as pb, auth_client::AuthClient},
    credentials::HostFile,
    hello::Hello,
};

pub(super) type Client = AuthClient<Channel>;

/// Where the drill's Auth Service is, and whom it is trusted by.
pub(super) struct Near {
    addr: String,
    cluster: ClusterName,
    trust: Swap<Authorities>,
    clock: SharedClock,
    version: Version,
}

pub(super) fn failed(what: &str, why: impl std::fmt::Display) -> Public {
    Public::new(Code::BackupDamaged, format!("the drill failed: {what}: {why}"))
}

impl Near {
    pub(super) fn new(file: &HostFile, addr: String, clock: SharedClock, version: Version) -> Result<Self, Public> {
        let cluster = file.identity.cluster.clone();
        let roots = |kind: &str| -> Result<Vec<_>, Public> {
            let of_kind = file.authorities.iter().find(|document| document.metadata.name.as_str() == kind);
            let document = of_kind.ok_or_else(|| failed("trust", format!("there is no {kind} authority")))?;
            let authority: Resource<CertAuthority> = Resource::from_document(document.clone()).map_err(|error| failed("trust", error))?;
            let mut roots = Vec::new();
            for key in &authority.spec.keys {
                roots.extend(tls::identity::certificates_from_pem(key.tls.as_bytes()).map_err(|error| failed("trust", error))?);
            }
            Ok(roots)
        };
        let authorities = Authorities::new(cluster.clone(), &roots("user")?, &roots("host")?).map_err(|error| failed("trust", error))?;
        Ok(Self { addr, cluster, trust: Swap::new(authorities), clock, version })
    }

    pub(super) fn client(&self, identity: &TlsIdentity, role: &str) -> Result<Client, Public> {
        let config = tls::client_config(Some(identity), Trust::Cluster(self.trust.clone()), &[wire::alpn::AUTH], &self.clock)
            .map_err(|error| failed("TLS", error))?;
        let server = wire::sni::role_name(&SystemRole::Auth, &self.cluster);
        let (hello, addr) = (Hello::ours(&self.version, role), self.addr.clone());
        let channel = net::grpc::channel(move || {
            let (config, server, hello, addr) = (config.clone(), server.clone(), hello.clone(), addr.clone());
            async move {
                let connected = net::dial::dial(&addr, config, &server, &hello, Direction::ServerFirst, HelloPolicy::default()).await?;
                Ok(Box::new(connected.stream) as net::IoStream)
            }
            .boxed()
        });
        Ok(AuthClient::new(channel).max_decoding_message_size(pb::MAX_MESSAGE))
    }
}

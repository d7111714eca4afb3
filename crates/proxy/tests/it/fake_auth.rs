//! The Auth Service as far as a Proxy calls it: log-ins, invitations, audit events. No TLS: the API's client is given the
//! connection. It can be taken away.

use crate::ca::{Cluster, HOUR, now};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use net::{IoStream, dial::DialError, task::Group};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};
use types::{Code, Event, Public};
use wire::api::{
    self as pb,
    auth_server::{Auth, AuthServer},
    to_status,
};

pub(crate) const SECRET: &str = "0123456789abcdef0123456789abcdef";
pub(crate) const PASSWORD: &str = "correct horse battery";
pub(crate) const OTP_URL: &str = "otpauth://totp/Lockgate:alice?secret=JBSWY3DPEHPK3PXP&issuer=Lockgate";

#[derive(Clone)]
pub(crate) struct FakeAuth(Arc<Inner>);

struct Inner {
    cluster: Mutex<Option<Arc<Cluster>>>,
    events: watch::Sender<Vec<Event>>,
    away: Mutex<bool>,
    /// Hosts that came for rescue, and what hosts may run.
    quarantines: Mutex<Vec<pb::ReportQuarantineRequest>>,
    window: Mutex<(u64, u64)>,
    /// The one document that it has.
    directive: Mutex<Option<types::Document>>,
}

impl Default for FakeAuth {
    fn default() -> Self {
        Self(Arc::new(Inner {
            cluster: Mutex::default(),
            events: watch::Sender::default(),
            away: Mutex::default(),
            quarantines: Mutex::default(),
            window: Mutex::new((7, 8)),
            directive: Mutex::default(),
        }))
    }
}

impl FakeAuth {
    pub(crate) fn know(&self, cluster: Arc<Cluster>) {
        *self.0.cluster.lock().unwrap() = Some(cluster);
    }
    pub(crate) fn go_away(&self) {
        *self.0.away.lock().unwrap() = true;
    }
    pub(crate) fn admit(&self, lo: u64, hi: u64) {
        *self.0.window.lock().unwrap() = (lo, hi);
    }
    pub(crate) fn directs(&self, directive: types::Document) {
        *self.0.directive.lock().unwrap() = Some(directive);
    }
    pub(crate) fn quarantines(&self) -> Vec<pb::ReportQuarantineRequest> {
        self.0.quarantines.lock().unwrap().clone()
    }
    /// Waits for an event that fits.
    pub(crate) async fn event(&self, fits: impl Fn(&Event) -> bool) -> Event {
        let mut events = self.0.events.subscribe();
        let found = events.wait_for(|events| events.iter().any(&fits));
        let found = tokio::time::timeout(crate::rig::SOON, found).await.expect("the event").unwrap();
        found.iter().find(|event| fits(event)).unwrap().clone()
    }
    /// A fresh connection.
    #[allow(clippy::result_large_err, reason = "the error is `net`'s")]
    pub(crate) fn connect(&self, group: &Group) -> Result<IoStream, DialError> {
        if *self.0.away.lock().unwrap() {
            return Err(DialError::Unreachable { addr: "auth".into(), source: std::io::ErrorKind::ConnectionRefused.into() });
        }
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let service = TowerToHyperService::new(AuthServer::new(self.clone()));
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        group.spawn("fake auth", async move { server.serve_connection(TokioIo::new(theirs), service).await.is_ok() });
        Ok(Box::new(ours))
    }
}

fn refuse(code: Code, message: &str) -> Status {
    to_status(&Public::new(code, message))
}

#[tonic::async_trait]
impl Auth for FakeAuth {
    async fn login(&self, request: Request<pb::LoginRequest>) -> Result<Response<pb::UserCredentials>, Status> {
        let asked = request.into_inner();
        assert_eq!((asked.client_addr.as_str(), asked.client_version.as_str()), ("127.0.0.1", "8.3.7"));
        if asked.password != PASSWORD {
            return Err(refuse(Code::LoginFailed, "wrong user name, password or one-time code"));
        }
        let cluster = self.0.cluster.lock().unwrap().clone().unwrap();
        let expires = now().plus(if asked.ttl == 0 { 12 * HOUR } else { std::time::Duration::from_secs(asked.ttl) });
        let identity = cluster.identity(&asked.user, &["access"], expires);
        let (ssh_certificate, tls_certificate) = cluster.user_certificates(identity, &asked.ssh_public_key, &asked.tls_public_key);
        Ok(Response::new(pb::UserCredentials {
            ssh_certificate,
            tls_certificate,
            authorities: cluster.authorities().iter().map(|document| document.to_json().into()).collect(),
            cluster_name: cluster.name.to_string(),
            user: asked.user,
            expires: expires.to_string(),
        }))
    }
    async fn get_invite(&self, request: Request<pb::GetInviteRequest>) -> Result<Response<pb::InviteReply>, Status> {
        if request.into_inner().secret != SECRET {
            return Err(refuse(Code::InviteInvalid, "the invitation is unknown, used or expired"));
        }
        Ok(Response::new(pb::InviteReply { user: "alice".into(), expires: now().plus(HOUR).to_string(), otp_url: OTP_URL.into() }))
    }
    async fn accept_invite(&self, request: Request<pb::AcceptInviteRequest>) -> Result<Response<pb::Empty>, Status> {
        let asked = request.into_inner();
        match (asked.secret.as_str(), asked.password.as_str(), asked.otp.as_str()) {
            (SECRET, PASSWORD, "123456") => Ok(Response::new(pb::Empty {})),
            (SECRET, PASSWORD, _) => Err(refuse(Code::LoginFailed, "wrong user name, password or one-time code")),
            (SECRET, _, _) => Err(refuse(Code::PasswordWeak, "the password has less than 8 characters")),
            _ => Err(refuse(Code::InviteInvalid, "the invitation is unknown, used or expired")),
        }
    }
    async fn emit_events(&self, request: Request<pb::EmitEventsRequest>) -> Result<Response<pb::EmitEventsReply>, Status> {
        let fresh = request.into_inner().events;
        self.0.events.send_modify(|events| events.extend(fresh.iter().map(|bytes| serde_json::from_slice::<Event>(bytes).unwrap())));
        Ok(Response::new(pb::EmitEventsReply::default()))
    }

    async fn ping(&self, _: Request<pb::PingRequest>) -> Result<Response<pb::PingReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn get(&self, ask: Request<pb::GetRequest>) -> Result<Response<pb::DocumentReply>, Status> {
        let held = self.0.directive.lock().unwrap().clone();
        match held.filter(|held| held.kind == ask.get_ref().kind) {
            Some(held) => Ok(Response::new(pb::DocumentReply { document: held.to_json().into() })),
            None => Err(to_status(&Public::new(Code::NotFound, "there is none"))),
        }
    }
    async fn list(&self, _: Request<pb::ListRequest>) -> Result<Response<pb::ListReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn create(&self, _: Request<pb::WriteRequest>) -> Result<Response<pb::DocumentReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn update(&self, _: Request<pb::WriteRequest>) -> Result<Response<pb::DocumentReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn delete(&self, _: Request<pb::DeleteRequest>) -> Result<Response<pb::Empty>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn get_windows(&self, _: Request<pb::Empty>) -> Result<Response<pb::WindowsReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn move_window(&self, _: Request<pb::MoveWindowRequest>) -> Result<Response<pb::WindowsReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn evict_member(&self, _: Request<pb::EvictMemberRequest>) -> Result<Response<pb::WindowsReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn walk_member(&self, _: Request<pb::WalkMemberRequest>) -> Result<Response<pb::WalkMemberReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn list_migrations(&self, _: Request<pb::Empty>) -> Result<Response<pb::ListMigrationsReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn list_bad_rows(&self, _: Request<pb::ListBadRowsRequest>) -> Result<Response<pb::ListBadRowsReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn repair_row(&self, _: Request<pb::RepairRowRequest>) -> Result<Response<pb::Empty>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn turn_migration(&self, _: Request<pb::TurnMigrationRequest>) -> Result<Response<pb::MigrationStatus>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn plan_upgrade(&self, _: Request<pb::PlanUpgradeRequest>) -> Result<Response<pb::PlanUpgradeReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn steer_upgrade(&self, _: Request<pb::SteerUpgradeRequest>) -> Result<Response<pb::PlanUpgradeReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn list_releases(&self, _: Request<pb::Empty>) -> Result<Response<pb::ListReleasesReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    type CreateBackupStream = tokio_stream::Empty<Result<pb::BackupChunk, Status>>;
    async fn create_backup(&self, _: Request<pb::CreateBackupRequest>) -> Result<Response<Self::CreateBackupStream>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    type WatchStream = tokio_stream::Empty<Result<pb::WatchEvent, Status>>;
    async fn watch(&self, _: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn join(&self, _: Request<pb::JoinRequest>) -> Result<Response<pb::HostCredentials>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn renew_host(&self, _: Request<pb::RenewHostRequest>) -> Result<Response<pb::HostCredentials>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn reissue(&self, _: Request<pb::ReissueRequest>) -> Result<Response<pb::UserCredentials>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn sign(&self, _: Request<pb::SignRequest>) -> Result<Response<pb::UserCredentials>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn create_invite(&self, _: Request<pb::CreateInviteRequest>) -> Result<Response<pb::CreateInviteReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn create_token(&self, _: Request<pb::CreateTokenRequest>) -> Result<Response<pb::CreateTokenReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn heartbeat(&self, _: Request<pb::HeartbeatRequest>) -> Result<Response<pb::HeartbeatReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn report_quarantine(
        &self,
        request: Request<pb::ReportQuarantineRequest>,
    ) -> Result<Response<pb::ReportQuarantineReply>, Status> {
        if *self.0.away.lock().unwrap() {
            return Err(Status::unavailable("away"));
        }
        if *self.0.window.lock().unwrap() == (0, 0) {
            return Err(refuse(Code::VersionWindow, "proxy 8.3.7 is not admitted"));
        }
        self.0.quarantines.lock().unwrap().push(request.into_inner());
        let (lo, hi) = *self.0.window.lock().unwrap();
        Ok(Response::new(pb::ReportQuarantineReply { lo, hi, production: true }))
    }
    async fn search_events(&self, _: Request<pb::SearchEventsRequest>) -> Result<Response<pb::SearchEventsReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn verify_audit(&self, _: Request<pb::Empty>) -> Result<Response<pb::VerifyAuditReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    type ExportEventsStream = tokio_stream::Empty<Result<pb::ExportChunk, Status>>;
    async fn export_events(&self, _: Request<pb::ExportEventsRequest>) -> Result<Response<Self::ExportEventsStream>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn upload_recording(&self, _: Request<Streaming<pb::RecordingChunk>>) -> Result<Response<pb::Empty>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn list_recordings(&self, _: Request<pb::ListRecordingsRequest>) -> Result<Response<pb::ListRecordingsReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    async fn list_own_recordings(&self, _: Request<pb::ListOwnRecordingsRequest>) -> Result<Response<pb::ListRecordingsReply>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    type ReadOwnRecordingStream = tokio_stream::Empty<Result<pb::RecordingChunk, Status>>;
    async fn read_own_recording(&self, _: Request<pb::ReadRecordingRequest>) -> Result<Response<Self::ReadOwnRecordingStream>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
    type ReadRecordingStream = tokio_stream::Empty<Result<pb::RecordingChunk, Status>>;
    async fn read_recording(&self, _: Request<pb::ReadRecordingRequest>) -> Result<Response<Self::ReadRecordingStream>, Status> {
        Err(Status::unimplemented("not by the fake"))
    }
}

//! The API's front: every RPC of `wire::api`, each identified, bounded in time and carried to its end.
//!
//! A handler is an `async fn(Call, Message) -> Result<Reply, Fault>` that decides with `rules` before it acts. It runs in
//! its own task: a client that hangs up does not stop it between a write and its audit event. Handlers by subject:
//! [`documents`], [`watch`], [`certs`], [`events`], [`recordings`], `backup`, `upgrade`; logins, invitations, tokens and heartbeats are flows
//! of their own at the crate's root.

pub(crate) mod backup;
pub(crate) mod certs;
mod check;
mod documents;
mod events;
mod plan;
mod recordings;
mod upgrade;
mod watch;

use crate::{
    core::{Call, Core, Fault},
    invites, login,
    metrics::count,
    presence, quarantine, tokens,
};
use net::grpc::Peer;
use std::{future::Future, sync::Arc, time::Duration};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming};
use types::{Code, Public};
use wire::api::{self as pb, auth_server};

/// How long a request may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long an upload may take in all; each of its pieces has a shorter one.
const UPLOAD: Duration = Duration::from_secs(24 * 3600);

/// The service that tonic calls.
pub(crate) struct Service {
    core: Arc<Core>,
}

impl Service {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Identifies the caller, runs the handler to its end, and turns a fault into a status.
    async fn answer<Q, R, F>(
        &self,
        method: &'static str,
        request: Request<Q>,
        deadline: Duration,
        handler: impl FnOnce(Call, Q) -> F,
    ) -> Result<Response<R>, Status>
    where
        R: Send + 'static,
        F: Future<Output = Result<R, Fault>> + Send + 'static,
    {
        count(&self.core.metrics.requests);
        let peer = request.extensions().get::<Peer>().cloned();
        let call: Call = match self.core.identify(peer.clone()) {
            Ok(call) => Arc::new(call),
            Err(fault) => {
                let who = peer.as_ref().and_then(|peer| peer.identity.as_ref()).map(|identity| identity.display()).unwrap_or_default();
                return Err(pb::to_status(&self.core.fault(&who, peer.as_ref(), method, fault).await));
            }
        };
        let work = handler(call.clone(), request.into_inner());
        let (done, result) = oneshot::channel();
        let core = self.core.clone();
        self.core.group.spawn(method, async move {
            let outcome = match tokio::time::timeout(deadline, work).await {
                Ok(Ok(reply)) => Ok(reply),
                Ok(Err(fault)) => Err(core.fault(&call.name(), Some(&call.peer), method, fault).await),
                Err(_) => Err(Public::new(Code::Timeout, "the Auth Service did not finish the request in time")
                    .hint("look at its log, then try again")),
            };
            // The client may be gone; what was to be done is done.
            let _ = done.send(outcome);
        });
        match result.await {
            Ok(Ok(reply)) => Ok(Response::new(reply)),
            Ok(Err(public)) => Err(pb::to_status(&public)),
            Err(_) => Err(pb::to_status(&self.core.fault("", None, method, Fault::Internal("the handler broke".into())).await)),
        }
    }
}

async fn ping(call: Call, _ask: pb::PingRequest) -> Result<pb::PingReply, Fault> {
    let core = &call.core;
    let control = core.mirror.control();
    let level = control.as_ref().as_ref().map(|record| format!("{}.{}", record.cluster_version.major, record.cluster_version.step));
    Ok(pb::PingReply {
        cluster_name: core.cluster.to_string(),
        server_version: core.version.to_string(),
        min_client_version: core.version.oldest_client().to_string(),
        cluster_id: core.cluster_id.to_string(),
        second_factor: core.preference().second_factor.as_str().into(),
        ca_pins: core.authorities.pins(),
        cluster_version: level.unwrap_or_default(),
    })
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl auth_server::Auth for Service {
    type WatchStream = watch::Stream;
    type ReadRecordingStream = recordings::ReadStream;
    type ReadOwnRecordingStream = recordings::ReadStream;
    type CreateBackupStream = backup::Stream;
    type ExportEventsStream = events::ExportStream;

    async fn ping(&self, request: Request<pb::PingRequest>) -> Answer<pb::PingReply> {
        self.answer("Ping", request, DEADLINE, ping).await
    }
    async fn get(&self, request: Request<pb::GetRequest>) -> Answer<pb::DocumentReply> {
        self.answer("Get", request, DEADLINE, documents::get).await
    }
    async fn list(&self, request: Request<pb::ListRequest>) -> Answer<pb::ListReply> {
        self.answer("List", request, DEADLINE, documents::list).await
    }
    async fn create(&self, request: Request<pb::WriteRequest>) -> Answer<pb::DocumentReply> {
        self.answer("Create", request, DEADLINE, documents::create).await
    }
    async fn update(&self, request: Request<pb::WriteRequest>) -> Answer<pb::DocumentReply> {
        self.answer("Update", request, DEADLINE, documents::update).await
    }
    async fn delete(&self, request: Request<pb::DeleteRequest>) -> Answer<pb::Empty> {
        self.answer("Delete", request, DEADLINE, documents::delete).await
    }
    async fn watch(&self, request: Request<pb::WatchRequest>) -> Answer<Self::WatchStream> {
        self.answer("Watch", request, DEADLINE, watch::watch).await
    }
    async fn join(&self, request: Request<pb::JoinRequest>) -> Answer<pb::HostCredentials> {
        self.answer("Join", request, DEADLINE, tokens::join).await
    }
    async fn renew_host(&self, request: Request<pb::RenewHostRequest>) -> Answer<pb::HostCredentials> {
        self.answer("RenewHost", request, DEADLINE, certs::renew_host).await
    }
    async fn login(&self, request: Request<pb::LoginRequest>) -> Answer<pb::UserCredentials> {
        self.answer("Login", request, DEADLINE, login::login).await
    }
    async fn get_invite(&self, request: Request<pb::GetInviteRequest>) -> Answer<pb::InviteReply> {
        self.answer("GetInvite", request, DEADLINE, invites::show).await
    }
    async fn accept_invite(&self, request: Request<pb::AcceptInviteRequest>) -> Answer<pb::Empty> {
        self.answer("AcceptInvite", request, DEADLINE, invites::accept).await
    }
    async fn reissue(&self, request: Request<pb::ReissueRequest>) -> Answer<pb::UserCredentials> {
        self.answer("Reissue", request, DEADLINE, certs::reissue).await
    }
    async fn sign(&self, request: Request<pb::SignRequest>) -> Answer<pb::UserCredentials> {
        self.answer("Sign", request, DEADLINE, certs::sign).await
    }
    async fn create_invite(&self, request: Request<pb::CreateInviteRequest>) -> Answer<pb::CreateInviteReply> {
        self.answer("CreateInvite", request, DEADLINE, invites::create).await
    }
    async fn create_token(&self, request: Request<pb::CreateTokenRequest>) -> Answer<pb::CreateTokenReply> {
        self.answer("CreateToken", request, DEADLINE, tokens::create).await
    }
    async fn create_backup(&self, request: Request<pb::CreateBackupRequest>) -> Answer<Self::CreateBackupStream> {
        self.answer("CreateBackup", request, DEADLINE, backup::create).await
    }
    async fn get_windows(&self, request: Request<pb::Empty>) -> Answer<pb::WindowsReply> {
        self.answer("GetWindows", request, DEADLINE, upgrade::get_windows).await
    }
    async fn move_window(&self, request: Request<pb::MoveWindowRequest>) -> Answer<pb::WindowsReply> {
        self.answer("MoveWindow", request, DEADLINE, upgrade::move_window).await
    }
    async fn evict_member(&self, request: Request<pb::EvictMemberRequest>) -> Answer<pb::WindowsReply> {
        self.answer("EvictMember", request, DEADLINE, upgrade::evict_member).await
    }
    async fn walk_member(&self, request: Request<pb::WalkMemberRequest>) -> Answer<pb::WalkMemberReply> {
        self.answer("WalkMember", request, DEADLINE, upgrade::walk_member).await
    }
    async fn list_migrations(&self, request: Request<pb::Empty>) -> Answer<pb::ListMigrationsReply> {
        self.answer("ListMigrations", request, DEADLINE, upgrade::list_migrations).await
    }
    async fn list_bad_rows(&self, request: Request<pb::ListBadRowsRequest>) -> Answer<pb::ListBadRowsReply> {
        self.answer("ListBadRows", request, DEADLINE, upgrade::list_bad_rows).await
    }
    async fn repair_row(&self, request: Request<pb::RepairRowRequest>) -> Answer<pb::Empty> {
        self.answer("RepairRow", request, DEADLINE, upgrade::repair_row).await
    }
    async fn turn_migration(&self, request: Request<pb::TurnMigrationRequest>) -> Answer<pb::MigrationStatus> {
        self.answer("TurnMigration", request, DEADLINE, upgrade::turn_migration).await
    }
    async fn plan_upgrade(&self, request: Request<pb::PlanUpgradeRequest>) -> Answer<pb::PlanUpgradeReply> {
        self.answer("PlanUpgrade", request, DEADLINE, plan::plan_upgrade).await
    }
    async fn steer_upgrade(&self, request: Request<pb::SteerUpgradeRequest>) -> Answer<pb::PlanUpgradeReply> {
        self.answer("SteerUpgrade", request, DEADLINE, plan::steer_upgrade).await
    }
    async fn list_releases(&self, request: Request<pb::Empty>) -> Answer<pb::ListReleasesReply> {
        self.answer("ListReleases", request, DEADLINE, plan::list_releases).await
    }
    async fn heartbeat(&self, request: Request<pb::HeartbeatRequest>) -> Answer<pb::HeartbeatReply> {
        self.answer("Heartbeat", request, DEADLINE, presence::heartbeat).await
    }
    async fn report_quarantine(&self, request: Request<pb::ReportQuarantineRequest>) -> Answer<pb::ReportQuarantineReply> {
        self.answer("ReportQuarantine", request, DEADLINE, quarantine::report).await
    }
    async fn emit_events(&self, request: Request<pb::EmitEventsRequest>) -> Answer<pb::EmitEventsReply> {
        self.answer("EmitEvents", request, DEADLINE, events::emit).await
    }
    async fn search_events(&self, request: Request<pb::SearchEventsRequest>) -> Answer<pb::SearchEventsReply> {
        self.answer("SearchEvents", request, DEADLINE, events::search).await
    }
    async fn verify_audit(&self, request: Request<pb::Empty>) -> Answer<pb::VerifyAuditReply> {
        self.answer("VerifyAudit", request, UPLOAD, events::verify).await
    }
    async fn export_events(&self, request: Request<pb::ExportEventsRequest>) -> Answer<Self::ExportEventsStream> {
        self.answer("ExportEvents", request, DEADLINE, events::export).await
    }
    async fn upload_recording(&self, request: Request<Streaming<pb::RecordingChunk>>) -> Answer<pb::Empty> {
        self.answer("UploadRecording", request, UPLOAD, recordings::upload).await
    }
    async fn list_recordings(&self, request: Request<pb::ListRecordingsRequest>) -> Answer<pb::ListRecordingsReply> {
        self.answer("ListRecordings", request, DEADLINE, recordings::list).await
    }
    async fn read_recording(&self, request: Request<pb::ReadRecordingRequest>) -> Answer<Self::ReadRecordingStream> {
        self.answer("ReadRecording", request, DEADLINE, recordings::read).await
    }
    async fn list_own_recordings(&self, request: Request<pb::ListOwnRecordingsRequest>) -> Answer<pb::ListRecordingsReply> {
        self.answer("ListOwnRecordings", request, DEADLINE, recordings::list_own).await
    }
    async fn read_own_recording(&self, request: Request<pb::ReadRecordingRequest>) -> Answer<Self::ReadOwnRecordingStream> {
        self.answer("ReadOwnRecording", request, DEADLINE, recordings::read_own).await
    }
}

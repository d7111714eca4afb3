//! The Auth Service's API: messages and stubs generated from `proto/lockgate/v1/api.proto` (`cargo xtask golden`
//! regenerates, `--check` compares), and how a [`Public`] error crosses gRPC.

#[allow(clippy::all, clippy::pedantic, unreachable_pub, unused_qualifications, missing_docs, reason = "generated code")]
mod generated;

pub use generated::*;

use tonic::{Code as Grpc, Status, metadata::MetadataValue};
use types::{Code, Public};

/// The metadata key under which a [`Public`] travels as JSON.
pub const ERROR_KEY: &str = "lockgate-error-bin";
/// The most bytes of one message, either way.
pub const MAX_MESSAGE: usize = 8 << 20;

/// A gRPC status that carries the error whole; the gRPC code is only for generic tools.
pub fn to_status(public: &Public) -> Status {
    let code = match public.known() {
        Some(Code::NotFound | Code::NodeUnknown | Code::InviteInvalid) => Grpc::NotFound,
        Some(Code::AlreadyExists) => Grpc::AlreadyExists,
        Some(Code::Conflict) => Grpc::Aborted,
        Some(Code::Malformed | Code::TooLarge | Code::Usage | Code::PasswordWeak) => Grpc::InvalidArgument,
        Some(Code::LoginFailed | Code::LoginLocked | Code::LoginRequired | Code::LoginExpired | Code::TokenInvalid) => {
            Grpc::Unauthenticated
        }
        Some(Code::AccessDenied | Code::AccessIdentity | Code::AccessLocked) => Grpc::PermissionDenied,
        Some(Code::RateLimited | Code::AccessLimit) => Grpc::ResourceExhausted,
        Some(Code::Unavailable | Code::Unreachable) => Grpc::Unavailable,
        Some(Code::Timeout) => Grpc::DeadlineExceeded,
        Some(Code::StoreFenced) => Grpc::FailedPrecondition,
        _ => Grpc::Internal,
    };
    let mut status = Status::new(code, public.message.clone());
    let json = serde_json::to_vec(public).unwrap_or_default();
    status.metadata_mut().insert_bin(ERROR_KEY, MetadataValue::from_bytes(&json));
    status
}

/// The error inside a status; for a status that is not ours, a sentence a person can use.
pub fn from_status(status: &Status) -> Public {
    let carried = status.metadata().get_bin(ERROR_KEY).and_then(|value| value.to_bytes().ok()).filter(|bytes| bytes.len() <= 16 * 1024);
    if let Some(public) = carried.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
        return public;
    }
    match status.code() {
        Grpc::Unimplemented => Public::new(Code::VersionProtocol, "the Auth Service does not know this request")
            .hint("compare versions with `tctl version` and `tctl status`"),
        Grpc::DeadlineExceeded | Grpc::Cancelled => Public::new(Code::Timeout, "no answer from the Auth Service before the deadline"),
        Grpc::Unavailable => Public::new(Code::Unavailable, "the Auth Service cannot be reached")
            .hint("try again; `lockgate status` on its host shows its health"),
        _ => Public::new(Code::Internal, "the Auth Service answered with an unexpected error"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_crosses_grpc_whole() {
        let public = Public::new(Code::AccessDenied, "role \"dev\" does not allow login \"root\"").hint("logins you may use: app");
        assert_eq!(from_status(&to_status(&public)), public);
    }

    #[test]
    fn a_foreign_status_still_makes_a_sentence_a_person_can_use() {
        let public = from_status(&Status::unimplemented("unknown method"));
        assert!(public.is(Code::VersionProtocol) && !public.message.contains("unknown method"));
    }
}

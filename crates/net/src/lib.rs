//! The only place with sockets, TLS set-up, clocks and tasks.
//!
//! Everything that waits on a peer goes through here and has a deadline, everything a peer announces has a bound, and
//! every task starts through [`task`] with a name. The services (`auth`, `proxy`, `agent`) and `client` bring meaning;
//! the bytes themselves are parsed in `wire`, which has no socket. Decisions are made elsewhere: nothing here knows a role.

pub mod backoff;
pub mod block;
pub mod clock;
pub mod copy;
pub mod dial;
pub mod eager;
pub mod elastic;
pub mod frame;
pub mod grpc;
pub mod hand;
pub mod health;
pub mod hello;
pub mod listen;
pub mod peek;
pub mod pipe;
pub mod platform;
pub mod rate;
pub mod shutdown;
pub mod swap;
pub mod task;
pub mod tls;
pub mod turn;

use tokio::io::{AsyncRead, AsyncWrite};

/// Any byte stream, erased: what crosses crate borders when the kind of connection does not matter.
pub type IoStream = Box<dyn Io>;

/// What a byte stream must do to be an [`IoStream`].
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

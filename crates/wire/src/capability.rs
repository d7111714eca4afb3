//! Capabilities: what differs between releases of neighbouring majors is decided by these short strings, never by
//! comparing versions (design 3.2). A capability once released keeps its meaning.

/// What this build can do; sent in every handshake.
pub const OURS: &[&str] = &[WARM_SPARE, WALK];

/// The agent may keep one dialled-back connection ready for the next session.
pub const WARM_SPARE: &str = "tunnel.warm-spare";

/// It knows the walker, the user as whom the Auth Service tries whether users can connect (`rules::walk`).
pub const WALK: &str = "walk";

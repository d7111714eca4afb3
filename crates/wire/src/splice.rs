//! What a Proxy sends to an Auth Service before the bytes of a connection that it passes on unopened: that somebody else is
//! behind it. The address that the Auth Service sees is then the Proxy's and says nothing about the caller. Whoever sends
//! the mark without being a Proxy only says of himself that his address does not count.

/// No TLS connection begins so: those begin with 0x16 (RFC 8446, 5.1). Frozen.
pub const MARK: [u8; 8] = *b"LGSPLICE";

#[cfg(test)]
mod tests {
    #[test]
    fn the_mark_is_frozen_and_no_tls_record() {
        assert_eq!(super::MARK, [0x4c, 0x47, 0x53, 0x50, 0x4c, 0x49, 0x43, 0x45]);
    }
}

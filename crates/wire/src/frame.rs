//! Length-prefixed frames: four bytes big-endian, then that many bytes. The one framing under handshake, routing and
//! tunnel control; the asynchronous ends are in `net::frame`.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The most bytes in one frame before the peer has proved who it is, and for control messages after.
pub const MAX_FRAME: usize = 16 * 1024;

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    #[error("a frame of {0} bytes; the limit is {MAX_FRAME}")]
    TooLong(usize),
}

/// Checks a length that a peer announced, before anything is allocated for it (attack table, row 21).
pub fn checked_len(header: [u8; 4]) -> Result<usize, BadFrame> {
    let len = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if len > MAX_FRAME { Err(BadFrame::TooLong(len)) } else { Ok(len) }
}

/// Puts a frame around a payload.
pub fn encode(payload: &[u8]) -> Result<Bytes, BadFrame> {
    let len = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= MAX_FRAME).ok_or(BadFrame::TooLong(payload.len()))?;
    let mut out = BytesMut::with_capacity(payload.len().saturating_add(4));
    out.put_u32(len);
    out.put_slice(payload);
    Ok(out.freeze())
}

/// Takes one whole frame off the front of `buffer`, or `None` when more bytes are needed.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<Bytes>, BadFrame> {
    let Some(header) = buffer.first_chunk::<4>() else { return Ok(None) };
    let len = checked_len(*header)?;
    if buffer.len() < len.saturating_add(4) {
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(len).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attack_row_21_an_announced_length_over_the_bound_is_refused_before_allocation() {
        let mut buffer = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 1][..]);
        assert_eq!(decode(&mut buffer), Err(BadFrame::TooLong(0xffff_ffff)));
        assert!(encode(&vec![0; MAX_FRAME + 1]).is_err());
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8), cut in 1usize..50) {
            let stream: Vec<u8> = payloads.iter().flat_map(|p| encode(p).unwrap()).collect();
            let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
            for chunk in stream.chunks(cut) {
                buffer.extend_from_slice(chunk);
                while let Some(frame) = decode(&mut buffer).unwrap() { got.push(frame.to_vec()); }
            }
            prop_assert_eq!(got, payloads);
        }
    }
}

//! Bech32 (BIP 173) without its limit of 90 characters: how `age` writes its keys.
//!
//! Forty lines instead of a dependency; the checksum only finds typing errors, nothing rests on it. Used by `keys`.

const CHARSET: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
const CHECKSUM: usize = 6;
/// More than any key has.
const MAX_TEXT: usize = 256;

/// `prefix`, `1`, the bytes in groups of five bits, six characters of checksum; lower case.
pub(crate) fn encode(prefix: &str, bytes: &[u8]) -> String {
    let mut groups = regroup(bytes, 8, 5, true).unwrap_or_default();
    let sum = checksum(prefix, &groups) ^ 1;
    groups.extend((0..CHECKSUM).map(|index| u8::try_from(sum >> (5 * (CHECKSUM - 1 - index)) & 31).unwrap_or(0)));
    let tail = groups.iter().filter_map(|group| CHARSET.get(usize::from(*group))).map(|byte| char::from(*byte));
    format!("{prefix}1{}", tail.collect::<String>())
}

/// The bytes behind `prefix`. All lower or all upper case; `None` for anything else.
pub(crate) fn decode(prefix: &str, text: &str) -> Option<Vec<u8>> {
    let mixed = text.bytes().any(|byte| byte.is_ascii_lowercase()) && text.bytes().any(|byte| byte.is_ascii_uppercase());
    if mixed || text.len() > MAX_TEXT {
        return None;
    }
    let text = text.to_ascii_lowercase();
    let tail = text.strip_prefix(prefix)?.strip_prefix('1')?;
    let group = |byte: u8| CHARSET.iter().position(|known| *known == byte).and_then(|at| u8::try_from(at).ok());
    let groups: Vec<u8> = tail.bytes().map(group).collect::<Option<_>>()?;
    let (data, sum) = groups.split_at_checked(groups.len().checked_sub(CHECKSUM)?)?;
    let claimed = sum.iter().fold(0, |sum, group| sum << 5 | u32::from(*group));
    if checksum(prefix, data) ^ 1 != claimed {
        return None;
    }
    regroup(data, 5, 8, false)
}

fn checksum(prefix: &str, groups: &[u8]) -> u32 {
    let prefix = prefix.bytes().map(|byte| byte >> 5).chain([0]).chain(prefix.bytes().map(|byte| byte & 31));
    let all = prefix.chain(groups.iter().copied()).chain([0; CHECKSUM]);
    all.fold(1, |sum: u32, value| {
        let top = sum >> 25;
        let next = (sum & 0x01ff_ffff) << 5 ^ u32::from(value);
        let generators = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
        generators.iter().enumerate().filter(|(bit, _)| top >> bit & 1 == 1).fold(next, |sum, (_, generator)| sum ^ generator)
    })
}

/// From groups of `from` bits to groups of `to` bits. What is left over must be padding: short, and zero.
fn regroup(groups: &[u8], from: u32, to: u32, pad: bool) -> Option<Vec<u8>> {
    let (mut held, mut bits, mut out) = (0u32, 0, Vec::new());
    for group in groups {
        held = held << from | u32::from(*group);
        bits += from;
        while bits >= to {
            bits -= to;
            out.push(u8::try_from(held >> bits & ((1 << to) - 1)).ok()?);
        }
        held &= (1 << bits) - 1;
    }
    if pad {
        if bits > 0 {
            out.push(u8::try_from(held << (to - bits)).ok()?);
        }
    } else if bits >= from || held != 0 {
        return None;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bip_173_examples_read_and_their_neighbours_do_not() {
        let check = |prefix: &str, text: &str, ok: bool| assert_eq!(decode(prefix, text).is_some(), ok, "{text}");
        check("a", "A12UEL5L", true);
        check("a", "a12uel5l", true);
        check("a", "a12ueL5l", false);
        check("a", "a12uel5q", false);
        check("b", "a12uel5l", false);
        check("a", "a12uel5", false);
        check("abcdef", "abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw", true);
        check("split", "split1checkupstagehandshakeupstreamerranterredcaperred2y9e3w", true);
        check("age", "", false);
        check("age", &"q".repeat(300), false);
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_and_a_changed_letter_does_not(bytes in proptest::collection::vec(any::<u8>(), 0..40), at in 0usize..100) {
            let text = encode("age", &bytes);
            prop_assert_eq!(decode("age", &text), Some(bytes.clone()));
            prop_assert_eq!(decode("age", &text.to_ascii_uppercase()), Some(bytes));
            let at = 4 + at % (text.len() - 4);
            let mut broken = text.into_bytes();
            broken[at] = if broken[at] == b'q' { b'p' } else { b'q' };
            prop_assert_eq!(decode("age", &String::from_utf8(broken).unwrap()), None);
        }
    }
}

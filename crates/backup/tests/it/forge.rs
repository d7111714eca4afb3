//! Takes files apart and puts them together again by the document alone, with digests and seal made good: what somebody
//! can do who knows the format, and, in the tests of newer formats, what a later release will do.

use crate::support::signer;
use sha::sha256;

/// A file in its parts.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) format: u16,
    pub(crate) header: Vec<u8>,
    pub(crate) chunks: Vec<Chunk>,
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Chunk {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) tag: [u8; 8],
    pub(crate) number: u64,
    pub(crate) payload: Vec<u8>,
}

impl Chunk {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.kind, self.flags];
        bytes.extend(self.tag);
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(u32::try_from(self.payload.len()).unwrap().to_be_bytes());
        bytes.extend(&self.payload);
        let digest = sha256(&bytes);
        bytes.extend(digest);
        bytes
    }
}

pub(crate) fn apart(file: &[u8]) -> Parts {
    let length = u32::from_be_bytes(file[10..14].try_into().unwrap()) as usize;
    let (format, header) = (u16::from_be_bytes([file[8], file[9]]), file[14..14 + length].to_vec());
    let mut rest = &file[14 + length + 32..];
    let mut chunks = Vec::new();
    while !rest.is_empty() {
        let length = u32::from_be_bytes(rest[18..22].try_into().unwrap()) as usize;
        let (tag, number) = (rest[2..10].try_into().unwrap(), u64::from_be_bytes(rest[10..18].try_into().unwrap()));
        chunks.push(Chunk { kind: rest[0], flags: rest[1], tag, number, payload: rest[22..22 + length].to_vec() });
        rest = &rest[22 + length + 32..];
    }
    Parts { format, header, chunks }
}

impl Parts {
    pub(crate) fn front(&self) -> Vec<u8> {
        let mut bytes = b"\x89LGB\r\n\x1a\n".to_vec();
        bytes.extend(self.format.to_be_bytes());
        bytes.extend(u32::try_from(self.header.len()).unwrap().to_be_bytes());
        bytes.extend(&self.header);
        let digest = sha256(&bytes);
        bytes.extend(digest);
        bytes
    }

    /// As they are: only digests are right.
    pub(crate) fn together(&self) -> Vec<u8> {
        let mut bytes = self.front();
        self.chunks.iter().for_each(|chunk| bytes.extend(chunk.bytes()));
        bytes
    }

    /// With numbers, tags and a seal that fit, signed with that seed.
    pub(crate) fn sealed(mut self, seed: u8) -> Vec<u8> {
        let tag = self.chunks[0].tag;
        let mut chain = sha256(&self.front()[..self.front().len() - 32]);
        for (number, chunk) in self.chunks.iter_mut().enumerate() {
            (chunk.number, chunk.tag) = (number as u64, tag);
            if chunk.kind == 4 {
                chunk.payload = signer(seed).sign(&[b"lockgate backup v1 seal\0".as_slice(), &chain].concat()).unwrap().to_vec();
            }
            let bytes = chunk.bytes();
            chain = sha256(&[chain.as_slice(), &bytes[bytes.len() - 32..]].concat());
        }
        self.together()
    }

    /// Replaces text in the header.
    pub(crate) fn header(mut self, from: &str, to: &str) -> Self {
        let text = String::from_utf8(self.header).unwrap();
        assert!(text.contains(from), "{text}");
        self.header = text.replace(from, to).into_bytes();
        self
    }
}

mod sha {
    use aws_lc_rs::digest::{SHA256, digest};

    pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
        digest(&SHA256, bytes).as_ref().try_into().unwrap()
    }
}

#[test]
fn a_file_taken_apart_and_put_together_is_the_same_file() {
    use crate::support::{pinned, read, records, write};
    let (file, _) = write(&records(3, 40), &backup::Protection::Unencrypted, 5);
    assert_eq!(apart(&file).together(), file);
    assert_eq!(apart(&file).sealed(1), file);
    assert_eq!(read(&apart(&file).sealed(1), &backup::Unlock::Unencrypted, &pinned()).unwrap().1, records(3, 40));
}

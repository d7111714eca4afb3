//! The numbers of the file format, and nothing else: what `docs/backup-format.md` says in words.
//!
//! A released number never changes. Every length that a file can claim has its bound here, and is compared with it before a
//! byte is allocated. A test compares this file with the table in the document.

/// How every backup begins. The first byte is not ASCII and the line ends are both kinds, so that a transfer "as text" shows.
pub(crate) const MAGIC: [u8; 8] = *b"\x89LGB\r\n\x1a\n";
/// The format that this release writes, and the newest that it reads.
pub const FORMAT: u16 = 1;
/// The most bytes of the header's JSON.
pub const MAX_HEADER: usize = 64 << 10;

/// Kind, flags, file tag, number, length.
pub(crate) const CHUNK_HEAD: usize = 22;
pub(crate) const KIND_MANIFEST: u8 = 1;
pub(crate) const KIND_RECORDS: u8 = 2;
pub(crate) const KIND_SUMMARY: u8 = 3;
pub(crate) const KIND_SEAL: u8 = 4;
/// Kinds with this bit may be skipped by a reader that does not know them; others may not.
pub const OPTIONAL: u8 = 0x80;
/// The payload is compressed: length of the plain bytes (u32), then one Zstandard frame.
pub(crate) const FLAG_ZSTD: u8 = 0x01;

/// A chunk of records is closed before it grows past this; one larger record makes a chunk of its own.
pub const CHUNK: usize = 256 << 10;
/// The longest key, in bytes.
pub const MAX_KEY: usize = 4096;
/// The longest value, in bytes; about four times what a store holds.
pub const MAX_VALUE: usize = 4 << 20;
/// Lengths of key (u16) and value (u32).
pub(crate) const RECORD_HEAD: usize = 6;
/// The most plain bytes of a chunk.
pub const MAX_CHUNK: usize = MAX_VALUE + (64 << 10);
/// The most bytes of a payload as it stands in the file.
pub(crate) const MAX_STORED: usize = MAX_CHUNK + TAG;

/// The tag of ChaCha20-Poly1305.
pub(crate) const TAG: usize = 16;
/// The seal's payload: one Ed25519 signature.
pub(crate) const SIGNATURE: usize = 64;

/// The most recipients of one file.
pub const MAX_RECIPIENTS: usize = 64;
/// The most kinds that a summary counts one by one; records of further kinds count as `*`.
pub const MAX_KINDS: usize = 1024;
/// A longer kind counts as `*`.
pub(crate) const MAX_KIND: usize = 64;

/// Bounds of Argon2id's cost, so that a file cannot ask for all of a machine: KiB, passes, lanes.
pub(crate) const MAX_MEMORY_KIB: u32 = 256 << 10;
pub(crate) const MAX_PASSES: u32 = 16;
pub(crate) const MAX_LANES: u32 = 8;
/// The shortest passphrase that a file is written with, in characters.
pub(crate) const MIN_PASSPHRASE: usize = 12;

/// What keys are derived for and signatures made over.
pub(crate) const INFO_WRAP: &[u8] = b"lockgate backup v1 x25519";
pub(crate) const INFO_COMMIT: &[u8] = b"lockgate backup v1 commit";
pub(crate) const INFO_CHUNKS: &[u8] = b"lockgate backup v1 chunks";
pub(crate) const SEAL_LABEL: &[u8] = b"lockgate backup v1 seal\0";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// The document's table of numbers, as written.
    fn documented() -> BTreeMap<String, String> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/backup-format.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (_, table) = text.split_once("<!-- numbers:begin -->").unwrap();
        let (table, _) = table.split_once("<!-- numbers:end -->").unwrap();
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `")).filter_map(|line| line.split_once("` | "));
        rows.map(|(name, rest)| (name.to_owned(), rest.split(" |").next().unwrap().trim_matches('`').to_owned())).collect()
    }

    #[test]
    fn the_document_and_the_code_have_the_same_numbers() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
        let text = |bytes: &[u8]| bytes.escape_ascii().to_string().replace("\\x00", "\\0");
        let code: [(&str, String); 27] = [
            ("MAGIC", hex(&MAGIC)),
            ("FORMAT", FORMAT.to_string()),
            ("MAX_HEADER", MAX_HEADER.to_string()),
            ("CHUNK_HEAD", CHUNK_HEAD.to_string()),
            ("KIND_MANIFEST", KIND_MANIFEST.to_string()),
            ("KIND_RECORDS", KIND_RECORDS.to_string()),
            ("KIND_SUMMARY", KIND_SUMMARY.to_string()),
            ("KIND_SEAL", KIND_SEAL.to_string()),
            ("OPTIONAL", OPTIONAL.to_string()),
            ("FLAG_ZSTD", FLAG_ZSTD.to_string()),
            ("CHUNK", CHUNK.to_string()),
            ("MAX_KEY", MAX_KEY.to_string()),
            ("MAX_VALUE", MAX_VALUE.to_string()),
            ("RECORD_HEAD", RECORD_HEAD.to_string()),
            ("MAX_CHUNK", MAX_CHUNK.to_string()),
            ("MAX_STORED", MAX_STORED.to_string()),
            ("TAG", TAG.to_string()),
            ("SIGNATURE", SIGNATURE.to_string()),
            ("MAX_RECIPIENTS", MAX_RECIPIENTS.to_string()),
            ("MAX_KINDS", MAX_KINDS.to_string()),
            ("MAX_KIND", MAX_KIND.to_string()),
            ("MAX_MEMORY_KIB", MAX_MEMORY_KIB.to_string()),
            ("MAX_PASSES", MAX_PASSES.to_string()),
            ("MAX_LANES", MAX_LANES.to_string()),
            ("INFO_WRAP", text(INFO_WRAP)),
            ("INFO_COMMIT", text(INFO_COMMIT)),
            ("INFO_CHUNKS", text(INFO_CHUNKS)),
        ];
        let mut code: BTreeMap<String, String> = code.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        code.insert("SEAL_LABEL".into(), text(SEAL_LABEL));
        code.insert("MIN_PASSPHRASE".into(), MIN_PASSPHRASE.to_string());
        assert_eq!(documented(), code);
    }

    #[test]
    fn the_largest_record_fits_into_a_chunk_and_the_largest_summary_too() {
        const { assert!(RECORD_HEAD + MAX_KEY + MAX_VALUE <= MAX_CHUNK) };
        // A kind of bytes that all need escaping, in JSON once more, and the longest count.
        const { assert!(MAX_KINDS * (MAX_KIND * 5 + 25) + 1024 <= MAX_CHUNK) };
    }
}

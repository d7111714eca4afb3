//! gzip (RFC 1952) without a name and without a time, by a compressor that Cargo.lock pins: the same bytes on every machine.

/// Compresses as well as the format allows in reasonable time.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    // Magic, deflate, no flags, no time, best compression, operating system unknown.
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 255];
    out.extend(miniz_oxide::deflate::compress_to_vec(bytes, 9));
    out.extend(crc32(bytes).to_le_bytes());
    // The length modulo 2^32, as the RFC has it.
    out.extend((bytes.len() as u32).to_le_bytes());
    out
}

/// CRC-32 of RFC 1952, section 8, by a table of 16.
fn crc32(bytes: &[u8]) -> u32 {
    let table: [u32; 16] =
        std::array::from_fn(|index| (0..4).fold(index as u32, |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())));
    let step = |crc: u32, nibble: u32| (crc >> 4) ^ table.get((nibble & 15) as usize).copied().unwrap_or_default();
    !bytes.iter().fold(!0, |crc: u32, byte| {
        let crc = step(crc, crc ^ u32::from(*byte));
        step(crc, crc ^ (u32::from(*byte) >> 4))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    #[test]
    fn the_ordinary_gzip_reads_it_back() {
        // The check value of the catalogue of parametrised CRC algorithms.
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        let text = "Lockgate ".repeat(10_000);
        let file = tempfile::NamedTempFile::with_suffix(".gz").unwrap();
        fs::write(file.path(), gzip(text.as_bytes())).unwrap();
        let told = Command::new("gzip").arg("-dc").arg(file.path()).output().unwrap();
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        assert_eq!(told.stdout, text.as_bytes());
        assert_eq!(gzip(text.as_bytes()), gzip(text.as_bytes()));
    }
}

//! SSH by hand, as far as it goes without keys: version lines and the packets of the key exchange (RFC 4253), and a man in the
//! middle who adds one.

use std::{
    io::{BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    time::Duration,
};

pub(crate) const KEXINIT: u8 = 20;
pub(crate) const KEX_INIT_ECDH: u8 = 30;
pub(crate) const KEX_REPLY_ECDH: u8 = 31;
const IGNORE: u8 = 2;

/// One plain connection to an SSH server.
pub(crate) struct Plain {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Plain {
    /// Connects and exchanges version lines.
    pub(crate) fn open(port: u16) -> Plain {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut plain = Plain { reader: BufReader::new(stream.try_clone().unwrap()), writer: stream };
        plain.writer.write_all(b"SSH-2.0-byhand_1\r\n").unwrap();
        let line = plain.line().unwrap();
        assert!(line.starts_with(b"SSH-2.0-"), "{}", String::from_utf8_lossy(&line));
        plain
    }

    fn line(&mut self) -> Option<Vec<u8>> {
        read_line(&mut self.reader)
    }

    /// The payload of the next packet; nothing once the server has closed.
    pub(crate) fn packet(&mut self) -> Option<Vec<u8>> {
        read_packet(&mut self.reader).map(|whole| payload(&whole).to_vec())
    }

    pub(crate) fn send(&mut self, payload: &[u8]) {
        let _closed_by_the_server = self.writer.write_all(&packet(payload));
    }
}

fn read_line(from: &mut impl Read) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") {
        from.read_exact(&mut byte).ok()?;
        line.push(byte[0]);
    }
    Some(line)
}

fn read_packet(from: &mut impl Read) -> Option<Vec<u8>> {
    let mut head = [0; 4];
    from.read_exact(&mut head).ok()?;
    let length = u32::from_be_bytes(head) as usize;
    assert!((2..100_000).contains(&length), "a packet of {length} bytes");
    let mut rest = vec![0; length];
    from.read_exact(&mut rest).ok()?;
    Some([&head[..], &rest].concat())
}

fn payload(whole: &[u8]) -> &[u8] {
    &whole[5..whole.len() - usize::from(whole[4])]
}

fn packet(payload: &[u8]) -> Vec<u8> {
    let padding = 4 + (8 - (payload.len() + 9) % 8) % 8;
    let length = u32::try_from(payload.len() + padding + 1).unwrap();
    [&length.to_be_bytes()[..], &[u8::try_from(padding).unwrap()], payload, &vec![0; padding]].concat()
}

/// An SSH string.
pub(crate) fn string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// The name lists of a KEXINIT, in order: key exchange, host keys, …
pub(crate) fn lists(kexinit: &[u8]) -> Vec<String> {
    assert_eq!(kexinit[0], KEXINIT);
    let mut at = 17;
    (0..10)
        .map(|_| {
            let length = u32::from_be_bytes(kexinit[at..at + 4].try_into().unwrap()) as usize;
            let text = String::from_utf8(kexinit[at + 4..at + 4 + length].to_vec()).unwrap();
            at += 4 + length;
            text
        })
        .collect()
}

/// A KEXINIT that agrees to all the server offers, with this key exchange.
pub(crate) fn agree(server: &[u8], method: &str) -> Vec<u8> {
    let mut out = vec![KEXINIT];
    out.extend([7; 16]);
    for (number, list) in lists(server).iter().enumerate() {
        out.extend(string(if number == 0 { method.as_bytes() } else { list.as_bytes() }));
    }
    out.extend([0; 5]);
    out
}

/// A man in the middle for one connection; with `inject`, he adds an IGNORE before the keys, in the client's direction. Returns
/// his port.
pub(crate) fn middle(server: u16, inject: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = TcpStream::connect(("127.0.0.1", server)).unwrap();
        let (mut down_from, mut down_to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let down = std::thread::spawn(move || {
            let _until_it_ends = std::io::copy(&mut down_from, &mut down_to);
            let _both = down_to.shutdown(Shutdown::Both);
        });
        let mut up_to = server;
        let mut reader = BufReader::new(client);
        let mut begin = || {
            up_to.write_all(&read_line(&mut reader)?).ok()?;
            up_to.write_all(&read_packet(&mut reader)?).ok()?;
            if inject {
                up_to.write_all(&packet(&[IGNORE, 0, 0, 0, 0])).ok()?;
            }
            std::io::copy(&mut reader, &mut up_to).ok()
        };
        let _however_it_ended = begin();
        let _both = up_to.shutdown(Shutdown::Both);
        down.join().unwrap();
    });
    port
}

//! Messages between two processes of one host, with open descriptors in hand: how listeners, connections and locks go from a
//! process to its successor (a live restart). What the messages say is `wire::handover`'s.
//!
//! One packet is one message (`SOCK_SEQPACKET`), so that a descriptor arrives with the words it belongs to. Its end is the end of
//! the other process, however that came. Descriptors that were received are closed on `exec`.

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};
use tokio::{io::Interest, net::UnixStream};

/// The longest message.
pub const MOST_BYTES: usize = 64 * 1024;
/// Descriptors with one message.
pub const MOST_DESCRIPTORS: usize = 32;
/// For a message to be taken: the other process reads, or it is of no use.
const DEADLINE: Duration = Duration::from_secs(5);

/// One end.
#[derive(Debug)]
pub struct Hand(UnixStream);

/// A message as it came.
#[derive(Debug)]
pub struct Handed {
    pub bytes: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

impl Hand {
    /// Our end, and the one for another process: its standard input, say.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self::new(ours)?, theirs))
    }

    /// An end that was inherited.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self(UnixStream::from_std(socket)?))
    }

    /// Returns when the message lies with the other process.
    pub async fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        if bytes.len() > MOST_BYTES || descriptors.len() > MOST_DESCRIPTORS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too long for one message"));
        }
        let send = self.0.async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            sendmsg(self.0.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).map_err(io::Error::from)
        });
        match tokio::time::timeout(DEADLINE, send).await {
            Ok(sent) => sent.map(drop),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// The next message; none when the other process has closed its end. Safe to cancel.
    pub async fn receive(&self) -> io::Result<Option<Handed>> {
        let received = self.0.async_io(Interest::READABLE, || {
            let mut bytes = vec![0; MOST_BYTES];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let got = recvmsg(self.0.as_fd(), &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
            let mut descriptors = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(all) = message {
                    descriptors.extend(all);
                }
            }
            if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
            }
            bytes.truncate(got.bytes);
            Ok(Handed { bytes, descriptors })
        });
        match received.await {
            // An empty message is never sent.
            Ok(handed) => Ok((!handed.bytes.is_empty()).then_some(handed)),
            Err(error) if error.raw_os_error() == Some(Errno::CONNRESET.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    #[tokio::test]
    async fn descriptors_arrive_with_the_words_they_belong_to() {
        let (ours, theirs) = Hand::pair().unwrap();
        let theirs = Hand::new(theirs).unwrap();
        let file = |text: &str| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            io::Seek::rewind(&mut file).unwrap();
            file
        };
        let (one, two, three) = (file("one"), file("two"), file("three"));
        ours.send(b"first", &[one.as_fd(), two.as_fd()]).await.unwrap();
        ours.send(b"second", &[]).await.unwrap();
        ours.send(b"third", &[three.as_fd()]).await.unwrap();
        let texts = |handed: Handed| {
            let read = |descriptor: OwnedFd| {
                let mut text = String::new();
                std::fs::File::from(descriptor).read_to_string(&mut text).unwrap();
                text
            };
            (String::from_utf8(handed.bytes).unwrap(), handed.descriptors.into_iter().map(read).collect::<Vec<_>>())
        };
        assert_eq!(texts(theirs.receive().await.unwrap().unwrap()), ("first".into(), vec!["one".into(), "two".into()]));
        assert_eq!(texts(theirs.receive().await.unwrap().unwrap()), ("second".into(), vec![]));
        assert_eq!(texts(theirs.receive().await.unwrap().unwrap()), ("third".into(), vec!["three".into()]));
        drop(ours);
        assert!(theirs.receive().await.unwrap().is_none(), "the end of one is told to the other");
    }

    #[tokio::test]
    async fn what_is_too_long_is_not_sent() {
        let (ours, _theirs) = Hand::pair().unwrap();
        assert!(ours.send(&vec![b'x'; MOST_BYTES + 1], &[]).await.is_err());
        let file = tempfile::tempfile().unwrap();
        assert!(ours.send(b"x", &[file.as_fd(); MOST_DESCRIPTORS + 1]).await.is_err());
    }
}

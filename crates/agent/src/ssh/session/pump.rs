//! Output of a session's program: from its terminal or pipes to the recording and the client.
//!
//! [`pump`] is the loop, one for each stream of output; [`send`] keeps within the channel's window and lets the connection
//! read while it waits for more, as forwarded connections do too (`ssh::forward`). Recording comes first: what the client
//! has seen was recorded. The other direction is in `super::drive`.

use super::pulse::Pulse;
use crate::{
    record::Tape,
    ssh::{PACKET, pty::Master, stream::Flow},
};
use bytes::{Bytes, BytesMut};
use net::{block::make_room, pipe::Reader};
use russh::{ChannelWriteHalf, server::Msg};
use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};
use tokio::io::AsyncReadExt;

/// A read that is split leaves a packet of a few bytes behind.
const PIECE: usize = PACKET as usize;
const LOWEST: usize = 32 * 1024;

pub(super) enum Source {
    Terminal(Arc<Master>),
    Pipe(Reader),
}

pub(super) struct Out<'a> {
    pub(super) write: &'a ChannelWriteHalf<Msg>,
    /// `1` is standard error.
    pub(super) ext: Option<u32>,
    pub(super) flow: &'a Arc<Flow>,
    pub(super) pulse: &'a Pulse,
}

/// From the program to recording and client, in pieces of at most one packet that are never copied again.
pub(super) async fn pump(mut source: Source, out: Out<'_>, mut tape: Option<&mut Tape>) -> Result<(), String> {
    let mut buffer = BytesMut::new();
    loop {
        if buffer.capacity() < LOWEST {
            make_room(&mut buffer, PIECE);
        }
        let read = match &mut source {
            Source::Terminal(master) => master.read(&mut buffer).await,
            Source::Pipe(pipe) => pipe.read_buf(&mut buffer).await,
        };
        if read.map_err(|error| format!("its output cannot be read: {error}"))? == 0 {
            return Ok(());
        }
        let bytes = buffer.split().freeze();
        out.pulse.busy.fetch_add(1, SeqCst);
        out.pulse.beat();
        if let Some(tape) = &mut tape {
            tape.write(bytes.clone()).await.map_err(|error| error.to_string())?;
        }
        send(out.write, out.ext, bytes, out.flow).await.map_err(|()| "its output cannot be sent".to_owned())?;
        out.pulse.busy.fetch_sub(1, SeqCst);
        out.pulse.beat();
    }
}

/// Sends data within the channel's window. While it waits for window, the connection must read: only a message of the
/// client can grant it.
pub(crate) async fn send(write: &ChannelWriteHalf<Msg>, ext: Option<u32>, bytes: Bytes, flow: &Arc<Flow>) -> Result<(), ()> {
    const LOOK: Duration = Duration::from_millis(20);
    let sending = async {
        match ext {
            None => write.data_bytes(bytes).await,
            Some(ext) => write.extended_data_bytes(ext, bytes).await,
        }
    };
    tokio::pin!(sending);
    let mut starved = None;
    loop {
        tokio::select! {
            biased;
            result = &mut sending => return result.map_err(|_| ()),
            () = tokio::time::sleep(LOOK) => {
                let without = write.writable_packet_size().await == 0;
                if without != starved.is_some() {
                    starved = without.then(|| flow.starve());
                }
            }
        }
    }
}

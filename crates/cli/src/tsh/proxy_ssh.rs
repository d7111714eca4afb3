//! `tsh proxy ssh`: standard input and output become a connection to a host's SSH Service. OpenSSH's `ProxyCommand`.
//!
//! SSH is spoken by whoever started this, end to end with the host: nothing here sees inside. The program ends when the
//! host's side does; that is how OpenSSH learns of it.

use super::{Global, profile, session};
use crate::{
    connection::runtime,
    exit::{Could as _, Outcome},
};
use bytes::BytesMut;
use session::stdio;
use std::{io, process::ExitCode};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use types::Public;
use wire::route::Target;

/// Carried at once.
const BLOCK: usize = 64 << 10;

/// `tsh proxy ssh`
pub(crate) fn proxy_ssh(global: &Global, target: &str, cluster: Option<&str>) -> Outcome {
    let what = || format!("connect to \"{}\"", target.escape_debug());
    let user = profile::logged_in(global).could(what())?;
    let other = session::other_cluster(cluster, &user).could(what())?;
    let suffix = cluster.unwrap_or_else(|| user.credentials.cluster().as_str());
    let host = read(target, suffix).could(what())?;
    let runtime = runtime().could(what())?;
    let carried = runtime.block_on(async {
        let node = session::dial(&user, &host, other.as_ref()).await.map_err(|error| error.public())?;
        Ok::<_, Public>(carry(node.stream, stdio::input(), stdio::output()).await)
    });
    runtime.shutdown_background();
    match carried.could(what())? {
        // OpenSSH closes its end when it is done.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).could(format!("carry the connection to \"{}\"", target.escape_debug()))
        }
        Ok(()) | Err(_) => Ok(ExitCode::SUCCESS),
    }
}

/// `[login@]host[:port]`, with or without the cluster's name at its end. Login and port are SSH's affair.
fn read(text: &str, cluster: &str) -> Result<Target, Public> {
    let (_, host) = session::split_login(text)?;
    let host = match host.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        _ => host,
    };
    let short = host.strip_suffix(cluster).and_then(|rest| rest.strip_suffix('.')).filter(|rest| !rest.is_empty());
    session::host(short.unwrap_or(host))
}

/// Both ways, until the far side ends. Our side's end is passed on.
async fn carry(stream: net::IoStream, mut input: stdio::Input, mut output: stdio::Output) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(stream);
    let up = async {
        // What fails on the way up shows on the way down.
        let _failed = copy(&mut input, &mut to).await;
        let _failed = to.shutdown().await;
        std::future::pending::<std::convert::Infallible>().await
    };
    tokio::select! {
        down = copy(&mut from, &mut output) => down,
        never = up => match never {},
    }
}

async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut block = BytesMut::new();
    loop {
        block.reserve(BLOCK);
        if from.read_buf(&mut block).await? == 0 {
            return to.flush().await;
        }
        to.write_all_buf(&mut block).await?;
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_that_openssh_hands_over_names_the_host() {
        let check = |text: &str, want: &str| assert_eq!(read(text, "demo").unwrap().to_string(), want, "{text}");
        check("node1", "node1");
        check("node1:3022", "node1");
        check("alice@node1.demo:3022", "node1");
        check("node1.demo", "node1");
        check("node1.eu.demo", "node1.eu");
        check("node1.other", "node1.other");
        check("demo", "demo");
        check("0190a6e6-7d0c-7000-8000-000000000001.demo", "0190a6e6-7d0c-7000-8000-000000000001");
        for bad in ["", "alice@", "10.0.0.1:x", "a b"] {
            assert!(read(bad, "demo").is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn the_end_of_the_far_side_ends_it_although_our_input_is_open() {
        let (near, mut far) = tokio::io::duplex(1024);
        let (input, _open) = tokio::io::duplex(64);
        let (output, mut seen) = tokio::io::duplex(1024);
        let carried = carry(Box::new(near), Box::new(input), Box::new(output));
        let host = async {
            far.write_all(b"SSH-2.0-x\r\n").await.unwrap();
            drop(far);
        };
        let (done, ()) = tokio::join!(carried, host);
        done.unwrap();
        let mut text = String::new();
        seen.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "SSH-2.0-x\r\n");
    }

    #[tokio::test]
    async fn the_end_of_our_input_is_passed_on_and_the_answer_still_comes() {
        let (near, mut far) = tokio::io::duplex(1024);
        let (mut ours, input) = tokio::io::duplex(64);
        let (output, mut seen) = tokio::io::duplex(1024);
        let host = async {
            let mut asked = String::new();
            far.read_to_string(&mut asked).await.unwrap();
            far.write_all(asked.to_uppercase().as_bytes()).await.unwrap();
            drop(far);
        };
        let user = async {
            ours.write_all(b"question").await.unwrap();
            drop(ours);
        };
        let (done, (), ()) = tokio::join!(carry(Box::new(near), Box::new(input), Box::new(output)), host, user);
        done.unwrap();
        let mut text = String::new();
        seen.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "QUESTION");
    }
}

//! `net::copy`: half-close, silence, stopping, last words, slow readers.
//!
//! Pipes in memory have exact capacities, so what is held back can be counted; time is paused wherever a limit is waited for.

use net::{
    copy::{End, Options, Stats, splice},
    shutdown::Shutdown,
};
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    net::{TcpListener, TcpStream},
};

const MINUTE: Duration = Duration::from_secs(60);

/// Two ends and the pair between them.
fn pair(size: usize, options: Options) -> (DuplexStream, DuplexStream, impl Future<Output = Stats>) {
    let ((a, near), (b, far)) = (duplex(size), duplex(size));
    (a, b, splice(near, far, options))
}

fn noise(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[tokio::test]
async fn half_close_is_kept_and_the_answer_after_it_arrives_whole() {
    let (mut a, mut b, between) = pair(1000, Options::default());
    let (question, answer) = (noise(300_000), noise(500_001));
    let asker = async {
        a.write_all(&question).await.unwrap();
        a.shutdown().await.unwrap();
        let mut got = Vec::new();
        a.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, answer);
    };
    let answerer = async {
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, question);
        b.write_all(&answer).await.unwrap();
        b.shutdown().await.unwrap();
    };
    let ((), (), stats) = tokio::join!(asker, answerer, between);
    assert_eq!(stats, Stats { up: 300_000, down: 500_001, end: End::Closed });
}

#[tokio::test]
async fn both_directions_run_at_once_over_tcp() {
    async fn tcp() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (dialled, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (dialled.unwrap(), accepted.unwrap().0)
    }
    let ((a, near), (b, far)) = (tcp().await, tcp().await);
    let data = noise(4_000_000);
    let end = |stream: TcpStream| async {
        let (mut read, mut write) = stream.into_split();
        let mut got = Vec::new();
        let send = async {
            write.write_all(&data).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let (count, ()) = tokio::join!(read.read_to_end(&mut got), send);
        count.unwrap();
        assert!(got == data);
    };
    let (stats, (), ()) = tokio::join!(splice(near, far, Options::default()), end(a), end(b));
    assert_eq!(stats, Stats { up: 4_000_000, down: 4_000_000, end: End::Closed });
}

#[tokio::test(start_paused = true)]
async fn an_idle_pair_ends_after_its_limit_and_traffic_puts_the_end_off() {
    let (mut a, mut b, between) = pair(64, Options { idle: Some(MINUTE), ..Options::default() });
    let began = tokio::time::Instant::now();
    let talker = async {
        tokio::time::advance(MINUTE / 2).await;
        a.write_all(b"x").await.unwrap();
        b.read_u8().await.unwrap();
        (a, b)
    };
    let (stats, _ends) = tokio::join!(between, talker);
    assert_eq!(stats, Stats { up: 1, down: 0, end: End::Idle });
    assert_eq!(began.elapsed().as_secs(), 90);
}

#[tokio::test(start_paused = true)]
async fn after_a_half_close_the_grace_is_the_limit() {
    let (mut a, _b, between) = pair(64, Options { idle: Some(60 * MINUTE), half_close_grace: Some(MINUTE), ..Options::default() });
    let began = tokio::time::Instant::now();
    a.shutdown().await.unwrap();
    assert_eq!(between.await.end, End::Idle);
    assert_eq!(began.elapsed().as_secs(), 60);
}

#[tokio::test]
async fn a_pair_ends_when_told_to_stop_and_not_when_told_to_drain() {
    let shutdown = Shutdown::new();
    let (mut a, mut b, between) = pair(64, Options { shutdown: Some(shutdown.child()), ..Options::default() });
    let teller = async {
        shutdown.drain();
        a.write_all(b"still here").await.unwrap();
        let mut got = [0; 10];
        b.read_exact(&mut got).await.unwrap();
        shutdown.stop();
    };
    let (stats, ()) = tokio::join!(between, teller);
    assert_eq!((stats.up, stats.end), (10, End::Stopped));
}

#[tokio::test]
async fn what_a_host_said_before_it_went_away_still_reaches_the_client() {
    let (mut a, mut b, between) = pair(1 << 16, Options::default());
    b.write_all(&noise(50_000)).await.unwrap();
    drop(b);
    let client = async {
        // The host no longer reads: this write fails behind the Proxy, and must not cost the host's last words.
        let _ = a.write_all(b"input nobody reads").await;
        let mut got = Vec::new();
        a.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, noise(50_000));
        drop(a);
    };
    let (stats, ()) = tokio::join!(between, client);
    assert_eq!(stats.down, 50_000);
    assert!(matches!(stats.end, End::Failed(_)), "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_holds_back_its_writer() {
    let (mut a, mut b, between) = pair(4096, Options::default());
    let data = noise(10 << 20);
    let writer = async {
        // Far less than ten mebibytes fit between the two ends.
        assert!(tokio::time::timeout(MINUTE, a.write_all(&data)).await.is_err());
        drop(a);
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.unwrap();
        assert!(got.len() < 256 * 1024 && data.starts_with(&got), "{}", got.len());
        drop(b);
    };
    tokio::join!(between, writer);
}

/// Gives so many records of TLS, one at each read, and counts the writes to it.
struct Records {
    left: usize,
    writes: Arc<AtomicUsize>,
}
impl AsyncRead for Records {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left > 0 {
            self.left -= 1;
            into.put_slice(&vec![1; into.remaining().min(16_384)]);
        }
        Poll::Ready(Ok(()))
    }
}
impl AsyncWrite for Records {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn records_that_are_there_go_out_four_at_a_time() {
    let (from, to) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let stats = splice(Records { left: 400, writes: from.clone() }, Records { left: 0, writes: to.clone() }, Options::default()).await;
    assert_eq!((stats.up, stats.down, stats.end), (400 * 16_384, 0, End::Closed));
    assert_eq!((from.load(Ordering::Relaxed), to.load(Ordering::Relaxed)), (0, 100));
}

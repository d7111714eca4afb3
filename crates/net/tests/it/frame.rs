use net::frame::{FrameError, Reader, read_frame, write_frame};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_frame_is_taken_and_not_a_byte_more() {
    let (mut a, mut b) = duplex(64);
    write_frame(&mut a, b"hello", SOON).await.unwrap();
    a.write_all(b"SSH-2.0").await.unwrap();
    assert_eq!(read_frame(&mut b, SOON).await.unwrap(), "hello");
    let mut rest = [0; 7];
    b.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"SSH-2.0");
}

#[tokio::test(start_paused = true)]
async fn silence_closing_and_announced_giants_are_told_apart() {
    let (mut a, mut b) = duplex(64);
    assert!(matches!(read_frame(&mut b, SOON).await, Err(FrameError::Timeout)));
    a.write_all(&[0xff, 0xff, 0xff, 0xff]).await.unwrap();
    assert!(matches!(read_frame(&mut b, SOON).await, Err(FrameError::TooLong(_))));
    a.write_all(&[0, 0, 0, 9, 1]).await.unwrap();
    drop(a);
    assert!(matches!(read_frame(&mut b, SOON).await, Err(FrameError::Closed)));
    assert!(matches!(write_frame(&mut b, b"x", SOON).await, Err(FrameError::Closed)));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_cancelled_between_halves_loses_nothing() {
    let (mut a, b) = duplex(64);
    let mut reader = Reader::new(b);
    a.write_all(&[0, 0, 0, 3, b'o']).await.unwrap();
    assert!(matches!(reader.next(SOON).await, Err(FrameError::Timeout)));
    a.write_all(b"ne\0\0\0\x03two").await.unwrap();
    assert_eq!(reader.next(SOON).await.unwrap(), "one");
    assert_eq!(reader.next(SOON).await.unwrap(), "two");
    drop(a);
    assert!(matches!(reader.next(SOON).await, Err(FrameError::Closed)));
}

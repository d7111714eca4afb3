//! The sink's own tests: uploads that resume, collide, break off and lie.

use super::*;
use types::Extra;
use wire::recording::{End, Header, Writer};

fn ids() -> (SessionId, HostId) {
    (SessionId::from_uuid(uuid::Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001)), HostId::from_uuid(uuid::Uuid::from_u128(9)))
}

fn recording(session: SessionId, host: HostId) -> (Vec<u8>, Vec<u8>) {
    recording_of(session, host, 5000)
}

fn recording_of(session: SessionId, host: HostId, output: usize) -> (Vec<u8>, Vec<u8>) {
    let description = Recording {
        session,
        user: "alice".into(),
        login: "root".into(),
        host_id: host,
        hostname: "node1".into(),
        kind: "shell".into(),
        command: String::new(),
        started: Time::from_unix(100),
        ended: None,
        size: 0,
        extra: Extra::new(),
    };
    let header = Header { recording: description, width: 80, height: 24, term: "xterm".into(), extra: Extra::new() };
    let mut writer = Writer::new();
    let mut bytes = writer.encode(0, &What::Header(Box::new(header))).to_vec();
    bytes.extend(writer.encode(10, &What::Output(Bytes::from(vec![b'x'; output]))));
    bytes.extend(writer.encode(7000, &What::End(End { status: Some(0), signal: None })));
    let digest = Sha256::digest(&bytes).to_vec();
    (bytes, digest)
}

#[test]
fn an_upload_resumes_is_checked_and_may_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let (sink, (session, host)) = (Recordings::new(dir.path(), HostId::from_uuid(uuid::Uuid::nil())), ids());
    let (bytes, digest) = recording(session, host);
    let mut upload = sink.upload(session, host, 0).unwrap();
    upload.push(0, &bytes[..1000]).unwrap();
    assert!(matches!(upload.push(0, b"x"), Err(RecordingError::Gap { asked: 0, have: 1000 })));
    drop(upload);
    assert!(!sink.has(session) && sink.list(10, |_| true).unwrap().is_empty());
    assert!(matches!(sink.upload(session, host, 1001), Err(RecordingError::Gap { asked: 1001, have: 1000 })));
    let mut upload = sink.upload(session, host, 900).unwrap();
    upload.push(900, &bytes[900..]).unwrap();
    let done = upload.finish(&digest).unwrap().recording;
    assert_eq!((done.size, done.ended), (bytes.len() as u64, Some(Time::from_unix(107))));

    let mut again = sink.upload(session, host, 0).unwrap();
    again.push(0, &bytes).unwrap();
    assert!(!again.finish(&digest).unwrap().fresh);
    // A restart finds it.
    let sink = Recordings::new(dir.path(), HostId::from_uuid(uuid::Uuid::nil()));
    assert_eq!(sink.list(10, |_| true).unwrap(), [done]);
    assert_eq!(read_piece(&mut sink.open(session, 5).unwrap()).unwrap(), bytes[5..]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "the recording, its description, the lock");
}

#[test]
fn two_uploads_of_one_recording_do_not_write_into_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (sink, (session, host)) = (Recordings::new(dir.path(), HostId::from_uuid(uuid::Uuid::nil())), ids());
    let (bytes, digest) = recording(session, host);
    let (mut one, mut two) = (sink.upload(session, host, 0).unwrap(), sink.upload(session, host, 0).unwrap());
    one.push(0, &bytes[..700]).unwrap();
    two.push(0, &vec![0; 900]).unwrap();
    one.push(700, &bytes[700..]).unwrap();
    assert!(one.finish(&digest).unwrap().fresh);
    assert!(two.finish(&digest).is_err());
    // The same once more is fine, another is not, and the first stands.
    let send = |bytes: &[u8]| {
        let mut upload = sink.upload(session, host, 0).unwrap();
        upload.push(0, bytes).unwrap();
        upload.finish(&Sha256::digest(bytes))
    };
    assert!(!send(&bytes).unwrap().fresh);
    let (longer, _) = recording_of(session, host, 6000);
    assert!(matches!(send(&longer), Err(RecordingError::Exists)));
    assert_eq!(fs::read(dir.path().join(format!("{session}.rec"))).unwrap(), bytes);
    assert_eq!(sink.describe(session).unwrap().size, bytes.len() as u64);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing else is left");
}

#[test]
fn an_upload_that_a_killed_process_left_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (sink, (session, host)) = (Recordings::new(dir.path(), HostId::from_uuid(uuid::Uuid::nil())), ids());
    let (bytes, digest) = recording(session, host);
    let mut upload = sink.upload(session, host, 0).unwrap();
    upload.push(0, &bytes[..1000]).unwrap();
    std::mem::forget(upload);
    let sink = Recordings::new(dir.path(), HostId::from_uuid(uuid::Uuid::nil()));
    let mut upload = sink.upload(session, host, 1000).unwrap();
    // Nobody else may go on where this one does.
    assert!(matches!(sink.upload(session, host, 1000), Err(RecordingError::Gap { asked: 1000, have: 0 })));
    upload.push(1000, &bytes[1000..]).unwrap();
    assert!(upload.finish(&digest).unwrap().fresh);
}

#[test]
fn a_recording_that_is_not_what_it_says_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (sink, (session, host)) = (Recordings::new(dir.path(), HostId::from_uuid(uuid::Uuid::nil())), ids());
    let (bytes, digest) = recording(session, host);
    let send = |session, host, bytes: &[u8], digest: &[u8]| {
        let mut upload = sink.upload(session, host, 0).unwrap();
        upload.push(0, bytes).unwrap();
        upload.finish(digest)
    };
    assert!(matches!(send(session, host, &bytes, &[0; 32]), Err(RecordingError::Digest)));
    let mut flipped = bytes.clone();
    flipped[600] ^= 1;
    assert!(matches!(send(session, host, &flipped, &digest), Err(RecordingError::Bad(BadRecording::Damaged(_)))));
    assert!(matches!(send(session, HostId::from_uuid(uuid::Uuid::from_u128(10)), &bytes, &digest), Err(RecordingError::Disagrees)));
    let other = SessionId::from_uuid(uuid::Uuid::from_u128(1));
    assert!(matches!(send(other, host, &bytes, &digest), Err(RecordingError::Disagrees)));
    assert!(matches!(send(session, host, b"GIF89a", &Sha256::digest(b"GIF89a")), Err(RecordingError::Bad(BadRecording::Foreign))));
    assert!(matches!(send(session, host, b"", &Sha256::digest(b"")), Err(RecordingError::NoHeader)));
    assert!(!sink.has(session));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing of them is kept");
}

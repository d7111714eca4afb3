//! The rescue protocol byte for byte, and under bytes of any kind.

use super::*;
use proptest::prelude::*;
use types::Code;

fn sha(byte: u8) -> Sha256 {
    Sha256::new([byte; 32])
}

fn name(text: &str) -> FileName {
    text.parse().unwrap()
}

/// One conversation, as 1.0.0 has it. Every later release reads the left and the right side of it: never change a byte.
const GOLDEN: &[(&str, &str, &[u8])] = &[
    (
        ">",
        r#"{"type":"status","version":"8.3.7","os":"linux","arch":"amd64","content":"sha256:aa","refused":{"code":"LG-VERSION-001","message":"too old","hint":"upgrade"}}"#,
        b"",
    ),
    (
        "<",
        r#"{"type":"advice","action":"install","proxy":"10.2.0","version":"9.4.1","major":9,"why":"w","cure":"c","again":60,"artifacts":[{"name":"lockgate-9.4.1-linux-amd64.tar.gz","os":"linux","arch":"amd64","sha256":"0101010101010101010101010101010101010101010101010101010101010101","size":3}]}"#,
        b"",
    ),
    (
        ">",
        r#"{"type":"fetch","sha256":"0101010101010101010101010101010101010101010101010101010101010101","offset":0,"length":4194304}"#,
        b"",
    ),
    ("<", r#"{"type":"chunk","offset":0,"size":3,"last":true}"#, &[0, 255, b'\n']),
    (">", r#"{"type":"metadata","name":"timestamp.json","offset":0,"length":4194304}"#, b""),
    ("<", r#"{"type":"refused","error":{"code":"LG-RESOURCE-001","message":"no"}}"#, b""),
    // As a Proxy reads a question of a release after its own, and what it says.
    (">", r#"{"type":"unknown"}"#, b""),
    (
        "<",
        r#"{"type":"refused","error":{"code":"LG-RESCUE-002","message":"this Proxy (10.2.0) does not know that question","hint":"do without it, or ask a Proxy of another release"}}"#,
        b"",
    ),
];

fn transcript() -> [Vec<u8>; 8] {
    let refused = Public::new(Code::VersionTooOld, "too old").hint("upgrade");
    let status = Status {
        version: "8.3.7".into(),
        os: "linux".into(),
        arch: "amd64".into(),
        content: Some("sha256:aa".into()),
        refused: Some(refused),
        extra: Extra::new(),
    };
    let artifact = Artifact {
        name: name("lockgate-9.4.1-linux-amd64.tar.gz"),
        os: "linux".into(),
        arch: "amd64".into(),
        sha256: sha(1),
        size: 3,
        extra: Extra::new(),
    };
    let advice = Advice {
        action: Action::Install,
        proxy: "10.2.0".into(),
        version: Some("9.4.1".into()),
        major: Some(9),
        why: "w".into(),
        cure: "c".into(),
        again: 60,
        artifacts: vec![artifact],
        extra: Extra::new(),
    };
    let chunk = Chunk { offset: 0, size: 3, last: true, extra: Extra::new() };
    let refused = ToHost::Refused { error: Public::new(Code::NotFound, "no"), extra: Extra::new() };
    [
        encode(&ToProxy::Status(status), b"").unwrap(),
        encode(&ToHost::Advice(advice), b"").unwrap(),
        encode(&ToProxy::Fetch(Fetch { sha256: sha(1), offset: 0, length: MAX_FETCH, extra: Extra::new() }), b"").unwrap(),
        encode(&ToHost::Chunk(chunk), &[0, 255, b'\n']).unwrap(),
        encode(&ToProxy::Metadata(Metadata { name: name("timestamp.json"), offset: 0, length: MAX_FETCH, extra: Extra::new() }), b"")
            .unwrap(),
        encode(&refused, b"").unwrap(),
        encode(&ToProxy::Unknown, b"").unwrap(),
        encode(&not_known("10.2.0"), b"").unwrap(),
    ]
}

#[test]
fn the_rescue_protocol_is_frozen_byte_for_byte() {
    for (bytes, (side, head, body)) in transcript().iter().zip(GOLDEN) {
        let mut want = b"LGR1".to_vec();
        want.extend(u16::try_from(head.len()).unwrap().to_be_bytes());
        want.extend(head.as_bytes());
        want.extend(*body);
        assert_eq!(bytes, &want, "{side} {head}\nis {}", String::from_utf8_lossy(bytes));
        // And is understood again as what it was.
        match *side {
            ">" => assert_eq!(&encode(&decode::<ToProxy>(bytes).unwrap().0, body).unwrap(), bytes),
            _ => assert_eq!(&encode(&decode::<ToHost>(bytes).unwrap().0, decode::<ToHost>(bytes).unwrap().1).unwrap(), bytes),
        }
    }
    assert_eq!((MAGIC, CHUNK, MAX_FETCH, crate::alpn::RESCUE), (b"LGR1", 15360, 4_194_304, &b"lockgate-rescue"[..]));
}

fn said(head: &str) -> Vec<u8> {
    let head: serde_json::Value = serde_json::from_str(head).unwrap();
    encode(&head, b"body").unwrap()
}

#[test]
fn unknown_fields_are_kept_and_unknown_messages_are_known_as_such_both_ways() {
    assert_eq!(decode::<ToProxy>(&said(r#"{"type":"sing","tune":1}"#)).unwrap(), (ToProxy::Unknown, &b"body"[..]));
    assert_eq!(decode::<ToHost>(&said(r#"{"type":"dance"}"#)).unwrap().0, ToHost::Unknown);
    let (ToProxy::Status(status), _) = decode(&said(r#"{"type":"status","version":"99","mood":{"a":[1]}}"#)).unwrap() else { panic!() };
    assert_eq!((status.version.as_str(), &status.extra["mood"]["a"][0]), ("99", &1.into()));
    assert_eq!(serde_json::to_value(ToProxy::Status(status)).unwrap()["mood"]["a"][0], 1);
    let (ToHost::Advice(advice), _) = decode(&said(r#"{"type":"advice","action":"levitate","x":1}"#)).unwrap() else { panic!() };
    assert_eq!((advice.action, &advice.extra["x"]), (Action::Unknown, &1.into()));
    // The least that may be said is enough.
    assert_eq!(decode::<ToProxy>(&said(r#"{"type":"status"}"#)).unwrap().0, ToProxy::Status(Status::default()));
    assert_eq!(decode::<ToHost>(&said(r#"{"type":"advice"}"#)).unwrap().0, ToHost::Advice(Advice::default()));
}

#[test]
fn what_a_later_release_lists_otherwise_costs_nobody_the_rest_of_the_message() {
    let known = format!(r#"{{"name":"a.tar.gz","sha256":"{}","size":3}}"#, "01".repeat(32));
    let head = format!(r#"{{"type":"advice","action":"install","version":"2.0.0","artifacts":[{{"name":"../x","blake3":"aa"}},{known}]}}"#);
    let (ToHost::Advice(advice), _) = decode::<ToHost>(&said(&head)).unwrap() else { panic!("no advice") };
    assert_eq!((advice.version.as_deref(), advice.artifacts.len()), (Some("2.0.0"), 1));
    let (ToProxy::Status(status), _) = decode::<ToProxy>(&said(r#"{"type":"status","version":"2.0.0","refused":7}"#)).unwrap() else {
        panic!("no status")
    };
    assert_eq!((status.version.as_str(), status.refused), ("2.0.0", None));
}

#[test]
fn attack_row_21_a_name_is_never_a_way_out_of_a_directory() {
    for bad in ["", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "a\\b", "a\0", "ä", "-x", &"x".repeat(129)] {
        assert_eq!(bad.parse::<FileName>(), Err(BadRescue::Name), "{bad:?}");
    }
    for good in ["SHA256SUMS", "lockgate-1.0.0-linux-amd64.tar.gz", "lockgate_1.0.0~rc1_amd64.deb", "root.json", "1.root.json"] {
        assert_eq!(good.parse::<FileName>().unwrap().as_str(), good);
    }
    let hex = "ab".repeat(32);
    assert_eq!(hex.parse::<Sha256>().unwrap().to_string(), hex);
    for bad in [hex.to_uppercase(), hex[1..].to_owned(), format!("{hex}00"), "x".repeat(64)] {
        assert!(bad.parse::<Sha256>().is_err(), "{bad}");
    }
}

#[test]
fn the_largest_chunk_and_the_longest_advice_fit_into_a_frame() {
    let far = Chunk { offset: u64::MAX, size: u64::MAX, last: false, extra: Extra::new() };
    assert!(encode(&ToHost::Chunk(far), &[0; CHUNK]).is_ok());
    let artifact = Artifact {
        name: name(&"x".repeat(128)),
        os: "o".repeat(16),
        arch: "a".repeat(16),
        sha256: sha(9),
        size: u64::MAX,
        extra: Extra::new(),
    };
    let long = Advice { why: "w".repeat(1000), cure: "c".repeat(1000), artifacts: vec![artifact; MAX_ARTIFACTS], ..Advice::default() };
    assert!(encode(&ToHost::Advice(long), b"").is_ok());
    assert!(matches!(encode(&ToHost::Unknown, &[0; crate::frame::MAX_FRAME]), Err(BadRescue::TooLong(_))));
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_a_clear_refusal(bytes in prop::collection::vec(any::<u8>(), 0..400), prefixed: bool) {
        let mut payload = if prefixed { MAGIC.to_vec() } else { Vec::new() };
        payload.extend(bytes);
        for error in [decode::<ToProxy>(&payload).err(), decode::<ToHost>(&payload).err()].into_iter().flatten() {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn what_was_said_is_heard(version in ".{0,40}", offset: u64, length: u64, body in prop::collection::vec(any::<u8>(), 0..CHUNK)) {
        let status = ToProxy::Status(Status { version, ..Status::default() });
        let fetch = ToProxy::Fetch(Fetch { sha256: sha(7), offset, length, extra: Extra::new() });
        for said in [status, fetch] {
            let bytes = encode(&said, &body).unwrap();
            prop_assert_eq!(decode::<ToProxy>(&bytes).unwrap(), (said, body.as_slice()));
        }
    }
}

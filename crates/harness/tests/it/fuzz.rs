//! Every parser of bytes that a stranger can send, under broken bytes: no panic, no 64 MiB, no standstill.
//!
//! Brief here; `make fuzz` runs longer. Corpora are in `fuzz/corpus/<target>/` and replayed first.

use bytes::BytesMut;
use futures::FutureExt as _;
use harness::{
    binary::root,
    fuzz::{Budget, Reached, Target, fuzz},
};
use std::cell::RefCell;
use types::{Document, Public, Resource, Time, Version, version::Direction};
use wire::{hello, identity, recording, rescue, route, tunnel};

fn check(target: Target) {
    let report = fuzz(target, &root().join("fuzz"), Budget::from_env()).unwrap_or_else(|fault| panic!("{fault}"));
    eprintln!("{}: {} runs, {} places, {} bytes at most", target.name, report.runs, report.places, report.peak);
}

macro_rules! targets {
    ($($test:ident: $name:literal, [$($word:literal),*], $run:expr;)+) => {
        $(#[test]
        fn $test() {
            check(Target { name: $name, dictionary: &[$($word),*], run: $run });
        })+
    };
}

targets! {
    fuzz_hello: "hello", [b"LGH1", b"\"version\"", b"\"accept\"", b"\"refuse\"", b"\"code\"", b"3.0.0-rc.1", b"\"apis\""], |data| {
        let ours = hello::Hello::ours(&Version::new(2, 1, 0), "auth");
        match hello::decode::<hello::Hello>(data) {
            Ok(theirs) => Reached::of(&(hello::decide(Direction::ServerFirst, &theirs, &ours), hello::skipped(Direction::ServerFirst, &theirs, &ours))),
            Err(error) => Reached::of(&(error.to_string(), hello::decode::<hello::Answer>(data).is_ok(), hello::decode::<hello::Verdict>(data).is_ok())),
        }
    };
    fuzz_frame: "frame", [b"\0\0\x40\0", b"\0\0\x40\x01"], |data| {
        let mut buffer = BytesMut::from(data);
        let mut taken = 0;
        loop {
            match wire::frame::decode(&mut buffer) {
                Ok(Some(frame)) => taken += frame.len().min(1) + 1,
                other => return Reached::of(&(taken.min(9), other)),
            }
        }
    };
    fuzz_tunnel: "tunnel", [b"\"type\"", b"\"welcome\"", b"\"open\"", b"\"register\"", b"\"spare\"", b"\"ticket\"", b"\"pong\"", b"\"refused\""], |data| {
        let (agent, proxy) = (tunnel::decode::<tunnel::ToAgent>(data), tunnel::decode::<tunnel::ToProxy>(data));
        let (first, start) = (tunnel::decode::<tunnel::DataHello>(data), tunnel::decode::<tunnel::Start>(data));
        let kind = |ok: bool, text: String| (ok, text.chars().take(20).collect::<String>());
        Reached::of(&(kind(agent.is_ok(), format!("{agent:?}")), kind(proxy.is_ok(), format!("{proxy:?}")), first.is_ok(), start.is_ok()))
    };
    fuzz_rescue: "rescue", [b"LGR1", b"\0\x20", b"\"type\"", b"\"status\"", b"\"fetch\"", b"\"metadata\"", b"\"advice\"", b"\"chunk\"", b"\"sha256\"", b"\"name\"", b"../"], |data| {
        // Whatever was understood says the same again, and a name in it is one part of a path.
        let asked = rescue::decode::<rescue::ToProxy>(data).map(|(asked, body)| {
            if let rescue::ToProxy::Metadata(metadata) = &asked {
                assert!(!metadata.name.as_str().contains('/') && !metadata.name.as_str().starts_with('.'), "{metadata:?}");
            }
            if let Ok(bytes) = rescue::encode(&asked, body) {
                assert_eq!(rescue::decode::<rescue::ToProxy>(&bytes).map(|(again, body)| (again, body.len())), Ok((asked.clone(), body.len())));
            }
            (std::mem::discriminant(&asked), body.is_empty())
        });
        let answered = rescue::decode::<rescue::ToHost>(data).map(|(answered, body)| match answered {
            rescue::ToHost::Advice(advice) => (Some(advice.action), advice.artifacts.len().min(3), advice.version.is_some()),
            rescue::ToHost::Chunk(chunk) => (None, body.len().min(1), chunk.last),
            rescue::ToHost::Refused { .. } | rescue::ToHost::Unknown => (None, 9, false),
        });
        Reached::of(&(asked.map_err(|error| error.to_string()), answered.map_err(|error| error.to_string())))
    };
    fuzz_route: "route", [b"\"target\"", b"\"name\"", b"\"id\"", b"\"cluster\"", b"\"connected\"", b"\"refused\""], |data| {
        match route::decode::<route::Dial>(data) {
            Ok(dial) => {
                // Whatever was read is a name or an id: never an address.
                let text = dial.target.to_string();
                assert!(!text.contains(':') && !text.contains('/'), "{text}");
                Reached::of(&("dial", matches!(dial.target, route::Target::Id(_)), dial.cluster.is_some()))
            }
            Err(error) => Reached::of(&(error.to_string(), route::decode::<route::Dialed>(data).is_ok())),
        }
    };
    fuzz_recording: "recording", [b"LGREC1\n", b"\"recording\"", b"\"session\"", b"\"status\""], |data| {
        let mut reader = recording::Reader::new();
        let mut seen = Vec::new();
        for piece in data.chunks(1 + data.len() / 3) {
            reader.push(piece);
            loop {
                match reader.next() {
                    Ok(Some(entry)) => seen.push(std::mem::discriminant(&entry.what)),
                    Ok(None) => break,
                    Err(error) => return Reached::of(&(seen.len().min(9), error)),
                }
            }
        }
        Reached::of(&seen.iter().take(9).collect::<Vec<_>>())
    };
    fuzz_identity_json: "identity_json", [b"\"user\"", b"\"host\"", b"\"roles\"", b"\"cluster\"", b"\"traits\"", b"\"expires\""], |data| {
        match identity::from_json(data) {
            Ok(read) => {
                assert_eq!(identity::from_json(identity::to_json(&read).as_bytes()).as_ref(), Ok(&read));
                Reached::of(&"read")
            }
            Err(error) => Reached::of(&error),
        }
    };
    fuzz_identity_x509: "identity_x509", [b"\x30\x82", b"\x0c\x82", b"\x06\x03"], |data| Reached::of(&identity::from_x509_der(data).map(|_| "read"));
    fuzz_identity_ssh: "identity_ssh", [b"ssh-ed25519-cert-v01@openssh.com ", b"AAAA", b"ecdsa-sha2-nistp256-cert-v01@openssh.com "], |data| {
        let Ok(text) = std::str::from_utf8(data) else { return Reached::of(&"not text") };
        match identity::parse_ssh_certificate(text) {
            Ok(certificate) => {
                let Ok(own) = russh::keys::PublicKey::new(certificate.signature_key().clone(), "").to_bytes() else { return Reached::of(&"no key") };
                let trusted = russh::keys::PublicKey::from_bytes(&own).into_iter().collect::<Vec<_>>();
                let verified = identity::SshCert::verified(&certificate, identity::SshCertKind::User, &trusted, Time::from_unix(1_800_000_000));
                Reached::of(&verified.map(|_| "verified"))
            }
            Err(error) => Reached::of(&error),
        }
    };
    fuzz_document: "document", [b"\"kind\"", b"\"version\"", b"\"metadata\"", b"\"name\"", b"\"spec\"", b"\"allow\"", b"\"node_labels\"", b"\"expires\"", b"\"revision\""], |data| {
        match Document::from_json(data) {
            Ok(document) => {
                let again = Document::from_json(&document.to_json()).expect("what was read can be written");
                assert_eq!(again, document);
                let role = Resource::<types::role::Role>::from_document(document.clone());
                let (user, node) = (Resource::<types::kind::User>::from_document(document.clone()), Resource::<types::kind::Node>::from_document(document.clone()));
                let lock = Resource::<types::kind::Lock>::from_document(document);
                Reached::of(&(role.is_ok(), user.is_ok(), node.is_ok(), lock.is_ok(), role.err().map(|error| error.to_string())))
            }
            Err(error) => Reached::of(&error),
        }
    };
    fuzz_client_hello: "client_hello", [b"\x16\x03\x01", b"\x01\0", b"\0\x10", b"lockgate-auth", b"SSH-2.0-", b"GET / HTTP/1.1"], |data| {
        thread_local! {
            static RUNTIME: RefCell<tokio::runtime::Runtime> = RefCell::new(tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime"));
        }
        let stream = tokio::io::join(data, tokio::io::sink());
        let peeked = RUNTIME.with_borrow(|runtime| runtime.block_on(net::peek::peek(stream, std::time::Duration::from_secs(5))));
        Reached::of(&peeked.map(|(wanted, _)| (wanted.server_name.is_some(), wanted.alpn.len().min(9))).map_err(|error| error.to_string()))
    };
    fuzz_public_error: "public_error", [b"\"code\"", b"\"message\"", b"\"hint\"", b"\"reference\"", b"LG-ACCESS-001"], |data| {
        let mut status = tonic::Status::internal("x");
        status.metadata_mut().insert_bin(wire::api::ERROR_KEY, tonic::metadata::MetadataValue::from_bytes(data));
        let public = wire::api::from_status(&status);
        Reached::of(&(public.known(), public.hint.is_some(), serde_json::from_slice::<Public>(data).is_ok()))
    };
    fuzz_words: "words", [b"sha256:", b"https://", b"/web/invite/", b"1h30m", b"2026-11-22T18:00:00Z", b"env=prod,", b"-rc.1", b"[::1]:3080"], |data| {
        let Ok(text) = std::str::from_utf8(data) else { return Reached::of(&"not text") };
        Reached::of(&(
            (text.parse::<Version>().is_ok(), text.parse::<Time>().is_ok(), text.parse::<types::Ttl>().is_ok(), types::label::parse_labels(text).is_ok()),
            (types::UserName::new(text).is_ok(), types::NodeName::new(text).is_ok(), types::Login::new(text).is_ok(), types::ClusterName::new(text).is_ok()),
            (text.parse::<net::tls::Pin>().is_ok(), text.parse::<client::login::InviteLink>().is_ok(), text.parse::<client::profile::ProxyAddr>().is_ok()),
            text.parse::<route::Target>().is_ok(),
        ))
    };
    fuzz_web: "web", [b"{\"user\":", b"\"password\":", b"\"otp\":", b"\"again\":", b"\"ssh_public_key\":", b"\"tls_public_key\":", b"\"ttl\":", b"12h", b"\\u0000", b"password=", b"&again=", b"%00", b"%c3%28", b"\"version\":"], |data| {
        let place = |error: Public| (error.code.clone(), error.message.clone());
        let login = proxy::read::login(data).map(|asked| (asked.ttl == 0, asked.otp.is_empty(), asked.tls_public_key.is_empty()));
        let answer = proxy::read::answer(data).map(|answer| (answer.again.is_some(), answer.otp.is_empty()));
        let form = proxy::read::form(data.to_vec().into()).now_or_never().expect("the whole body is here");
        let form = form.map(|answer| (answer.again.is_some(), answer.otp.is_empty()));
        let hello = serde_json::from_slice::<hello::Hello>(data).is_ok();
        Reached::of(&(login.map_err(place), answer.is_ok(), form.is_ok(), answer.ok(), form.ok(), hello))
    };
    fuzz_socks: "socks", [b"\x05\x01\x00", b"\x05\x01\x00\x01", b"\x05\x01\x00\x03", b"\x05\x01\x00\x04", b"\x05\x02\x00\x02", b"\x0bexample.com"], |data| {
        let mut stream = tokio::io::join(data, tokio::io::sink());
        let asked = client::ssh::socks::read_request(&mut stream).now_or_never().expect("the whole request is here");
        if let Ok(wanted) = &asked {
            // Nothing in it that a log or a terminal could take for more than a name.
            assert!((1..=255).contains(&wanted.host.len()) && wanted.host.bytes().all(|byte| byte.is_ascii_graphic()), "{wanted:?}");
        }
        Reached::of(&asked.map(|wanted| (wanted.host.contains(':'), wanted.host.contains('.'))).map_err(|error| error.to_string()))
    };
    fuzz_identity_file: "identity_file", [b"-----BEGIN PRIVATE KEY-----\n", b"-----END PRIVATE KEY-----\n", b"-----BEGIN CERTIFICATE-----\n", b"@cert-authority ", b"ssh-ed25519-cert-v01@openssh.com "], |data| {
        let Ok(text) = std::str::from_utf8(data) else { return Reached::of(&"not text") };
        Reached::of(&client::identity_file::from_text(text).map(|_| "read").map_err(|error| error.to_string()))
    };
    fuzz_backup: "backup", [b"\x89LGB\r\n\x1a\n", b"\"encryption\":{\"type\":\"none\"}", b"\"x25519\"", b"\"recipients\"", b"\"requires\":[]", b"\"commit\"", b"\"revision\"", b"\"kinds\"", b"\x28\xb5\x2f\xfd"], |data| {
        // As it is, and with digests and signature made good, so that what lies behind them is reached.
        let read = |file: &[u8]| {
            let verified = backup::verify(std::io::Cursor::new(file), &backup::Unlock::Unencrypted, &backup::Trust::Any)?;
            verified.records()?.try_for_each(|record| record.map(drop))
        };
        let checked = backup::check(data, &backup::Trust::Any).map(|checked| checked.chunks.min(9)).map_err(|error| error.code());
        let mended = sealed_backup(data).map(|file| read(&file).map_err(|error| error.to_string()));
        Reached::of(&(checked, read(data).map_err(|error| error.code()), mended))
    };
}

/// The file with every digest and the seal as `docs/backup-format.md` wants them; what cannot be taken apart is left out.
fn sealed_backup(data: &[u8]) -> Option<Vec<u8>> {
    use backup::Signer as _;
    use sha2::{Digest as _, Sha256};
    let (front, mut rest) = data.split_at_checked(14)?;
    let length = u32::from_be_bytes(*front.last_chunk()?) as usize;
    let mut file = [front, rest.get(..length)?].concat();
    let mut chain: [u8; 32] = Sha256::digest(&file).into();
    file.extend(chain);
    rest = rest.get(length + 32..)?;
    while let Some((head, body)) = rest.split_at_checked(22) {
        let length = u32::from_be_bytes(*head.last_chunk()?) as usize;
        let Some(payload) = body.get(..length) else { break };
        let payload = match head.first() {
            Some(4) => {
                backup::SeedSigner::new(&[1; 32]).ok()?.sign(&[b"lockgate backup v1 seal\0".as_slice(), &chain].concat()).ok()?.to_vec()
            }
            _ => payload.to_vec(),
        };
        let digest: [u8; 32] = Sha256::new().chain_update(head).chain_update(&payload).finalize().into();
        file.extend([head, &payload, &digest].concat());
        chain = Sha256::new().chain_update(chain).chain_update(digest).finalize().into();
        rest = body.get(length + 32..).unwrap_or_default();
    }
    Some(file)
}

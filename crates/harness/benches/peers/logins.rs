//! Logins per second: what people do at nine o'clock, over `/webapi/login` with real password hashes.
//!
//! Each client comes from a loopback address of its own, as people do: the Proxy bounds attempts by source. One connection for one
//! login, and a key pair of its own for each.

use crate::{
    World,
    process::{cores, cpu_of},
    report::{Report, row},
    step,
};
use argon2::{Algorithm, Argon2, Params, PasswordHasher as _, Version};
use client::keys::KeyPair;
use data_encoding::BASE64;
use futures::{StreamExt as _, stream};
use harness::Person;
use net::{
    clock::SystemClock,
    tls::{ClientConfig, PinnedName, Trust, client_config},
};
use std::{net::Ipv4Addr, sync::Arc, time::Instant};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
};
use wire::hello::{HEADER, Hello};

/// Of `auth::PasswordCost::default()`, the OWASP minimum; what one hash costs on one core is measured beside the logins.
const ARGON2: (u32, u32) = (19 * 1024, 2);
/// People; logins of one name are judged a few at a time.
const PEOPLE: usize = 8;

pub(crate) fn logins(world: &World, report: &mut Report) {
    let scale = world.scale;
    step(&format!("{} logins by {} clients", scale.logins, scale.clients));
    let people: Vec<Person> = (0..PEOPLE).map(|number| world.cluster.person(&format!("person{number}"), &["access"], &[])).collect();
    let web = format!("127.0.0.1:{}", world.cluster.web_port);
    let trust = Trust::Pins { pins: world.cluster.pins.iter().map(|pin| pin.parse().expect("a pin")).collect(), name: PinnedName::Checked };
    let config = client_config(None, trust, &[wire::alpn::HTTP], &SystemClock::shared()).expect("TLS");
    let version = crate::version();
    let hello = serde_json::to_string(&Hello::ours(&version, "tsh")).expect("a header");

    let hash = one_hash();
    let pids = [world.cluster.auth().pid(), world.cluster.proxy().pid()];
    let before = pids.map(cpu_of);
    let began = Instant::now();
    let done: Vec<Result<(), String>> = world.runtime.block_on(async {
        let each = stream::iter(0..scale.logins).map(|number| {
            let (web, config, hello, person) = (&web, config.clone(), &hello, &people[number % PEOPLE]);
            let source = u8::try_from(number % scale.clients + 2).expect("few clients");
            async move { login(web, config, hello, source, &person.name, &person.password).await }
        });
        each.buffer_unordered(scale.clients).collect().await
    });
    let seconds = began.elapsed().as_secs_f64();
    let failed: Vec<&String> = done.iter().filter_map(|one| one.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} logins failed, the first: {}", failed.len(), failed[0]);
    let after = pids.map(cpu_of);
    let each = |at: usize| (after[at] - before[at]) / scale.logins as f64 * 1000.0;
    let (rate, ceiling) = (scale.logins as f64 / seconds, cores() as f64 / hash);
    report.section(
        "Logins",
        &format!(
            "{} logins with passwords (Argon2id, {} MiB, {} passes), {} clients at once, each login over a fresh TLS connection with a fresh key. \
             A login is one password hash and little else: hashes alone would allow {} cores / {:.1} ms = {ceiling:.0} per second.",
            scale.logins,
            ARGON2.0 >> 10,
            ARGON2.1,
            scale.clients,
            cores(),
            hash * 1000.0
        ),
    );
    let cells = [
        format!("{rate:.0}"),
        format!("{:.0} %", rate / ceiling * 100.0),
        format!("{:.1}", hash * 1000.0),
        format!("{:.1}", each(0)),
        format!("{:.1}", each(1)),
    ];
    report.table(&[
        row(["logins per second", "of what hashes allow", "one hash, ms", "Auth, processor ms each", "Proxy, processor ms each"]),
        cells.to_vec(),
    ]);
}

/// Seconds for one hash on an otherwise idle core: the median of eleven.
fn one_hash() -> f64 {
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(ARGON2.0, ARGON2.1, 1, None).expect("parameters"));
    let mut took: Vec<f64> = (0..11)
        .map(|_| {
            let began = Instant::now();
            argon.hash_password(b"correct horse").expect("a hash");
            began.elapsed().as_secs_f64()
        })
        .collect();
    took.sort_by(f64::total_cmp);
    took[5]
}

async fn login(web: &str, config: Arc<ClientConfig>, hello: &str, source: u8, user: &str, password: &str) -> Result<(), String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let key = KeyPair::generate().map_err(|error| failed("key", &error))?;
    let body = serde_json::json!({
        "user": user,
        "password": password,
        "ssh_public_key": key.ssh_public().map_err(|error| failed("key", &error))?,
        "tls_public_key": BASE64.encode(&key.spki_der()),
    })
    .to_string();
    let socket = TcpSocket::new_v4().map_err(|error| failed("socket", &error))?;
    socket.bind((Ipv4Addr::new(127, 0, 0, source), 0).into()).map_err(|error| failed("bind", &error))?;
    let tcp = socket.connect(web.parse().map_err(|error| failed("address", &error))?).await.map_err(|error| failed("connect", &error))?;
    let mut stream = net::dial::tls(tcp, web, config, "127.0.0.1").await.map_err(|error| failed("TLS", &error))?;
    let request = format!(
        "POST /webapi/login HTTP/1.1\r\nHost: {web}\r\nContent-Type: application/json\r\n{HEADER}: {hello}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.map_err(|error| failed("write", &error))?;
    stream.flush().await.map_err(|error| failed("write", &error))?;
    let mut answer = Vec::new();
    // An end without goodbye after the whole answer is one.
    let _end = stream.read_to_end(&mut answer).await;
    let text = String::from_utf8_lossy(&answer);
    if text.starts_with("HTTP/1.1 200 ") && text.contains("ssh_certificate") { Ok(()) } else { Err(text.chars().take(600).collect()) }
}

//! Lockgate's own protocols by hand, for what no well-behaved client says: the handshake with any version, raw HTTP.

use harness::Cluster;
use net::{
    clock::SystemClock,
    dial,
    eager::Eager,
    frame::{read_frame, write_frame},
    tls::{CertificateDer, TlsIdentity, Trust, client_config},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;
use types::{Public, SystemRole};
use wire::hello::{Answer, Hello, Verdict};

pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A connection as the members' own code makes it.
pub(crate) type Tls = TlsStream<Eager<TcpStream>>;

/// A runtime for one test.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// TLS to a port, with any protocol name, and nobody checked: these tests are about the server.
pub(crate) async fn tls(port: u16, alpn: &[u8], name: &str, identity: Option<&TlsIdentity>) -> std::io::Result<Tls> {
    let clock = SystemClock::shared();
    let config = client_config(identity, Trust::Insecure, &[alpn], &clock).unwrap();
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    dial::tls(stream, "the server", Arc::clone(&config), name).await.map_err(std::io::Error::other)
}

/// The TLS name of a role in a cluster.
pub(crate) fn name_of(role: SystemRole, cluster: &Cluster) -> String {
    wire::sni::role_name(&role, &types::ClusterName::new(&cluster.name).unwrap())
}

/// Says hello; the server's answer.
pub(crate) async fn hello(stream: &mut Tls, hello: &Hello) -> Result<Answer, String> {
    write_frame(stream, &wire::hello::encode(hello), SOON).await.map_err(|error| error.to_string())?;
    let answer = read_frame(stream, SOON).await.map_err(|error| error.to_string())?;
    wire::hello::decode(&answer).map_err(|error| error.to_string())
}

/// A hello that claims this text as its version.
pub(crate) fn claiming(role: &str, version: &str) -> Hello {
    Hello { version: version.to_owned(), ..Hello::ours(&types::Version::new(0, 0, 0), role) }
}

/// The refusal in an answer, if it is one.
pub(crate) fn refusal(answer: &Answer) -> Option<&Public> {
    match &answer.verdict {
        Verdict::Accept => None,
        Verdict::Refuse(public) => Some(public),
    }
}

/// One HTTP request over TLS to the Proxy: the status line's number, the head in lower case, the body.
pub(crate) async fn http(cluster: &Cluster, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String, String) {
    let mut stream = tls(cluster.web_port, b"http/1.1", "127.0.0.1", None).await.unwrap();
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n", cluster.proxy_addr(), body.len());
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{request}\r\n{body}").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _cut_without_notice = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await.expect("an answer in time");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{method} {path}: {answer:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_lowercase(), body.to_owned())
}

/// `GET` of the Proxy's web.
pub(crate) fn web_get(cluster: &Cluster, path: &str) -> (u16, String) {
    let (status, _, body) = block_on(http(cluster, "GET", path, &[], ""));
    (status, body)
}

/// Certificates of a chain in PEM.
pub(crate) fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
    net::tls::identity::certificates_from_pem(pem.as_bytes()).unwrap()
}

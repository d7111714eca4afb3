//! Who wrote what, by the word of the wire: a witness stands between each process and the store and keeps every byte that the process sent.
//!
//! Each transaction carries a random name, which the store keeps in its history. Whose bytes had that name in them wrote it, whatever he
//! says of himself; a transaction that nobody was seen to send is a fault of its own. [`judge`] goes through the history with that: each
//! writer's major must stand in the Auth window of that moment. Nothing here trusts the program under test: bytes are kept before they are passed on.

use super::servers::Written;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex},
};
use types::control::Window;

/// HTTP/2's first bytes (RFC 9113, section 3.4): etcd is spoken to so.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Between one process and the store.
pub(super) struct Witness {
    pub(super) port: u16,
    /// What was sent, by connection.
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Witness {
    /// Passes everything on to that port, for as long as this program runs.
    pub(super) fn before(store: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, sent) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(Vec::new())));
        let seen = sent.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if let Ok(far) = TcpStream::connect(("127.0.0.1", store)) {
                    let number = {
                        let mut seen = seen.lock().unwrap();
                        seen.push(Vec::new());
                        seen.len() - 1
                    };
                    let seen = seen.clone();
                    pass(near, far, move |bytes| seen.lock().unwrap()[number].extend_from_slice(bytes));
                }
            }
        });
        Self { port, sent }
    }

    /// Which of these names were in what was sent.
    pub(super) fn sent(&self, names: &Names) -> BTreeSet<Vec<u8>> {
        let sent = self.sent.lock().unwrap();
        sent.iter().flat_map(|stream| bodies(stream)).flat_map(|body| names.found_in(&body)).collect()
    }
}

fn pass(near: TcpStream, far: TcpStream, see: impl Fn(&[u8]) + Send + 'static) {
    let copy = |from: &TcpStream, to: &TcpStream| (from.try_clone().unwrap(), to.try_clone().unwrap());
    for stream in [&near, &far] {
        stream.set_nodelay(true).unwrap();
    }
    let mut up = copy(&near, &far);
    let mut down = copy(&far, &near);
    std::thread::spawn(move || {
        pump(&mut up.0, &mut up.1, see);
    });
    std::thread::spawn(move || pump(&mut down.0, &mut down.1, |_| {}));
}

/// Moves bytes until either end is gone; then both are.
fn pump(from: &mut TcpStream, to: &mut TcpStream, see: impl Fn(&[u8])) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(len) = from.read(&mut buffer) {
        see(&buffer[..len]);
        if len == 0 || to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    for stream in [from, to] {
        let _gone_already = stream.shutdown(Shutdown::Both);
    }
}

/// What was said in a stream: all of it, or the bodies of HTTP/2's requests, which its frames cut into pieces.
fn bodies(stream: &[u8]) -> Vec<Vec<u8>> {
    let Some(mut rest) = stream.strip_prefix(HTTP2) else { return vec![stream.to_vec()] };
    let mut bodies: BTreeMap<[u8; 4], Vec<u8>> = BTreeMap::new();
    while let Some((head, tail)) = rest.split_first_chunk::<9>() {
        let [a, b, c, kind, _, id @ ..] = *head;
        let (payload, next) = tail.split_at((u32::from_be_bytes([0, a, b, c]) as usize).min(tail.len()));
        if kind == 0 {
            bodies.entry(id).or_default().extend_from_slice(payload);
        }
        rest = next;
    }
    bodies.into_values().collect()
}

/// Names to look for, all at once.
pub(super) struct Names {
    all: BTreeSet<Vec<u8>>,
    /// By their first two bytes: nearly every place is passed over without a look into the set.
    begin: Vec<bool>,
}

impl Names {
    pub(super) fn of(history: &[Written]) -> Self {
        let all: BTreeSet<Vec<u8>> = history.iter().map(|written| written.name.clone()).filter(|name| name.len() == 16).collect();
        let mut begin = vec![false; 1 << 16];
        all.iter().for_each(|name| begin[usize::from(u16::from_be_bytes([name[0], name[1]]))] = true);
        Self { all, begin }
    }
    fn found_in(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let here = |at: &&[u8]| self.begin[usize::from(u16::from_be_bytes([at[0], at[1]]))] && self.all.contains(*at);
        bytes.windows(16).filter(here).map(<[u8]>::to_vec).collect()
    }
}

/// Goes through the history. `writers`: who sent a name, each with his major. What was wrong.
pub(super) fn judge(history: &[Written], writers: &BTreeMap<Vec<u8>, Vec<(usize, u64)>>) -> Vec<String> {
    let (mut window, mut revision, mut wrong) = (None::<Window>, 0, Vec::new());
    for written in history {
        // An empty store, made by whoever came first: nothing is in it, and nobody's name is on it.
        if written.revision == 0 && written.commits == 0 && written.keys.is_empty() && written.control.is_none() {
            continue;
        }
        // The index of what expires, alone: it is tidied by whoever sees it, and nothing depends on it.
        if written.name.is_empty() {
            if written.keys.iter().any(|key| !key.starts_with("due/")) {
                wrong.push(format!("{:?} written beside the transactions at {}", written.keys, written.at));
            }
            continue;
        }
        if written.revision != revision + written.commits {
            wrong.push(format!("revision {} after {revision}: the history has a hole", written.revision));
        }
        revision = written.revision;
        if let Some(control) = &written.control {
            window = Some(store::control::parse(control).unwrap().windows["auth"].clone());
        }
        match writers.get(&written.name).map(Vec::as_slice) {
            Some([(_, major)]) if window.as_ref().is_some_and(|window| window.contains(*major)) => {}
            // A transaction that shuts out a lost one writes nothing but its own name.
            Some([_]) if written.commits == 0 => {}
            other => wrong.push(format!("{:?} at {} by {other:?} beside {window:?}", written.keys, written.at)),
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(major: u64) -> Vec<u8> {
        let json = serde_json::json!({
            "format": 1, "cluster_id": uuid::Uuid::from_u128(1), "epoch": 1, "min_writer_epoch": 1, "cluster_version": {"major": major, "step": 0},
            "window_gen": 1, "windows": {"auth": {"lo": major, "hi": major}},
        });
        json.to_string().into_bytes()
    }

    fn written(revision: u64, name: u8, control: Option<Vec<u8>>) -> Written {
        Written { at: revision, revision, commits: 1, name: vec![name; 16], control, keys: vec!["x".into()] }
    }

    #[test]
    fn a_forbidden_writer_an_unseen_one_and_a_hole_are_found() {
        let check = |history: &[Written], senders: &[(u8, usize, u64)], want: &str| {
            let mut writers: BTreeMap<Vec<u8>, Vec<(usize, u64)>> = BTreeMap::new();
            for (name, who, major) in senders {
                writers.entry(vec![*name; 16]).or_default().push((*who, *major));
            }
            let wrong = judge(history, &writers);
            assert_eq!(wrong.len(), usize::from(!want.is_empty()), "{wrong:?}");
            assert!(wrong.iter().all(|line| line.contains(want)), "{wrong:?}");
        };
        let born = written(1, 1, Some(record(1)));
        check(&[born.clone(), written(2, 2, None)], &[(1, 0, 1), (2, 0, 1)], "");
        check(&[born.clone(), written(2, 2, None)], &[(1, 0, 1), (2, 3, 2)], "by Some([(3, 2)])");
        check(&[born.clone(), written(2, 2, None)], &[(1, 0, 1)], "by None");
        check(&[born.clone(), written(3, 2, None)], &[(1, 0, 1), (2, 0, 1)], "a hole");
        // The next major takes over: it may write from that moment on, and the one before no longer.
        let taken = written(2, 2, Some(record(2)));
        check(&[born.clone(), taken.clone(), written(3, 3, None)], &[(1, 0, 1), (2, 1, 2), (3, 1, 2)], "");
        check(&[born, taken, written(3, 3, None)], &[(1, 0, 1), (2, 1, 2), (3, 0, 1)], "by Some([(0, 1)])");
    }

    #[test]
    fn a_name_is_found_wherever_frames_cut_it() {
        let name: Vec<u8> = (1..=16).collect();
        let names = Names::of(&[Written { name: name.clone(), ..Written::default() }]);
        let frame = |kind: u8, payload: &[u8]| [&[0, 0, payload.len() as u8, kind, 0, 0, 0, 0, 1], payload].concat();
        let cut = [HTTP2, &frame(4, &[9; 6]), &frame(0, &name[..5]), &frame(1, b"head"), &frame(0, &name[5..])].concat();
        let found = |stream: &[u8]| bodies(stream).iter().flat_map(|body| names.found_in(body)).collect::<Vec<_>>();
        assert_eq!(found(&cut), std::slice::from_ref(&name));
        assert_eq!(found(&[&b"Bind"[..], &name, b"x"].concat()), [name]);
        assert!(found(b"nothing of the kind is here, and it is long enough").is_empty());
    }
}

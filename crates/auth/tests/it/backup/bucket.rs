//! Backups in a bucket, against a real S3 server that checks signatures: `scripts/s3-server.py`, made ready by `make test-deps`.

use super::schedule::{HOUR, Notes, Running, born, hourly, keys, private_key};
use crate::several::Shared;
use auth::backup::{
    Place, Schedule,
    place::{Bucket, Credentials, Opened},
};
use backup::{Trust, Unlock};
use net::health::Health;
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};
use store::{Batch, Key};
use types::Time;

/// A server of its own; ends with the test.
struct S3 {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    bucket: Bucket,
    dir: tempfile::TempDir,
}

impl S3 {
    fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let python = root.join(".cache/tools/s3/bin/python");
        let spawned = Command::new(&python)
            .arg("-I")
            .arg(root.join("scripts/s3-server.py"))
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("{}: {error}. Make it ready: make test-deps", python.display()));
        let (input, mut output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let told: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("the S3 server said {line:?}: {error}"));
        let dir = tempfile::tempdir().unwrap();
        let credentials = credentials(dir.path(), told["id"].as_str().unwrap(), told["secret"].as_str().unwrap());
        let bucket = Bucket {
            name: "backups".into(),
            prefix: "lockgate/demo".into(),
            region: Some("us-east-1".into()),
            endpoint: Some(format!("http://127.0.0.1:{}", told["port"])),
            credentials,
        };
        Self { child, input, output, bucket, dir }
    }

    fn place(&self) -> Place {
        Place::Bucket(self.bucket.clone())
    }

    /// One command, and what it answers.
    fn ask(&mut self, what: &str) -> serde_json::Value {
        writeln!(self.input, "{what}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn objects(&mut self) -> Vec<String> {
        serde_json::from_value(self.ask("objects")).unwrap()
    }
    fn uploads(&mut self) -> Vec<String> {
        serde_json::from_value(self.ask("uploads")).unwrap()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn credentials(dir: &Path, id: &str, secret: &str) -> Credentials {
    let path = dir.join(format!("credentials-{id}-{}", secret.len()));
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path).unwrap();
    writeln!(file, "[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}").unwrap();
    Credentials::File(path)
}

/// Enough noise in the store for a backup of three parts.
async fn three_parts(shared: &Shared) {
    let mut noise = vec![0; 512 << 10];
    for n in 0..80 {
        rand::Rng::fill_bytes(&mut rand::rng(), noise.as_mut_slice());
        shared.store.commit(Batch::new(None).put(Key::parse(format!("zz/noise/{n:03}")).unwrap(), noise.clone(), None)).await.unwrap();
    }
}

/// What the board says of a schedule that cannot work.
async fn failure(shared: &Shared, schedule: Schedule) -> String {
    let running = Running::start(shared, 1, schedule).await;
    let why = attention(shared, &running).await;
    running.stop().await;
    why
}

async fn attention(shared: &Shared, running: &Running) -> String {
    let mut notes = Notes::of(shared, running).await;
    let shown = notes.until("the failure shows", async |_| match running.health() {
        Some(Health::Attention(why)) => Some(why),
        _ => None,
    });
    shown.await
}

fn now(shared: &Shared) -> Time {
    net::clock::Clock::now(&shared.clock)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_go_to_a_bucket_in_parts_and_the_oldest_are_removed() {
    let (mut s3, key_of, shared) = (S3::start(), private_key(), born().await);
    three_parts(&shared).await;
    let running = Running::start(&shared, 1, hourly(s3.place(), &key_of)).await;
    let mut notes = Notes::of(&shared, &running).await;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(notes.made_at(now(&shared)).await.name);
        shared.clock.advance(HOUR);
    }
    made.push(notes.made_at(now(&shared)).await.name);
    running.stop().await;
    let wanted: Vec<_> = made[2..].iter().map(|name| format!("lockgate/demo/{name}")).collect();
    assert_eq!((s3.objects(), s3.uploads()), (wanted, Vec::new()));

    let opened = Opened::new(&s3.place()).await.unwrap();
    let found = opened.list(Some("demo")).await.unwrap();
    assert_eq!(found.iter().map(|found| found.name.as_str()).collect::<Vec<_>>(), made[2..]);
    let (mut source, length) = opened.read(&made[3]).await.unwrap();
    let bytes = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).map(|_| bytes)
    });
    let bytes = bytes.await.unwrap().unwrap();
    assert!(length == bytes.len() as u64 && length > 40 << 20, "{length}");
    backup::verify(std::io::Cursor::new(&bytes), &Unlock::Keys(vec![key_of]), &Trust::Any).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_a_missing_bucket_and_a_silent_server_are_each_said_in_a_line() {
    let (mut s3, key_of) = (S3::start(), private_key());
    let with = |change: &dyn Fn(&mut Bucket)| {
        let mut bucket = s3.bucket.clone();
        change(&mut bucket);
        hourly(Place::Bucket(bucket), &key_of)
    };
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let id = match &s3.bucket.credentials {
        Credentials::File(path) => std::fs::read_to_string(path).unwrap().split_whitespace().nth(3).unwrap().to_owned(),
        Credentials::Environment => unreachable!(),
    };
    let open = s3.dir.path().join("open");
    std::fs::write(&open, "aws_access_key_id=A\naws_secret_access_key=B").unwrap();
    let cases = [
        (
            with(&|bucket| bucket.credentials = credentials(s3.dir.path(), "AKIANOBODY", "x")),
            "does not accept the credentials (InvalidAccessKeyId",
        ),
        (
            with(&|bucket| bucket.credentials = credentials(s3.dir.path(), &id, "wrong")),
            "does not accept the credentials (SignatureDoesNotMatch",
        ),
        (with(&|bucket| bucket.credentials = Credentials::File(open.clone())), "others may read it: chmod 600"),
        (with(&|bucket| bucket.name = "elsewhere".into()), "s3://elsewhere/lockgate/demo: the bucket does not exist"),
        (with(&|bucket| bucket.endpoint = Some(format!("http://{nowhere}"))), "Connection refused"),
    ];
    for (schedule, expected) in cases {
        let why = failure(&Shared::new(), schedule).await;
        assert!(why.contains(expected) && why.contains("there is none yet") && !why.contains('\n'), "{expected}: {why}");
    }
    assert_eq!((s3.objects(), s3.uploads()), (Vec::new(), Vec::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_the_server_breaks_off_is_aborted_and_made_again_later() {
    let (mut s3, key_of, shared) = (S3::start(), private_key(), born().await);
    three_parts(&shared).await;
    s3.ask("refuse-parts");
    let running = Running::start(&shared, 1, hourly(s3.place(), &key_of)).await;
    let why = attention(&shared, &running).await;
    assert!(why.contains("the server says SlowDown: Please reduce your request rate."), "{why}");
    let mut notes = Notes::of(&shared, &running).await;
    s3.ask("take-parts");
    shared.clock.advance(Duration::from_secs(361));
    let made = notes.made_at(now(&shared)).await;
    running.stop().await;
    assert_eq!((s3.objects(), s3.uploads()), (vec![format!("lockgate/demo/{}", made.name)], Vec::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_in_the_middle_leaves_nothing_that_counts() {
    let (mut s3, key_of, shared) = (S3::start(), private_key(), born().await);
    three_parts(&shared).await;
    s3.ask("die-at-part 2");
    let running = Running::start(&shared, 1, hourly(s3.place(), &key_of)).await;
    let why = attention(&shared, &running).await;
    assert!(why.contains("s3://backups/lockgate/demo: ") && why.contains("there is none yet"), "{why}");
    assert_eq!(Notes::of(&shared, &running).await.last().await, None);
    assert_eq!((running.metric("backups"), running.metric("backup_last_unix")), (0, 0));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_upload_of_a_process_that_died_is_aborted_by_whoever_comes_next() {
    let (mut s3, key_of, shared) = (S3::start(), private_key(), born().await);
    let name = "demo-20270115T070000Z.lgbackup";
    let upload = Opened::new(&s3.place()).await.unwrap().begin(name).await.unwrap();
    let id = upload.id();
    // As a process ends that is killed: nothing is cleaned up.
    std::mem::forget(upload);
    assert_eq!(s3.uploads(), std::slice::from_ref(&id));
    let (state, _) = keys(&s3.place());
    let left = serde_json::json!({"place": s3.place().to_string(), "running":
        {"by": crate::fixture::host_id(9), "name": name, "upload": id, "began": "2027-01-15T07:00:00Z"}});
    shared.store.commit(Batch::new(None).put(state, left.to_string(), None)).await.unwrap();
    let running = Running::start(&shared, 1, hourly(s3.place(), &key_of)).await;
    let made = Notes::of(&shared, &running).await.made_at(now(&shared)).await;
    running.stop().await;
    assert_eq!((s3.objects(), s3.uploads()), (vec![format!("lockgate/demo/{}", made.name)], Vec::new()));
}

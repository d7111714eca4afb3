//! What a store's driver costs: batches and single documents through `store`, and the same through the server's own interface.
//!
//! Same server, same disk, same number of bytes, as many at once; they take turns. *Raw* writes one plain table (etcd: plain keys) and
//! nothing else. *Raw with history* also writes down what a watch resumes from, as our drivers must: etcd keeps that by itself. Neither
//! has a revision, a fence, an expiry or conditions. PostgreSQL is given as many connections as there are writers, SQLite one.

use crate::{
    World,
    measure::Series,
    report::{Report, row},
    step,
    stores::{Driver, Server},
};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, future::BoxFuture, stream};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use store::{Batch, Key, Store, WriterEpoch};
use tokio_postgres::{NoTls, types::Type};
use tonic::{client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};

/// Bytes of one document: a host with two labels.
const VALUE: usize = 400;

/// One load: how many documents in a batch, how many writers at once, how many documents in all.
#[derive(Clone, Copy)]
struct Load {
    what: &'static str,
    batch: usize,
    writers: usize,
    documents: usize,
}

/// Whoever writes batches.
trait Writer: Sync {
    /// Writes one batch; durable when it returns.
    fn write(&self, writer: usize, rows: Rows) -> BoxFuture<'_, ()>;
}

/// Names and values.
type Rows = Vec<(String, Bytes)>;

pub(crate) fn raw(world: &World, report: &mut Report) {
    let whole = world.scale.raw;
    let loads = [
        Load { what: "batches of 100, one writer", batch: 100, writers: 1, documents: whole },
        Load { what: "batches of 100, 16 writers", batch: 100, writers: 16, documents: whole },
        Load { what: "one by one, 64 writers", batch: 1, writers: 64, documents: whole / 4 },
    ];
    report.section(
        "Stores against their own interfaces",
        &format!(
            "Documents per second, each of {VALUE} bytes, durable; medians of {} rounds, everyone once in each. *Raw*: the server's own \
             interface, one plain table. *With history*: what watches resume from is written too, as Lockgate must (etcd does it by itself).",
            world.scale.raw_rounds
        ),
    );
    let mut rows = vec![row(["", "Lockgate", "raw", "raw with history", "× raw", "× raw with history"])];
    for driver in Driver::wanted() {
        let server = Server::start(driver);
        world.runtime.block_on(async {
            let ours: Box<dyn Writer> = Box::new(Ours(server.open().await));
            let plain = raw_writer(&server, false, 64).await;
            let kept = if driver == Driver::Etcd { None } else { Some(raw_writer(&server, true, 64).await) };
            let contestants: Vec<&dyn Writer> =
                [Some(&ours), Some(&plain), kept.as_ref()].into_iter().flatten().map(AsRef::as_ref).collect();
            for load in loads {
                let series = turns(&contestants, load, world.scale.raw_rounds).await;
                let rate = |of: &Series| load.documents as f64 / of.median().as_secs_f64();
                let times = |of: &Series| rate(&series[0]) / rate(of);
                let name = format!("{}, {}", driver.name(), load.what);
                let (with, ratio) = match series.get(2) {
                    Some(kept) => (format!("{:.0}", rate(kept)), format!("{:.2}", times(kept))),
                    None => ("–".into(), "–".into()),
                };
                let plain = &series[1];
                let cells = [
                    &name,
                    &format!("{:.0}", rate(&series[0])),
                    &format!("{:.0}", rate(plain)),
                    &with,
                    &format!("{:.2}", times(plain)),
                    &ratio,
                ];
                rows.push(row(cells.map(String::as_str)));
                if load.batch > 1 {
                    let ratio = times(plain);
                    report.target(&format!("{name}, to {}'s own", driver.peer()), format!("{ratio:.2} ×"), "≥ 0.70 ×", ratio >= 0.7);
                }
            }
        });
    }
    report.table(&rows);
}

/// Everyone once without counting, on a tenth; then in turns.
async fn turns(contestants: &[&dyn Writer], load: Load, rounds: usize) -> Vec<Series> {
    let mut series = vec![Series::default(); contestants.len()];
    for round in 0..=rounds {
        for (place, writer) in contestants.iter().enumerate() {
            let documents = if round == 0 { load.documents / 10 } else { load.documents };
            let took = run(*writer, Load { documents, ..load }).await;
            if round > 0 {
                series[place].push(took);
            }
        }
    }
    step(&format!("{}: {:?}", load.what, series.iter().map(|of| load.documents as f64 / of.median().as_secs_f64()).collect::<Vec<_>>()));
    series
}

async fn run(writer: &dyn Writer, load: Load) -> Duration {
    let run = uuid::Uuid::now_v7().simple().to_string();
    let value = Bytes::from(vec![b'x'; VALUE]);
    let began = Instant::now();
    let each = (0..load.writers).map(|place| {
        let (run, value) = (&run, &value);
        async move {
            let mine = (place..load.documents / load.batch).step_by(load.writers);
            for batch in mine {
                let rows = (0..load.batch).map(|number| (format!("{run}-{batch}-{number}"), value.clone())).collect();
                writer.write(place, rows).await;
            }
        }
    });
    futures::future::join_all(each).await;
    began.elapsed()
}

/// The product's driver, as an Auth Service uses it: fenced.
struct Ours(Arc<dyn Store>);

impl Writer for Ours {
    fn write(&self, _writer: usize, rows: Rows) -> BoxFuture<'_, ()> {
        let batch = rows.into_iter().fold(Batch::new(Some(WriterEpoch(1))), |batch, (name, value)| {
            batch.put(Key::new(["doc", "node", &name]).expect("a key"), value, None)
        });
        Box::pin(async move {
            self.0.commit(batch).await.expect("a commit");
        })
    }
}

async fn raw_writer(server: &Server, history: bool, writers: usize) -> Box<dyn Writer> {
    match server.driver {
        Driver::Sqlite => Box::new(RawSqlite::open(&server.file().with_file_name(if history { "kept.db" } else { "plain.db" }), history)),
        Driver::Postgres => Box::new(RawPostgres::open(server.port, history, writers).await),
        Driver::Etcd => Box::new(RawEtcd::open(server.port).await),
    }
}

/// One connection, which is all that SQLite lets write, with the settings of our driver; on a thread of its own, as ours is.
struct RawSqlite {
    connection: Arc<Mutex<rusqlite::Connection>>,
    history: bool,
}

impl RawSqlite {
    fn open(path: &std::path::Path, history: bool) -> Self {
        let connection = rusqlite::Connection::open(path).expect("a file");
        let settings = "PRAGMA journal_mode = wal; PRAGMA synchronous = FULL;
            CREATE TABLE item (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, value BLOB NOT NULL) STRICT;
            CREATE TABLE change (id INTEGER PRIMARY KEY, key BLOB NOT NULL, value BLOB NOT NULL) STRICT;";
        connection.execute_batch(settings).expect("tables");
        Self { connection: Arc::new(Mutex::new(connection)), history }
    }

    fn insert(connection: &mut rusqlite::Connection, rows: &Rows, history: bool) -> rusqlite::Result<()> {
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for table in ["item", "change"].into_iter().take(if history { 2 } else { 1 }) {
            let mut insert = transaction.prepare_cached(&format!("INSERT INTO {table} (key, value) VALUES (?, ?)"))?;
            for (name, value) in rows {
                insert.execute(rusqlite::params![name.as_bytes(), value.as_ref()])?;
            }
        }
        transaction.commit()
    }
}

impl Writer for RawSqlite {
    fn write(&self, _writer: usize, rows: Rows) -> BoxFuture<'_, ()> {
        let (connection, history) = (self.connection.clone(), self.history);
        Box::pin(async move {
            let done = tokio::task::spawn_blocking(move || Self::insert(&mut connection.lock().expect("nobody panicked"), &rows, history));
            done.await.expect("a thread").expect("an insert");
        })
    }
}

/// A connection for each writer; one statement for a batch.
struct RawPostgres {
    connections: Vec<(tokio_postgres::Client, tokio_postgres::Statement)>,
}

impl RawPostgres {
    async fn open(port: u16, history: bool, writers: usize) -> Self {
        let settings = format!("host=127.0.0.1 port={port} user=lockgate dbname=postgres");
        let connect = async || {
            let (client, connection) = tokio_postgres::connect(&settings, NoTls).await.expect("a connection");
            drop(tokio::spawn(connection));
            client
        };
        let (item, change) = if history { ("kept_item", "kept_change") } else { ("plain_item", "plain_change") };
        let tables = format!(
            "CREATE TABLE {item} (key bytea PRIMARY KEY, value bytea NOT NULL);
             CREATE TABLE {change} (id bigserial PRIMARY KEY, key bytea NOT NULL, value bytea NOT NULL)"
        );
        connect().await.batch_execute(&tables).await.expect("tables");
        let rows = "SELECT * FROM unnest($1::bytea[], $2::bytea[])";
        let insert = match history {
            false => format!("INSERT INTO {item} (key, value) {rows}"),
            true => format!("WITH kept AS (INSERT INTO {change} (key, value) {rows}) INSERT INTO {item} (key, value) {rows}"),
        };
        let connections = stream::iter(0..writers).then(|_| async {
            let client = connect().await;
            let statement = client.prepare_typed(&insert, &[Type::BYTEA_ARRAY, Type::BYTEA_ARRAY]).await?;
            Ok::<_, tokio_postgres::Error>((client, statement))
        });
        Self { connections: connections.try_collect().await.expect("connections") }
    }
}

impl Writer for RawPostgres {
    fn write(&self, writer: usize, rows: Rows) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let (client, insert) = &self.connections[writer];
            let names: Vec<&[u8]> = rows.iter().map(|(name, _)| name.as_bytes()).collect();
            let values: Vec<&[u8]> = rows.iter().map(|(_, value)| value.as_ref()).collect();
            client.execute(insert, &[&names, &values]).await.expect("an insert");
        })
    }
}

/// One HTTP/2 connection, on which all writers' transactions are under way at once.
struct RawEtcd(Grpc<Channel>);

impl RawEtcd {
    async fn open(port: u16) -> Self {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("an address");
        Self(Grpc::new(endpoint.connect().await.expect("a connection")))
    }
}

impl Writer for RawEtcd {
    fn write(&self, _writer: usize, rows: Rows) -> BoxFuture<'_, ()> {
        let mut grpc = self.0.clone();
        Box::pin(async move {
            let puts = rows.into_iter().map(|(name, value)| proto::Op { put: Some(proto::Put { key: name.into_bytes().into(), value }) });
            let txn = proto::Txn { success: puts.collect() };
            grpc.ready().await.expect("a connection");
            let codec = tonic_prost::ProstCodec::<proto::Txn, proto::Done>::default();
            let path = PathAndQuery::from_static("/etcdserverpb.KV/Txn");
            let done = grpc.unary(tonic::Request::new(txn), path, codec).await.expect("a transaction").into_inner();
            assert!(done.succeeded);
        })
    }
}

/// As much of etcd's protocol as a transaction of puts needs (`rpc.proto` of 3.4).
mod proto {
    use bytes::Bytes;
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Put {
        #[prost(bytes = "bytes", tag = "1")]
        pub(super) key: Bytes,
        #[prost(bytes = "bytes", tag = "2")]
        pub(super) value: Bytes,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Op {
        #[prost(message, optional, tag = "2")]
        pub(super) put: Option<Put>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Txn {
        #[prost(message, repeated, tag = "2")]
        pub(super) success: Vec<Op>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Done {
        #[prost(bool, tag = "2")]
        pub(super) succeeded: bool,
    }
}

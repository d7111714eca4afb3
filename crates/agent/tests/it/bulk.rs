//! Large amounts, both ways, and channels that stand still.

use crate::world::{SOON, World, collect, exec};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::time::Duration;
use wire::recording::What;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_megabytes_of_output_arrive_whole() {
    let world = World::new();
    let client = world.alice().await;
    let output = exec(&client, "head -c 67108864 /dev/zero | tr '\\0' 'x'", "").await;
    assert_eq!(output.stdout.len(), 64 << 20);
    assert_eq!(Sha256::digest(&output.stdout), Sha256::digest(vec![b'x'; 64 << 20]));
    assert_eq!(output.status, Some(0));
    let entries = world.recording().await;
    let kept: usize = entries.iter().map(|entry| if let What::Output(bytes) = &entry.what { bytes.len() } else { 0 }).sum();
    assert_eq!(kept, 16 << 20);
    assert!(entries.iter().any(|entry| entry.what == What::Omitted { bytes: 48 << 20 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_two_megabytes_go_there_and_back() {
    let world = World::new();
    let client = world.alice().await;
    let bytes: Vec<u8> = (0u32..8 << 20).flat_map(u32::to_le_bytes).collect();
    let output = exec(&client, "cat", bytes.clone()).await;
    assert!(output.stdout == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_channels_both_ways_at_once_finish() {
    let world = World::new();
    world.put_role(
        "dev",
        types::role::Role { options: types::role::Options { max_sessions: Some(16), ..Default::default() }, ..crate::world::role() },
    );
    let client = world.alice().await;
    let payload = Bytes::from(vec![7; 4 << 20]);
    let all = futures::future::join_all((0..16).map(|_| exec(&client, "cat", payload.clone())));
    let outputs = tokio::time::timeout(SOON, all).await.expect("a standstill");
    assert!(outputs.iter().all(|output| output.stdout == payload && output.status == Some(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_stalled_channels_do_not_stop_a_fifth() {
    let world = World::new();
    let client = world.alice().await;
    let mut stalled = Vec::new();
    for _ in 0..4 {
        // Two never read their input, two have output that the client never reads.
        let channel = client.channel_open_session().await.unwrap();
        channel.exec(true, "sleep 100").await.unwrap();
        let (read, write) = channel.split();
        let flood = Box::pin(async move { write.data_bytes(vec![1; 8 << 20]).await });
        stalled.push((read, flood));
    }
    let flooding = futures::future::join_all(stalled.iter_mut().map(|(_, flood)| tokio::time::timeout(Duration::from_secs(20), flood)));
    let (_, output) = tokio::join!(flooding, async {
        let output = exec(&client, "head -c 8388608 /dev/zero; cat", vec![2; 1 << 20]).await;
        tokio::time::timeout(SOON, async { output }).await.unwrap()
    });
    assert_eq!((output.stdout.len(), output.status), (9 << 20, Some(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_nobody_reads_does_not_stop_a_neighbour() {
    let world = World::new();
    let client = world.alice().await;
    let mut stalled = Vec::new();
    for _ in 0..4 {
        // Never more than its window: what the client's library holds for a channel is bounded.
        let channel = client.channel_open_session().await.unwrap();
        channel.exec(true, "printf x; exec sleep 100").await.unwrap();
        stalled.push(channel);
    }
    let output = exec(&client, "head -c 4194304 /dev/zero", "").await;
    assert_eq!(output.stdout.len(), 4 << 20);
    drop(stalled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_must_write_before_it_reads_on_is_not_starved() {
    let world = World::new();
    let client = world.alice().await;
    // Much more output than any window, for each piece of input, while input waits.
    let output = exec(
        &client,
        "while head -c 65536 | grep -q .; do head -c 2097152 /dev/zero; done",
        vec![b'\n'; 4 << 20].into_iter().map(|_| b'a').collect::<Vec<u8>>(),
    )
    .await;
    assert!(output.stdout.len() >= 16 << 20, "{}", output.stdout.len());
}

#[tokio::test]
async fn a_recording_keeps_both_streams_and_never_the_input() {
    let world = World::new();
    let client = world.alice().await;
    let channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "read secret; echo out; echo err >&2").await.unwrap();
    let (mut read, write) = channel.split();
    write.data_bytes("hunter2\n").await.unwrap();
    collect(&mut read).await;
    let entries = world.recording().await;
    let has = |wanted: What| entries.iter().any(|entry| entry.what == wanted);
    assert!(has(What::Output(Bytes::from_static(b"out\n"))) && has(What::Stderr(Bytes::from_static(b"err\n"))), "{entries:?}");
    assert!(!format!("{entries:?}").contains("hunter2"));
}

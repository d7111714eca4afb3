//! A service that is killed takes its sessions' programs along. The service here is this test program once more, as a
//! process of its own.

use crate::world::{SOON, World};
use russh::ChannelMsg;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use std::{os::fd::OwnedFd, process::Stdio};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

const VICTIM: &str = "LOCKGATE_TEST_VICTIM";
const SOON_ENOUGH: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Says the ids of a shell without a terminal and of what it runs, both deaf to `HUP`, and waits to be killed.
#[tokio::test]
async fn the_service_that_is_killed() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let world = World::new();
    let client = world.alice().await;
    let channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "trap '' HUP; sleep 1000 & echo pids $$ $!; wait; true").await.unwrap();
    let (mut read, _open) = channel.split();
    while let Some(message) = read.wait().await {
        if let ChannelMsg::Data { data } = message {
            println!("{}", String::from_utf8_lossy(&data));
        }
    }
}

#[tokio::test]
async fn a_command_without_a_terminal_ends_when_the_service_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut service = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::the_service_that_is_killed", "--nocapture"])
        .env(VICTIM, "1")
        .env("TMPDIR", dir.path())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(service.stdout.take().unwrap()).lines();
    let pids = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if let Some((_, pids)) = line.split_once("pids ") {
                return pids.split(' ').map(|pid| Pid::from_raw(pid.trim().parse().unwrap()).unwrap()).collect::<Vec<_>>();
            }
        }
        panic!("no program");
    };
    let pids = tokio::time::timeout(SOON, pids).await.expect("a session");
    let programs: Vec<OwnedFd> = pids.iter().map(|pid| pidfd_open(*pid, PidfdFlags::empty()).unwrap()).collect();
    assert_eq!(programs.len(), 2);
    kill_process(Pid::from_raw(i32::try_from(service.id().unwrap()).unwrap()).unwrap(), Signal::KILL).unwrap();
    service.wait().await.unwrap();
    let ended = tokio::task::spawn_blocking(move || {
        programs.iter().all(|program| poll(&mut [PollFd::new(program, PollFlags::IN)], Some(&SOON_ENOUGH)).unwrap() == 1)
    });
    assert!(ended.await.unwrap(), "they go on");
}

//! The cluster's walker at a host: what he may do there, and that it is nothing else. Nobody can hold his certificate but the Auth
//! Service; here the tests' own authority signs one, as if somebody had it.

use crate::world::{Anyone, Badge, Reports, SOON, World, exec, own_login};
use net::{backoff::Backoff, turn::Turn};
use rules::walk::{self, NAME};
use russh::{
    Channel, ChannelMsg,
    client::{Handle, Msg},
};
use std::{sync::Arc, time::Duration};
use types::Time;

fn walker(world: &World) -> Badge {
    let now = Time::from(std::time::SystemTime::now());
    world.badge_of(&walk::certificate(&world.cluster, now).unwrap().into_facts().identity)
}

/// Whether a request on a channel of its own was refused.
async fn refused(client: &Handle<Anyone>, ask: impl AsyncFn(&Channel<Msg>) -> Result<(), russh::Error>) -> bool {
    let mut channel = client.channel_open_session().await.unwrap();
    ask(&channel).await.unwrap();
    let answer = tokio::time::timeout(SOON, channel.wait()).await.unwrap();
    channel.close().await.unwrap();
    matches!(answer, Some(ChannelMsg::Failure))
}

#[tokio::test]
async fn a_line_goes_there_and_comes_back_by_a_session_like_any_other() {
    let world = World::new();
    let client = world.enter(NAME, &walker(&world)).await;
    let output = exec(&client, NAME, "7f3a; id\nand no more\n").await;
    assert_eq!((output.text().as_str(), output.status), ("7f3a; id\n", Some(0)), "{output:?}");
    for name in ["session.start", "exec", "session.end"] {
        let event = world.event(name).await;
        assert_eq!((event.text("user"), event.text("login"), &event.fields["walk"]), (NAME, NAME, &true.into()), "{event:?}");
    }
}

#[tokio::test]
async fn it_runs_as_nobody_in_particular() {
    let world = World::new();
    let client = world.enter(NAME, &walker(&world)).await;
    let channel = client.channel_open_session().await.unwrap();
    channel.exec(true, NAME).await.unwrap();
    world.event("session.start").await;
    // The program waits for its line: it can be looked at.
    let owner = |pid: &str| std::fs::metadata(format!("/proc/{pid}")).ok().map(|of| std::os::unix::fs::MetadataExt::uid(&of));
    let children = std::fs::read_dir("/proc/self/task").unwrap().flat_map(|task| {
        let list = task.unwrap().path().join("children");
        std::fs::read_to_string(list).unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    });
    let mine = |pid: &String| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.contains("read -r line"));
    let owners: Vec<_> = children.filter(mine).filter_map(|pid| owner(&pid)).collect();
    let own = nix::unistd::geteuid();
    let want = if own.is_root() { nix::unistd::User::from_name("nobody").unwrap().unwrap().uid } else { own };
    assert!(owners.contains(&want.as_raw()) && (!own.is_root() || !owners.contains(&0)), "{owners:?}");
    drop(channel);
}

#[tokio::test]
async fn attack_row_8_the_walkers_certificate_opens_nothing_else() {
    let world = World::new();
    let badge = walker(&world);
    let client = world.enter(NAME, &badge).await;
    assert!(refused(&client, async |channel| channel.request_shell(true).await).await, "a shell");
    for command in ["id", "sh", "", "lockgate-walk; id", "lockgate-walk\n", "exec lockgate-walk"] {
        assert!(refused(&client, async |channel| channel.exec(true, command).await).await, "{command:?}");
    }
    assert!(refused(&client, async |channel| channel.request_subsystem(true, "sftp").await).await, "sftp");
    assert!(refused(&client, async |channel| channel.request_pty(true, "xterm", 80, 24, 0, 0, &[]).await).await, "a terminal");
    assert!(refused(&client, async |channel| channel.set_env(true, "LC_ALL", "C").await).await, "a variable");
    assert!(refused(&client, async |channel| channel.agent_forward(true).await).await, "agent forwarding");
    assert!(client.channel_open_direct_tcpip("127.0.0.1", 22, "127.0.0.1", 1).await.is_err(), "a forwarded port");
    assert!(client.channel_open_direct_streamlocal("/run/x").await.is_err(), "a forwarded socket");
    assert!(client.tcpip_forward("127.0.0.1", 0).await.is_err(), "a port of the host");
    // Each refusal is written down under his name.
    assert_eq!(world.event("ssh.request").await.text("user"), NAME);
    assert!(world.events().await.iter().all(|event| event.event != "session.start"), "something ran");
    // And no other login, whatever roles say: his are not in the store.
    for login in ["root", "nobody", own_login().as_str()] {
        let client = world.enter(login, &badge).await;
        assert_eq!(exec(&client, NAME, "x\n").await.status, Some(255), "{login}");
    }
}

#[tokio::test]
async fn a_user_who_asks_for_the_walkers_login_or_command_is_not_the_walker() {
    let world = World::new();
    let mut role = crate::world::role();
    role.allow.logins.push(NAME.into());
    world.put_role("dev", role);
    let mut identity = world.identity("alice");
    identity.logins.insert(NAME.parse().unwrap());
    let badge = world.badge_of(&identity);
    let output = exec(&world.enter(NAME, &badge).await, NAME, "x\n").await;
    assert!(output.status == Some(255) && output.errors().contains("no account \"lockgate-walk\""), "{output:?}");
    // For his own account the word is a command like any other, which no host has.
    let output = exec(&world.enter(own_login().as_str(), &badge).await, NAME, "x\n").await;
    assert_eq!((output.status, output.text().as_str()), (Some(127), ""), "{output:?}");
}

#[tokio::test]
async fn a_walk_that_cannot_be_recorded_says_so_and_one_that_was_is_delivered_to_nobody() {
    let world = World::new();
    let client = world.enter(NAME, &walker(&world)).await;
    assert_eq!(exec(&client, NAME, "x\n").await.status, Some(0));
    world.event("session.end").await;
    let reports = Arc::new(Reports::default());
    let waits =
        || std::fs::read_dir(world.dir.path()).unwrap().any(|entry| entry.unwrap().path().extension().is_some_and(|end| end == "rec"));
    assert!(waits(), "it was recorded");
    let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(1), 1);
    let delivering = world.shared.spool.deliver(reports.clone(), world.shared.audit.clone(), backoff, Turn::always());
    let gone = async {
        while waits() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = delivering => {}
        done = tokio::time::timeout(SOON, gone) => done.unwrap(),
    }
    assert!(reports.recordings.lock().unwrap().is_empty());

    std::fs::remove_dir_all(world.dir.path()).unwrap();
    let output = exec(&client, NAME, "x\n").await;
    assert!(output.status == Some(255) && output.errors().contains("cause: the session cannot be recorded"), "{output:?}");
}

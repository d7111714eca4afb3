//! The built program without any cluster: what it says to wrong words, and what it makes of its environment.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests fail by panicking")]

mod commit;

use assert_cmd::Command;
use std::path::Path;

/// Every variable that a flag or the program itself reads.
const VARIABLES: [&str; 14] = [
    "LOCKGATE_PROXY",
    "LOCKGATE_USER",
    "LOCKGATE_LOGIN",
    "LOCKGATE_IDENTITY_FILE",
    "LOCKGATE_CLUSTER",
    "LOCKGATE_CONFIG_FILE",
    "LOCKGATE_DATA_DIR",
    "LOCKGATE_AUTH_SERVER",
    "LOCKGATE_TOKEN",
    "LOCKGATE_HOME",
    "LOCKGATE_LOG",
    "LOCKGATE_PASSWORD_FILE",
    "LOCKGATE_OTP",
    "LOCKGATE_OTP_SECRET_FILE",
];

fn run(home: &Path, words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockgate"));
    command.args(words.split_whitespace()).env_clear().env("HOME", home).env("PATH", "/usr/bin:/bin");
    command
}

/// Status, standard output and standard error.
fn ended(mut command: Command) -> (i32, String, String) {
    let out = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

#[test]
fn a_variable_that_is_set_to_nothing_is_as_one_that_is_not_set() {
    let home = tempfile::tempdir().unwrap();
    let commands = [
        "tsh ls",
        "tsh login",
        "tsh status",
        "tsh ssh node1",
        "tsh ssh -d node1",
        "tsh proxy ssh node1",
        "tsh env",
        "tsh version",
        "tctl --data-dir=/nonexistent status",
        "tctl --data-dir=/nonexistent --debug get users",
        "version",
        "start --roles=node",
    ];
    for words in commands {
        let plain = ended(run(home.path(), words));
        let mut emptied = run(home.path(), words);
        emptied.envs(VARIABLES.map(|name| (name, "")));
        assert_eq!(ended(emptied), plain, "{words}");
        assert!(!plain.2.contains("value is required"), "{words}: {}", plain.2);
    }
}

#[test]
fn wrong_words_end_with_status_2_and_what_to_do_instead() {
    let home = tempfile::tempdir().unwrap();
    let check = |words: &str, says: &[&str]| {
        let (status, out, err) = ended(run(home.path(), words));
        assert_eq!((status, out.as_str()), (2, ""), "{words}: {err}");
        assert!(says.iter().all(|text| err.contains(text)), "{words}: {err}");
    };
    check("strat", &["unrecognized subcommand", "start"]);
    check("start --roles=nod", &["nod", "roles are auth, proxy and node"]);
    check("start --diag-addr=x", &["--diag-addr"]);
    check("configure --roles=nod", &["roles are auth, proxy and node"]);
    check("tsh ls --format=xml", &["possible values: text, json, yaml"]);
    check("tsh ls env", &["LG-USAGE-001", "key=value"]);
    check("tsh play xyz", &["\"xyz\" is not a valid session id"]);
    check("tsh play ./no-such-file", &["./no-such-file", "LG-USAGE-001"]);
    check("tctl create /nonexistent.yaml", &["could not open /nonexistent.yaml", "No such file", "LG-USAGE-001"]);
    check("tctl users add alice", &["--roles"]);
}

#[test]
fn each_name_says_its_version_also_the_way_that_other_programs_do() {
    let home = tempfile::tempdir().unwrap();
    for (words, name) in [("--version", "lockgate"), ("tsh --version", "tsh"), ("tctl -V", "tctl")] {
        let (status, out, _) = ended(run(home.path(), words));
        assert_eq!((status, out), (0, format!("{name} {}\n", env!("CARGO_PKG_VERSION"))), "{words}");
    }
}

#[test]
fn a_log_filter_that_is_not_understood_is_told_and_left_out() {
    let home = tempfile::tempdir().unwrap();
    let mut command = run(home.path(), "tsh --debug status");
    command.env("LOCKGATE_LOG", "russh=loud");
    let (status, _, err) = ended(command);
    assert_eq!(status, 1, "{err}");
    assert!(err.contains("LOCKGATE_LOG=\"russh=loud\" is not understood") && err.contains("Not logged in."), "{err}");
}

#[test]
fn the_version_for_scripts_says_which_formats_and_apis_the_build_works_with() {
    let home = tempfile::tempdir().unwrap();
    let (status, out, _) = ended(run(home.path(), "version --format=json"));
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, told["version"].as_str()), (0, Some(env!("CARGO_PKG_VERSION"))), "{out}");
    let (from, to) = (&told["cluster_version"]["from"]["major"], &told["cluster_version"]["to"]["major"]);
    let major: u64 = env!("CARGO_PKG_VERSION_MAJOR").parse().unwrap();
    assert_eq!((from.as_u64(), to.as_u64()), (Some(major.saturating_sub(1)), Some(major)));
    assert!(told["content"].as_str().unwrap().starts_with("sha256:") && told["apis"]["auth"][0] == 1, "{out}");
}

#[test]
fn a_check_of_the_status_fails_when_nobody_answers_and_the_status_alone_does_not() {
    let home = tempfile::tempdir().unwrap();
    // A port that was free a moment ago, and is closed again.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (status, out, _) = ended(run(home.path(), &format!("status --diag-addr=127.0.0.1:{port}")));
    assert!(status == 0 && out.contains("No services answer"), "{out}");
    let (status, _, err) = ended(run(home.path(), &format!("status --check --diag-addr=127.0.0.1:{port}")));
    assert!(status == 1 && err.contains("LG-CONNECT-007"), "{err}");
}

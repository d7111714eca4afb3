//! Attack rows 8, 19 and 29 at the level of the table; with real SSH connections in `agent` and `harness`.

use super::*;
use proptest::prelude::*;

#[test]
fn the_policy_table() {
    insta::assert_snapshot!("policy", matrix());
}

#[test]
fn attack_row_8_every_cell_is_granted_only_as_the_table_says() {
    for (title, rights) in columns() {
        for channel in Channel::ALL {
            let allowed = matches!(judge_channel(&rights, *channel), Allow | AllowQuietly);
            assert_eq!(decide_channel(&rights, *channel).is_ok(), allowed, "{title}: {channel:?}");
        }
        for request in Request::ALL {
            for phase in [Phase::Fresh, Phase::Started] {
                let allowed = matches!(judge_request(&rights, *request, phase), Allow | AllowQuietly);
                assert_eq!(decide_request(&rights, *request, phase).is_ok(), allowed, "{title}: {request:?}");
            }
        }
    }
}

#[test]
fn attack_row_8_options_only_ever_add_what_they_name() {
    let plain = Rights { door: Door::Agent, port_forwarding: false, forward_agent: false };
    let forwarding = Rights { port_forwarding: true, ..plain };
    let with_agent = Rights { forward_agent: true, ..plain };
    for channel in Channel::ALL {
        let same = judge_channel(&plain, *channel) == judge_channel(&forwarding, *channel);
        assert_eq!(same, *channel != Channel::DirectTcpip, "{channel:?}");
        assert_eq!(judge_channel(&plain, *channel), judge_channel(&with_agent, *channel), "{channel:?}");
    }
    for request in Request::ALL {
        let same = judge_request(&plain, *request, Phase::Fresh) == judge_request(&with_agent, *request, Phase::Fresh);
        assert_eq!(same, *request != Request::AuthAgentReq, "{request:?}");
        assert_eq!(judge_request(&plain, *request, Phase::Fresh), judge_request(&forwarding, *request, Phase::Fresh), "{request:?}");
    }
}

#[test]
fn attack_row_29_unknown_types_are_refused_at_every_door() {
    let names = [
        "",
        "Session",
        "session ",
        "session\0",
        "x11@openssh.com",
        "direct-tcpip@openssh.com",
        "lockgate-future",
        "auth-agent-req",
        "env",
        "subsystem",
        "env (allowed name)",
        "subsystem (sftp)",
        "(unknown)",
    ];
    for (title, rights) in columns() {
        for name in names {
            assert_eq!(Channel::parse(name), Channel::Unknown, "{name:?}");
            assert_eq!(Request::parse(name), Request::Unknown, "{name:?}");
        }
        assert!(matches!(decide_channel(&rights, Channel::Unknown), Err(Denied::Policy { .. })), "{title}");
        for phase in [Phase::Fresh, Phase::Started] {
            assert!(matches!(decide_request(&rights, Request::Unknown, phase), Err(Denied::Policy { .. })), "{title}");
        }
    }
}

#[test]
fn attack_row_19_variables_that_loaders_and_shells_obey_are_refused() {
    let check = |name: &str, want: bool| assert_eq!(env_allowed(name), want, "{name:?}");
    for good in ["LANG", "LANGUAGE", "TERM", "COLORTERM", "LC_ALL", "LC_TIME", "GIT_PROTOCOL", "LOCKGATE_TRACE"] {
        check(good, true);
    }
    for bad in [
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "LD_AUDIT",
        "DYLD_INSERT_LIBRARIES",
        "PATH",
        "IFS",
        "BASH_ENV",
        "ENV",
        "SHELLOPTS",
        "BASHOPTS",
        "PS4",
        "PROMPT_COMMAND",
        "PYTHONPATH",
        "PERL5LIB",
        "GIT_SSH_COMMAND",
        "HOME",
        "USER",
        "SHELL",
        "TZ",
        "TERMINFO",
        "GCONV_PATH",
        "MALLOC_CHECK_",
        "BASH_FUNC_ls%%",
        "LC_",
        "LC_all",
        "LC_ALL=x",
        "LC_ALL\0",
        "LOCALDOMAIN",
        "NLSPATH",
        "lang",
        "",
        "LANG ",
        "GLIBC_TUNABLES",
        "LOCKGATE_",
    ] {
        check(bad, false);
    }
    check(&format!("LC_{}", "A".repeat(65)), false);
}

#[test]
fn one_start_per_channel() {
    let rights = Rights { door: Door::Agent, port_forwarding: true, forward_agent: true };
    for request in [Request::Shell, Request::Exec, Request::SubsystemSftp, Request::PtyReq, Request::EnvAllowed] {
        assert!(decide_request(&rights, request, Phase::Fresh).is_ok());
        assert!(decide_request(&rights, request, Phase::Started).is_err());
    }
    assert!(decide_request(&rights, Request::Signal, Phase::Fresh).is_err());
    assert!(decide_request(&rights, Request::Signal, Phase::Started).is_ok());
}

proptest! {
    #[test]
    fn a_name_on_the_wire_parses_to_its_own_row_or_to_unknown(name in "\\PC{0,40}") {
        let channel = Channel::parse(&name);
        prop_assert!(channel == Channel::Unknown || channel.as_str() == name);
        let request = Request::parse(&name);
        prop_assert!(request == Request::Unknown || request.as_str() == name);
    }

    #[test]
    fn no_variable_outside_the_list_passes(name in "[A-Z_=]{0,20}") {
        let listed = ["LANG", "LANGUAGE", "TERM", "COLORTERM", "NO_COLOR", "GIT_PROTOCOL"].contains(&name.as_str());
        let prefixed = name.starts_with("LC_") || name.starts_with("LOCKGATE_");
        prop_assert!(!env_allowed(&name) || ((listed || prefixed) && !name.contains('=')));
    }
}

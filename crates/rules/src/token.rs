//! Join tokens and invitations: which secrets admit whom, once their document was found by the secret's hash.
//!
//! An unknown, an expired and a wrong token give one and the same answer to the stranger; the log has the difference. A
//! token never admits an administrator nor an Auth Service: the first is local, the second opens the store itself.

use crate::permit::{Denied, Join, Permit};
use std::collections::BTreeSet;
use types::{Resource, SystemRole, Time, kind::Token};

/// The fewest characters of a token that a person chose; one made by the Auth Service has 128 random bits.
pub const MIN_CHOSEN: usize = 16;
/// The most.
pub const MAX_CHOSEN: usize = 256;

/// Why a chosen text is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a chosen token has {MIN_CHOSEN} to {MAX_CHOSEN} printable characters, and not always the same few")]
pub struct BadToken;

/// Whether a person's choice may be a token: strangers may try some, so it is long, and no single key held down.
pub fn check_chosen(secret: &str) -> Result<(), BadToken> {
    let fits = (MIN_CHOSEN..=MAX_CHOSEN).contains(&secret.len()) && secret.chars().all(|c| c.is_ascii_graphic());
    let varied = secret.chars().collect::<BTreeSet<_>>().len() >= 4;
    if fits && varied { Ok(()) } else { Err(BadToken) }
}

/// May a process join with this token in these roles?
pub fn decide_join(token: Option<&Resource<Token>>, wanted: &BTreeSet<SystemRole>, now: Time) -> Result<Permit<Join>, Denied> {
    let why = |why| Err(Denied::Token { why });
    let Some(token) = token else { return why("it is unknown") };
    if token.metadata.expires.is_some_and(|end| end <= now) {
        return why("it has expired");
    }
    if wanted.is_empty() {
        return why("no role was asked for");
    }
    for role in wanted {
        match role {
            SystemRole::Proxy | SystemRole::Node | SystemRole::Db if token.spec.roles.contains(role) => {}
            SystemRole::Proxy | SystemRole::Node | SystemRole::Db => return why("it is not for this role"),
            SystemRole::Auth | SystemRole::Admin => return why("no token is for this role"),
            SystemRole::Other(_) => return why("the role is not known here"),
        }
    }
    Ok(Permit::grant(Join { roles: wanted.clone(), labels: token.spec.labels.clone() }))
}

/// Whether an invitation that ends at `ends` may be used; `None` when there is no such invitation.
pub fn decide_invite(ends: Option<Time>, now: Time) -> Result<(), Denied> {
    match ends {
        None => Err(Denied::Invite { why: "it is unknown or was used" }),
        Some(end) if end <= now => Err(Denied::Invite { why: "it has expired" }),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{Code, Extra, Labels, Metadata, ResourceName};

    fn token(roles: &[SystemRole], expires: i64) -> Resource<Token> {
        let mut metadata = Metadata::named(ResourceName::new("h").unwrap());
        metadata.expires = Some(Time::from_unix(expires));
        Resource::new(
            metadata,
            Token { roles: roles.iter().cloned().collect(), hint: String::new(), labels: Labels::new(), extra: Extra::new() },
        )
    }

    #[test]
    fn a_token_admits_its_roles_until_it_ends() {
        use SystemRole::{Admin, Auth, Node, Other, Proxy};
        let check = |token: Option<&Resource<Token>>, wanted: &[SystemRole], want: bool| {
            let got = decide_join(token, &wanted.iter().cloned().collect(), Time::from_unix(50));
            assert_eq!(got.is_ok(), want, "{wanted:?}: {got:?}");
            if let Err(denied) = got {
                assert!(denied.public().is(Code::TokenInvalid));
            }
        };
        let both = token(&[Node, Proxy], 100);
        check(Some(&both), &[Node], true);
        check(Some(&both), &[Node, Proxy], true);
        check(Some(&token(&[Node], 100)), &[Node, Proxy], false);
        check(Some(&token(&[Node], 50)), &[Node], false);
        check(None, &[Node], false);
        check(Some(&both), &[], false);
        let careless = token(&[Admin, Auth, Other("x".into())], 100);
        check(Some(&careless), &[Admin], false);
        check(Some(&careless), &[Auth], false);
        check(Some(&careless), &[Other("x".into())], false);
    }

    #[test]
    fn a_chosen_token_is_long_and_varied() {
        let check = |text: &str, want: bool| assert_eq!(check_chosen(text).is_ok(), want, "{text}");
        check("", false);
        check("fifteen-chars-x", false);
        check("sixteen-chars-xy", true);
        check("aaaaaaaaaaaaaaaaaaaaaaaa", false);
        check("sixteen chars xy", false);
        check(&"abcdefgh".repeat(32), true);
        check(&"abcdefgh".repeat(33), false);
    }

    #[test]
    fn unknown_expired_and_wrong_tokens_answer_alike() {
        let wanted = BTreeSet::from([SystemRole::Node]);
        let now = Time::from_unix(200);
        let answers = [
            decide_join(None, &wanted, now),
            decide_join(Some(&token(&[SystemRole::Node], 100)), &wanted, now),
            decide_join(Some(&token(&[SystemRole::Proxy], 300)), &wanted, now),
        ]
        .map(|answer| answer.unwrap_err().public());
        assert_eq!(answers[0], answers[1]);
        assert_eq!(answers[1], answers[2]);
    }

    #[test]
    fn an_invitation_works_until_it_ends() {
        assert!(decide_invite(Some(Time::from_unix(10)), Time::from_unix(9)).is_ok());
        assert!(decide_invite(Some(Time::from_unix(10)), Time::from_unix(10)).is_err());
        assert!(decide_invite(None, Time::EPOCH).is_err());
    }
}

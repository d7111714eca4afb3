//! The operating-system account that a login stands for.
//!
//! Looked up afresh for each session, on a thread where it may block: accounts may come from a directory over the network.

use std::path::PathBuf;
use types::Login;

/// What is needed to run something as an account.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// All groups, the primary one among them.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: PathBuf,
    pub(crate) shell: PathBuf,
}

/// Why nothing can be run as a login.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccountError {
    #[error("this host has no account \"{0}\"")]
    Unknown(Login),
    #[error("the SSH Service of this host does not run as root and can only open sessions as \"{own}\", not as \"{asked}\"")]
    NotRoot { own: String, asked: Login },
    #[error("the account \"{0}\" cannot be looked up: {1}")]
    Lookup(Login, String),
    #[error("the account that the SSH Service of this host runs as has no name")]
    Nobody,
    #[error("this host takes no logins now: {0}")]
    NoLogin(String),
}

impl Account {
    /// Finds the account, and whether this service can become it.
    pub(crate) async fn find(login: &Login) -> Result<Self, AccountError> {
        let login = login.clone();
        let failed = AccountError::Lookup(login.clone(), "the lookup was abandoned".into());
        tokio::task::spawn_blocking(move || Self::find_blocking(&login)).await.unwrap_or(Err(failed))
    }

    /// For the cluster's walker, who is nobody here: as root, `nobody`; else whom this service runs as.
    pub(crate) async fn of_walker() -> Result<Self, AccountError> {
        let (own, nobody) = (nix::unistd::geteuid(), Login::new("nobody").map_err(|_| AccountError::Nobody)?);
        if own.is_root() {
            return Self::find(&nobody).await;
        }
        let found = tokio::task::spawn_blocking(move || nix::unistd::User::from_uid(own)).await;
        let name = found.ok().and_then(Result::ok).flatten().and_then(|user| Login::new(user.name).ok());
        Self::find(&name.ok_or(AccountError::Nobody)?).await
    }

    fn find_blocking(login: &Login) -> Result<Self, AccountError> {
        let lookup = |error: nix::Error| AccountError::Lookup(login.clone(), error.to_string());
        let user = nix::unistd::User::from_name(login.as_str()).map_err(lookup)?.ok_or_else(|| AccountError::Unknown(login.clone()))?;
        let own = nix::unistd::geteuid();
        if !own.is_root() && own != user.uid {
            let name = nix::unistd::User::from_uid(own).ok().flatten().map_or_else(|| own.to_string(), |user| user.name);
            return Err(AccountError::NotRoot { own: name, asked: login.clone() });
        }
        if !user.uid.is_root()
            && let Ok(text) = std::fs::read_to_string("/etc/nologin")
        {
            return Err(AccountError::NoLogin(text.chars().filter(|c| !c.is_control()).take(200).collect()));
        }
        let name = std::ffi::CString::new(user.name.as_str()).map_err(|_| AccountError::Unknown(login.clone()))?;
        let groups = nix::unistd::getgrouplist(&name, user.gid).map_err(lookup)?;
        let shell = if user.shell.as_os_str().is_empty() { PathBuf::from("/bin/sh") } else { user.shell };
        Ok(Self {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            groups: groups.iter().map(|gid| gid.as_raw()).collect(),
            home: user.dir,
            shell,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unknown_account_is_refused_by_name() {
        let error = Account::find(&Login::new("no-such-account-here").unwrap()).await.unwrap_err();
        assert_eq!(error.to_string(), "this host has no account \"no-such-account-here\"");
    }
}

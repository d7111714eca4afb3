//! `tsh env`: variables that make the profile in use explicit, for `eval "$(tsh env)"`.

use super::{Global, profile};
use crate::{
    exit::{Could as _, Outcome},
    output::{Format, show_value, write_out},
};
use serde_json::{Map, Value};
use std::process::ExitCode;

/// Everything `tsh env` may set, in the order it prints them.
const VARIABLES: [&str; 4] = ["LOCKGATE_PROXY", "LOCKGATE_CLUSTER", "LOCKGATE_USER", "LOCKGATE_IDENTITY_FILE"];

/// `tsh env`
pub(crate) fn env(global: &Global, unset: bool, format: Format) -> Outcome {
    let what = "print the variables";
    if unset {
        return write_out(&VARIABLES.map(|name| format!("unset {name}\n")).concat()).could(what).map(|()| ExitCode::SUCCESS);
    }
    let user = profile::logged_in(global).could(what)?;
    let file =
        global.identity.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()).to_string_lossy().into_owned());
    let values =
        [Some(user.proxy.to_string()), Some(user.credentials.cluster().to_string()), Some(user.credentials.user().to_string()), file];
    let set = VARIABLES.iter().zip(values).filter_map(|(name, value)| value.map(|value| (*name, value)));
    match format {
        Format::Text => {
            write_out(&set.map(|(name, value)| format!("export {name}={}\n", quoted(&value))).collect::<String>()).could(what)?
        }
        Format::Json | Format::Yaml => {
            let object: Map<String, Value> = set.map(|(name, value)| (name.to_owned(), Value::String(value))).collect();
            show_value(format, &object).could(what)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One word for a POSIX shell.
pub(super) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '@' | '+' | '=' | ',');
    if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn whatever_a_value_holds_the_shell_reads_one_word() {
        let check = |text: &str, want: &str| assert_eq!(quoted(text), want);
        check("proxy.example.com:3080", "proxy.example.com:3080");
        check("", "''");
        check("/home/a b/id", "'/home/a b/id'");
        check("it's; rm -rf $HOME", r"'it'\''s; rm -rf $HOME'");
    }
}

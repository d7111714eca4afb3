//! Labels on resources: `env=prod,team=db`. Matching them is a decision and lives in `rules::access`.

use std::collections::BTreeMap;

/// Key to value, in key order. Keys are 1 to 128 bytes of `[A-Za-z0-9._/:-]`, values up to 1,024 bytes without control
/// characters.
pub type Labels = BTreeMap<String, String>;

/// Why a text is not a list of labels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLabels {
    #[error("\"{0}\" is not a label; write it as key=value")]
    NoEquals(String),
    #[error("\"{0}\" is not a label key: 1 to 128 of letters, digits and . _ / : -")]
    Key(String),
    #[error("the value of label \"{0}\" is longer than 1024 bytes or has control characters")]
    Value(String),
    #[error("label \"{0}\" is given twice")]
    Twice(String),
    #[error("more than 100 labels")]
    TooMany,
}

/// Reads `key=value,key=value`; an empty text is no labels.
pub fn parse_labels(text: &str) -> Result<Labels, BadLabels> {
    let mut labels = Labels::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let shown = || part.chars().take(60).flat_map(char::escape_default).collect::<String>();
        let (key, value) = part.split_once('=').ok_or_else(|| BadLabels::NoEquals(shown()))?;
        check_label(key.trim(), value.trim())?;
        if labels.insert(key.trim().to_owned(), value.trim().to_owned()).is_some() {
            return Err(BadLabels::Twice(key.trim().to_owned()));
        }
    }
    if labels.len() > 100 { Err(BadLabels::TooMany) } else { Ok(labels) }
}

/// Checks one label's alphabet and lengths.
pub fn check_label(key: &str, value: &str) -> Result<(), BadLabels> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/' | ':' | '-');
    if key.is_empty() || key.len() > 128 || !key.chars().all(fits) {
        return Err(BadLabels::Key(key.chars().take(60).flat_map(char::escape_default).collect()));
    }
    if value.len() > 1024 || value.chars().any(char::is_control) {
        return Err(BadLabels::Value(key.to_owned()));
    }
    Ok(())
}

/// Prints labels as they are typed: `env=prod,team=db`.
pub fn show_labels(labels: &Labels) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_read_as_typed_and_print_in_key_order() {
        let labels = parse_labels("team=db, env=prod").unwrap();
        assert_eq!(show_labels(&labels), "env=prod,team=db");
        assert_eq!(parse_labels("").unwrap(), Labels::new());
    }

    #[test]
    fn bad_labels_name_the_offender() {
        let check = |text: &str, want: &str| assert_eq!(parse_labels(text).unwrap_err().to_string(), want);
        check("env", "\"env\" is not a label; write it as key=value");
        check("=x", "\"\" is not a label key: 1 to 128 of letters, digits and . _ / : -");
        check("a=1,a=2", "label \"a\" is given twice");
    }
}

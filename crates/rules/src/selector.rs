//! Label selectors and templates: the part of a role that is text until it meets a user's traits.
//!
//! A template is a literal prefix, one `{{internal.NAME}}` or `{{external.NAME}}`, and a literal suffix; each value of the
//! trait gives one text, a missing trait gives none. What came out of a trait is compared literally: a trait value `*` or
//! `^.*$` is never a pattern, because traits may come from outside. Patterns stand only in roles, anchored at both ends
//! and bounded in length and compiled size. Callers: `access`.

use regex::{Regex, RegexBuilder};
use std::collections::BTreeMap;
use types::{Labels, Login, identity::Traits, role::OneOrMany};

/// Longest pattern or template, in bytes.
pub const MAX_PATTERN: usize = 1024;
/// Largest compiled form of one expression, in bytes.
const MAX_COMPILED: usize = 256 * 1024;

/// Why a text in a role cannot be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadText {
    #[error("\"{0}\" is not a template; write {{{{internal.NAME}}}} or {{{{external.NAME}}}} with text around it")]
    Template(String),
    #[error("\"{0}\" is not a regular expression that fits the limits")]
    Pattern(String),
    #[error("label key \"*\" takes only the value \"*\"")]
    Star,
    #[error("\"{0}\" is not a login: letters, digits and . _ @ + - are, beginning with a letter, a digit or _; 64 at most")]
    Login(String),
    #[error("a text is longer than {MAX_PATTERN} bytes")]
    TooLong,
}

/// A text after its traits were filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expanded {
    pub text: String,
    /// Made from a trait: compared literally, never as a pattern.
    pub from_trait: bool,
}

/// Fills in the traits: one text per value, none when the trait is missing.
pub fn expand(text: &str, traits: &Traits) -> Result<Vec<Expanded>, BadText> {
    if text.len() > MAX_PATTERN {
        return Err(BadText::TooLong);
    }
    if !text.contains("{{") && !text.contains("}}") {
        return Ok(vec![Expanded { text: text.to_owned(), from_trait: false }]);
    }
    let bad = || BadText::Template(shown(text));
    let (prefix, rest) = text.split_once("{{").ok_or_else(bad)?;
    let (inner, suffix) = rest.split_once("}}").ok_or_else(bad)?;
    if [prefix, inner, suffix].iter().any(|part| part.contains("{{") || part.contains("}}")) {
        return Err(bad());
    }
    let (space, name) = inner.trim().split_once('.').ok_or_else(bad)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ':');
    if !matches!(space, "internal" | "external") || name.is_empty() || name.len() > 128 || !name.chars().all(fits) {
        return Err(bad());
    }
    let values = traits.get(name).map(Vec::as_slice).unwrap_or_default();
    Ok(values
        .iter()
        .filter(|value| !value.is_empty())
        .map(|value| Expanded { text: format!("{prefix}{value}{suffix}"), from_trait: true })
        .collect())
}

/// Checks a login in a role as it stands: a login, or a template whose text around the trait may stand in one. What the
/// traits make of it is checked again when they are filled in.
pub fn login_text(text: &str) -> Result<(), BadText> {
    let bad = || BadText::Login(shown(text));
    match (text.split_once("{{"), text.split_once("}}")) {
        (None, None) => Login::new(text).map(|_| ()).map_err(|_| bad()),
        (Some((prefix, _)), Some((_, suffix))) => {
            // With a value between them that can stand anywhere in a login.
            Login::new(format!("{prefix}a{suffix}")).map(|_| ()).map_err(|_| bad())
        }
        _ => Err(bad()),
    }
}

fn shown(text: &str) -> String {
    text.chars().take(60).flat_map(char::escape_default).collect()
}

/// One accepted value of a label.
#[derive(Debug, Clone)]
enum Pattern {
    Any,
    Literal(String),
    Expression(Regex),
}

impl Pattern {
    fn read(value: &Expanded) -> Result<Self, BadText> {
        let text = value.text.as_str();
        if value.from_trait {
            return Ok(Self::Literal(text.to_owned()));
        }
        if text == "*" {
            return Ok(Self::Any);
        }
        // Anchored by us: of `^a|b$` the anchors would each bind to one branch only.
        if let Some(inner) = text.strip_prefix('^').and_then(|rest| rest.strip_suffix('$')) {
            // By itself too: `^a)|(?:b$` would close our group and open another.
            let whole = compile(inner).and_then(|_| compile(&format!("^(?:{inner})$")));
            return whole.map(Self::Expression).ok_or_else(|| BadText::Pattern(shown(text)));
        }
        if text.contains('*') {
            let glob = text.split('*').map(regex::escape).collect::<Vec<_>>().join(".*");
            return compile(&format!("(?s)^(?:{glob})$")).map(Self::Expression).ok_or_else(|| BadText::Pattern(shown(text)));
        }
        Ok(Self::Literal(text.to_owned()))
    }

    fn accepts(&self, value: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Literal(literal) => literal == value,
            Self::Expression(expression) => expression.is_match(value),
        }
    }
}

fn compile(pattern: &str) -> Option<Regex> {
    RegexBuilder::new(pattern).size_limit(MAX_COMPILED).dfa_size_limit(MAX_COMPILED).nest_limit(32).build().ok()
}

/// Which labels a role speaks of. Empty matches nothing; every key must exist and match; `*: '*'` is no condition.
#[derive(Debug, Clone, Default)]
pub struct Selector {
    all: bool,
    wants: BTreeMap<String, Vec<Pattern>>,
}

impl Selector {
    /// Reads a role's labels with these traits. An error means that the selector as a whole cannot be judged.
    pub fn read(labels: &BTreeMap<String, OneOrMany>, traits: &Traits) -> Result<Self, BadText> {
        let mut selector = Self::default();
        for (key, OneOrMany(values)) in labels {
            if key == "*" {
                if values.is_empty() || values.iter().any(|value| value != "*") {
                    return Err(BadText::Star);
                }
                selector.all = true;
                continue;
            }
            if key.contains("{{") || key.contains("}}") {
                return Err(BadText::Template(shown(key)));
            }
            let mut patterns = Vec::new();
            for value in values {
                for expanded in expand(value, traits)? {
                    patterns.push(Pattern::read(&expanded)?);
                }
            }
            // A key whose values all vanished stays, and matches nothing.
            selector.wants.insert(key.clone(), patterns);
        }
        Ok(selector)
    }

    /// Whether every condition holds; never for an empty selector.
    pub fn matches(&self, labels: &Labels) -> bool {
        if self.wants.is_empty() {
            return self.all;
        }
        self.wants.iter().all(|(key, patterns)| labels.get(key).is_some_and(|value| patterns.iter().any(|pattern| pattern.accepts(value))))
    }

    /// As a prohibition: `*: '*'` alone is enough, whatever stands beside it.
    pub fn forbids(&self, labels: &Labels) -> bool {
        self.all || self.matches(labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn traits() -> Traits {
        Traits::from([
            ("logins".into(), vec!["alice".into(), "app".into()]),
            ("env".into(), vec!["prod".into()]),
            ("evil".into(), vec!["*".into(), "^.*$".into()]),
        ])
    }
    fn selector(pairs: &[(&str, &[&str])]) -> Result<Selector, BadText> {
        let labels = pairs
            .iter()
            .map(|(key, values)| ((*key).to_owned(), OneOrMany(values.iter().map(|value| (*value).to_owned()).collect())))
            .collect();
        Selector::read(&labels, &traits())
    }
    fn labels(text: &str) -> Labels {
        types::label::parse_labels(text).unwrap()
    }

    #[test]
    fn templates_fill_in_traits() {
        let check = |text: &str, want: &[&str]| {
            let got: Vec<_> = expand(text, &traits()).unwrap().into_iter().map(|expanded| expanded.text).collect();
            assert_eq!(got, want, "{text}");
        };
        check("root", &["root"]);
        check("{{internal.logins}}", &["alice", "app"]);
        check("{{ external.env }}", &["prod"]);
        check("db-{{internal.logins}}-ro", &["db-alice-ro", "db-app-ro"]);
        check("{{internal.missing}}", &[]);
    }

    #[test]
    fn what_is_not_a_template_is_an_error_and_not_a_literal() {
        for bad in [
            "{{",
            "}}",
            "{{}}",
            "{{logins}}",
            "{{internal.}}",
            "{{other.x}}",
            "{{internal.a}}{{internal.b}}",
            "{{email.local(external.x)}}",
            "{{internal.a b}}",
        ] {
            assert!(expand(bad, &traits()).is_err(), "{bad}");
        }
        assert_eq!(expand(&"x".repeat(2000), &traits()), Err(BadText::TooLong));
    }

    #[test]
    fn selectors_match_as_the_field_knows_them() {
        let check = |pairs: &[(&str, &[&str])], have: &str, want: bool| {
            assert_eq!(selector(pairs).unwrap().matches(&labels(have)), want, "{pairs:?} on {have}");
        };
        check(&[], "env=prod", false);
        check(&[], "", false);
        check(&[("*", &["*"])], "", true);
        check(&[("*", &["*"]), ("env", &["prod"])], "env=dev", false);
        check(&[("env", &["prod"])], "env=prod,team=db", true);
        check(&[("env", &["prod"])], "team=db", false);
        check(&[("env", &["dev", "prod"]), ("team", &["*"])], "env=prod,team=db", true);
        check(&[("env", &["dev", "prod"]), ("team", &["*"])], "env=prod", false);
        check(&[("env", &["pr*"])], "env=prod", true);
        check(&[("env", &["pr*"])], "env=apr", false);
        check(&[("env", &["a.c*"])], "env=abcd", false);
        check(&[("env", &["^prod-[0-9]+$"])], "env=prod-12", true);
        check(&[("env", &["^prod-[0-9]+$"])], "env=prod-12x", false);
        check(&[("env", &["^a|b$"])], "env=axxx", false);
        check(&[("env", &["^a|b$"])], "env=b", true);
        check(&[("env", &[])], "env=prod", false);
        check(&[("env", &["{{internal.env}}"])], "env=prod", true);
        check(&[("env", &["{{internal.missing}}"])], "env=prod", false);
        check(&[("env", &["{{internal.missing}}"]), ("*", &["*"])], "env=prod", false);
    }

    #[test]
    fn a_trait_is_never_a_pattern() {
        let chosen = selector(&[("env", &["{{external.evil}}"])]).unwrap();
        assert!(!chosen.matches(&labels("env=prod")));
        assert!(chosen.matches(&labels("env=*")));
    }

    #[test]
    fn what_cannot_be_judged_is_said() {
        assert_eq!(selector(&[("*", &["prod"])]).unwrap_err(), BadText::Star);
        assert_eq!(selector(&[("*", &[])]).unwrap_err(), BadText::Star);
        assert!(matches!(selector(&[("env", &["^($"])]), Err(BadText::Pattern(_))));
        assert!(matches!(selector(&[("env", &["^a)|(?:b$"])]), Err(BadText::Pattern(_))));
        assert!(matches!(selector(&[("env", &["^(a{1000}){1000}$"])]), Err(BadText::Pattern(_))));
        assert!(matches!(selector(&[("{{internal.env}}", &["x"])]), Err(BadText::Template(_))));
    }

    proptest! {
        #[test]
        fn a_literal_matches_itself_and_nothing_else(value in "[a-z0-9.+()\\[\\]|-]{1,20}", other in "[a-z0-9.+()\\[\\]|-]{1,20}") {
            let labels_of = |value: &str| Labels::from([("k".to_owned(), value.to_owned())]);
            let chosen = selector(&[("k", &[&value])]).unwrap();
            prop_assert!(chosen.matches(&labels_of(&value)));
            prop_assert_eq!(chosen.matches(&labels_of(&other)), value == other);
        }

        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = expand(&text, &traits()).map(|all| all.iter().map(Pattern::read).filter(Result::is_ok).count());
        }
    }
}

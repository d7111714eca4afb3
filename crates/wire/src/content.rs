//! The content digest: what a build stores and speaks, in one line (design 3.1).
//!
//! A version is a promise about formats; two builds that claim one version and differ here would break it, so they do not work in
//! one cluster (`hello::decide`, and the seats of Auth Services). It is made of the digests of the released migrations, the
//! API's description, the edge table and the capabilities: not of code, so that a build is the same on every machine and with
//! every compiler. Comments and layout do not count.

use crate::{capability, edge};
use sha2::{Digest as _, Sha256};
use std::sync::LazyLock;

const API: &str = include_str!("../proto/lockgate/v1/api.proto");
/// One line for each released migration; `cargo xtask check` holds that none ever changes.
const MIGRATIONS: &str = include_str!("../../upgrade/migrations.lock");

/// The digest of this build: `sha256:` and 64 hexadecimal digits.
pub fn digest() -> &'static str {
    static OURS: LazyLock<String> = LazyLock::new(|| {
        let edges: Vec<String> = edge::EDGES.iter().map(|edge| format!("{edge:?}")).collect();
        of(MIGRATIONS, API, &edges.join("\n"), &capability::OURS.join("\n"))
    });
    &OURS
}

/// The first digits: enough to tell two builds apart in a sentence.
pub fn short(digest: &str) -> String {
    digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(12).collect()
}

fn of(migrations: &str, api: &str, edges: &str, capabilities: &str) -> String {
    let mut hash = Sha256::new();
    let parts =
        [("migrations", plain(migrations, "#")), ("api", plain(api, "//")), ("edges", edges.into()), ("capabilities", capabilities.into())];
    for (name, part) in parts {
        // With its length, so that nothing moves from one part into the next unseen.
        hash.update(format!("{name} {}\n{part}\n", part.len()));
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A text without comments and layout.
fn plain(text: &str, comment: &str) -> String {
    let lines = text.lines().map(|line| line.split(comment).next().unwrap_or_default());
    lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_layout_do_not_count_and_everything_else_does() {
        let base = of("1-a x", "rpc A(B);", "e", "c");
        assert_eq!(of("# words\n1-a  x\n", "// about\nrpc   A(B);\n", "e", "c"), base);
        for other in [
            of("1-a y", "rpc A(B);", "e", "c"),
            of("1-a x", "rpc A(C);", "e", "c"),
            of("1-a x", "rpc A(B);", "f", "c"),
            of("1-a x", "rpc A(B);", "e", "d"),
        ] {
            assert_ne!(other, base);
        }
        assert_ne!(of("a", "b", "", ""), of("", "a b", "", ""));
    }

    #[test]
    fn the_digest_is_the_same_at_every_call_and_short_enough_for_a_sentence() {
        assert_eq!(digest(), digest());
        assert_eq!(digest().len(), 71);
        assert_eq!(short(digest()).len(), 12);
    }
}

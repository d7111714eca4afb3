//! The few pages for people: what this is, and setting a password through an invitation. Plain HTML that needs no script;
//! one style sheet, served from here. Everything that came from elsewhere passes [`escape`].
//!
//! Rendering only: who may see what is decided in `invite.rs`.

use qrcode::{QrCode, render::svg};
use std::fmt::Write as _;
use types::Public;

pub(crate) const STYLE: &str = "\
body{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:4rem auto;padding:0 1rem;color:#1b1f24;background:#fff}\
code,pre{font:14px/1.5 ui-monospace,monospace;background:#f2f4f7;padding:.15em .35em;border-radius:4px}\
pre{padding:.8em 1em;overflow:auto}h1{font-size:1.4rem}label{display:block;margin:.8rem 0}\
input{font:inherit;display:block;width:100%;box-sizing:border-box;padding:.4em;border:1px solid #8892a0;border-radius:4px}\
button{font:inherit;padding:.5em 1.2em;border:0;border-radius:4px;background:#1f5fbf;color:#fff;cursor:pointer}\
.error{border-left:4px solid #b3261e;background:#fdecea;padding:.6em 1em}svg{width:14rem;height:14rem}\
@media(prefers-color-scheme:dark){body{background:#14171c;color:#e6e9ee}code,pre{background:#232830}.error{background:#3a1d1b}svg{background:#fff}}";

/// Text made safe for HTML, in elements and in quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><link rel=\"stylesheet\" href=\"/web/style.css\"></head>\n<body><h1>{title}</h1>\n{body}\n</body></html>\n"
    )
}

fn error_box(error: &Public) -> String {
    let hint = error.hint.as_ref().map(|hint| format!("<br>{}", escape(hint))).unwrap_or_default();
    format!("<p class=\"error\" role=\"alert\">{}{hint} <small>[{}]</small></p>", escape(&error.message), escape(&error.code))
}

/// `/`: names the cluster and says how to log in. `proxy` is how the reader reached us.
pub(crate) fn home(cluster: &str, proxy: &str, version: &str) -> String {
    let (cluster, proxy, version) = (escape(cluster), escape(proxy), escape(version));
    let body = format!(
        "<p>This is the Proxy of the Lockgate cluster <strong>{cluster}</strong>. Its release is {version}.</p>\n\
         <p>To log in and list the hosts you can reach:</p>\n<pre>tsh login --proxy={proxy} --user=&lt;your name&gt;\ntsh ls</pre>"
    );
    page("Lockgate", &body)
}

/// The form of an invitation.
pub(crate) fn invite(user: &str, expires: &str, otp_url: &str, error: Option<&Public>) -> String {
    let mut body = error.map(error_box).unwrap_or_default();
    let _ = writeln!(body, "<p>Choose a password for <strong>{}</strong>. This invitation ends at {}.</p>", escape(user), escape(expires));
    body.push_str("<form method=\"post\" autocomplete=\"off\">\n");
    if !otp_url.is_empty() {
        body.push_str("<p>Scan this with an authenticator app:</p>\n");
        body.push_str(&qr(otp_url).unwrap_or_default());
        if let Some(secret) = otp_secret(otp_url) {
            let _ = writeln!(body, "<p>or type this key into it: <code>{}</code></p>", escape(secret));
        }
    }
    body.push_str(
        "<label>Password <input type=\"password\" name=\"password\" required minlength=\"8\" autocomplete=\"new-password\"></label>\n\
         <label>Password again <input type=\"password\" name=\"again\" required autocomplete=\"new-password\"></label>\n",
    );
    if !otp_url.is_empty() {
        body.push_str("<label>One-time code <input name=\"otp\" required inputmode=\"numeric\" maxlength=\"10\" autocomplete=\"one-time-code\"></label>\n");
    }
    body.push_str("<button>Set password</button></form>");
    page("Welcome to Lockgate", &body)
}

/// After the form was accepted.
pub(crate) fn accepted(user: &str, proxy: &str) -> String {
    let (user, proxy) = (escape(user), escape(proxy));
    page("Your password is set", &format!("<p>Now log in on your own machine:</p>\n<pre>tsh login --proxy={proxy} --user={user}</pre>"))
}

/// When there is nothing but an error to show.
pub(crate) fn error(error: &Public) -> String {
    page("That did not work", &error_box(error))
}

/// The code as inline SVG: no request, no script, no image source in the policy.
fn qr(text: &str) -> Option<String> {
    let svg = QrCode::new(text.as_bytes()).ok()?.render::<svg::Color<'_>>().min_dimensions(224, 224).build();
    // The XML declaration has no place inside HTML.
    svg.split_once("?>").map_or(Some(svg.clone()), |(_, rest)| Some(rest.to_owned()))
}

/// The key inside an `otpauth://` URL, for apps without a camera.
fn otp_secret(url: &str) -> Option<&str> {
    let (_, query) = url.split_once('?')?;
    query.split('&').find_map(|part| part.strip_prefix("secret=")).filter(|secret| secret.bytes().all(|b| b.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Code;

    #[test]
    fn nothing_from_elsewhere_becomes_markup() {
        let evil = "\"><script>alert('1')</script>&";
        let error = Public::new(Code::PasswordWeak, evil).hint(evil);
        for html in [home(evil, evil, evil), invite(evil, evil, evil, Some(&error)), accepted(evil, evil), super::error(&error)] {
            assert!(!html.contains("<script") && html.contains("&lt;script&gt;"), "{html}");
        }
    }

    #[test]
    fn an_invitation_shows_the_code_as_a_picture_and_as_text() {
        let html = invite("alice", "2026-11-22T18:00:00Z", "otpauth://totp/Lockgate:alice?secret=JBSWY3DPEHPK3PXP&issuer=Lockgate", None);
        assert!(
            html.contains("<svg ")
                && !html.contains("<?xml")
                && html.contains("<code>JBSWY3DPEHPK3PXP</code>")
                && html.contains("name=\"otp\"")
        );
        assert!(!html.contains("style=") && !html.contains("<img") && !html.contains("javascript"));
        let without = invite("alice", "x", "", None);
        assert!(!without.contains("<svg") && !without.contains("name=\"otp\""));
    }
}

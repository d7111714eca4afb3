//! One-time codes on the client's side: the authenticator that an invitation hands over, and its picture for a telephone.
//!
//! A code works once, and the cluster accepts the codes of the neighbouring steps for clocks that differ (RFC 6238, section
//! 5.2). So the code *after* the one that accepted an invitation logs in at once, without waiting for the next step.

use net::tls::write_private;
use qrcode::{EcLevel, QrCode, render::unicode::Dense1x2};
use std::path::Path;
use totp_rs::Totp;
use types::{Code, Public, Secret, Time};

/// The secret of a second factor, and what it yields.
pub(super) struct Authenticator {
    totp: Totp,
    base32: Secret,
}

fn bad(why: impl std::fmt::Display) -> Public {
    Public::new(Code::Malformed, format!("the second factor's secret cannot be used: {why}"))
}

impl Authenticator {
    /// From an `otpauth://totp/…` link.
    pub(super) fn from_url(url: &str) -> Result<Self, Public> {
        let totp = Totp::from_url(url).map_err(bad)?;
        if totp.step() == 0 {
            return Err(bad("its step has no length"));
        }
        let base32 = url.split(['?', '&']).find_map(|part| part.strip_prefix("secret=")).ok_or_else(|| bad("there is none"))?;
        Ok(Self { totp, base32: Secret::new(base32) })
    }

    /// From a file that [`Authenticator::save`] wrote, or that holds such a link.
    pub(super) fn load(path: &Path) -> Result<Self, Public> {
        let text = std::fs::read_to_string(path).map(Secret::new).map_err(|error| bad(format!("{}: {error}", path.display())))?;
        let first = text.expose().lines().next().unwrap_or_default().trim();
        if first.starts_with("otpauth://") {
            return Self::from_url(first);
        }
        if first.is_empty() || !first.chars().all(|c| c.is_ascii_alphanumeric() || c == '=') {
            return Err(bad(format!("{} does not hold one", path.display())));
        }
        Self::from_url(&format!("otpauth://totp/lockgate?secret={}", first.trim_end_matches('=')))
    }

    /// Writes the secret for scripts, mode 0600.
    pub(super) fn save(&self, path: &Path) -> Result<(), Public> {
        let line = Secret::new(format!("{}\n", self.base32.expose()));
        write_private(path, line.expose().as_bytes()).map_err(|error| Public::new(Code::Config, error.to_string()))
    }

    pub(super) fn base32(&self) -> &Secret {
        &self.base32
    }

    /// The step of that moment.
    pub(super) fn step(&self, now: Time) -> u64 {
        now.unix_u64().checked_div(self.totp.step()).unwrap_or(0)
    }
    /// Seconds until the next step.
    pub(super) fn left(&self, now: Time) -> u64 {
        self.totp.next_step(now.unix_u64()).saturating_sub(now.unix_u64())
    }
    /// The code of a step.
    pub(super) fn code(&self, step: u64) -> Secret {
        Secret::new(self.totp.generate(step.saturating_mul(self.totp.step())).to_string())
    }
    /// Which step a typed code is of: this one or a neighbour.
    pub(super) fn step_of(&self, typed: &Secret, now: Time) -> Option<u64> {
        let step = self.step(now);
        [step, step.saturating_sub(1), step.saturating_add(1)].into_iter().find(|&step| self.code(step) == *typed)
    }
}

/// The link as a picture of half blocks, for a telephone's camera: light on dark, as most terminals are; cameras read the
/// inverse too.
pub(super) fn picture(url: &str) -> Option<String> {
    let code = QrCode::with_error_correction_level(url.as_bytes(), EcLevel::L).ok()?;
    // Most terminals are dark: what the library calls light is drawn, so that it is light on the screen.
    Some(code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).quiet_zone(true).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 6238, appendix B: the ASCII secret "12345678901234567890".
    const SECRET: &str = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";

    fn authenticator() -> Authenticator {
        Authenticator::from_url(&format!("otpauth://totp/demo:alice?secret={SECRET}&issuer=demo")).unwrap()
    }

    #[test]
    fn codes_are_those_of_rfc_6238() {
        // The last six of the eight digits printed there.
        for (seconds, code) in [(59, "287082"), (1_111_111_109, "081804"), (1_234_567_890, "005924")] {
            let totp = authenticator();
            assert_eq!(totp.code(totp.step(Time::from_unix(seconds))).expose(), code);
        }
    }

    #[test]
    fn a_typed_code_is_found_in_this_step_or_beside_it() {
        let (totp, now) = (authenticator(), Time::from_unix(1_111_111_109));
        let step = totp.step(now);
        for near in [step - 1, step, step + 1] {
            assert_eq!(totp.step_of(&totp.code(near), now), Some(near));
        }
        assert_eq!(totp.step_of(&totp.code(step + 2), now), None);
        assert_eq!(totp.left(Time::from_unix(1_111_111_109)), 1);
    }

    #[test]
    fn a_secret_survives_its_file_which_nobody_else_can_read() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("otp");
        authenticator().save(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Authenticator::load(&path).unwrap().code(7), authenticator().code(7));
        std::fs::write(&path, "not a secret&digits=1\n").unwrap();
        assert!(Authenticator::load(&path).is_err());
    }

    #[test]
    fn a_link_becomes_a_picture_that_fits_a_terminal() {
        let picture = picture(&format!("otpauth://totp/demo:alice?secret={SECRET}&issuer=demo")).unwrap();
        assert!(picture.lines().all(|line| line.chars().count() < 80));
        assert!(picture.lines().count() < 40);
    }

    #[test]
    fn what_is_no_link_is_refused() {
        for url in [
            "",
            "https://example.com",
            "otpauth://totp/x",
            "otpauth://hotp/x?secret=GEZDGNBVGY3TQOJQ",
            "otpauth://totp/x?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&period=0",
        ] {
            assert!(Authenticator::from_url(url).is_err(), "{url}");
        }
    }
}

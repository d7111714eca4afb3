//! What this process runs on, for its presence document.

use types::kind::Platform;

/// The directory that systemd makes when it runs the machine, as `sd_booted(3)` looks for it.
const SYSTEMD: &str = "/run/systemd/system";

/// The system here. What it was built for is known; who runs the machine is looked up.
pub fn here() -> Platform {
    let (os, arch) = wire::rescue::system();
    let libc = if cfg!(target_env = "gnu") {
        "gnu"
    } else if cfg!(target_env = "musl") {
        "musl"
    } else {
        ""
    };
    let init = if std::path::Path::new(SYSTEMD).is_dir() { "systemd" } else { "none" };
    Platform { os: os.into(), arch: arch.into(), init: init.into(), libc: libc.into(), ..Platform::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_says_what_it_runs_on_in_the_words_of_artifacts_names() {
        let here = here();
        assert_eq!((here.os.as_str(), here.arch.as_str()), wire::rescue::system());
        assert!(["systemd", "none"].contains(&here.init.as_str()));
        assert!(["gnu", "musl", ""].contains(&here.libc.as_str()));
    }
}

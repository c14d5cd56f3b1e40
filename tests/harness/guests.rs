//! The guests of whole-machine tests: fetched by `resources/guests/`, cached under `target/guests`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The checkout's root folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The cache folder; the scripts use the same one.
pub fn folder() -> PathBuf {
    match std::env::var_os("BIVISOR_GUESTS") {
        Some(folder) => folder.into(),
        None => root().join("target/guests"),
    }
}

/// Whether a test that cannot run may be left out: not in CI, where green must mean that Linux booted.
pub fn missing(test: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{test}: {why}");
    eprintln!("SKIPPED {test}: {why}");
}

/// Makes sure that the guests are there (names as `fetch.sh` takes them). False: they cannot be had, and the
/// test has been reported as skipped.
pub fn fetch(test: &str, guests: &[&str]) -> bool {
    script(test, "fetch.sh", guests)
}

/// Runs a script of `resources/guests` whose success a test needs.
pub fn script(test: &str, name: &str, arguments: &[&str]) -> bool {
    let path = root().join("resources/guests").join(name);
    let why = match Command::new(&path).args(arguments).output() {
        Ok(output) if output.status.success() => return true,
        Ok(output) => format!("{name} {arguments:?} failed:\n{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => format!("{}: {error}", path.display()),
    };
    missing(test, &why);
    false
}

/// Whether a program is in the PATH. False: the test has been reported as skipped.
pub fn installed(test: &str, program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
        return true;
    }
    missing(test, &format!("{program} is not installed (resources/prepare.sh --tests installs it)"));
    false
}

/// The path of a guest file as an argument.
pub fn path(name: &str) -> String {
    folder().join(name).to_str().expect("the cache folder's name is text").to_owned()
}

/// The folder of the micro-kernels, built once.
pub fn micro_kernels() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = root().join("target/micro_kernels");
        let script = root().join("resources/micro_kernels/build.sh");
        let output = Command::new(&script).arg(&folder).output().expect("build.sh runs");
        assert!(output.status.success(), "build.sh: {}", String::from_utf8_lossy(&output.stderr));
        folder
    })
}

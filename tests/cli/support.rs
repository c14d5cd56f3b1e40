//! What the whole-program tests share: running the program, scratch files.
#![allow(dead_code, reason = "each test program uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Runs the program with no input.
pub fn bivisor(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bivisor"))
        .args(words)
        .stdin(Stdio::null())
        .output()
        .expect("the program was built with the tests")
}

/// How the program refused.
pub struct Refusal {
    /// Its one line.
    pub stderr: String,
}

/// Runs the program, which must refuse: one line on stderr, nothing on stdout, exit code 1.
#[track_caller]
pub fn refuse(words: &[&str]) -> Refusal {
    let output = bivisor(words);
    let stderr = String::from_utf8(output.stderr).expect("messages are UTF-8");
    assert_eq!(output.status.code(), Some(1), "{words:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{words:?} wrote to stdout");
    assert!(stderr.starts_with("bivisor: ") && stderr.ends_with('\n'), "{words:?}: {stderr:?}");
    assert_eq!(stderr.lines().count(), 1, "{words:?}: {stderr:?}");
    Refusal { stderr }
}

/// A folder of its own for one test, removed afterwards.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new, empty folder.
    pub fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("the target folder is writable");
        Self(path)
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file in the folder.
    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).expect("the target folder is writable");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

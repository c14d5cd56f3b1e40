//! The scripts of `-netdev tap`, which bring an interface up and down.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// Why an interface is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScriptError {
    #[error("script {}", .0.display())]
    Start(PathBuf, #[source] io::Error),
    #[error("script {}: {status}", path.display())]
    Failed { path: PathBuf, status: ExitStatus },
}

/// Runs a script with the interface's name, and waits for its end. What it says goes to stderr.
pub(super) fn run(path: &Path, interface: &str) -> Result<(), ScriptError> {
    let mut command = Command::new(path);
    command.arg(interface).stdin(Stdio::null()).stdout(io::stderr());
    let status = command.status().map_err(|error| ScriptError::Start(path.into(), error))?;
    if status.success() { Ok(()) } else { Err(ScriptError::Failed { path: path.into(), status }) }
}

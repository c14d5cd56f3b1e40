//! The host's end of the serial ports: the terminal, a pseudo-terminal, a file, nothing.

mod input;
mod output;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::backend::{BufferBackend, CharBackend, FileBackend, NullBackend, TeeBackend};

pub use self::input::{Input, Next};
pub use self::output::Output;
use crate::options::devices::SerialBackend;
use crate::terminal::escape::EscapeFilter;
use crate::terminal::pty::Pty;
use crate::terminal::{self, RawTerminal};
use crate::{tell, writable};

/// How much of what the guest last said is kept for the report of a crash.
const TAIL_BYTES: usize = 16 << 10;

/// Why a serial port has no host's end.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The file cannot be written.
    #[error("-serial file:{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The host has no pseudo-terminal to give.
    #[error("-serial pty")]
    Pty(#[source] io::Error),
    /// Standard input or output cannot be used.
    #[error("-serial stdio")]
    Stdio(#[source] io::Error),
}

/// One serial port's end on the host.
pub struct Port {
    /// Where the guest's bytes go.
    pub backend: Arc<dyn CharBackend>,
    /// What the guest last said.
    pub tail: Arc<BufferBackend>,
    /// Whence its input comes, if it has any.
    pub input: Option<Input>,
    /// Outputs that may block, to be told when nobody waits for them any more.
    pub output: Option<Arc<Output>>,
    /// Raw mode as long as the port is there.
    pub raw: Option<RawTerminal>,
}

/// Opens the host's end of serial port `index`. `escape` is the escape character of one on the terminal.
pub fn open(backend: &SerialBackend, index: usize, escape: u8) -> Result<Option<Port>, ConsoleError> {
    let plain = |backend| Port::new(backend, None, None, None);
    Ok(match backend {
        SerialBackend::None => None,
        SerialBackend::Null => Some(plain(Arc::new(NullBackend))),
        SerialBackend::File(path) => Some(plain(Arc::new(FileBackend::new(create(path)?)))),
        SerialBackend::Stdio => Some(stdio(escape).map_err(ConsoleError::Stdio)?),
        SerialBackend::Pty => Some(pty(index).map_err(ConsoleError::Pty)?),
    })
}

/// Says which of `backends` has a file that cannot be written; touches none.
pub fn check_files(backends: &[SerialBackend]) -> Result<(), ConsoleError> {
    for backend in backends {
        if let SerialBackend::File(path) = backend {
            writable::check(path).map_err(|source| ConsoleError::File { path: path.into(), source })?;
        }
    }
    Ok(())
}

/// As QEMU does, from the beginning.
fn create(path: &Path) -> Result<File, ConsoleError> {
    File::create(path).map_err(|source| ConsoleError::File { path: path.into(), source })
}

fn stdio(escape: u8) -> io::Result<Port> {
    let output = Output::new(File::from(io::stdout().as_fd().try_clone_to_owned()?), output::WhenFull::Wait)?;
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let raw = terminal::enter_raw_mode(&input)?;
    let input = Input::new(input, Some(EscapeFilter::new(escape)), &output)?;
    Ok(Port::new(Arc::clone(&output) as Arc<dyn CharBackend>, Some(input), Some(output), raw))
}

fn pty(index: usize) -> io::Result<Port> {
    let pty = Pty::open()?;
    // QEMU's words, which scripts look for.
    let name = pty.name().display();
    tell::text_as_is(&format!("char device redirected to {name} (label serial{index})\n"));
    let output = Output::new(pty.master().try_clone()?, output::WhenFull::Drop)?;
    let input = Input::new(pty.master().try_clone()?, None, &output)?.keeping(pty);
    Ok(Port::new(Arc::clone(&output) as Arc<dyn CharBackend>, Some(input), Some(output), None))
}

impl Port {
    fn new(
        main: Arc<dyn CharBackend>,
        input: Option<Input>,
        output: Option<Arc<Output>>,
        raw: Option<RawTerminal>,
    ) -> Self {
        let tail = BufferBackend::new(TAIL_BYTES);
        let backend = Arc::new(TeeBackend::new(main, Arc::clone(&tail) as Arc<dyn CharBackend>));
        Self { backend, tail, input, output, raw }
    }
}

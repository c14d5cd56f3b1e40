//! The tester's end of the native process.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::native::CHILD_VARIABLE;
use crate::shared::Shared;

/// A native process that runs batches.
pub struct Native {
    child: Child,
    requests: ChildStdin,
    answers: ChildStdout,
}

impl Native {
    pub fn start(shared: &Shared) -> io::Result<Self> {
        let (control, code) = shared.descriptors();
        let mut child = Command::new(std::env::current_exe()?)
            .env(CHILD_VARIABLE, format!("{control},{code}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let requests = child.stdin.take().expect("stdin is piped");
        let answers = child.stdout.take().expect("stdout is piped");
        Ok(Self { child, requests, answers })
    }

    /// Gives the first `count` slots of batch `index` to the process.
    pub fn request(&mut self, index: usize, count: usize) {
        self.requests.write_all(&[index as u8, count as u8]).expect("the native process takes requests");
        self.requests.flush().expect("the native process takes requests");
    }

    /// Waits until the process has given a batch back.
    ///
    /// # Panics
    /// When the process died: a stream escaped its signal handlers.
    pub fn wait(&mut self, shared: &Shared) {
        let mut answer = [0];
        let descriptor = self.answers.as_raw_fd();
        if self.answers.read_exact(&mut answer).is_err() {
            let status = self.child.wait();
            panic!("the native process died ({status:?}) in case {} (pipe {descriptor})", shared.progress());
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // It ends when its stdin does; this is for a stream that hangs.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

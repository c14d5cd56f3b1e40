//! A machine under test: a child process whose console is captured and can be talked to, with a time limit.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// bivisor, as cargo built it with the tests; `BIVISOR_TEST_PROGRAM` puts another build in its place.
pub fn bivisor() -> String {
    std::env::var("BIVISOR_TEST_PROGRAM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_bivisor").to_owned())
}

const LOCK: &str = "no thread panics while it adds bytes";

/// Bytes that one thread collects and others wait for.
#[derive(Default)]
struct Captured {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

impl Captured {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.state.lock().expect(LOCK).bytes).into_owned()
    }

    fn length(&self) -> usize {
        self.state.lock().expect(LOCK).bytes.len()
    }

    fn append(&self, bytes: &[u8], ended: bool) {
        let mut state = self.state.lock().expect(LOCK);
        state.bytes.extend_from_slice(bytes);
        state.ended |= ended;
        self.changed.notify_all();
    }
}

fn collect(mut source: impl Read + Send + 'static) -> (Arc<Captured>, JoinHandle<()>) {
    let captured = Arc::new(Captured::default());
    let into = Arc::clone(&captured);
    let thread = std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(size) = source.read(&mut chunk)
            && size > 0
        {
            into.append(&chunk[..size], false);
        }
        into.append(&[], true);
    });
    (captured, thread)
}

/// A running machine. Dropped before its end (a failed assertion), it is killed.
pub struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    serial: Arc<Captured>,
    stderr: Arc<Captured>,
    readers: Vec<JoinHandle<()>>,
    started: Instant,
    deadline: Instant,
    heard: usize,
}

/// How a machine ended.
#[derive(Debug)]
pub struct Outcome {
    /// The process's exit status.
    pub status: ExitStatus,
    /// All that came out of the console, without carriage returns.
    pub serial: String,
    /// All that the program wrote to stderr.
    pub stderr: String,
    /// Wall clock from start to end.
    pub elapsed: Duration,
}

impl Session {
    /// Starts a program that must end within the limit.
    pub fn start(program: &str, arguments: &[&str], limit: Duration) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let (serial, out) = collect(child.stdout.take().expect("stdout is piped"));
        let (stderr, err) = collect(child.stderr.take().expect("stderr is piped"));
        let started = Instant::now();
        Self {
            stdin: child.stdin.take(),
            child,
            serial,
            stderr,
            readers: vec![out, err],
            started,
            deadline: started + limit,
            heard: 0,
        }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the console has said this, after what was waited for before.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let mut state = self.serial.state.lock().expect(LOCK);
        loop {
            let new = &state.bytes[self.heard..];
            if let Some(at) = new.windows(text.len()).position(|window| window == text.as_bytes()) {
                self.heard += at + text.len();
                return;
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.ended {
                let why = if state.ended { "the machine ended" } else { "the time was over" };
                drop(state);
                self.fail(&format!("{why} before its console said {text:?}"));
            }
            state = self.serial.changed.wait_timeout(state, left).expect(LOCK).0;
        }
    }

    /// Types on the console.
    #[track_caller]
    pub fn send(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is open until the end");
        if let Err(error) = stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()) {
            self.fail(&format!("cannot type {text:?}: {error}"));
        }
    }

    /// Waits for the machine's end. Past the limit it is killed, and the test fails with what it said last.
    #[track_caller]
    pub fn finish(self) -> Outcome {
        self.finish_unless_silent(Duration::MAX).expect("nothing is silent for so long")
    }

    /// As [`Session::finish`]; `None` if the console was silent for `limit`: then the machine is killed.
    #[track_caller]
    pub fn finish_unless_silent(mut self, limit: Duration) -> Option<Outcome> {
        let mut heard = (0, Instant::now());
        let status = loop {
            let length = self.serial.length();
            if length != heard.0 {
                heard = (length, Instant::now());
            }
            match self.child.try_wait().expect("the child is ours") {
                Some(status) => break status,
                None if Instant::now() >= self.deadline => self.fail("it did not end in time"),
                // Dropped, it is killed.
                None if heard.1.elapsed() >= limit => return None,
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        Some(self.outcome(status))
    }

    /// Kills it, at once and without a word (SIGKILL), and returns what it had said until then.
    pub fn kill(mut self) -> Outcome {
        self.child.kill().expect("the child is ours");
        let status = self.child.wait().expect("the child is ours");
        self.outcome(status)
    }

    fn outcome(&mut self, status: ExitStatus) -> Outcome {
        let elapsed = self.started.elapsed();
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader does not panic");
        }
        let serial = self.serial.text().replace('\r', "");
        Outcome { status, serial, stderr: self.stderr.text(), elapsed }
    }

    #[track_caller]
    fn fail(&mut self, why: &str) -> ! {
        let _ = self.child.kill();
        let report = report(&self.serial.text(), &self.stderr.text());
        panic!("after {:.1} s: {why}\n{report}", self.started.elapsed().as_secs_f64());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Outcome {
    /// Fails the test, with the end of the console and stderr, unless the claim holds.
    #[track_caller]
    pub fn check(&self, claim: bool, what: &str) {
        assert!(claim, "{what} ({})\n{}", self.status, report(&self.serial, &self.stderr));
    }
}

fn report(serial: &str, stderr: &str) -> String {
    let lines: Vec<&str> = serial.lines().collect();
    let last = &lines[lines.len().saturating_sub(60)..];
    format!("--- the console's last lines:\n{}\n--- stderr:\n{stderr}", last.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::Session;
    use std::time::{Duration, Instant};

    fn sh(script: &str, limit_ms: u64) -> Session {
        Session::start("sh", &["-c", script], Duration::from_millis(limit_ms))
    }

    #[test]
    fn output_and_status_are_kept() {
        let outcome = sh("printf 'one\\r\\ntwo'; echo trouble >&2; exit 3", 20_000).finish();
        assert_eq!(outcome.status.code(), Some(3));
        assert_eq!((outcome.serial.as_str(), outcome.stderr.as_str()), ("one\ntwo", "trouble\n"));
    }

    #[test]
    fn conversation() {
        let mut session = sh("printf 'name? '; read name; echo \"hello $name\"", 20_000);
        session.wait_for("name? ");
        session.send("world\n");
        session.wait_for("hello world");
        assert!(session.finish().status.success());
    }

    #[test]
    #[should_panic(expected = "it did not end in time\n--- the console's last lines:\nhanging")]
    fn hang_is_a_failure() {
        sh("echo hanging; exec sleep 1000", 500).finish();
    }

    #[test]
    #[should_panic(expected = "the machine ended before its console said \"never\"")]
    fn early_end_is_a_failure() {
        sh("echo something", 20_000).wait_for("never");
    }

    #[test]
    fn what_was_said_before_a_kill_is_kept() {
        let mut session = sh("echo something; exec sleep 1000", 500_000);
        session.wait_for("thing");
        let outcome = session.kill();
        assert_eq!(outcome.status.code(), None);
        assert_eq!(outcome.serial, "something\n");
    }

    #[test]
    fn dropped_session_is_killed() {
        let started = Instant::now();
        let session = sh("exec sleep 1000", 500_000);
        let pid = session.child.id();
        drop(session);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        assert!(started.elapsed() < Duration::from_secs(100));
    }
}

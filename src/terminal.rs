//! The user's terminal in raw mode, and back on every way out (termios(3), POSIX *General Terminal Interface*).
//!
//! The settings to go back to stand in a static, because the ways out include signal handlers and the panic hook.
//! Standard input is never made non-blocking: its open file description is shared with the user's shell.

#![expect(unsafe_code, reason = "termios and the restoring signal handlers are C")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The terminal's settings before and during raw mode.
struct Settings {
    /// Our own, so that it is there as long as the program.
    terminal: OwnedFd,
    before: libc::termios,
    raw: libc::termios,
}

static SETTINGS: OnceLock<Settings> = OnceLock::new();
static IS_RAW: AtomicBool = AtomicBool::new(false);

/// Raw mode while it lives.
#[derive(Debug)]
pub struct RawTerminal(());

/// Puts the terminal behind `input` in raw mode: each key goes to the guest, Ctrl-C and Ctrl-Z too unless `signals` stay
/// signals. Output keeps its newline translation. `None` if `input` is no terminal. Once per process.
pub fn enter_raw_mode(input: impl AsFd, signals: bool) -> io::Result<Option<RawTerminal>> {
    let fd = input.as_fd().as_raw_fd();
    let Some(before) = settings_of(fd) else { return Ok(None) };
    let mut raw = before;
    raw.c_iflag &= !(libc::IGNBRK
        | libc::BRKINT
        | libc::PARMRK
        | libc::ISTRIP
        | libc::INLCR
        | libc::IGNCR
        | libc::ICRNL
        | libc::IXON);
    raw.c_oflag |= libc::OPOST;
    raw.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::IEXTEN);
    if !signals {
        raw.c_lflag &= !libc::ISIG;
    }
    raw.c_cflag &= !(libc::CSIZE | libc::PARENB);
    raw.c_cflag |= libc::CS8;
    raw.c_cc[libc::VMIN] = 1;
    raw.c_cc[libc::VTIME] = 0;
    let terminal = input.as_fd().try_clone_to_owned()?;
    let settings = SETTINGS.get_or_init(|| Settings { terminal, before, raw });
    IS_RAW.store(true, Ordering::SeqCst);
    apply(settings.terminal.as_raw_fd(), &settings.raw)?;
    Ok(Some(RawTerminal(())))
}

/// The terminal as it was before, if it is raw. Async-signal-safe; any thread; again and again.
pub fn restore() {
    if IS_RAW.swap(false, Ordering::SeqCst)
        && let Some(settings) = SETTINGS.get()
    {
        // Nothing can be done about a terminal that went away.
        let _ = apply(settings.terminal.as_raw_fd(), &settings.before);
    }
}

/// Raw mode again, after something outside (a job-control stop) undid it. Async-signal-safe.
pub fn reapply() {
    if IS_RAW.load(Ordering::SeqCst)
        && let Some(settings) = SETTINGS.get()
    {
        let _ = apply(settings.terminal.as_raw_fd(), &settings.raw);
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

fn settings_of(fd: RawFd) -> Option<libc::termios> {
    let mut settings = MaybeUninit::uninit();
    // SAFETY: tcgetattr writes a whole termios to the pointer or fails; the buffer is one.
    if unsafe { libc::tcgetattr(fd, settings.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: tcgetattr succeeded and so has filled the buffer.
    Some(unsafe { settings.assume_init() })
}

fn apply(fd: RawFd, settings: &libc::termios) -> io::Result<()> {
    loop {
        // SAFETY: tcsetattr reads one termios, which the reference is.
        if unsafe { libc::tcsetattr(fd, libc::TCSANOW, settings) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::backend::chardev::pty;

    #[test]
    fn raw_mode_comes_and_goes() {
        let pty = pty::Pty::open().unwrap();
        let fd = pty.terminal().as_fd().as_raw_fd();
        let cooked = libc::ICANON | libc::ECHO | libc::ISIG;
        let mut settings = settings_of(fd).unwrap();
        settings.c_lflag |= cooked;
        settings.c_iflag |= libc::ICRNL;
        apply(fd, &settings).unwrap();
        let before = settings_of(fd).unwrap();

        let raw = enter_raw_mode(pty.terminal(), false).unwrap().expect("a pty is a terminal");
        assert_eq!(settings_of(fd).unwrap().c_lflag & cooked, 0);
        apply(fd, &before).unwrap();
        reapply();
        assert_eq!(settings_of(fd).unwrap().c_iflag & libc::ICRNL, 0);
        drop(raw);
        let after = settings_of(fd).unwrap();
        assert_eq!((after.c_lflag, after.c_iflag), (before.c_lflag, before.c_iflag));
        reapply();
        assert_eq!(settings_of(fd).unwrap().c_lflag, before.c_lflag, "nothing to apply any more");

        assert!(enter_raw_mode(std::fs::File::open("/dev/null").unwrap(), true).unwrap().is_none());
    }
}

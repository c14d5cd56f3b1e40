//! What the user is told: lines on standard error, each in one write, so that no other program's output gets into it.
//!
//! A reader that went away is no reason to stop, let alone to panic: the guest runs on.

use std::fmt::Display;
use std::io::Write;

/// One line, with the program's name before it.
pub fn line(text: impl Display) {
    text_as_is(&format!("bivisor: {text}\n"));
}

/// Text as it is.
pub fn text_as_is(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

//! The escape character of a multiplexer (QEMU, *Keys in the character backend multiplexer*).

/// What the user typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typed {
    /// A byte for the guest.
    Byte(u8),
    /// Escape, x: end the program.
    Quit,
    /// Escape, h: say what there is.
    Help,
    /// Escape, c: input goes to the next device.
    Next,
    /// Escape, b: a break.
    Break,
    /// Escape and a letter that QEMU has a meaning for and we do not.
    NotBuilt(u8),
}

/// Takes the escape sequences out of what is typed.
#[derive(Debug)]
pub struct EscapeFilter {
    escape: u8,
    pending: bool,
}

impl EscapeFilter {
    /// `escape` is the escape character's code: 1 (Ctrl-A) unless `-echr` says otherwise.
    pub fn new(escape: u8) -> Self {
        Self { escape, pending: false }
    }

    /// Takes one byte. `None` for the escape character itself, and for one that means nothing after it.
    pub fn feed(&mut self, byte: u8) -> Option<Typed> {
        if !std::mem::take(&mut self.pending) {
            if byte == self.escape {
                self.pending = true;
                return None;
            }
            return Some(Typed::Byte(byte));
        }
        match byte {
            _ if byte == self.escape => Some(Typed::Byte(byte)),
            b'x' => Some(Typed::Quit),
            b'h' | b'?' => Some(Typed::Help),
            b'c' => Some(Typed::Next),
            b'b' => Some(Typed::Break),
            b's' | b't' => Some(Typed::NotBuilt(byte)),
            _ => None,
        }
    }

    /// The escape character's name: `C-a`.
    pub fn name(&self) -> String {
        match self.escape {
            code @ 1..=26 => format!("C-{}", char::from(b'a' + code - 1)),
            code => format!("<{code:#04x}>"),
        }
    }

    /// The answer to [`Typed::Help`] where `devices` share the terminal.
    pub fn help(&self, devices: usize) -> String {
        let name = self.name();
        let next = match devices {
            0 | 1 => "the monitor (not built yet)",
            _ => "input goes to the next device",
        };
        format!(
            "\r\n{name} h    this text\r\n{name} x    ends the program\r\n{name} b    sends a break\r\n\
             {name} c    {next}\r\n{name} {name}  sends {name} to the guest\r\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(filter: &mut EscapeFilter, bytes: &[u8]) -> Vec<Typed> {
        bytes.iter().filter_map(|&byte| filter.feed(byte)).collect()
    }

    #[test]
    fn sequences() {
        let mut filter = EscapeFilter::new(1);
        assert_eq!(feed(&mut filter, b"a\x01\x01b"), [Typed::Byte(b'a'), Typed::Byte(1), Typed::Byte(b'b')]);
        assert_eq!(feed(&mut filter, b"\x01x\x01h\x01c"), [Typed::Quit, Typed::Help, Typed::Next]);
        assert_eq!(feed(&mut filter, b"\x01zq"), [Typed::Byte(b'q')]);
        assert_eq!(feed(&mut filter, b"\x01b\x01s"), [Typed::Break, Typed::NotBuilt(b's')]);
    }

    #[test]
    fn a_sequence_may_arrive_in_pieces() {
        let mut filter = EscapeFilter::new(1);
        assert_eq!(feed(&mut filter, b"\x01"), []);
        assert_eq!(feed(&mut filter, b"x"), [Typed::Quit]);
    }

    #[test]
    fn another_escape_character() {
        let mut filter = EscapeFilter::new(20);
        assert_eq!(filter.name(), "C-t");
        assert_eq!(feed(&mut filter, b"\x01x\x14x"), [Typed::Byte(1), Typed::Byte(b'x'), Typed::Quit]);
    }
}

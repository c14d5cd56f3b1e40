//! UUIDs as options write them (RFC 9562, *UUID Format*).

use std::fmt;

/// A UUID, its bytes in the order in which they are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// Reads `12345678-1234-1234-1234-123456789abc`, in braces or not.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
        let groups: Vec<&str> = text.split('-').collect();
        let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
        if lengths != [8, 4, 4, 4, 12] || !text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit()) {
            return None;
        }
        let number = u128::from_str_radix(&groups.concat(), 16).ok()?;
        Some(Self(number.to_be_bytes()))
    }

    /// The bytes as SMBIOS and Microsoft have them: the first three groups are little-endian numbers.
    pub fn little_endian(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h, rest @ ..] = self.0;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&[d, c, b, a, f, e, h, g]);
        bytes[8..].copy_from_slice(&rest);
        bytes
    }

    /// A random one (version 4) of these random bytes.
    pub fn of_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "12345678-9abc-def0-1122-334455667788";

    #[test]
    fn written_and_read() {
        let uuid = Uuid::parse(TEXT).unwrap();
        assert_eq!(uuid.to_string(), TEXT);
        assert_eq!(Uuid::parse("{12345678-9ABC-DEF0-1122-334455667788}"), Some(uuid));
        assert_eq!(uuid.little_endian()[..8], [0x78, 0x56, 0x34, 0x12, 0xbc, 0x9a, 0xf0, 0xde]);
        assert_eq!(uuid.little_endian()[8..], [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
        for bad in ["", "1234", "12345678-9abc-def0-1122-33445566778", "+2345678-9abc-def0-1122-334455667788"]
        {
            assert_eq!(Uuid::parse(bad), None, "{bad}");
        }
        assert_eq!(Uuid::parse("{12345678-9abc-def0-1122-334455667788"), None);
    }

    #[test]
    fn random_ones_say_so() {
        assert_eq!(Uuid::of_random([0xff; 16]).to_string(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}

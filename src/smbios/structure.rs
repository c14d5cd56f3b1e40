//! Structures of the table, one after another (SMBIOS 3.6, *SMBIOS structures*).

/// A handle that stands for nothing.
pub const NO_HANDLE: u16 = 0xffff;

/// The structures so far.
#[derive(Debug, Default)]
pub struct Structures {
    bytes: Vec<u8>,
    count: u16,
    /// The longest one.
    most: usize,
}

impl Structures {
    /// Adds one.
    pub fn add(&mut self, structure: Structure) {
        let mut bytes = structure.formatted;
        bytes[1] = u8::try_from(bytes.len()).expect("the formatted part of every type is short");
        for text in &structure.strings {
            bytes.extend(text.as_bytes());
            bytes.push(0);
        }
        // The string set ends with a zero; an empty one has two.
        bytes.extend(if structure.strings.is_empty() { &[0, 0][..] } else { &[0] });
        self.most = self.most.max(bytes.len());
        self.count = self.count.saturating_add(1);
        self.bytes.extend(bytes);
    }

    /// All of them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Bytes of the longest one.
    pub fn most(&self) -> usize {
        self.most
    }
}

/// One structure: its formatted part, then the strings that it counts from 1.
#[derive(Debug)]
pub struct Structure {
    formatted: Vec<u8>,
    strings: Vec<String>,
}

impl Structure {
    /// Type and handle.
    pub fn new(kind: u8, handle: u16) -> Self {
        let [low, high] = handle.to_le_bytes();
        Self { formatted: vec![kind, 0, low, high], strings: Vec::new() }
    }

    /// A string; an empty one is none.
    pub fn text(mut self, text: &str) -> Self {
        let number = if text.is_empty() {
            0
        } else {
            self.strings.push(text.to_owned());
            u8::try_from(self.strings.len())
                .expect("a structure has a handful of strings, type 11 255 at most")
        };
        self.formatted.push(number);
        self
    }

    /// A string that the formatted part does not name: those of type 11.
    pub fn counted(mut self, text: &str) -> Self {
        self.strings.push(text.to_owned());
        self
    }

    /// Bytes.
    pub fn u8s(mut self, values: &[u8]) -> Self {
        self.formatted.extend(values);
        self
    }

    /// Words of 16 bits.
    pub fn u16s(mut self, values: &[u16]) -> Self {
        self.formatted.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    /// 32 bits.
    pub fn u32(mut self, value: u32) -> Self {
        self.formatted.extend(value.to_le_bytes());
        self
    }

    /// 64 bits.
    pub fn u64(mut self, value: u64) -> Self {
        self.formatted.extend(value.to_le_bytes());
        self
    }
}

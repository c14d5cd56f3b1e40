//! An input, read from its front: at its end all is zero. Numbers are little-endian, so that the fuzzer, which finds the numbers
//! that code compares with in the input's bytes, can put them there.

/// What is left of an input.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether there is nothing left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `most` bytes, or what there is.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// What is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    /// As many bytes as the first one says.
    pub fn short(&mut self) -> &'a [u8] {
        let most = self.u8();
        self.bytes(most.into())
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// A number.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    /// A number of 16 bits.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// A number of 32 bits.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// A number of 64 bits.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A small number, mostly, or any of 32 bits: of one byte, if that is not 255.
    pub fn small(&mut self) -> u32 {
        match self.u8() {
            0xff => self.u32(),
            small => small.into(),
        }
    }

    /// A number at an edge of what there is, or near one, or any: sums with it overflow, and differences.
    pub fn edge(&mut self) -> u64 {
        let what = self.u8();
        let edge = match what & 0x3f {
            0x3f => self.u64(),
            0x3e => 3 << 30,
            0x3d => 0xffff_ffff_8000_0000,
            shift => 1u64.rotate_left(shift.into()),
        };
        match what >> 6 {
            0 => edge,
            1 => edge.wrapping_sub(1),
            2 => edge.wrapping_add(self.u8().into()),
            _ => edge.wrapping_neg(),
        }
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.u8()) % choices.len()]
    }

    /// Bytes of an access to a register: 1, 2, 4 or 8.
    pub fn width(&mut self) -> usize {
        1 << (self.u8() & 3)
    }
}

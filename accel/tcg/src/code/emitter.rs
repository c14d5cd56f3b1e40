//! The emitter: where `dynasm!` and the instruction encoder put bytes, with patchable jumps.

use dynasmrt::{AssemblyOffset, DynasmApi};

/// Bytes that there is room for.
pub const ROOM: usize = 64 * 1024;

/// Code being written. Byte 0 will be executed at `base`.
///
/// The room is fixed and made once: what is emitted for an instruction are a few pieces of a few bytes, each of which would
/// otherwise ask whether the buffer must grow.
pub struct Emitter {
    room: Box<[u8; ROOM]>,
    len: usize,
    base: u64,
}

/// A 4-byte displacement that waits for its target.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Patch(usize);

impl Patch {
    /// Its place, from the start of what is emitted.
    pub fn offset(self) -> u16 {
        self.0 as u16
    }
}

/// A 1-byte displacement that waits for its target.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct ShortPatch(usize);

/// Condition codes as encoded in Jcc.
pub mod cc {
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const A: u8 = 7;
    pub const S: u8 = 8;
}

const NOPS: [&[u8]; 4] = [&[], &[0x90], &[0x66, 0x90], &[0x0f, 0x1f, 0x00]];

impl Emitter {
    /// An empty one, to be executed at `base`.
    pub fn new(base: u64) -> Self {
        let room = vec![0; ROOM].into_boxed_slice().try_into().expect("it has this length");
        Self { room, len: 0, base }
    }

    /// Starts over for another address.
    pub fn reset(&mut self, base: u64) {
        self.len = 0;
        self.base = base;
    }

    /// What was written.
    pub fn bytes(&self) -> &[u8] {
        &self.room[..self.len]
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the next byte.
    pub fn here(&self) -> u64 {
        self.base + self.len as u64
    }

    /// Copies encoded bytes.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.room[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Copies `bytes`, a move or two.
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        *self.room[self.len..].first_chunk_mut().expect("blocks have a largest size") = bytes;
        self.len += N;
    }

    /// Copies the first `len` bytes of `bytes`.
    pub fn raw_start<const N: usize>(&mut self, bytes: &[u8; N], len: usize) {
        debug_assert!(len <= N);
        self.put(*bytes);
        self.len -= N - len;
    }

    /// `jmp rel32` to a known address.
    pub fn jmp_to(&mut self, target: u64) {
        self.put([0xe9]);
        self.rel32(target);
    }

    /// `call rel32` to a known address.
    pub fn call(&mut self, target: u64) {
        self.put([0xe8]);
        self.rel32(target);
    }

    /// `jcc rel32` to a known address.
    pub fn jcc_to(&mut self, condition: u8, target: u64) {
        self.put([0x0f, 0x80 | condition]);
        self.rel32(target);
    }

    fn rel32(&mut self, target: u64) {
        let displacement = target.wrapping_sub(self.here() + 4) as i64;
        let displacement =
            i32::try_from(displacement).expect("code and thunks share one buffer of less than 2 GiB");
        self.put(displacement.to_le_bytes());
    }

    /// `jmp rel32` with a target to come.
    pub fn jmp(&mut self) -> Patch {
        self.put([0xe9, 0, 0, 0, 0]);
        Patch(self.len - 4)
    }

    /// `jcc rel32` with a target to come.
    pub fn jcc(&mut self, condition: u8) -> Patch {
        self.put([0x0f, 0x80 | condition, 0, 0, 0, 0]);
        Patch(self.len - 4)
    }

    /// `jcc rel8` with a target to come.
    pub fn jcc_short(&mut self, condition: u8) -> ShortPatch {
        self.put([0x70 | condition, 0]);
        ShortPatch(self.len - 1)
    }

    /// `jmp rel8` with a target to come.
    pub fn jmp_short(&mut self) -> ShortPatch {
        self.put([0xeb, 0]);
        ShortPatch(self.len - 1)
    }

    /// `jrcxz rel8` with a target to come.
    pub fn jrcxz(&mut self) -> ShortPatch {
        self.put([0xe3, 0]);
        ShortPatch(self.len - 1)
    }

    /// The target of `patch` is here.
    pub fn bind(&mut self, patch: Patch) {
        let displacement = (self.len - (patch.0 + 4)) as i32;
        self.room[patch.0..patch.0 + 4].copy_from_slice(&displacement.to_le_bytes());
    }

    /// The target of `patch` is `target`, an address in what this emitter has written.
    pub fn bind_to(&mut self, patch: Patch, target: u64) {
        let displacement = target.wrapping_sub(self.base + patch.0 as u64 + 4) as i32;
        self.room[patch.0..patch.0 + 4].copy_from_slice(&displacement.to_le_bytes());
    }

    /// The target of `patch` is here.
    pub fn bind_short(&mut self, patch: ShortPatch) {
        let displacement = self.len - (patch.0 + 1);
        self.room[patch.0] = i8::try_from(displacement).expect("short jumps span a few instructions") as u8;
    }

    /// `call rel32` with a target to come.
    pub fn call_forward(&mut self) -> Patch {
        self.put([0xe8, 0, 0, 0, 0]);
        Patch(self.len - 4)
    }

    /// The last 4 bytes as a displacement or constant to be set later.
    pub fn last_word(&self) -> Patch {
        Patch(self.len - 4)
    }

    /// Pads with NOPs so that the 4 bytes behind the `ahead` next ones can be patched
    /// ([`CodeBuffer::patch_word`](crate::code::buffer::CodeBuffer::patch_word)).
    pub fn align_word(&mut self, ahead: u64) {
        self.nops(self.padding(ahead));
    }

    /// How many bytes that takes, 0 to 3.
    pub fn padding(&self, ahead: u64) -> usize {
        match (self.here() + ahead) % 8 {
            0..=4 => 0,
            place => 8 - place as usize,
        }
    }

    /// `len` bytes, 0 to 3, that do nothing.
    pub fn nops(&mut self, len: usize) {
        self.raw(NOPS[len]);
    }

    /// As [`Emitter::nops`], at `at`; what is there moves up. Nothing of it may depend on its place.
    pub fn insert_nops(&mut self, at: usize, len: usize) {
        self.room.copy_within(at..self.len, at + len);
        self.room[at..at + len].copy_from_slice(NOPS[len]);
        self.len += len;
    }
}

impl Extend<u8> for Emitter {
    #[inline]
    fn extend<T: IntoIterator<Item = u8>>(&mut self, iter: T) {
        let iter = iter.into_iter();
        // What `dynasm!` gives are arrays: their length is known.
        let (count, most) = iter.size_hint();
        debug_assert_eq!(most, Some(count));
        for (place, byte) in self.room[self.len..][..count].iter_mut().zip(iter) {
            *place = byte;
        }
        self.len += count;
    }
}

impl<'a> Extend<&'a u8> for Emitter {
    #[inline]
    fn extend<T: IntoIterator<Item = &'a u8>>(&mut self, iter: T) {
        self.extend(iter.into_iter().copied());
    }
}

impl DynasmApi for Emitter {
    fn offset(&self) -> AssemblyOffset {
        AssemblyOffset(self.len)
    }

    #[inline]
    fn push(&mut self, byte: u8) {
        self.room[self.len] = byte;
        self.len += 1;
    }

    #[inline]
    fn push_i32(&mut self, value: i32) {
        self.put(value.to_le_bytes());
    }

    #[inline]
    fn push_i64(&mut self, value: i64) {
        self.put(value.to_le_bytes());
    }

    fn align(&mut self, alignment: usize, with: u8) {
        while !self.len.is_multiple_of(alignment) {
            self.push(with);
        }
    }
}

//! A small seeded generator (SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators").

/// Same seed, same numbers, for ever: a failure's seed is enough to see it again.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is not zero.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// True in `n` of 100 cases.
    pub fn percent(&mut self, n: usize) -> bool {
        self.below(100) < n
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Numbers at which arithmetic turns, and plain random ones.
    pub fn interesting(&mut self) -> u64 {
        const CORNERS: [u64; 20] = [
            0,
            1,
            2,
            3,
            7,
            8,
            31,
            32,
            63,
            64,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            0x7fff_ffff_ffff_ffff,
            0x8000_0000_0000_0000,
        ];
        match self.below(8) {
            0 | 1 => self.pick(&CORNERS),
            2 => self.pick(&CORNERS).wrapping_neg(),
            3 => self.next() >> self.below(64),
            4 => self.below(256) as u64,
            _ => self.next(),
        }
    }
}

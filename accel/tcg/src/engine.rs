//! What the CPUs of a machine share: the block cache, the thunks, and what their translators are like.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::code::buffer::CodeBuffer;
use crate::code::cache::TbCache;
use crate::code::emitter::Emitter;
use crate::code::thunks::{self, FpSave, Thunks};
use crate::exec::{helpers, signals, trace};
use crate::peers::Peers;
use crate::ram::Ram;
use crate::stress::Stress;
use crate::translate::features::Features;
use crate::translate::generator::{MAX_BLOCK_BYTES, Translator};

/// Bytes of code memory unless told otherwise.
pub const CODE_BYTES: usize = 256 << 20;
/// Bytes of code memory at least: four regions ([`crate::code::reclaim`]), in the first of which are the thunks beside any block.
pub const MIN_CODE_BYTES: usize = 8 * MAX_BLOCK_BYTES;

/// Blocks in a region of code memory at most, under [`Stress::reclaims`].
const STRESSED_BLOCKS: usize = 64;

/// Shared by all CPUs of a machine. The lock is taken to find, enter, link and invalidate blocks, never on the way from block
/// to block.
pub struct Engine {
    code: Mutex<TbCache>,
    features: Features,
    /// Blocks take their instructions off the budget ([`crate::icount`]).
    icount: bool,
    /// [`TbCache::voided`].
    voided: AtomicU64,
    /// The CPUs.
    pub peers: Peers,
    /// Entry points of generated code.
    pub thunks: Thunks,
    /// For tests.
    pub stress: Stress,
}

impl Engine {
    /// An engine with `code_bytes` of code memory for guests that see `features`.
    pub fn new(
        features: Features,
        fp: FpSave,
        code_bytes: usize,
        stress: Stress,
        icount: bool,
    ) -> std::io::Result<Self> {
        let mut buffer = CodeBuffer::new(code_bytes.next_multiple_of(4096))?;
        let mut emitter = Emitter::new(buffer.range().start);
        let thunks = thunks::emit(&mut emitter, &helpers::HELPERS, fp);
        buffer.reserve(emitter.bytes());
        signals::register(buffer.range(), thunks.fault)?;
        let mut cache = TbCache::new(buffer);
        if stress.reclaims {
            cache.fill_regions_with(STRESSED_BLOCKS);
        }
        let (code, voided) = (Mutex::new(cache), AtomicU64::new(0));
        Ok(Self { code, features, icount, voided, peers: Peers::default(), thunks, stress })
    }

    /// A translator for one CPU.
    pub fn translator(&self) -> Translator {
        let bmi2 = std::arch::is_x86_feature_detected!("bmi2");
        let mut translator = Translator::new(self.thunks, self.features.clone(), bmi2);
        translator.stress = self.stress;
        translator.counting = trace::counting();
        translator.icount = self.icount;
        translator
    }

    /// Empties the cache. No CPU is in generated code; each finds out before it enters it again ([`Engine::voided`]).
    pub fn empty(&self, cache: &mut TbCache, ram: &Ram) {
        cache.clear(ram);
        self.follow(cache);
    }

    /// Has `cpu` go on in another region of code memory: in `victim`, which is reclaimed, for which no CPU may be in generated
    /// code, as for [`Engine::empty`]; or in a new one.
    pub fn go_on_in(&self, cpu: usize, victim: Option<usize>, cache: &mut TbCache, ram: &Ram) {
        cache.go_on_in(cpu, victim, ram);
        if victim.is_some() {
            // Jumps were patched.
            self.peers.serialize();
        }
        self.follow(cache);
    }

    fn follow(&self, cache: &TbCache) {
        self.voided.store(cache.voided(), Ordering::Release);
    }

    /// How often what was looked up in the cache before has become void.
    pub fn voided(&self) -> u64 {
        self.voided.load(Ordering::Acquire)
    }

    /// The cache.
    pub fn code(&self) -> MutexGuard<'_, TbCache> {
        self.code.lock().expect("no holder of the code lock panics")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        signals::unregister(&self.code().buffer.range());
    }
}

//! Sites of memory accesses that miss their slots often: their blocks are translated anew, with a look-up in the table
//! there.
//!
//! A miss of a slot costs more than ten times what it saves when it hits. Misses alone tell nothing: a loop that walks
//! through memory misses at every page. So it is their rate that counts, and of that only what can be seen without
//! counting hits: how soon one follows another.

use std::time::{Duration, Instant};

use crate::env::{SITE_COUNTERS, SITE_MISSES};
use crate::exec::helpers::SITE_SHIFT;
use crate::exec::vcpu::Vcpu;

/// Misses that follow each other sooner than this, on the average, are too many.
const TOO_SOON: Duration = Duration::from_nanos(40);

/// When each counter was last full.
pub struct Sites {
    full: Vec<Option<Instant>>,
}

impl Sites {
    /// None was.
    pub fn new() -> Self {
        Self { full: vec![None; SITE_COUNTERS] }
    }
}

impl Default for Sites {
    fn default() -> Self {
        Self::new()
    }
}

impl Vcpu {
    /// The counter of the site whose miss returns to `return_address` is full.
    pub(super) fn judge_site(&mut self, return_address: u64) {
        let (pc, counter) = (return_address - 1, (return_address >> SITE_SHIFT) as usize % SITE_COUNTERS);
        self.cpu.env.site_misses[counter] = 0u16.wrapping_sub(SITE_MISSES);
        if self.cpu.icount.is_some() {
            // By the host's time, and by where code happens to lie: two runs would differ.
            return;
        }
        let now = Instant::now();
        let Some(before) = self.sites.full[counter].replace(now) else { return };
        if now - before > TOO_SOON * u32::from(SITE_MISSES) {
            return;
        }
        let mut code = self.engine.code();
        let Some(id) = code.at(pc) else { return };
        let Some(mark) = code.mark_at(id, pc) else { return };
        let gone = code.use_table(id, usize::from(mark.insn));
        drop(code);
        if let Some(gone) = gone {
            self.cpu.forget_block_here(&gone);
        }
    }
}

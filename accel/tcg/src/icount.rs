//! Counting instructions exactly (`-icount`).
//!
//! The *budget* ([`crate::env::Env::budget`]) is what a CPU may still execute before the loop looks again. A block takes
//! all its instructions off it at its entry; where the budget is smaller, the block is not entered, and the loop goes on one
//! instruction at a time. A block that is left early gives back what it has not begun: an instruction counts when it is
//! begun, whether it completes or faults, and a repeated string instruction counts when it is finished, in however
//! many pieces it was done.
//!
//! The loop grants what there is until the next timer, or until the CPU's turn ends, so that both come at exact counts.
//! Within a block the count is what was taken, less what the block has not begun; it is worked out when something looks
//! at the time ([`Cpu::publish_count`]).
//!
//! A kick must change nothing for the guest, not even what the soft TLB holds, since that decides when a page's accessed
//! bit is set. So what other threads' kicks announce waits until the next block's entry, and that block is then entered
//! again without a look-up; only what the CPU has done itself ([`SELF_KICK`]) ends a block.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::ThreadId;
use std::time::Duration;

use accel::contract::{CpuTime, Kick, Wait};
use devices::clock::IcountClock;
use devices::clock::icount::Idle;

use crate::cpu::Cpu;
use crate::env::{EnvMapping, KICKED};

/// In the poll word: the kick came from the CPU's own thread, so that it comes at the same instruction in every run.
pub const SELF_KICK: u32 = 1 << 15;

/// How long a turn is where CPUs share the thread, in instructions.
const TURN: u64 = 20_000;
/// How long it is for a lone CPU where the clock is to look at the host's time every now and then.
const LONE_TURN: u64 = 1_000_000;

/// The largest budget: its upper byte tells its sign.
const MOST: u64 = 1 << 54;

/// What a CPU that counts needs beside its budget.
pub struct Counting {
    /// Guest time.
    pub clock: Arc<IcountClock>,
    /// What all CPUs had executed when the budget was granted.
    base: u64,
    granted: u64,
    /// The CPU executes. Between, others of its thread do.
    active: bool,
    /// Left of the CPU's turn when the budget was granted.
    turn: u64,
    /// How long a turn is.
    whole_turn: u64,
    /// Executable address in the block that a helper was called from, which says how far the block is; 0: `env.left` does.
    pub(crate) pc: u64,
}

impl Counting {
    /// For one of `cpus` CPUs.
    pub fn new(clock: Arc<IcountClock>, cpus: usize) -> Self {
        let whole_turn = match cpus {
            1 if clock.follows_host() => LONE_TURN,
            1 => u64::MAX,
            _ => TURN,
        };
        Self { clock, base: 0, granted: 0, active: false, turn: whole_turn, whole_turn, pc: 0 }
    }

    /// Ends the present grant, of which `budget` is left.
    fn settle(&mut self, budget: i64) {
        if !self.active {
            return;
        }
        let used = self.granted - u64::try_from(budget).expect("the loop does not overdraw the budget");
        self.clock.publish(self.base + used);
        if self.whole_turn != u64::MAX {
            self.turn = self.turn.saturating_sub(used);
        }
        (self.granted, self.pc) = (0, 0);
        self.active = false;
    }

    /// Executed by all CPUs, with the present block as if it were done; `budget` is left.
    pub fn granted_so_far(&self, budget: i64) -> u64 {
        (self.base + self.granted).wrapping_sub(budget as u64)
    }

    /// Runs the timers that are due, and grants what may be executed until the next: 1 at least.
    fn grant(&mut self) -> u64 {
        let mut until = self.clock.until_deadline();
        if until == 0 {
            devices::clock::Clock::run_expired(&*self.clock);
            // A timer that is always due must not keep the guest from going on.
            until = self.clock.until_deadline();
        }
        self.base = self.clock.executed();
        self.active = true;
        self.granted = until.min(self.turn).clamp(1, MOST);
        self.granted
    }
}

impl Cpu {
    /// Between blocks: brings the count up to date. `None`: the CPU has had its turn, or gives it up. Else how many instructions it may
    /// execute. `whole`: it executes as long as there is no reason to stop, and not just one instruction.
    pub fn renew_budget(&mut self, whole: bool) -> Option<u64> {
        self.return_budget();
        let yields = whole && std::mem::take(&mut self.yields);
        let Some(counting) = &mut self.icount else { return (!yields).then_some(u64::MAX) };
        if whole && (yields || counting.turn == 0) {
            counting.turn = counting.whole_turn;
            return None;
        }
        let granted = counting.grant();
        self.env.budget = granted as i64;
        Some(granted)
    }

    /// The CPU executes no further for now.
    pub fn return_budget(&mut self) {
        if let Some(counting) = &mut self.icount {
            counting.settle(self.env.budget);
            (self.env.budget, self.env.left) = (0, 0);
        }
    }

    /// Tells the clock how many instructions were executed before the one that is looking at the time.
    pub fn publish_count(&self) {
        let Some(counting) = self.icount.as_ref().filter(|counting| counting.active) else { return };
        let begun = match counting.pc {
            0 => self.env.left,
            pc => self.left_behind(pc) + 1,
        };
        let left = self.env.budget + i64::from(begun);
        counting.clock.publish(counting.granted_so_far(left));
    }

    /// How many instructions of its block come behind the one that the code at executable address `pc` belongs to.
    fn left_behind(&self, pc: u64) -> u32 {
        let code = self.engine.as_ref().expect("a CPU that counts executes code").code();
        let id = code.at(pc).expect("helpers are called from blocks");
        let mark = code.mark_at(id, pc).expect("a block's code is marked from its start");
        code.count(id) - 1 - u32::from(mark.insn)
    }

    /// The block is left at the code at executable address `pc`: gives back what it has not begun. `again`: its
    /// instruction is not done either, and will be begun anew.
    pub fn give_back_from(&mut self, pc: u64, again: bool) {
        if self.icount.is_some() {
            let left = self.left_behind(pc) + u32::from(again);
            self.give_back(left);
        }
    }

    /// The block is left before it has begun `left` of its instructions.
    pub fn give_back(&mut self, left: u32) {
        if let Some(counting) = &mut self.icount {
            (counting.pc, self.env.left) = (0, 0);
            self.env.budget += i64::from(left);
        }
    }

    /// An instruction that is no block's, because it could not be fetched, counts as begun.
    pub fn count_one(&mut self) {
        if self.icount.is_some() {
            self.env.budget -= 1;
        }
    }

    /// Whether the poll word holds something that ends a block.
    pub fn is_called_out(&self) -> bool {
        let word = self.env.mapping().icount_decr().load(Ordering::Relaxed);
        if self.icount.is_some() { word & !KICKED != 0 } else { word != 0 }
    }

    /// Has the loop look after this instruction.
    pub fn call_out(&self) {
        self_kick(self.env.mapping().icount_decr());
    }
}

fn self_kick(word: &AtomicU32) {
    word.fetch_or(KICKED | SELF_KICK, Ordering::SeqCst);
}

/// Writes the poll word of one CPU that counts.
pub struct CountingKicker {
    /// Where it is.
    pub mapping: Arc<EnvMapping>,
    /// The CPU's thread, once it has one.
    pub thread: Arc<OnceLock<ThreadId>>,
}

impl Kick for CountingKicker {
    fn kick(&self) {
        let word = self.mapping.icount_decr();
        if self.thread.get() == Some(&std::thread::current().id()) {
            self_kick(word);
        } else {
            word.fetch_or(KICKED, Ordering::SeqCst);
        }
    }
}

/// The CPUs' thread's side of the clock.
pub struct IcountTime(pub Arc<IcountClock>);

impl CpuTime for IcountTime {
    fn idle(&self) -> Wait {
        match self.0.idle() {
            Idle::Moved => Wait::Not,
            Idle::Wait(most) => Wait::For(most),
            Idle::Forever => Wait::ForMail,
        }
    }

    fn waited(&self) {
        self.0.waited();
    }

    fn ahead(&self) -> Option<Duration> {
        self.0.keep_pace()
    }

    fn summary(&self) -> String {
        let now_ns = devices::clock::Clock::now_ns(&*self.0);
        format!(
            "icount: {} instructions, {}.{:09} s of guest time",
            self.0.executed(),
            now_ns / 1_000_000_000,
            now_ns % 1_000_000_000
        )
    }
}

//! The generator: one block's emission, and the state that its parts share.

use std::mem;

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Encoder, Instruction, InstructionInfoFactory};

use crate::code::emitter::{Emitter, Patch, ROOM, cc};
use crate::code::tb::{self, Lists, Mark, NONE, Site, Slot, Span, Tb, TbId, TbKey, mode};
use crate::code::thunks::{Thunks, exit};
use crate::code::writers::Berth;
use crate::env_offset;
use crate::exception::Exception;
use crate::ram::PAGE;
use crate::stress::Stress;
use crate::translate::address::MissStub;
use crate::translate::address::ramps::Ramps;
use crate::translate::again::{self, Again};
use crate::translate::block::{self, Cut, Item, Items, MAX_INSNS, Source};
use crate::translate::classify::Class;
use crate::translate::cold::Held;
use crate::translate::control::ExitStub;
use crate::translate::facts::Kinds;
use crate::translate::features::Features;
use crate::translate::flags::{self, Flags};
use crate::translate::groups::{self, Groups};
use crate::translate::liveness::Peek;
use crate::translate::place::Place;
use crate::translate::system::SlowStub;

/// Bytes of code that a block can need at most; the caller makes room for so many.
pub const MAX_BLOCK_BYTES: usize = ROOM;

/// Bytes of the poll word's displacement: it is the first word of the environment block.
pub(super) const POLL: i32 = 0;

/// A block that is wanted.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// What it will be found by.
    pub key: TbKey,
    /// Numbers of the mappings of its page and of the second one ([`tb::Guard`]).
    pub mappings: (u32, Option<u32>),
    /// The bytes of its page, as far as it can reach, and of the second one if the key names it.
    pub bytes: &'a [u8],
    /// The code around it.
    pub peek: &'a dyn Peek,
    /// Where it will be.
    pub berth: Berth,
    /// Instructions whose operands are looked up in the table and not by slots, a bit each.
    pub hashed: u64,
    /// The block is to go on behind jumps.
    pub extended: bool,
    /// Accesses may be checked together.
    pub grouped: bool,
    /// What is checked together often lies on two pages.
    pub straddling: bool,
}

/// Turns guest bytes into blocks. Reused from block to block; one for each CPU.
pub struct Translator {
    pub(super) e: Emitter,
    pub(super) encoder: Encoder,
    pub(super) info: InstructionInfoFactory,
    pub(super) thunks: Thunks,
    pub(super) features: Features,
    kinds: Kinds,
    /// The host has RORX: the page index is made without a second move.
    pub(super) bmi2: bool,
    /// For tests.
    pub stress: Stress,
    items: Items,
    pub(super) key: TbKey,
    pub(super) bits: u32,
    pub(super) id: TbId,
    /// The instruction being emitted.
    pub(super) now: usize,
    /// The block's last.
    pub(super) last: usize,
    /// Where the guest's flags are.
    pub(super) flags: Flags,
    /// The guest's vector state is known to be in the host's registers.
    pub(super) fp_loaded: bool,
    pub(super) miss_stubs: Vec<MissStub>,
    pub(super) exit_stubs: Vec<ExitStub>,
    pub(super) slow_stubs: Vec<SlowStub>,
    pub(super) branch_misses: Vec<(Patch, Option<Again>)>,
    pub(super) return_misses: Vec<(Patch, usize, Option<Again>)>,
    /// How the flags can be made again where the block's last instruction branches.
    pub(super) again: Option<Again>,
    /// The class of the block's mode.
    pub(super) class: Option<usize>,
    /// Flags that what follows the block may read.
    pub(super) live_end: u8,
    /// Flags that may be read where the call that ends it returns to.
    pub(super) live_back: u8,
    /// Where the memory operand is that was checked last.
    pub(super) place: Place,
    /// Accesses that are checked together.
    pub(super) groups: Groups,
    /// Where in the code the instruction is that may be moved up ([`crate::translate::fusion`]): from, to.
    pub(super) movable: Option<(usize, usize)>,
    /// The guest register, a cold one, whose value T0 is known to hold.
    pub(super) t0: Option<usize>,
    /// What T1 is known to hold.
    pub(super) t1: Option<Held>,
    /// The store of a cold register that T0 or T1 holds has been put off.
    pub(super) put_off: [bool; 2],
    /// A store of a cold register may be put off.
    pub(super) may_wait: bool,
    /// By how many words of 8 bytes the guest's RSP is more than the register that has it.
    pub(super) words_ahead: i32,
    /// Blocks take their instructions off the budget ([`crate::icount`]).
    pub icount: bool,
    /// Blocks count their checks and branches ([`crate::env::CodeCounters`]).
    pub counting: bool,
    /// Bytes of the block's code before what is behind it for the rare ways.
    straight: usize,
    /// Instructions whose operands are looked up in the table, a bit each.
    pub(super) hashed: u64,
    /// Groups on two pages have a way on of their own.
    pub(super) straddling: bool,
    /// Guest registers whose values are known to lie in claimed regions, or close to one, a bit each.
    pub(super) in_claimed: u16,
    /// The region that was last looked at for a constant address.
    pub(super) constant_region: Option<u64>,
    pub(super) ramps: Ramps,
    pub(super) lists: Lists,
}

impl Translator {
    /// A translator for code that runs beside `thunks`.
    pub fn new(thunks: Thunks, features: Features, bmi2: bool) -> Self {
        let key = TbKey::new(0, 0, 0);
        Self {
            e: Emitter::new(0),
            encoder: Encoder::new(64),
            info: InstructionInfoFactory::new(),
            thunks,
            features,
            kinds: Kinds::default(),
            bmi2,
            stress: Stress::default(),
            items: Items::default(),
            key,
            bits: 64,
            id: 0,
            now: 0,
            last: 0,
            flags: Flags::Host,
            fp_loaded: false,
            miss_stubs: Vec::new(),
            exit_stubs: Vec::new(),
            slow_stubs: Vec::new(),
            branch_misses: Vec::new(),
            return_misses: Vec::new(),
            again: None,
            class: None,
            live_end: flags::ALL,
            live_back: flags::ALL,
            place: Place::Sum(0),
            groups: Groups::default(),
            movable: None,
            t0: None,
            t1: None,
            put_off: [false; 2],
            may_wait: false,
            words_ahead: 0,
            counting: false,
            icount: false,
            straight: 0,
            hashed: 0,
            straddling: false,
            in_claimed: 0,
            constant_region: None,
            ramps: Ramps::default(),
            lists: Lists::default(),
        }
    }

    /// The instructions of the block translated last.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The code of the block translated last.
    pub fn code(&self) -> &[u8] {
        self.e.bytes()
    }

    /// The code and the lists of the block translated last.
    pub fn made(&mut self) -> (&[u8], &mut Lists) {
        (self.e.bytes(), &mut self.lists)
    }

    /// Of [`Translator::code`] what is executed when nothing is missed and no way out is taken but the last.
    pub fn straight_code(&self) -> &[u8] {
        &self.e.bytes()[..self.straight]
    }

    /// Has the block count an event in the word of the environment at `offset`, if blocks are to. Clobbers EFLAGS.
    pub(super) fn count(&mut self, offset: i32) {
        if self.counting {
            dynasm!(self.e ; .arch x64 ; inc QWORD [rsp + offset]);
        }
    }

    /// Does `job`. `None`: the first instruction runs over the end of the bytes.
    pub fn translate(&mut self, job: &Job) -> Option<Tb> {
        let &Job { key, mappings, berth, hashed, .. } = job;
        self.bits = match key.mode & (mode::LONG | mode::CODE32) {
            0 => 16,
            mode::CODE32 => 32,
            _ => 64,
        };
        let mut items = mem::take(&mut self.items);
        // A block that runs over into the second page is that one instruction.
        let decode_mode = if key.second_page().is_some() { key.mode | mode::SINGLE } else { key.mode };
        let grouped = job.grouped && key.second_page().is_none();
        let source = Source {
            bytes: job.bytes,
            start: (key.physical & (PAGE - 1)) as usize,
            rip: key.rip,
            bits: self.bits,
            mode: decode_mode,
            limit: if self.stress.one_instruction { 1 } else { MAX_INSNS },
            extended: job.extended && mode::class(key.mode).is_some() && key.second_page().is_none(),
        };
        let mut kinds = self.kinds.of_mode(self.bits, decode_mode, &self.features, &mut self.info);
        let cut = block::decode(&source, &mut kinds, job.peek, &mut items);
        if cut == Cut::NeedsNextPage {
            self.items = items;
            return None;
        }
        self.key = key;
        self.hashed = hashed;
        self.straddling = job.straddling && !self.icount;
        self.class = mode::class(key.mode);
        self.live_end = items[items.len() - 1].live_out;
        self.live_back = items.live_back;
        self.again = if self.bits == 64 { again::find(&items) } else { None };
        self.id = berth.id;
        self.e.reset(berth.base);
        self.ramps.follow(berth.filling);
        self.lists.clear();
        self.last = items.len() - 1;
        self.fp_loaded = false;
        self.find_groups(&items, grouped);
        self.lists.second_number = mappings.1.unwrap_or(0);
        let entries = self.prologue(&items, mappings.1);
        self.movable = None;
        self.nothing_held();
        self.words_ahead = 0;
        self.in_claimed = 0;
        self.constant_region = None;
        let mut heads = 0;
        for (index, item) in items.iter().enumerate() {
            self.now = index;
            let checks = self.groups.heads.get(heads).is_some_and(|head| head.at == index);
            let quiet = |index| items.get(index).is_some_and(|item| self.is_quiet(item, index));
            self.may_wait = !checks && quiet(index) && quiet(index + 1);
            if !self.may_wait {
                self.settle();
            }
            if self.words_ahead != 0 && !self.stack_may_wait(&items) {
                self.settle_stack();
            }
            self.mark();
            while let Some(&head) = self.groups.heads.get(heads).filter(|head| head.at == index) {
                self.check_group(&head, item.live_in);
                heads += 1;
            }
            match item.class {
                // The block goes on at its target.
                Class::Jump if index + 1 < items.len() => {}
                Class::JumpIf if index + 1 < items.len() => self.jump_out_if(item),
                _ => self.instruction(item),
            }
            if self.in_claimed != 0 {
                self.in_claimed &= !groups::moved_far(item);
            }
        }
        self.settle_stack();
        let last = &items[items.len() - 1];
        let end = last.insn.next_ip();
        if !ends_flow(last.class, key.mode) {
            self.go_to(end);
        }
        self.straight = self.e.len();
        self.emit_stubs(&items);
        let (mut first, mut end) = (0, 0);
        for item in items.iter() {
            let len = item.insn.len() as i16;
            (first, end) = (first.min(item.offset), end.max(item.offset + len));
            self.lists.guest_bytes += len as u32;
            self.lists.insns.push(item.offset);
        }
        self.lists.insns.push(last.offset + last.insn.len() as i16);
        let start = source.start as u16;
        self.items = items;
        Some(Tb {
            key,
            span: Span { start: start.wrapping_add_signed(first), end: start.wrapping_add_signed(end) },
            code: 0,
            code_len: self.e.len() as u16,
            entries,
            page_number: mappings.0,
            slots: 0,
            slots_len: 0,
            notes: 0,
            incoming: NONE,
            ungrouped: 0,
            cpus: 0,
            valid: true,
        })
    }

    /// The block translated last is not going to be where it was made for.
    pub fn discard(&mut self) {
        self.ramps = Ramps::default();
    }

    /// Code from here on belongs to the present instruction.
    pub(super) fn mark(&mut self) {
        self.mark_parked(0);
    }

    /// As [`Translator::mark`], with the host registers `parked` standing in for others.
    pub(super) fn mark_parked(&mut self, parked: u8) {
        let mark = Mark::new(self.e.len(), self.now, self.flags.in_host(), parked, self.waiting())
            .with_stack_ahead(self.words_ahead);
        match self.lists.marks.last_mut() {
            Some(last) if last.host == mark.host => *last = mark,
            Some(last) if last.agrees(mark) => {}
            _ => self.lists.marks.push(mark),
        }
    }

    fn instruction(&mut self, item: &Item) {
        // These know what they do to the scratch registers.
        let tracks = matches!(item.class, Class::Native | Class::NativeFp | Class::Nothing | Class::Lea);
        let keeps_t1 = tracks || matches!(item.class, Class::Push | Class::Pop);
        if !keeps_t1 {
            self.nothing_held();
        }
        self.emit(item);
        if !keeps_t1 {
            self.nothing_held();
        } else if !tracks {
            self.t0 = None;
        }
    }

    fn emit(&mut self, item: &Item) {
        match item.class {
            Class::Native => self.native(item),
            Class::NativeFp => self.native_fp(item),
            Class::Nothing => {}
            Class::Lea => self.lea(item),
            Class::BitTest => self.bit_test(item),
            Class::Push => self.push(item),
            Class::PushMemory => self.push_memory(item),
            Class::Pop => self.pop(item),
            Class::Leave => self.leave(item),
            Class::Jump => self.go_to(item.insn.near_branch_target()),
            Class::JumpIf => self.jump_if(item),
            Class::JumpCount => self.jump_count(item),
            Class::JumpIndirect => self.jump_indirect(item),
            Class::Call => self.call(item),
            Class::CallIndirect => self.call_indirect(item),
            Class::Return => self.ret(item),
            Class::Direction(df) => {
                dynasm!(self.e ; .arch x64 ; mov DWORD [rsp + env_offset!(df)], df as i32)
            }
            Class::System(system) => self.system(item, system),
            Class::Complex(_) => self.complex(&item.insn, None),
            Class::Raise(exception) => self.complex(&item.insn, Some(exception)),
        }
    }

    /// Has a helper execute `insn`, or raise `raise`.
    pub(super) fn complex(&mut self, insn: &Instruction, raise: Option<Exception>) {
        self.flags_saved();
        self.nothing_held();
        let site = Box::new(Site { insn: *insn, raise, rip: insn.ip(), left: self.left() });
        let address = std::ptr::from_ref::<Site>(&site) as u64;
        self.lists.sites.push(site);
        dynasm!(self.e ; .arch x64 ; mov r10, QWORD address as i64);
        self.e.call(self.thunks.complex);
        self.flags = Flags::Saved;
        self.fp_loaded = false;
    }

    /// Brings the guest's vector state into the host's registers. Keeps T0; clobbers EFLAGS if it is not known loaded and
    /// they are not needed there.
    pub(super) fn need_fp(&mut self, live: u8) {
        if self.fp_loaded {
            return;
        }
        self.fp_loaded = true;
        if live != 0 && self.flags.in_host() {
            // JRCXZ looks without touching the flags.
            self.t1 = None;
            dynasm!(self.e ; .arch x64 ; mov r11, rcx ; mov ecx, [BYTE rsp + env_offset!(fp_loaded) as i8]);
            let not_loaded = self.e.jrcxz();
            let loaded = self.e.jmp_short();
            self.e.bind_short(not_loaded);
            self.e.call(self.thunks.fp_restore);
            self.e.bind_short(loaded);
            dynasm!(self.e ; .arch x64 ; mov rcx, r11);
            return;
        }
        self.flags_free(live);
        dynasm!(self.e ; .arch x64 ; cmp DWORD [BYTE rsp + env_offset!(fp_loaded) as i8], 0);
        let loaded = self.e.jcc_short(cc::NE);
        self.e.call(self.thunks.fp_restore);
        self.e.bind_short(loaded);
    }

    fn emit_stubs(&mut self, items: &[Item]) {
        // Nothing is added to the lists that are gone through; they keep their room for the next block.
        let mut miss_stubs = mem::take(&mut self.miss_stubs);
        for stub in miss_stubs.drain(..) {
            self.miss_stub(items, stub);
        }
        self.miss_stubs = miss_stubs;
        for stub in mem::take(&mut self.slow_stubs) {
            self.slow_stub(items, stub);
        }
        // These may leave further ones.
        while let Some(stub) = self.exit_stubs.pop() {
            self.exit_stub(stub);
        }
        while let Some((patch, again)) = self.branch_misses.pop() {
            self.branch_miss(patch, again);
        }
        while let Some((patch, class, again)) = self.return_misses.pop() {
            self.return_miss(patch, class, again);
        }
    }

    /// A jump that was just emitted and its way out while it is not linked.
    pub(super) fn linkable(&mut self, patch: Patch, rip: u64, guard: Option<(Patch, Patch)>) {
        let slot = self.lists.slots.len();
        self.lists.slots.push(Slot::UNKNOWN);
        let payload = tb::way(self.id, slot);
        self.exit_stubs.push(ExitStub {
            patch,
            flags: self.flags,
            rip,
            reason: exit::LINK,
            payload,
            slot: Some(slot),
            ungrouped: false,
            forward: rip > self.key.rip,
            guard,
            live: self.live_end,
            left: 0,
        });
    }
}

fn ends_flow(class: Class, mode: u32) -> bool {
    matches!(
        class,
        Class::Jump
            | Class::JumpIf
            | Class::JumpCount
            | Class::JumpIndirect
            | Class::Call
            | Class::CallIndirect
            | Class::Return
            | Class::Raise(_)
    ) || matches!(class, Class::System(system) if system.ends_flow(mode))
}

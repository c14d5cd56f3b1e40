//! Streams: every instruction alone, and random mixes with control flow.

use iced_x86::{Code, EncodingKind, Instruction, Mnemonic, OpKind, Register};

use crate::exclusions;
use crate::features::Shown;
use crate::known;
use crate::operands::{Pools, build, gpr, is_string, writes_any};
use crate::program::{Item, Program};
use crate::rng::Rng;

/// The instructions under test in one mode.
pub struct Codes {
    bits: u32,
    /// All that may be generated.
    pub all: Vec<Code>,
    integer: Vec<Code>,
    vector: Vec<Code>,
    x87: Vec<Code>,
    string: Vec<Code>,
    jcc: Vec<Code>,
}

fn is_x87(code: Code) -> bool {
    {
        use iced_x86::CpuidFeature as F;
        code.cpuid_features()
            .iter()
            .any(|&feature| matches!(feature, F::FPU | F::FPU287 | F::FPU387 | F::MMX))
            || has_mmx(code)
    }
}

fn has_mmx(code: Code) -> bool {
    use iced_x86::OpCodeOperandKind as K;
    let text = code.op_code();
    (0..text.op_count()).any(|index| matches!(text.op_kind(index), K::mm_or_mem | K::mm_reg | K::mm_rm))
}

fn is_vector(code: Code) -> bool {
    let text = code.op_code();
    text.encoding() != EncodingKind::Legacy && !general_only(code)
        || (0..text.op_count()).any(|index| {
            use iced_x86::OpCodeOperandKind as K;
            matches!(
                text.op_kind(index),
                K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::mm_or_mem | K::mm_reg | K::mm_rm
            )
        })
}

/// BMI and friends: VEX encodings on general registers.
fn general_only(code: Code) -> bool {
    use iced_x86::CpuidFeature as F;
    code.cpuid_features().iter().all(|&feature| matches!(feature, F::BMI1 | F::BMI2 | F::ADX))
}

impl Codes {
    /// What `host` has and `guest` shows, in code of `bits`.
    pub fn new(bits: u32, host: &Shown, guest: &Shown) -> Self {
        let mut codes = Self {
            bits,
            all: Vec::new(),
            integer: Vec::new(),
            vector: Vec::new(),
            x87: Vec::new(),
            string: Vec::new(),
            jcc: Vec::new(),
        };
        for code in Code::values() {
            let text = code.op_code();
            if !text.is_instruction()
                || !(if bits == 64 { text.mode64() } else { text.mode32() })
                || exclusions::reason(code).is_some()
                || !host.has(code)
                || !guest.has(code)
            {
                continue;
            }
            if bits == 64 && code.is_jcc_short_or_near() || bits == 32 && code.is_jcc_short_or_near() {
                let wanted = if bits == 64 { 64 } else { 32 };
                if branch_bits(code) == wanted {
                    codes.jcc.push(code);
                }
                continue;
            }
            codes.all.push(code);
            if text.is_privileged() || text.must_be_cpl0() || text.may_require_cpl0() || is_transfer(code) {
                continue;
            }
            if known::undefined_flags(code) != 0 {
                continue;
            }
            if is_string(code) {
                codes.string.push(code);
            } else if is_x87(code) {
                codes.x87.push(code);
            } else if is_vector(code) {
                codes.vector.push(code);
            } else {
                codes.integer.push(code);
            }
        }
        codes
    }
}

fn branch_bits(code: Code) -> u32 {
    use iced_x86::OpCodeOperandKind as K;
    match code.op_code().op_kind(0) {
        K::br64_1 | K::br64_4 => 64,
        K::br32_1 | K::br32_4 => 32,
        _ => 16,
    }
}

fn is_transfer(code: Code) -> bool {
    use iced_x86::FlowControl as F;
    code.flow_control() != F::Next
}

/// `code` alone, with random operands.
pub fn alone(code: Code, bits: u32, rng: &mut Rng) -> Option<(Program, Instruction)> {
    let count = if bits == 64 { 16 } else { 8 };
    let all: Vec<u8> = (0..count).collect();
    let pools = Pools { bits, pointers: all.clone(), indices: all.clone(), free: all, alone: true };
    if is_transfer(code)
        && !matches!(
            code.mnemonic(),
            Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 | Mnemonic::Int3 | Mnemonic::Into | Mnemonic::Hlt
        )
    {
        return None;
    }
    for _ in 0..20 {
        if let Some(instruction) = build(code, &pools, rng) {
            let program = Program { bits, items: vec![Item::Plain(instruction), Item::End] };
            return Some((program, instruction));
        }
    }
    None
}

/// Instructions that mostly fault with what a stream has in its registers: alone they get operands that fit.
fn is_rare(code: Code) -> bool {
    use iced_x86::OpCodeOperandKind as K;
    let text = code.op_code();
    matches!(
        code.mnemonic(),
        Mnemonic::Leave
            | Mnemonic::Enter
            | Mnemonic::Ldmxcsr
            | Mnemonic::Vldmxcsr
            | Mnemonic::Div
            | Mnemonic::Idiv
            | Mnemonic::Xlatb
            | Mnemonic::Wrgsbase
            | Mnemonic::Reservednop
            | Mnemonic::Bound
            | Mnemonic::Aam
            | Mnemonic::Maskmovq
            | Mnemonic::Maskmovdqu
            | Mnemonic::Vmaskmovdqu
    ) || (0..text.op_count()).any(|index| {
        matches!(
            text.op_kind(index),
            K::mem_vsib32x
                | K::mem_vsib64x
                | K::mem_vsib32y
                | K::mem_vsib64y
                | K::mem_vsib32z
                | K::mem_vsib64z
        )
    })
}

/// What a stream is mostly made of.
struct Mix {
    vector: usize,
    x87: usize,
    string: usize,
    control: usize,
    stack: usize,
}

struct Stream<'a> {
    codes: &'a Codes,
    pools: Pools,
    counter: u8,
    mix: Mix,
    items: Vec<Item>,
    subroutines: Vec<(usize, usize)>,
}

fn simple(code: Code, operands: &[(u32, Register)]) -> Instruction {
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    for &(index, register) in operands {
        instruction.set_op_kind(index, OpKind::Register);
        instruction.set_op_register(index, register);
    }
    instruction
}

impl Stream<'_> {
    fn plain(&mut self, rng: &mut Rng) {
        let mix = &self.mix;
        let list = match rng.below(100) {
            n if n < mix.vector && !self.codes.vector.is_empty() => &self.codes.vector,
            n if n < mix.vector + mix.x87 && !self.codes.x87.is_empty() => &self.codes.x87,
            _ => &self.codes.integer,
        };
        for _ in 0..20 {
            let code = rng.pick(list);
            if is_rare(code) && !rng.percent(10) {
                continue;
            }
            // A counter that anything is written to makes a loop long: not for the host, but for an engine under stress.
            if let Some(instruction) = build(code, &self.pools, rng)
                && !writes_any(&instruction, |register| register == self.counter)
            {
                self.items.push(Item::Plain(instruction));
                return;
            }
        }
    }

    fn wide(&self) -> bool {
        self.pools.bits == 64
    }

    fn string(&mut self, rng: &mut Rng) {
        let size = if self.wide() { 8 } else { 4 };
        let (lea, mov) = if self.wide() {
            (Code::Lea_r64_m, Code::Mov_r32_imm32)
        } else {
            (Code::Lea_r32_m, Code::Mov_r32_imm32)
        };
        let code = rng.pick(&self.codes.string);
        for register in [6, 7] {
            let mut instruction = simple(lea, &[(0, gpr(register, size))]);
            instruction.set_op1_kind(OpKind::Memory);
            // Not RSP, which comes last: the return address lies there.
            let pointers = &self.pools.pointers[..self.pools.pointers.len() - 1];
            instruction.set_memory_base(gpr(rng.pick(pointers), size));
            let displacement = rng.below(256) as i64 - 64;
            instruction.set_memory_displacement64(if self.wide() {
                displacement as u64
            } else {
                u64::from(displacement as u32)
            });
            instruction.set_memory_displ_size(1);
            if rng.percent(85) {
                self.items.push(Item::Plain(instruction));
            }
        }
        let count = Instruction::with2(mov, Register::ECX, rng.below(40) as u32).expect("a mov");
        self.items.push(Item::Plain(count));
        let backwards = rng.percent(15);
        if backwards {
            self.items.push(Item::Plain(simple(Code::Std, &[])));
        }
        for _ in 0..20 {
            if let Some(instruction) = build(code, &Pools { alone: true, ..self.pools.clone() }, rng) {
                self.items.push(Item::Plain(instruction));
                break;
            }
        }
        if backwards {
            self.items.push(Item::Plain(simple(Code::Cld, &[])));
        }
    }

    fn stack(&mut self, rng: &mut Rng) {
        let size = if self.wide() { 8 } else { 4 };
        let (push, pop, pushf, popf) = if self.wide() {
            (Code::Push_r64, Code::Pop_r64, Code::Pushfq, Code::Popfq)
        } else {
            (Code::Push_r32, Code::Pop_r32, Code::Pushfd, Code::Popfd)
        };
        let any = gpr(rng.below(self.pools.indices.len() + 8).min(7) as u8, size);
        match rng.below(5) {
            0 | 1 => self.items.push(Item::Plain(simple(push, &[(0, any)]))),
            2 => {
                let free = gpr(rng.pick(&self.pools.free), size);
                self.items.push(Item::Plain(simple(pop, &[(0, free)])));
            }
            3 => self.items.push(Item::Plain(simple(pushf, &[]))),
            _ => {
                // Flags of our choice: arithmetic ones, ID, now and then DF.
                let mut value = rng.next() as u32 & 0x20_08d5 | 0x202;
                if rng.percent(10) {
                    value |= 0x400;
                }
                let code = if self.wide() { Code::Pushq_imm32 } else { Code::Pushd_imm32 };
                let mut instruction = simple(code, &[]);
                if self.wide() {
                    instruction.set_op0_kind(OpKind::Immediate32to64);
                    instruction.set_immediate32to64(i64::from(value));
                } else {
                    instruction.set_op0_kind(OpKind::Immediate32);
                    instruction.set_immediate32(value);
                }
                self.items.push(Item::Plain(instruction));
                self.items.push(Item::Plain(simple(popf, &[])));
                if value & 0x400 != 0 && rng.percent(80) {
                    self.plain(rng);
                    self.items.push(Item::Plain(simple(Code::Cld, &[])));
                }
            }
        }
    }

    fn control(&mut self, rng: &mut Rng) {
        let wide = self.wide();
        let here = self.items.len();
        let ahead = here + 1 + rng.below(5);
        match rng.below(10) {
            0..4 => {
                let code = rng.pick(&self.codes.jcc);
                self.items.push(Item::Branch(code, ahead));
            }
            4 => {
                let forms = if wide {
                    [
                        Code::Jmp_rel8_64,
                        Code::Jmp_rel32_64,
                        Code::Jrcxz_rel8_64,
                        Code::Jecxz_rel8_64,
                        Code::Loop_rel8_64_RCX,
                        Code::Loope_rel8_64_RCX,
                    ]
                } else {
                    [
                        Code::Jmp_rel8_32,
                        Code::Jmp_rel32_32,
                        Code::Jecxz_rel8_32,
                        Code::Jcxz_rel8_32,
                        Code::Loop_rel8_32_ECX,
                        Code::Loopne_rel8_32_ECX,
                    ]
                };
                self.items.push(Item::Branch(rng.pick(&forms), ahead));
            }
            5 | 6 => {
                // A bounded loop.
                let counter = gpr(self.counter, 4);
                let times = 1 + rng.below(6) as u32;
                let start = Instruction::with2(Code::Mov_r32_imm32, counter, times).expect("a mov");
                self.items.push(Item::Plain(start));
                let top = self.items.len();
                for _ in 0..1 + rng.below(4) {
                    self.plain(rng);
                }
                let mut less = simple(Code::Sub_rm32_imm8, &[(0, counter)]);
                less.set_op1_kind(OpKind::Immediate8to32);
                less.set_immediate8to32(1);
                self.items.push(Item::Plain(less));
                // These end soon whatever the counter held, had a branch led past its start.
                let back = if wide {
                    rng.pick(&[Code::Jns_rel32_64, Code::Jg_rel32_64])
                } else {
                    rng.pick(&[Code::Jns_rel32_32, Code::Jg_rel32_32])
                };
                self.items.push(Item::Branch(back, top));
            }
            7 => {
                // Through a register.
                let register = gpr(rng.pick(&self.pools.free), if wide { 8 } else { 4 });
                self.items.push(Item::Address(register, ahead + 1));
                let code = if wide { Code::Jmp_rm64 } else { Code::Jmp_rm32 };
                self.items.push(Item::Plain(simple(code, &[(0, register)])));
            }
            8 => {
                self.subroutines.push((here, usize::from(rng.percent(30))));
                self.items
                    .push(Item::Branch(if wide { Code::Call_rel32_64 } else { Code::Call_rel32_32 }, here));
            }
            _ => {
                let register = gpr(rng.pick(&self.pools.free), if wide { 8 } else { 4 });
                self.subroutines.push((here, 0));
                self.items.push(Item::Address(register, here));
                let code = if wide { Code::Call_rm64 } else { Code::Call_rm32 };
                self.items.push(Item::Plain(simple(code, &[(0, register)])));
            }
        }
    }

    fn finish(mut self, rng: &mut Rng) -> (Program, Pools) {
        let end = self.items.len();
        self.items.push(Item::End);
        for item in &mut self.items {
            if let Item::Branch(_, target) | Item::Address(_, target) = item {
                *target = (*target).min(end);
            }
        }
        for (call, popped) in std::mem::take(&mut self.subroutines) {
            let at = self.items.len();
            if let Item::Branch(_, target) | Item::Address(_, target) = &mut self.items[call] {
                *target = at;
            }
            for _ in 0..rng.below(4) {
                self.plain(rng);
            }
            let mut back = simple(
                match (self.wide(), popped) {
                    (true, 0) => Code::Retnq,
                    (true, _) => Code::Retnq_imm16,
                    (false, 0) => Code::Retnd,
                    (false, _) => Code::Retnd_imm16,
                },
                &[],
            );
            if popped != 0 {
                back.set_op0_kind(OpKind::Immediate16);
                back.set_immediate16(8 * popped as u16);
            }
            self.items.push(Item::Plain(back));
        }
        (Program { bits: self.pools.bits, items: self.items }, self.pools)
    }
}

/// A random stream, and how it uses the registers.
pub fn stream(codes: &Codes, rng: &mut Rng) -> (Program, Pools) {
    let count: u8 = if codes.bits == 64 { 16 } else { 8 };
    let mut numbers: Vec<u8> = (0..count).filter(|&number| number != 4).collect();
    for index in (1..numbers.len()).rev() {
        numbers.swap(index, rng.below(index + 1));
    }
    let (pointers, indices, counter) = if codes.bits == 64 { (3, 2, 1) } else { (2, 1, 1) };
    let mut pools = Pools {
        bits: codes.bits,
        pointers: numbers.drain(..pointers).collect(),
        indices: numbers.drain(..indices).collect(),
        free: Vec::new(),
        alone: false,
    };
    let counter = numbers.drain(..counter).next().expect("one register");
    pools.pointers.push(4);
    pools.free = numbers;
    if rng.percent(40) {
        // The registers that the translator keeps in memory, in most operands.
        let cold: Vec<u8> =
            pools.free.iter().copied().filter(|register| (9..12).contains(register)).collect();
        for _ in 0..4 {
            pools.free.extend_from_slice(&cold);
        }
    }
    let mix = match rng.below(6) {
        0 | 1 => Mix { vector: 0, x87: 0, string: 4, control: 15, stack: 8 },
        2 => Mix { vector: 80, x87: 0, string: 1, control: 8, stack: 4 },
        3 => Mix { vector: 10, x87: 40, string: 2, control: 10, stack: 5 },
        _ => Mix { vector: 30, x87: 8, string: 3, control: 12, stack: 6 },
    };
    let mut reserved = pools.clone();
    reserved.indices.push(counter);
    let length = 1 + rng.below(32);
    let mut stream =
        Stream { codes, pools: reserved, counter, mix, items: Vec::new(), subroutines: Vec::new() };
    while stream.items.len() < length {
        match rng.below(100) {
            n if n < stream.mix.control => stream.control(rng),
            n if n < stream.mix.control + stream.mix.stack => stream.stack(rng),
            n if n < stream.mix.control + stream.mix.stack + stream.mix.string => stream.string(rng),
            _ => stream.plain(rng),
        }
    }
    stream.finish(rng)
}

/// A stream that saves and restores x87 and SSE images, and clears the fields that hold addresses: FIP, FDP, FOP.
pub fn pointer_image(codes: &Codes, rng: &mut Rng) -> (Program, Pools) {
    const AREA: u64 = crate::layout::DATA + 0x400;
    let wide = codes.bits == 64;
    let absolute = |code: Code, at: u64| {
        let mut instruction = simple(code, &[]);
        instruction.set_op0_kind(OpKind::Memory);
        instruction.set_memory_displacement64(at);
        instruction.set_memory_displ_size(if wide { 8 } else { 4 });
        instruction
    };
    // Save, restore, size of the image, and the bytes of it that hold addresses.
    let (save, restore, clear) = match rng.below(if wide { 6 } else { 5 }) {
        0 => (Code::Fnstenv_m28byte, Code::Fldenv_m28byte, 12..28),
        1 => (Code::Fnstenv_m14byte, Code::Fldenv_m14byte, 6..14),
        2 => (Code::Fnsave_m108byte, Code::Frstor_m108byte, 12..28),
        3 => (Code::Fnsave_m94byte, Code::Frstor_m94byte, 6..14),
        4 => (Code::Fxsave_m512byte, Code::Fxrstor_m512byte, 6..24),
        _ => (Code::Fxsave64_m512byte, Code::Fxrstor64_m512byte, 6..24),
    };
    let all: Vec<u8> = (0..if wide { 16 } else { 8 }).filter(|&number| number != 4).collect();
    let pools = Pools { bits: codes.bits, pointers: vec![4], indices: vec![4], free: all, alone: false };
    let x87 = |items: &mut Vec<Item>, rng: &mut Rng| {
        for _ in 0..rng.below(4) {
            let code = rng.pick(&codes.x87);
            if let Some(instruction) = build(code, &pools, rng) {
                items.push(Item::Plain(instruction));
            }
        }
    };
    let clear_from = |items: &mut Vec<Item>, at: u64| {
        for offset in clear.clone().step_by(2) {
            let mut zero = absolute(Code::Mov_rm16_imm16, at + offset);
            zero.set_op1_kind(OpKind::Immediate16);
            zero.set_immediate16(0);
            items.push(Item::Plain(zero));
        }
    };
    let at = if rng.percent(5) { AREA + 8 * rng.below(2) as u64 + 0xe00 } else { AREA };
    let mut items = Vec::new();
    x87(&mut items, rng);
    items.push(Item::Plain(absolute(save, at)));
    clear_from(&mut items, at);
    x87(&mut items, rng);
    if rng.percent(70) {
        items.push(Item::Plain(absolute(restore, at)));
        x87(&mut items, rng);
        items.push(Item::Plain(absolute(save, at)));
        clear_from(&mut items, at);
    }
    items.push(Item::End);
    (Program { bits: codes.bits, items }, pools)
}

/// A stream that loads flags which change how the next instructions run: TF, AC, NT, DF.
pub fn flags_image(codes: &Codes, rng: &mut Rng) -> (Program, Pools) {
    let (program, pools) = stream(codes, rng);
    let wide = codes.bits == 64;
    let bits = [0x100, 0x4_0000, 0x4000, 0x400, 0x4_0000];
    let value = rng.next() as u32 & 0x8d5
        | 0x202
        | rng.pick(&bits)
        | if rng.percent(20) { rng.pick(&bits) } else { 0 };
    let mut push = simple(if wide { Code::Pushq_imm32 } else { Code::Pushd_imm32 }, &[]);
    if wide {
        push.set_op0_kind(OpKind::Immediate32to64);
        push.set_immediate32to64(i64::from(value));
    } else {
        push.set_op0_kind(OpKind::Immediate32);
        push.set_immediate32(value);
    }
    let popf = simple(if wide { Code::Popfq } else { Code::Popfd }, &[]);
    let mut items = vec![Item::Plain(push), Item::Plain(popf)];
    let nop = Item::Plain(simple(Code::Nopd, &[]));
    // With TF set the stream never reaches its end, which the two sides leave by different instructions.
    items.push(nop);
    let shift = items.len();
    items.extend(program.items.into_iter().map(|item| match item {
        Item::Branch(code, target) => Item::Branch(code, target + shift),
        Item::Address(register, target) => Item::Address(register, target + shift),
        other => other,
    }));
    (Program { bits: codes.bits, items }, pools)
}

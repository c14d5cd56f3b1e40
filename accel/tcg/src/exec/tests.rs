//! The loop, on a machine whose clock can interrupt.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use accel::contract::Kick;
use accel::{CpuHandle, CpuIo, VcpuExit};
use devices::clock::{Clock, ManualClock, Timer, TimerCallback};
use devices::cpu_interrupts::{InterruptKind, InterruptTarget, LocalInterrupts, NoSuchRegister};

use crate::code::thunks::FpSave;
use crate::complex::testing::{DATA, Machine};
use crate::cpuid::{self, Cpuid};
use crate::engine::{Engine, MIN_CODE_BYTES};
use crate::env::{EnvMapping, Table};
use crate::exec::Vcpu;
use crate::stress::Stress;
use crate::translate::features::Features;

const VECTOR: u8 = 0x30;
const CODE: u64 = DATA;
const HANDLER: u64 = DATA + 0x1000;
const IDT: u64 = DATA + 0x2000;
/// Between two pages.
const STACK: u64 = DATA + 0x5000 - 8;

struct Kicker(Arc<EnvMapping>);
impl Kick for Kicker {
    fn kick(&self) {
        self.0.icount_decr().store(0xffff_0000, Ordering::SeqCst);
    }
}

/// A clock that requests an interrupt whenever it is read: while RDTSC is executed, which nobody looks for kicks after.
struct Interrupting {
    clock: Arc<dyn Clock>,
    cpu: CpuHandle,
}
impl Clock for Interrupting {
    fn now_ns(&self) -> u64 {
        self.cpu.raise(InterruptKind::Hard);
        self.clock.now_ns()
    }
    fn new_timer(&self, label: &'static str, callback: TimerCallback) -> Box<dyn Timer> {
        self.clock.new_timer(label, callback)
    }
    fn pause(&self) {}
    fn resume(&self) {}
    fn next_deadline_ns(&self) -> Option<u64> {
        None
    }
    fn run_expired(&self) {}
    fn wakeup_fd(&self) -> Option<RawFd> {
        None
    }
}

/// Interrupts with [`VECTOR`], always.
struct Io;
impl CpuIo for Io {
    fn pio_read(&self, _port: u16, _data: &mut [u8]) {}
    fn pio_write(&self, _port: u16, _data: &[u8]) {}
    fn mmio_read(&self, _gpa: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _gpa: u64, _data: &[u8]) {}
    fn interrupts(&self) -> Option<&dyn LocalInterrupts> {
        Some(self)
    }
}
impl LocalInterrupts for Io {
    fn has_interrupt(&self) -> bool {
        true
    }
    fn acknowledge(&self) -> Option<u8> {
        Some(VECTOR)
    }
    fn take_sipi(&self) -> Option<u8> {
        None
    }
    fn tsc_changed(&self) {}
    fn init(&self) {}
    fn cr8(&self) -> u8 {
        0
    }
    fn set_cr8(&self, _value: u8) {}
    fn read_msr(&self, _index: u32) -> Result<u64, NoSuchRegister> {
        Err(NoSuchRegister)
    }
    fn write_msr(&self, _index: u32, _value: u64) -> Result<(), NoSuchRegister> {
        Err(NoSuchRegister)
    }
    fn mmio_base(&self) -> Option<u64> {
        None
    }
    fn mmio_read(&self, _offset: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _offset: u64, _data: &[u8]) {}
}

/// Runs `code` with interrupts that RDTSC requests; their handler is a HLT. The RIP that the first one comes at.
fn interrupted_at(code: &[u8], stress: Stress) -> u64 {
    let machine = Machine::new();
    machine.poke(CODE, code);
    machine.poke(HANDLER, &[0xf4]);
    // A 64-bit interrupt gate to `HANDLER`, in the present code segment.
    let selector = u64::from(machine.cpu.env.seg[1].selector);
    let gate = HANDLER & 0xffff | selector << 16 | 0x8e << 40 | (HANDLER >> 16) << 48;
    machine.poke(IDT + 16 * u64::from(VECTOR), &gate.to_le_bytes());
    let gdt = IDT + 0x1000;
    machine.poke(gdt + (selector & !7), &0x00af_9b00_0000_ffff_u64.to_le_bytes());
    let mask = cpuid::host_xcr0();
    let features = Features::new(|leaf, subleaf| {
        let cpuid: &Cpuid = &cpuid::MAX;
        cpuid.query(leaf, subleaf, 0, cpuid.xcr0())
    });
    let fp = FpSave { mask, xsaveopt: std::arch::is_x86_feature_detected!("xsaveopt") };
    let engine = Arc::new(Engine::new(features, fp, MIN_CODE_BYTES, stress, false).unwrap());
    let Machine { mut cpu, memory: _memory, .. } = machine;
    cpu.handle.set_kicker(Arc::new(Kicker(Arc::clone(cpu.env.mapping()))));
    cpu.clock = Arc::new(Interrupting { clock: ManualClock::new(), cpu: cpu.handle.clone() });
    cpu.engine = Some(Arc::clone(&engine));
    cpu.env.idt = Table { base: IDT, limit: 0xfff };
    cpu.env.gdt = Table { base: gdt, limit: 0xff };
    cpu.env.rip = CODE;
    cpu.env.gpr[4] = STACK;
    cpu.mmu.forgetful = stress.misses;
    let mut vcpu = Vcpu::new(cpu, engine);
    assert_eq!(vcpu.run(&Io), VcpuExit::Halted);
    assert_eq!(vcpu.cpu.env.rip, HANDLER + 1, "not in the handler");
    let frame = vcpu.cpu.env.gpr[4];
    vcpu.cpu.read(frame, 8, crate::mmu::Access::System).unwrap()
}

#[test]
fn a_failed_group_keeps_the_shadow_of_sti() {
    // rdtsc; sti; pop rcx; pop rdx; jmp $: the two pops are a group on two pages.
    let code = [0x0f, 0x31, 0xfb, 0x59, 0x5a, 0xeb, 0xfe];
    for stress in ["misses", "unchained", "short", "kicks", "stepped", "one-instruction"] {
        let at = interrupted_at(&code, stress.parse().unwrap()) - CODE;
        assert!(at >= 4, "{stress}: interrupted at {at}, in the shadow");
    }
    assert_eq!(interrupted_at(&code, Stress::default()), CODE + 5);
}

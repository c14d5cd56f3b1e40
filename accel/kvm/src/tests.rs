//! Small guests on the kernel's KVM.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use accel::arch_state::{RunMode, SegmentState, reg, seg};
use accel::contract::NoIo;
use accel::{
    Accelerator, CpuArchState, CpuHandle, DebugControl, DoorbellStore, Irqchip, MachineCheck, Shutdown,
    VcpuBackend, VcpuConfig, VcpuExit,
};
use devices::interrupt::MsiMessage;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::KernelIrqchip;
use crate::testing::{Machine, RAM, START, open, start};

/// Runs a test with the kernel's interrupt controllers and with ours.
macro_rules! on_and_off {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            use super::*;
            #[test]
            fn on() {
                if let Some(kvm) = open(concat!(stringify!($name), "::on"), KernelIrqchip::On) { super::$name(&kvm) }
            }
            #[test]
            fn off() {
                if let Some(kvm) = open(concat!(stringify!($name), "::off"), KernelIrqchip::Off) { super::$name(&kvm) }
            }
        })*
    };
}

on_and_off! {
    ports_and_mmio_go_out,
    string_ports_move_every_element,
    an_interrupt_wakes_from_hlt,
    kicks_are_never_lost,
    state_survives_both_ways,
    a_triple_fault_is_a_shutdown,
    steps_are_single,
    breakpoints_stop,
    reset_gives_the_power_on_state,
    memory_can_be_mapped_anew,
    a_machine_check_reaches_the_guest,
    the_kernel_rings_doorbells,
}

/// An uncorrected error is in its bank and raises #MC.
fn a_machine_check_reaches_the_guest(kvm: &crate::Kvm) {
    if !kvm.shared.vm.check_extension(kvm_ioctls::Cap::Mce) {
        eprintln!("skipped: a_machine_check_reaches_the_guest: KVM_CAP_MCE is absent");
        return;
    }
    #[rustfmt::skip]
    let program = [
        // mov ecx, IA32_MC0_CTL; mov eax, -1; mov edx, -1; wrmsr
        0x66, 0xb9, 0x00, 0x04, 0, 0, 0x66, 0xb8, 0xff, 0xff, 0xff, 0xff, 0x66, 0xba, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x30,
        // mov eax, cr4; or eax, CR4.MCE; mov cr4, eax
        0x0f, 0x20, 0xe0, 0x66, 0x83, 0xc8, 0x40, 0x0f, 0x22, 0xe0,
        // out END, al; jmp $
        0xe6, 0xf4, 0xeb, 0xfe,
    ];
    #[rustfmt::skip]
    let handler = [
        // mov ecx, IA32_MC0_STATUS; rdmsr; mov dx, SAY; out dx, al; out END, al
        0x66, 0xb9, 0x01, 0x04, 0, 0, 0x0f, 0x32, 0xba, 0xf8, 0x03, 0xee, 0xe6, 0xf4,
    ];
    let mut machine = Machine::new(kvm, &program);
    machine.memory.write_slice(&handler, GuestAddress(0x1100)).unwrap();
    machine.memory.write_slice(&[0x00, 0x11, 0x00, 0x00], GuestAddress(18 * 4)).unwrap();
    assert_eq!(machine.run(), VcpuExit::Kicked);
    // VAL, UC, EN; the error's code is to be said.
    let status = 0b1011 << 60 | u64::from(b'm');
    let check = MachineCheck { status, mcg_status: 0b101, ..MachineCheck::default() };
    let no_bank = machine.backend.machine_check(&MachineCheck { bank: 255, ..check });
    assert!(no_bank.is_err(), "there is no such bank");
    machine.backend.machine_check(&check).unwrap();
    assert_eq!(machine.run(), VcpuExit::Kicked);
    assert_eq!(machine.said(), "m");
}

/// A store of its value goes to its eventfd, others to the bus.
fn the_kernel_rings_doorbells(kvm: &crate::Kvm) {
    let events = [0, 1].map(|_| EventFd::new(EFD_NONBLOCK).unwrap());
    for (event, value) in events.iter().zip([0u32, 7]) {
        if !kvm.add_doorbell(0xd_0050, DoorbellStore::Word(value), event).unwrap() {
            eprintln!("skipped: the_kernel_rings_doorbells: KVM_CAP_IOEVENTFD is absent");
            return;
        }
    }
    let again = kvm.add_doorbell(0xd_0050, DoorbellStore::Word(7), &events[0]);
    assert!(again.is_err(), "there is one already");
    // One that takes any store, and one that was taken back.
    let any = EventFd::new(EFD_NONBLOCK).unwrap();
    assert!(kvm.add_doorbell(0xd_0060, DoorbellStore::Any, &any).unwrap());
    assert!(kvm.add_doorbell(0xd_0064, DoorbellStore::Any, &any).unwrap());
    kvm.remove_doorbell(0xd_0064, DoorbellStore::Any, &any).unwrap();
    #[rustfmt::skip]
    let program = [
        0xb8, 0x00, 0xd0,                                     // mov ax, 0xd000
        0x8e, 0xd8,                                           // mov ds, ax
        0x66, 0xc7, 0x06, 0x50, 0x00, 0, 0, 0, 0,             // mov dword [0x50], 0
        0x66, 0xc7, 0x06, 0x50, 0x00, 7, 0, 0, 0,             // mov dword [0x50], 7
        0x66, 0xc7, 0x06, 0x50, 0x00, 7, 0, 0, 0,             // mov dword [0x50], 7
        0x66, 0xc7, 0x06, 0x50, 0x00, 8, 0, 0, 0,             // mov dword [0x50], 8
        0xc6, 0x06, 0x60, 0x00, 1,                            // mov byte [0x60], 1
        0xc7, 0x06, 0x60, 0x00, 2, 0,                         // mov word [0x60], 2
        0xc6, 0x06, 0x64, 0x00, 3,                            // mov byte [0x64], 3
        0xe6, 0xf4,                                           // out END, al
        0xf4,                                                 // hlt
    ];
    let mut machine = Machine::new(kvm, &program);
    assert_eq!(machine.run(), VcpuExit::Kicked);
    assert_eq!(any.read().unwrap(), 2);
    assert_eq!(events.map(|event| event.read().unwrap()), [1, 2]);
    assert_eq!(*machine.io.mmio.lock().unwrap(), [(0xd_0050, vec![8, 0, 0, 0]), (0xd_0064, vec![3])]);
}

fn ports_and_mmio_go_out(kvm: &crate::Kvm) {
    let mut machine = Machine::new(
        kvm,
        &[
            0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0xb0, b'H', // mov al, 'H'
            0xee, // out dx, al
            0xec, // in al, dx        (0x41)
            0xfe, 0xc0, // inc al
            0xee, // out dx, al       ('B')
            0xb8, 0x00, 0xd0, // mov ax, 0xd000
            0x8e, 0xd8, // mov ds, ax
            0xc7, 0x06, 0x10, 0x00, 0x34, 0x12, // mov word [0x10], 0x1234
            0xa0, 0x43, 0x00, // mov al, [0x43]
            0xee, // out dx, al       ('C')
            0xe6, 0xf4, // out 0xf4, al
            0xf4, // hlt
        ],
    );
    assert_eq!(machine.run(), VcpuExit::Kicked);
    assert_eq!(machine.said(), "HBC");
    assert_eq!(*machine.io.mmio.lock().unwrap(), [(0xd_0010, vec![0x34, 0x12])]);
    // The last OUT is complete: the CPU stands behind it.
    assert_eq!(machine.backend.state().unwrap().rip, START + 27);
}

fn string_ports_move_every_element(kvm: &crate::Kvm) {
    let mut machine = Machine::new(
        kvm,
        &[
            0xfc, // cld
            0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0xbe, 0x00, 0x20, // mov si, 0x2000
            0xb9, 0x05, 0x00, // mov cx, 5
            0xf3, 0x6e, // rep outsb
            0xbf, 0x00, 0x30, // mov di, 0x3000
            0xb9, 0x03, 0x00, // mov cx, 3
            0xf3, 0x6d, // rep insw
            0xe6, 0xf4, // out 0xf4, al
        ],
    );
    machine.memory.write_slice(b"hello", GuestAddress(0x2000)).unwrap();
    assert_eq!(machine.run(), VcpuExit::Kicked);
    assert_eq!(machine.said(), "hello");
    let mut read = [0; 8];
    machine.memory.read_slice(&mut read, GuestAddress(0x3000)).unwrap();
    assert_eq!(read, *b"AAAAAA\0\0");
    assert_eq!(machine.backend.state().unwrap().gpr[reg::RCX] as u16, 0);
}

fn an_interrupt_wakes_from_hlt(kvm: &crate::Kvm) {
    let mut machine = Machine::new(
        kvm,
        &[
            0xb0, 0x11, 0xe6, 0x20, // PIC: ICW1
            0xb0, 0x20, 0xe6, 0x21, // ICW2: vector 0x20
            0xb0, 0x04, 0xe6, 0x21, // ICW3
            0xb0, 0x01, 0xe6, 0x21, // ICW4
            0xb0, 0xef, 0xe6, 0x21, // unmask IRQ 4
            0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0xb9, 0x03, 0x00, // mov cx, 3
            0xe6, 0xf0, // again: out 0xf0, al
            0xfb, // sti
            0xf4, // hlt
            0xfa, // cli
            0xb0, b'H', 0xee, // say 'H'
            0xe2, 0xf6, // loop again
            0xe6, 0xf4, // out 0xf4, al
        ],
    );
    let handler = [
        0xb0, b'I', 0xee, // say 'I'
        0xb0, 0x20, 0xe6, 0x20, // EOI
        0xcf, // iret
    ];
    machine.memory.write_slice(&handler, GuestAddress(0x1800)).unwrap();
    machine.memory.write_obj(0x1800u32, GuestAddress(0x24 * 4)).unwrap();
    assert_eq!(machine.run(), VcpuExit::Kicked);
    assert_eq!(machine.said(), "IHIHIH");
}

fn kicks_are_never_lost(kvm: &crate::Kvm) {
    // jmp $
    let mut machine = Machine::new(kvm, &[0xeb, 0xfe]);
    // One that lands before `run` counts.
    machine.cpu.request_exit();
    assert_eq!(machine.run(), VcpuExit::Kicked);
    let (cpu, done) = (machine.cpu.clone(), Arc::new(AtomicBool::new(false)));
    let finished = Arc::clone(&done);
    const KICKS: usize = 500;
    let kicker = std::thread::spawn(move || {
        for round in 0..KICKS {
            cpu.request_exit();
            // At every distance from the CPU's own steps, now and then after it has run for long.
            match round % 50 {
                0 => std::thread::sleep(Duration::from_millis(2)),
                spins => (0..spins * 20).for_each(|_| std::hint::spin_loop()),
            }
        }
        finished.store(true, Ordering::SeqCst);
        cpu.request_exit();
    });
    while !done.load(Ordering::SeqCst) {
        assert_eq!(machine.run(), VcpuExit::Kicked);
    }
    kicker.join().unwrap();
    assert_eq!(machine.backend.state().unwrap().rip, START);
}

/// A state in which every field has something to lose.
fn busy_state() -> CpuArchState {
    let mut state = start();
    state.gpr = std::array::from_fn(|index| 0x0123_4567_89ab_cdef_u64.rotate_left(index as u32 * 4));
    state.rflags = 0x246;
    state.segments[seg::DS] = SegmentState { selector: 0x10, base: 0, limit: u32::MAX, access: 0xc093 };
    state.segments[seg::FS].base = 0xffff_8000_1234_5000;
    state.segments[seg::CS] = SegmentState { selector: 8, base: 0, limit: u32::MAX, access: 0xa09b };
    state.segments[seg::SS] = SegmentState { selector: 0x10, base: 0, limit: u32::MAX, access: 0xc093 };
    (state.gdt.base, state.gdt.limit) = (0xffff_ffff_8100_0000, 0x7f);
    (state.idt.base, state.idt.limit) = (0xffff_ffff_8200_0000, 0xfff);
    state.cr0 = 0x8005_0033;
    (state.cr2, state.cr3, state.cr4) = (0xffff_c900_dead_beef, 0x4000, 0x620);
    state.cr8 = 4;
    state.efer = 0xd01;
    state.task = SegmentState { selector: 0x40, base: 0xffff_8880_0000_1000, limit: 0x206f, access: 0x8b };
    state.dr = [0x1000, 0x2000, 0x3000, 0x4000];
    state.dr7 = 0x455;
    state.nmi_blocked = true;
    state.interrupt_shadow = true;
    state
}

fn state_survives_both_ways(kvm: &crate::Kvm) {
    let mut machine = Machine::new(kvm, &[0xf4]);
    let wanted = busy_state();
    machine.backend.set_state(&wanted).unwrap();
    let mut first = machine.backend.state().unwrap();
    assert_eq!(CpuArchState { xsave: vec![], msrs: vec![], ..first.clone() }, wanted);
    let lstar = first.msrs.iter_mut().find(|(index, _)| *index == 0xc000_0082).expect("LSTAR is state");
    lstar.1 = 0xffff_ffff_8123_4560;
    // XMM3, in the legacy region, and its bit in XSTATE_BV.
    first.xsave[160 + 3 * 16] = 0x5a;
    first.xsave[512] |= 2;
    first.run_mode = RunMode::Halted;
    machine.backend.set_state(&first).unwrap();
    assert_eq!(machine.backend.state().unwrap(), first);
}

fn a_triple_fault_is_a_shutdown(kvm: &crate::Kvm) {
    // ud2 in protected mode, with no room in the IDT for it nor for the double fault
    let mut machine = Machine::new(kvm, &[0x0f, 0x0b]);
    let mut state = start();
    state.cr0 |= 1;
    state.segments[seg::CS] = SegmentState { selector: 8, base: 0, limit: u32::MAX, access: 0xc09b };
    let data = SegmentState { selector: 0x10, base: 0, limit: u32::MAX, access: 0xc093 };
    (state.segments[seg::SS], state.segments[seg::DS], state.segments[seg::ES]) = (data, data, data);
    state.idt.limit = 0;
    machine.backend.set_state(&state).unwrap();
    assert_eq!(machine.run(), VcpuExit::Shutdown(Shutdown::TripleFault));
    assert!(machine.backend.describe().contains("RIP="));
}

fn steps_are_single(kvm: &crate::Kvm) {
    let mut machine = Machine::new(
        kvm,
        &[
            0x40, // inc ax
            0x43, // inc bx
            0xe6, 0x80, // out 0x80, al
            0x41, // inc cx
            0xeb, 0xfe, // jmp $
        ],
    );
    for rip in [1, 2, 4, 5, 5] {
        assert_eq!(machine.backend.step(&*machine.io).unwrap(), VcpuExit::Kicked);
        assert_eq!(machine.backend.state().unwrap().rip, START + rip);
    }
    machine.backend.set_debug(&DebugControl { single_step: true, breakpoints: vec![] }).unwrap();
    assert_eq!(machine.backend.step(&*machine.io).unwrap(), VcpuExit::Debug { pc: START + 5 });
    assert_eq!(machine.run(), VcpuExit::Debug { pc: START + 5 });
}

fn breakpoints_stop(kvm: &crate::Kvm) {
    // inc ax; inc ax; inc ax; jmp $
    let mut machine = Machine::new(kvm, &[0x40, 0x40, 0x40, 0xeb, 0xfe]);
    machine.backend.set_debug(&DebugControl { single_step: false, breakpoints: vec![START + 2] }).unwrap();
    assert_eq!(machine.run(), VcpuExit::Debug { pc: START + 2 });
    assert_eq!(machine.backend.state().unwrap().gpr[reg::RAX] as u16, 2);
    // Going on goes on.
    machine
        .backend
        .set_debug(&DebugControl { single_step: false, breakpoints: vec![START + 2, START + 3] })
        .unwrap();
    assert_eq!(machine.run(), VcpuExit::Debug { pc: START + 3 });
}

fn reset_gives_the_power_on_state(kvm: &crate::Kvm) {
    let mut machine = Machine::new(kvm, &[0xf4]);
    machine.backend.reset().unwrap();
    let fresh = machine.backend.state().unwrap();
    machine.backend.set_state(&busy_state()).unwrap();
    machine.backend.reset().unwrap();
    let state = machine.backend.state().unwrap();
    assert_eq!(state, fresh);
    let expected =
        CpuArchState { xsave: state.xsave.clone(), msrs: state.msrs.clone(), ..CpuArchState::power_on() };
    assert_eq!(state, expected);
}

fn memory_can_be_mapped_anew(kvm: &crate::Kvm) {
    // mov al, [0x2000]; out 0x3f8 ...; out 0xf4, al; and again
    let program = [0xa0, 0x00, 0x20, 0xba, 0xf8, 0x03, 0xee, 0xe6, 0xf4, 0xeb, 0xf5];
    let mut machine = Machine::new(kvm, &program);
    machine.memory.write_obj(b'1', GuestAddress(0x2000)).unwrap();
    assert_eq!(machine.run(), VcpuExit::Kicked);
    let other = vm_memory::GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
    other.write_slice(&program, GuestAddress(START)).unwrap();
    other.write_obj(b'2', GuestAddress(0x2000)).unwrap();
    kvm.memory_listener().set_map(&other).unwrap();
    drop(std::mem::replace(&mut machine.memory, other));
    assert_eq!(machine.run(), VcpuExit::Kicked);
    assert_eq!(machine.said(), "12");
}

/// An INIT and a SIPI that a CPU had not acted on when it was reset do not start it; those that come later do.
#[test]
fn a_reset_forgets_init_and_sipi() {
    let Some(kvm) = open("a_reset_forgets_init_and_sipi", KernelIrqchip::On) else { return };
    // With the bootstrap CPU, which there must be.
    let machine = Machine::new(&kvm, &[0xf4]);
    machine.memory.write_slice(&[0xf4], GuestAddress(0x2000)).unwrap();
    let config = VcpuConfig { index: 1, apic_id: 1, cpu_count: 2, model: Arc::default() };
    let seed = kvm.new_vcpu(&config).unwrap();
    let cpu = CpuHandle::new(1);
    cpu.set_kicker(seed.kicker());
    let mut backend = seed.bind(cpu.clone()).unwrap();
    let Irqchip::Kernel(sink) = kvm.irqchip() else { unreachable!("asked for") };
    // To APIC ID 1: INIT, then SIPI with the page 2.
    let start = || [0x500, 0x602].map(|data| sink.send_msi(MsiMessage { address: 0xfee0_1000, data }));
    let run_mode_after_a_run = |backend: &mut dyn VcpuBackend| {
        let kicker = cpu.clone();
        let kick = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            kicker.request_exit();
        });
        assert_eq!(backend.run(&NoIo).unwrap(), VcpuExit::Kicked);
        kick.join().unwrap();
        assert!(cpu.take_exit_request());
        backend.state().unwrap().run_mode
    };
    // The kernel delivers to an APIC that was written to.
    backend.reset().unwrap();
    start();
    assert_eq!(run_mode_after_a_run(&mut *backend), RunMode::Halted);
    start();
    backend.reset().unwrap();
    assert_eq!(run_mode_after_a_run(&mut *backend), RunMode::WaitForSipi);
}

#[test]
fn message_routes_come_and_go() {
    let Some(kvm) = open("message_routes_come_and_go", KernelIrqchip::On) else { return };
    let Irqchip::Kernel(sink) = kvm.irqchip() else { panic!("the kernel's was asked for") };
    let message = MsiMessage { address: 0xfee0_0000, data: 0x41 };
    let route = sink.new_route().unwrap();
    route.set(Some(message)).unwrap();
    route.set(Some(MsiMessage { data: 0x42, ..message })).unwrap();
    route.trigger();
    route.set(None).unwrap();
    route.trigger();
    assert!(
        route.eventfd().unwrap().read().is_err(),
        "the kernel took the first, the mask dropped the second"
    );
    let second = sink.new_route().unwrap();
    second.set(Some(message)).unwrap();
    drop(route);
    drop(second);
    sink.new_route().unwrap().set(Some(message)).unwrap();
}

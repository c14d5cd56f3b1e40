//! Delivery under loom: every interleaving, within bounds, of threads that deliver and the CPU that takes.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p devices --release --lib loom_`. Each model ends with the same
//! question: is there an interrupt to take of which the CPU was not told?

use std::sync::Arc;

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use super::*;
use crate::clock::{ManualClock, ScaledTsc};

/// A CPU's request word, as the accelerators keep it.
#[derive(Default)]
struct Cpu(AtomicU32);

impl InterruptTarget for Cpu {
    fn raise(&self, kind: InterruptKind) {
        self.0.fetch_or(1 << kind as u32, Ordering::AcqRel);
    }
    fn lower_hard(&self) {
        self.0.fetch_and(!(1 << InterruptKind::Hard as u32), Ordering::AcqRel);
    }
}

struct Rig {
    apic: Arc<LocalApic>,
    cpu: Arc<Cpu>,
}

impl Rig {
    fn new() -> Self {
        let cpu = Arc::new(Cpu::default());
        let clock = ManualClock::new();
        let config = LocalApicConfig {
            apic_id: 0,
            is_bsp: true,
            address_bits: 40,
            target: cpu.clone(),
            clock: clock.clone(),
            tsc: ScaledTsc::new(clock, 1_000_000_000),
        };
        let apic = LocalApic::new(config, &Arc::default());
        apic.enter_virtual_wire_mode();
        Self { apic, cpu }
    }

    fn deliver(&self, vector: u8) -> thread::JoinHandle<()> {
        let apic = Arc::clone(&self.apic);
        thread::spawn(move || _ = apic.accept(DeliveryMode::Fixed, vector, Trigger::Edge))
    }

    fn check(&self) {
        let told = self.cpu.0.load(Ordering::Acquire) & 1 << InterruptKind::Hard as u32 != 0;
        assert!(told || !self.apic.has_interrupt(), "an interrupt sleeps");
    }
}

fn model(test: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_branches = 20_000;
    builder.check(test);
}

#[test]
fn loom_a_delivery_races_with_the_task_priority() {
    model(|| {
        let rig = Rig::new();
        rig.apic.set_cr8(15);
        let delivery = rig.deliver(0x41);
        rig.apic.set_cr8(0);
        delivery.join().unwrap();
        rig.check();
        assert_eq!(rig.apic.acknowledge(), Some(0x41));
    });
}

#[test]
fn loom_a_delivery_races_with_the_end_of_interrupt() {
    model(|| {
        let rig = Rig::new();
        rig.apic.accept(DeliveryMode::Fixed, 0x61, Trigger::Edge);
        assert_eq!(rig.apic.acknowledge(), Some(0x61));
        let delivery = rig.deliver(0x41);
        rig.apic.end_of_interrupt();
        delivery.join().unwrap();
        rig.check();
        assert_eq!(rig.apic.acknowledge(), Some(0x41));
    });
}

#[test]
fn loom_a_delivery_races_with_an_acknowledge() {
    model(|| {
        let rig = Rig::new();
        rig.apic.accept(DeliveryMode::Fixed, 0x41, Trigger::Edge);
        let delivery = rig.deliver(0x41);
        assert_eq!(rig.apic.acknowledge(), Some(0x41));
        rig.apic.end_of_interrupt();
        delivery.join().unwrap();
        rig.check();
    });
}

#[test]
fn loom_a_delivery_races_with_the_pic_going_quiet() {
    model(|| {
        let rig = Rig::new();
        rig.apic.set_lint0(true);
        let delivery = rig.deliver(0x41);
        rig.apic.set_lint0(false);
        delivery.join().unwrap();
        rig.check();
        assert_eq!(rig.apic.acknowledge(), Some(0x41));
    });
}

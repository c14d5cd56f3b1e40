//! The CPU-less accelerator under the lifecycle, as a test of devices uses it.

use std::sync::{Arc, Mutex};

use accel::qtest::QtestAccelerator;
use accel::{
    Accelerator, CpuEvent, CpuHandle, CpuIo, CpuModel, CpuObserver, CpuSet, CpuState, RunOnError, VcpuConfig,
};
use devices::cpu_interrupts::LocalInterrupts;

struct NoEvents;
impl CpuObserver for NoEvents {
    fn cpu_event(&self, index: usize, event: CpuEvent) {
        panic!("CPU {index}: {event:?}");
    }
}

/// One port, one register.
#[derive(Default)]
struct Latch(Mutex<u8>);
impl CpuIo for Latch {
    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(*self.0.lock().expect("no holder panics"));
    }
    fn pio_write(&self, _port: u16, data: &[u8]) {
        *self.0.lock().expect("no holder panics") = data[0];
    }
    fn mmio_read(&self, _gpa: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _gpa: u64, _data: &[u8]) {}
    fn interrupts(&self) -> Option<&dyn LocalInterrupts> {
        None
    }
}

fn machine(cpus: usize) -> CpuSet {
    let accelerator = QtestAccelerator::new();
    let set = CpuSet::new(&accelerator, Arc::new(NoEvents));
    let io = Arc::new(Latch::default());
    for index in 0..cpus {
        let model = Arc::new(CpuModel::default());
        let config = VcpuConfig { index, apic_id: index as u32, cpu_count: cpus, model };
        let seed = accelerator.new_vcpu(&config).expect("a CPU is reserved");
        set.spawn(seed, set.new_cpu(index), io.clone()).expect("a CPU is created");
    }
    set
}

#[test]
fn a_test_reaches_devices_through_a_cpu() {
    let set = machine(1);
    let cpu = set.cpu(0).unwrap();
    set.resume_all();
    let read = cpu.run_on(|cpu| {
        cpu.io.pio_write(0x80, &[0x5a]);
        let mut data = [0];
        cpu.io.pio_read(0x80, &mut data);
        data[0]
    });
    assert_eq!(read, Ok(0x5a));
}

#[test]
fn pauses_are_counted() {
    let set = machine(3);
    let states = || set.cpus().iter().map(CpuHandle::state).collect::<Vec<_>>();
    assert_eq!(states(), [CpuState::Stopped; 3]);
    set.resume_all();
    set.pause_all().unwrap();
    set.pause_all().unwrap();
    assert_eq!(states(), [CpuState::Stopped; 3]);
    let generation = set.generation();
    set.resume_all();
    assert_eq!(set.generation(), generation);
    assert_eq!(states(), [CpuState::Stopped; 3]);
    set.resume_all();
    assert_eq!(set.generation(), generation + 1);
    set.pause_all().unwrap();
    assert_eq!(states(), [CpuState::Stopped; 3]);
}

#[test]
fn a_cpu_that_has_exited_answers() {
    let set = machine(2);
    let cpus = set.cpus();
    set.resume_all();
    set.exit_all();
    assert!(set.cpus().is_empty());
    for cpu in cpus {
        assert_eq!(cpu.state(), CpuState::Exited);
        assert_eq!(cpu.run_on(|_| ()), Err(RunOnError::Gone));
    }
}

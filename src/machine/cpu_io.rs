//! A CPU's way out: ports, MMIO, its local APIC.

use std::sync::Arc;

use accel::CpuIo;
use devices::bus::Bus;
use devices::cpu_interrupts::LocalInterrupts;
use devices::irqchip::LocalApic;

const PAGE_MASK: u64 = !0xfff;

/// One CPU's view of the machine's buses.
pub struct MachineIo {
    /// Port I/O.
    pub pio: Arc<Bus>,
    /// MMIO.
    pub mmio: Arc<Bus>,
    /// The CPU's own, where it is ours.
    pub local_apic: Option<Arc<LocalApic>>,
}

impl MachineIo {
    /// The offset in the local APIC's page, which hides the bus where the CPU has mapped it.
    fn in_local_apic(&self, gpa: u64) -> Option<(&LocalApic, u64)> {
        let apic = self.local_apic.as_deref()?;
        (apic.mmio_base()? == gpa & PAGE_MASK).then_some((apic, gpa & !PAGE_MASK))
    }
}

impl CpuIo for MachineIo {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        if self.pio.read(u64::from(port), data) {
            return;
        }
        // The ISA bus splits what a device does not take whole; where nobody answers, its lines float high.
        for (offset, byte) in (0u64..).zip(data) {
            *byte = 0xff;
            self.pio.read(u64::from(port) + offset, std::slice::from_mut(byte));
        }
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        if !self.pio.write(u64::from(port), data) && data.len() > 1 {
            for (offset, byte) in (0u64..).zip(data) {
                self.pio.write(u64::from(port) + offset, std::slice::from_ref(byte));
            }
        }
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        if let Some((apic, offset)) = self.in_local_apic(gpa) {
            apic.mmio_read(offset, data);
        } else if !self.mmio.read(gpa, data) {
            data.fill(0xff);
        }
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        if let Some((apic, offset)) = self.in_local_apic(gpa) {
            apic.mmio_write(offset, data);
        } else {
            self.mmio.write(gpa, data);
        }
    }

    fn interrupts(&self) -> Option<&dyn LocalInterrupts> {
        self.local_apic.as_deref().map(|apic| apic as &dyn LocalInterrupts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::bus::BusDevice;
    use std::sync::Mutex;

    /// Remembers writes, reads its offset.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn io() -> (MachineIo, Arc<Recorder>) {
        let recorder = Arc::new(Recorder::default());
        let pio = Bus::new();
        pio.insert(0x70, 2, recorder.clone()).unwrap();
        (MachineIo { pio: Arc::new(pio), mmio: Arc::default(), local_apic: None }, recorder)
    }

    #[test]
    fn nobody_reads_as_all_ones() {
        let (io, _) = io();
        let mut data = [0; 4];
        io.pio_read(0x500, &mut data);
        assert_eq!(data, [0xff; 4]);
        let mut data = [0; 8];
        io.mmio_read(0xfee0_0000, &mut data);
        assert_eq!(data, [0xff; 8]);
        io.pio_write(0x500, &[1, 2]);
        io.mmio_write(0xfee0_0000, &[1]);
    }

    #[test]
    fn wide_accesses_are_split_at_a_window_s_end() {
        let (io, recorder) = io();
        let mut data = [0; 4];
        io.pio_read(0x70, &mut data);
        assert_eq!(data, [0, 1, 0xff, 0xff]);
        io.pio_write(0x6f, &[1, 2, 3, 4]);
        io.pio_write(0x70, &[5, 6]);
        assert_eq!(*recorder.0.lock().unwrap(), [(0, vec![2]), (1, vec![3]), (0, vec![5, 6])]);
    }
}

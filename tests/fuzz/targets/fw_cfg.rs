//! The firmware configuration device: every port access, and whatever is in memory where its DMA looks.
#![no_main]

use devices::chipset::FwCfg;
use devices::chipset::fw_cfg::{Content, Items, spec};
use devices::device::Device;
use fuzz::input::Input;
use fuzz::machine::{Machine, RAM_BYTES};
use libfuzzer_sys::fuzz_target;

/// Control words: error, read, skip, select, write, and all of them.
const CONTROLS: [u32; 8] = [1, 2, 4, 8, 16, 8 | 2, 8 | 16, !0];

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let machine = Machine::default();
    let mut items = Items::new();
    items.add_file("opt/file", Content::Bytes(vec![7; 1000])).expect("a good name");
    items.add_file("opt/empty", Content::Bytes(Vec::new())).expect("a good name");
    items.add_file(spec::vmcoreinfo::FILE, FwCfg::vmcoreinfo()).expect("a good name");
    let device = FwCfg::new(items, machine.memory.clone());
    let (ports, dma) = (device.ports(), device.dma_ports());
    while !input.is_empty() {
        let (what, width) = (input.u8(), input.width());
        let aligned = |at: u8| u64::from(at & 7) & !(width as u64 - 1);
        match what & 7 {
            0 | 1 => {
                // Port by port, and both at once; keys of files begin at 0x20.
                let value = if what & 0x80 == 0 { u64::from(input.u8() & 0x3f) } else { input.u64() };
                let (width, port) = (width.min(2), u64::from(input.u8() & 1));
                ports.write(if width == 2 { 0 } else { port }, &value.to_le_bytes()[..width]);
            }
            2 => ports.read(u64::from(what >> 7), &mut [0; 8][..width.min(2 - usize::from(what >> 7))]),
            3 => dma.write(aligned(input.u8()), &input.u64().to_be_bytes()[..width]),
            4 => dma.read(aligned(input.u8()), &mut [0; 8][..width]),
            5 => device.reset(),
            // A structure at a place of its own, and the access.
            _ => {
                let at = u64::from(input.u8()) << 10;
                let control = input.pick(&CONTROLS) | u32::from(input.u8() & 0x3f) << 16;
                let (len, address) = (input.small(), u64::from(input.small()) << 10);
                let mut structure = control.to_be_bytes().to_vec();
                structure.extend(len.to_be_bytes());
                structure.extend(address.to_be_bytes());
                machine.put(at, &structure);
                match what & 0x80 {
                    0 => dma.write(0, &at.to_be_bytes()),
                    _ => {
                        dma.write(0, &[0; 4]);
                        dma.write(4, &(at as u32).to_be_bytes());
                    }
                }
                assert!(at < RAM_BYTES);
            }
        }
    }
    ports.write(0, &spec::key::SIGNATURE.to_le_bytes());
    let mut byte = [0];
    ports.read(spec::DATA, &mut byte);
    assert_eq!(byte, *b"Q");
});

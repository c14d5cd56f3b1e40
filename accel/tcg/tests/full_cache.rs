//! A guest with far more code than code memory: region after region is reclaimed, also between the two pages of an instruction.

use accel::arch_state::seg;
use accel::contract::{Accelerator, NoIo, VcpuConfig, VcpuExit};
use accel::cpu_model::CpuModel;
use accel::{CpuArchState, CpuHandle};
use accel_tcg::engine::MIN_CODE_BYTES;
use accel_tcg::{Tcg, TcgOptions};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

#[test]
fn everything_is_executed_once_a_round() {
    const CODE: u64 = 0x1000;
    const BLOCKS: usize = 5000;
    const ROUNDS: u8 = 3;
    for stress in ["short", "reclaims", "reclaims+unchained"] {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        // inc word [0x500]; jmp to the next: a block each, some of them across two pages.
        let mut code = [0xff, 0x06, 0x00, 0x05, 0xeb, 0x00].repeat(BLOCKS);
        // dec byte [0x502]; jz to the hlt; jmp to the start.
        code.extend([0xfe, 0x0e, 0x02, 0x05, 0x74, 0x03, 0xe9]);
        let back = -(code.len() as i32 + 2) as i16;
        code.extend(back.to_le_bytes());
        code.push(0xf4);
        memory.write_slice(&code, GuestAddress(CODE)).unwrap();
        memory.write_obj(ROUNDS, GuestAddress(0x502)).unwrap();

        let stress = stress.parse().unwrap();
        let tcg =
            Tcg::new(TcgOptions { code_bytes: MIN_CODE_BYTES, stress, ..TcgOptions::default() }).unwrap();
        tcg.memory_listener().set_map(&memory).unwrap();
        let config = VcpuConfig { index: 0, apic_id: 0, cpu_count: 1, model: CpuModel::default().into() };
        let mut cpu = tcg.new_vcpu(&config).unwrap().bind(CpuHandle::new(0)).unwrap();
        let mut state = CpuArchState::power_on();
        state.rip = CODE;
        state.segments[seg::CS].selector = 0;
        state.segments[seg::CS].base = 0;
        cpu.set_state(&state).unwrap();
        assert_eq!(cpu.run(&NoIo).unwrap(), VcpuExit::Halted);
        let counted: u16 = memory.read_obj(GuestAddress(0x500)).unwrap();
        assert_eq!(usize::from(counted), BLOCKS * usize::from(ROUNDS));
        let told = cpu.describe();
        let reclaimed =
            told.split(" regions reclaimed").next().and_then(|rest| rest.rsplit(' ').next()).unwrap();
        assert!(reclaimed.parse::<u32>().unwrap() > 8, "the code memory was large enough: {told}");
    }
}

//! The right to use a port: IOPL and the I/O permission bitmap (SDM vol. 1, *I/O Permission Bit Map*).

use crate::cpu::Cpu;
use crate::env::flag;
use crate::exception::{Exception, Exec};
use crate::mmu::Access;

/// Offset of the bitmap's offset in a 32-bit or 64-bit TSS.
const IO_MAP_BASE: u64 = 0x66;

/// Raises #GP(0) unless the running program may use the `size` (1, 2, 4) ports from `port`; notes breakpoints on them.
pub fn check_io(cpu: &mut Cpu, port: u16, size: usize) -> Exec<()> {
    permitted(cpu, port, size)?;
    cpu.note_port(port, size);
    Ok(())
}

/// Raises #GP(0) unless the running program may use the `size` (1, 2, 4) ports from `port`.
fn permitted(cpu: &mut Cpu, port: u16, size: usize) -> Exec<()> {
    let protected = cpu.env.cr0 & 1 != 0;
    let virtual_8086 = cpu.env.sysflags & flag::VM != 0;
    let iopl = (cpu.env.sysflags & flag::IOPL) >> 12;
    if !protected || !virtual_8086 && u32::from(cpu.env.cpl()) <= iopl {
        return Ok(());
    }
    let task = cpu.env.task;
    // Available and busy 32-bit (64-bit) TSS; a 16-bit one has no bitmap.
    if !task.usable() || !matches!(task.access & 0xf, 9 | 0xb) || task.limit < 0x67 {
        return Err(Exception::gp(0));
    }
    let map = cpu.read(cpu.wrap_system(task.base.wrapping_add(IO_MAP_BASE)), 2, Access::System)?;
    let byte = map + u64::from(port / 8);
    // The processor reads two bytes always, so that the bits of an access may cross into the next one.
    if byte + 1 > u64::from(task.limit) {
        return Err(Exception::gp(0));
    }
    let bits = cpu.read(cpu.wrap_system(task.base.wrapping_add(byte)), 2, Access::System)?;
    let wanted = (1u64 << size) - 1;
    if bits >> (port & 7) & wanted != 0 {
        return Err(Exception::gp(0));
    }
    Ok(())
}

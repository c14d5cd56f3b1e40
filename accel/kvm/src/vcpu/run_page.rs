//! The page that a vCPU shares with the kernel: `struct kvm_run` (Linux, Documentation/virt/kvm/api.rst, *The kvm_run
//! structure*).

#![expect(unsafe_code, reason = "reads and writes memory that the kernel and a signal handler write to")]

use std::ptr::{self, NonNull};

use kvm_bindings::{KVM_EXIT_IO_IN, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, kvm_run};
use kvm_ioctls::VcpuFd;

/// A port access.
pub(super) struct Pio<'a> {
    pub(super) input: bool,
    pub(super) port: u16,
    /// Bytes of one access: 1, 2 or 4.
    pub(super) width: usize,
    /// One or more accesses to the same port, one after the other.
    pub(super) data: &'a mut [u8],
}

/// An access outside RAM.
pub(super) struct Mmio<'a> {
    pub(super) write: bool,
    pub(super) gpa: u64,
    /// 1 to 8 bytes.
    pub(super) data: &'a mut [u8],
}

/// `KVM_EXIT_INTERNAL_ERROR`.
pub(super) struct InternalError {
    pub(super) suberror: u32,
    /// What the kernel adds, by suberror.
    pub(super) data: Vec<u64>,
    /// The instruction, where emulation failed and the kernel tells.
    pub(super) instruction: Vec<u8>,
}

/// The page of one vCPU. Valid while the vCPU's descriptor is open.
pub(super) struct RunPage {
    run: NonNull<kvm_run>,
    size: usize,
}

/// A field of the page. Raw accesses throughout: the kernel writes to it during KVM_RUN, a signal handler at any time.
macro_rules! get {
    ($page:expr, $($field:tt)+) => {
        // SAFETY: the page is mapped while the descriptor is open, which `Vcpu` keeps; any bits are valid integers, and
        // a union's member is asked for by the exit reason that the kernel pairs it with.
        unsafe { ptr::read_volatile(&raw const (*$page.run.as_ptr()).$($field)+) }
    };
}

macro_rules! put {
    ($page:expr, $field:ident, $value:expr) => {
        // SAFETY: as for reading; only fields that the API lets user space write are written.
        unsafe { ptr::write_volatile(&raw mut (*$page.run.as_ptr()).$field, $value) }
    };
}

impl RunPage {
    /// The page of `fd`, `size` bytes long (KVM_GET_VCPU_MMAP_SIZE).
    pub(super) fn of(fd: &mut VcpuFd, size: usize) -> Self {
        Self { run: NonNull::from(fd.get_kvm_run()), size }
    }

    /// Where `immediate_exit` is.
    pub(super) fn immediate_exit(&self) -> *mut u8 {
        // SAFETY: makes a pointer into the mapping, reads nothing.
        unsafe { &raw mut (*self.run.as_ptr()).immediate_exit }
    }

    pub(super) fn set_immediate_exit(&self, on: bool) {
        put!(self, immediate_exit, u8::from(on));
    }

    pub(super) fn set_request_interrupt_window(&self, on: bool) {
        put!(self, request_interrupt_window, u8::from(on));
    }

    pub(super) fn ready_for_interrupt(&self) -> bool {
        get!(self, ready_for_interrupt_injection) != 0
    }

    pub(super) fn if_flag(&self) -> bool {
        get!(self, if_flag) != 0
    }

    pub(super) fn cr8(&self) -> u8 {
        get!(self, cr8) as u8
    }

    pub(super) fn set_cr8(&self, value: u8) {
        put!(self, cr8, value.into());
    }

    pub(super) fn apic_base(&self) -> u64 {
        get!(self, apic_base)
    }

    pub(super) fn exit_reason(&self) -> u32 {
        get!(self, exit_reason)
    }

    /// After `KVM_EXIT_IO`. `None` if the data were outside the page, which the kernel does not do.
    pub(super) fn pio(&mut self) -> Option<Pio<'_>> {
        let io = get!(self, __bindgen_anon_1.io);
        let (width, offset) = (usize::from(io.size), usize::try_from(io.data_offset).ok()?);
        let len = width.checked_mul(io.count as usize)?;
        if width == 0 || offset.checked_add(len)? > self.size {
            return None;
        }
        // SAFETY: the range lies in the mapping, behind the structure; the kernel touches it during KVM_RUN only, which
        // the exclusive borrow of the page keeps from being called meanwhile.
        let data = unsafe { std::slice::from_raw_parts_mut(self.run.as_ptr().cast::<u8>().add(offset), len) };
        Some(Pio { input: u32::from(io.direction) == KVM_EXIT_IO_IN, port: io.port, width, data })
    }

    /// After `KVM_EXIT_MMIO`.
    pub(super) fn mmio(&mut self) -> Mmio<'_> {
        let mmio = get!(self, __bindgen_anon_1.mmio);
        // SAFETY: as for `pio`; the member is the one that the exit reason says.
        let data = unsafe { &mut (*self.run.as_ptr()).__bindgen_anon_1.mmio.data };
        let len = (mmio.len as usize).min(data.len());
        Mmio { write: mmio.is_write != 0, gpa: mmio.phys_addr, data: &mut data[..len] }
    }

    /// After `KVM_EXIT_DEBUG`: the linear address of the next instruction.
    pub(super) fn debug_pc(&self) -> u64 {
        get!(self, __bindgen_anon_1.debug.arch.pc)
    }

    /// After `KVM_EXIT_UNKNOWN`.
    pub(super) fn hardware_exit_reason(&self) -> u64 {
        get!(self, __bindgen_anon_1.hw.hardware_exit_reason)
    }

    /// After `KVM_EXIT_FAIL_ENTRY`: the hardware's reason and the host CPU.
    pub(super) fn fail_entry(&self) -> (u64, u32) {
        let fail = get!(self, __bindgen_anon_1.fail_entry);
        (fail.hardware_entry_failure_reason, fail.cpu)
    }

    /// After `KVM_EXIT_SYSTEM_EVENT`.
    pub(super) fn system_event(&self) -> u32 {
        get!(self, __bindgen_anon_1.system_event.type_)
    }

    /// After `KVM_EXIT_MEMORY_FAULT`: guest-physical address and size.
    pub(super) fn memory_fault(&self) -> (u64, u64) {
        let fault = get!(self, __bindgen_anon_1.memory_fault);
        (fault.gpa, fault.size)
    }

    /// After `KVM_EXIT_INTERNAL_ERROR`.
    pub(super) fn internal_error(&self) -> InternalError {
        let error = get!(self, __bindgen_anon_1.internal);
        let count = (error.ndata as usize).min(error.data.len());
        let mut instruction = Vec::new();
        // With fewer words than this the kernel is too old to tell the bytes.
        if error.suberror == kvm_bindings::KVM_INTERNAL_ERROR_EMULATION && count >= 3 {
            let flags = get!(self, __bindgen_anon_1.emulation_failure.flags);
            if flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0 {
                let told = get!(self, __bindgen_anon_1.emulation_failure.__bindgen_anon_1.__bindgen_anon_1);
                let len = usize::from(told.insn_size).min(told.insn_bytes.len());
                instruction.extend_from_slice(&told.insn_bytes[..len]);
            }
        }
        InternalError { suberror: error.suberror, data: error.data[..count].to_vec(), instruction }
    }

    /// Says that the next KVM_RUN must not be preceded by an injection.
    pub(super) fn clear_ready_for_interrupt(&self) {
        put!(self, ready_for_interrupt_injection, 0);
    }
}

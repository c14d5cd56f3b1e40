//! BT, BTS, BTR, BTC with a bit string in memory: the bit offset in a register reaches beyond the operand
//! (SDM vol. 2A, *BT—Bit Test*).

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Instruction, Mnemonic, Register};

use crate::code::thunks::gpr_offset;
use crate::exec::helpers;
use crate::translate::address::{Path, Use, address_width, stack_bit};
use crate::translate::block::Item;
use crate::translate::generator::Translator;
use crate::translate::registers::{gpr_number, host_number};

impl Translator {
    /// The word that holds the bit is addressed first, then the bit is taken within it.
    pub(super) fn bit_test(&mut self, item: &Item) {
        let insn = &item.insn;
        let size = insn.memory_size().size() as u32;
        let write = insn.mnemonic() != Mnemonic::Bt;
        self.flags_free(item.live_in);
        self.offset_to_t0(insn);
        self.bit_offset_to_t1(insn);
        match size {
            2 => dynasm!(self.e ; .arch x64 ; movsx r11, r11w ; sar r11, 4 ; lea r10, [r10 + r11 * 2]),
            4 => dynasm!(self.e ; .arch x64 ; movsxd r11, r11d ; sar r11, 5 ; lea r10, [r10 + r11 * 4]),
            _ => dynasm!(self.e ; .arch x64 ; sar r11, 6 ; lea r10, [r10 + r11 * 8]),
        }
        match address_width(insn, self.bits) {
            16 => dynasm!(self.e ; .arch x64 ; movzx r10d, r10w),
            32 => dynasm!(self.e ; .arch x64 ; mov r10d, r10d),
            _ => {}
        }
        self.segment_t0(insn.memory_segment(), size, write, false);
        if self.reach_window_at_t0() {
            return self.bit_test_on_host(item);
        }
        let packed = size | stack_bit(insn, self.bits) | helpers::ALSO_LOADS;
        let stub = self.check(packed, write, Path::Table, Use::BitTest);
        self.bit_test_on_host(item);
        self.checked_access_ends(Some(stub));
    }

    fn bit_offset_to_t1(&mut self, insn: &Instruction) {
        let number = gpr_number(insn.op1_register()).expect("the bit offset is in a general register");
        match host_number(number) {
            Some(host) => dynasm!(self.e ; .arch x64 ; mov r11, Rq(host as u8)),
            None => dynasm!(self.e ; .arch x64 ; mov r11, [rsp + gpr_offset(number)]),
        }
    }

    pub(super) fn bit_test_on_host(&mut self, item: &Item) {
        let insn = &item.insn;
        let size = insn.memory_size().size();
        self.place_address(10);
        self.bit_offset_to_t1(insn);
        dynasm!(self.e ; .arch x64 ; and r11d, (size * 8 - 1) as i32);
        self.flags_for(item);
        let mut new = *insn;
        new.set_segment_prefix(Register::None);
        new.set_op1_register(crate::translate::registers::sized(11, size));
        new.set_memory_base(Register::R10);
        new.set_memory_index(Register::None);
        new.set_memory_index_scale(1);
        new.set_memory_displacement64(0);
        new.set_memory_displ_size(0);
        self.mark();
        self.encode(&new);
        self.flags_after(item);
    }
}

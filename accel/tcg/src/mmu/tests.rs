//! Tests of accesses across pages.

use crate::complex::testing::{DATA, Machine};
use crate::exception::Exception;
use crate::mmu::Access;

const READ_ONLY: u64 = 0b101;

/// A store from a read-only page into an absent one faults on the first.
#[test]
fn the_first_page_of_a_store_faults_first() {
    let mut machine = Machine::new();
    machine.user();
    machine.map(DATA, DATA | READ_ONLY);
    machine.map(DATA + 0x1000, 0);
    let at = DATA + 0xffe;
    let fault = Err(Exception::page_fault(at, 7));
    assert_eq!(machine.cpu.write(at, 4, 0, Access::Current), fault);
    assert_eq!(machine.cpu.probe_write(at, 4, Access::Current), fault);
    // A load has no quarrel with the first.
    let fault = Exception::page_fault(DATA + 0x1000, 4);
    assert_eq!(machine.cpu.read(at, 4, Access::Current), Err(fault));
}

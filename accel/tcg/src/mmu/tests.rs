//! Tests of accesses across pages, and of flushes.

use crate::complex::testing::{DATA, Machine};
use crate::env::TLB_MODES;
use crate::exception::Exception;
use crate::mmu::soft_tlb::TLB_ENTRIES;
use crate::mmu::{Access, Mmu};
use crate::ram::RamPage;

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

/// A flush finds what was entered wherever in the tables it is, and nothing comes back when they are used again.
#[test]
fn a_flush_empties_what_was_entered_anywhere() {
    let mut mmu = Mmu::new();
    let page = RamPage { host: 0x7000, index: 7 };
    let pages = || (0..TLB_ENTRIES as u64).map(|number| number << 12);
    for round in 0..3u64 {
        // All of them, and then some here and there.
        let entered: Vec<u64> = pages().filter(|page| (page >> 12) % (1 + 36 * round) == 0).collect();
        for &linear in &entered {
            for (mode, write) in (0..TLB_MODES).flat_map(|mode| [(mode, false), (mode, true)]) {
                mmu.insert(mode, write, linear, page, 4096);
                assert_eq!(mmu.lookup(mode, write, linear), Some(page.host));
            }
            for user in [false, true] {
                mmu.insert_fetch(user, linear, page, 4096);
                assert_eq!(mmu.lookup_fetch(user, linear), Some(page));
            }
        }
        mmu.flush_current();
        for linear in pages() {
            for (mode, write) in (0..TLB_MODES).flat_map(|mode| [(mode, false), (mode, true)]) {
                assert_eq!(mmu.lookup(mode, write, linear), None, "{linear:#x}");
            }
            assert_eq!([false, true].map(|user| mmu.lookup_fetch(user, linear)), [None; 2], "{linear:#x}");
        }
    }
}

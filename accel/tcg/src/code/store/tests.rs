use super::*;
use crate::code::tb::{Entries, Mark, NONE, Span, TbKey};

const REGIONS: usize = 4;
const LEN: usize = 3 * STRETCH;

fn block(code: u32, code_len: u16) -> Tb {
    Tb {
        key: TbKey::new(0x1000, code.into(), 0),
        cpus: 0,
        page_number: 1,
        incoming: NONE,
        code,
        slots: 0,
        notes: 0,
        code_len,
        span: Span { start: 0, end: 1 },
        entries: Entries { saved: 0, host: 0, forward: 0 },
        slots_len: 0,
        ungrouped: 0,
        valid: true,
    }
}

/// With as many ways on as `ways`, and an instruction of `insn` bytes.
fn lists(ways: usize, insn: i16) -> Lists {
    Lists {
        slots: vec![Slot { stub: insn as u16, ..Slot::UNKNOWN }; ways],
        marks: vec![Mark::new(0, 0, false, 0, [None; 2])],
        insns: vec![0, insn],
        ..Lists::default()
    }
}

/// Fills `region` with blocks of many sizes, and says where each is.
fn fill(store: &mut Store, region: usize, seed: usize) -> Vec<(TbId, u32, u16)> {
    let (mut at, mut made) = (region * LEN, Vec::new());
    for n in seed.. {
        let len = 16 + n * 37 % 900 + if n % 13 == 0 { STRETCH + 100 } else { 0 };
        if at + len > (region + 1) * LEN {
            break;
        }
        let id = store.reserve();
        store.insert(id, block(at as u32, len as u16), &mut lists(n % 4, (n % 15) as i16 + 1));
        made.push((id, at as u32, len as u16));
        at = (at + len).next_multiple_of(16);
    }
    made
}

/// Each place in a region is a block's or nobody's, and each block has what it came with.
fn check(store: &Store, region: usize, seed: usize, made: &[(TbId, u32, u16)]) {
    for at in (region * LEN) as u32..((region + 1) * LEN) as u32 {
        let expected = made.iter().find(|&&(_, code, len)| (code..code + u32::from(len)).contains(&at));
        assert_eq!(store.at(at), expected.map(|&(id, ..)| id), "{at:#x}");
    }
    for (n, &(id, code, len)) in (seed..).zip(made) {
        let found = store.block(id);
        assert_eq!((found.code, found.code_len), (code, len));
        let insn = (n % 15) as i16 + 1;
        assert_eq!(store.slots(id).len(), n % 4);
        assert!(store.slots(id).iter().all(|way| way.stub == insn as u16));
        assert_eq!(store.notes(id).offset(1), insn.into());
        assert!(store.is_of(id, region));
    }
}

#[test]
fn a_region_that_is_filled_again_has_its_new_blocks_alone() {
    let mut store = Store::new(REGIONS, LEN);
    let mut made = Vec::new();
    for region in 0..REGIONS {
        store.open(region);
        made.push((region, fill(&mut store, region, region)));
        store.close(region);
    }
    let most = store.blocks.len();
    let live: usize = made.iter().flat_map(|(_, made)| made).map(|&(.., len)| usize::from(len)).sum();
    assert_eq!(store.bytes(), (live, 0));
    for round in 0..20 {
        let region = round * 7 % REGIONS;
        let (seed, gone) = std::mem::take(&mut made[region]);
        check(&store, region, seed, &gone);
        store.died(gone[0].0);
        assert_eq!(store.dead(region), usize::from(gone[0].2));
        store.forget(region);
        assert!(store.at((region * LEN) as u32).is_none() && store.dead(region) == 0);
        store.open(region);
        assert!((0..REGIONS).all(|other| other == region || store.filling(other) < store.filling(region)));
        made[region] = (100 * round, fill(&mut store, region, 100 * round));
        for (region, (seed, made)) in made.iter().enumerate() {
            check(&store, region, *seed, made);
        }
    }
    assert!(store.blocks.len() < 2 * most, "numbers are used again");
    store.clear();
    assert!(store.at(0).is_none() && store.bytes() == (0, 0) && store.reserve() == 0);
}

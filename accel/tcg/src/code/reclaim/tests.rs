use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::code::buffer::CodeBuffer;
use crate::code::tb::{Entries, Guard, Lists, Mark, NO_PAGE, Slot, Span, Tb, TbKey, mode};

const PAGES: u64 = 24;
const MODE: u32 = mode::LONG | mode::FLAT_CODE | 3;
/// In each block's code: a way on to its own page, and one to another, with its guard.
const NEAR: u16 = 20;
const FAR: u16 = 44;
const NUMBER: u16 = 32;
const OTHERWISE: u16 = 36;
const LOOKUP: u16 = 60;
const STUBS: [u16; 2] = [64, 72];

/// A cache whose blocks are not executed, and a sequence of numbers that looks random (Knuth's MMIX generator).
struct Fixture {
    ram: Ram,
    cache: TbCache,
    /// Any of them makes the next block.
    cpus: u64,
    seed: u64,
}

impl Fixture {
    fn new(cpus: u64) -> Self {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), PAGES as usize * 4096)]).unwrap();
        let mut buffer = CodeBuffer::new(4 * 4096).unwrap();
        buffer.reserve(&[0xcc; 100]);
        Self { ram: Ram::new(&memory), cache: TbCache::new(buffer), cpus, seed: 1 }
    }

    fn number(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below
    }

    fn some_key(&mut self) -> TbKey {
        let (page, offset) = (self.number(PAGES), self.number(16) * 256);
        let address = page * 4096 + offset;
        let key = TbKey::new(address, address, MODE);
        if offset == 15 * 256 && self.number(2) == 0 {
            key.crossing_into(((page + 1) % PAGES) as u32)
        } else {
            key
        }
    }

    /// The block for `key`, made if need be.
    fn block(&mut self, key: TbKey) -> TbId {
        if let Some(id) = self.cache.find(&key) {
            return id;
        }
        let code = vec![0x90; 80 + self.number(500) as usize];
        let cpu = self.number(self.cpus) as usize;
        if !self.cache.has_room(cpu, code.len()) {
            self.cache.close(cpu);
        }
        if self.cache.is_closed(cpu) {
            let victim = self.cache.victim();
            self.cache.go_on_in(cpu, victim, &self.ram);
        }
        let berth = self.cache.berth(cpu);
        key.pages().for_each(|page| self.ram.set_code(page, crate::ram::CodeMark::Set));
        let guard = Some(Guard { number: NUMBER, otherwise: OTHERWISE, lookup: LOOKUP });
        let way = |displacement, stub, guard| Slot { displacement, stub, guard, ..Slot::UNKNOWN };
        let mut lists = Lists {
            slots: vec![way(NEAR, STUBS[0], None), way(FAR, STUBS[1], guard)],
            marks: vec![Mark::new(0, 0, false, 0, [None; 2])],
            insns: vec![0, 8],
            ..Lists::default()
        };
        let start = (key.physical % 4096) as u16;
        let block = Tb {
            key,
            cpus: 0,
            page_number: key.rip as u32 >> 12,
            incoming: NONE,
            code: 0,
            slots: 0,
            notes: 0,
            code_len: code.len() as u16,
            span: Span { start, end: start + if key.second_page().is_some() { 260 } else { 8 } },
            entries: Entries { saved: 0, host: 3, forward: 7 },
            slots_len: 0,
            ungrouped: 0,
            valid: true,
        };
        let id = self.cache.insert(cpu, block, (&code, &mut lists));
        assert_eq!((id, self.cache.code(id)), (berth.id, berth.base));
        for way in 0..2 {
            self.unlink(id, way);
        }
        id
    }

    /// As the translator makes them.
    fn unlink(&mut self, id: TbId, way: usize) {
        let code = self.cache.code(id);
        let at = |offset: u16| code + u64::from(offset);
        if way == 1 {
            self.cache.buffer.patch_word(at(NUMBER), NO_PAGE);
            self.cache.buffer.patch_jump(at(OTHERWISE), at(STUBS[1]));
        }
        self.cache.buffer.patch_jump(at([NEAR, FAR][way]), at(STUBS[way]));
    }

    fn word(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.cache.buffer.bytes(at, 4).try_into().unwrap())
    }

    fn goes_to(&self, at: u64) -> u64 {
        (at + 4).wrapping_add_signed(i64::from(self.word(at) as i32))
    }

    /// The one that the first CPU fills.
    fn region(&self) -> Option<usize> {
        self.regions().find(|&region| self.cache.writer_in(region) == Some(0))
    }

    fn regions(&self) -> impl Iterator<Item = usize> + use<> {
        0..self.cache.buffer.regions()
    }

    fn all(&self) -> Vec<TbId> {
        self.regions().flat_map(|region| self.cache.store.of_region(region).to_vec()).collect()
    }

    /// What must be so at any time.
    fn check(&self) {
        let cache = &self.cache;
        let all = self.all();
        let mut incoming = vec![Vec::new(); all.iter().max().map_or(0, |&id| id as usize + 1)];
        for &id in &all {
            let (block, code) = (cache.block(id), cache.code(id));
            assert_eq!(cache.find(&block.key) == Some(id), block.valid);
            assert_eq!(cache.at(code + u64::from(block.code_len) - 1), Some(id));
            for (number, way) in cache.store.slots(id).iter().enumerate() {
                let leads_to = self.goes_to(code + u64::from(way.displacement));
                if way.linked != NONE {
                    assert!(
                        all.contains(&way.linked) && cache.block(way.linked).valid,
                        "{id} knows one that is gone"
                    );
                    incoming[way.linked as usize].push((id, number));
                }
                if way.linked != NONE && block.valid {
                    let target = cache.block(way.linked);
                    assert_eq!(leads_to, cache.code(way.linked) + u64::from(target.entries.host));
                    if way.guard.is_some() {
                        assert_eq!(self.word(code + u64::from(NUMBER)), target.page_number);
                    }
                } else {
                    assert_eq!(leads_to, code + u64::from(way.stub), "a way of {id} is not closed");
                }
            }
        }
        for &id in &all {
            let (mut way, mut found) = (cache.block(id).incoming, Vec::new());
            while way != NONE {
                let (from, slot) = of_way(way.into());
                found.push((from, slot));
                way = cache.store.slots(from)[slot].next;
            }
            found.sort_unstable();
            incoming[id as usize].sort_unstable();
            assert_eq!(found, incoming[id as usize], "ways that lead to {id}");
        }
        for page in 0..PAGES as u32 {
            let known = cache.by_page.get(&page).cloned().unwrap_or_default();
            assert_eq!(self.ram.is_code(page), !known.is_empty(), "mark of page {page}");
            let valid = all.iter().filter(|&&id| cache.block(id).valid);
            assert!(
                valid
                    .filter(|&&id| cache.block(id).key.pages().any(|of| of == page))
                    .all(|id| known.contains(id))
            );
            assert!(known.iter().all(|id| all.contains(id)));
        }
        let dead = all.iter().map(|&id| cache.block(id)).filter(|block| !block.valid);
        assert_eq!(cache.bytes().1, dead.map(|block| usize::from(block.code_len)).sum::<usize>());
    }
}

#[test]
fn whatever_comes_and_goes_nothing_leads_to_what_is_gone() {
    // More CPUs than regions, too: then one takes another's.
    for cpus in [1, 2, 3, 7] {
        whatever_comes_and_goes(Fixture::new(cpus));
    }
}

fn whatever_comes_and_goes(mut fixture: Fixture) {
    for _ in 0..4000 {
        match fixture.number(10) {
            0..6 => {
                let keys = [fixture.some_key(), fixture.some_key()];
                let from = fixture.block(keys[0]);
                let voided = fixture.cache.voided();
                let to = fixture.block(keys[1]);
                let slot = fixture.number(2) as usize;
                if voided == fixture.cache.voided() {
                    fixture.cache.link(from, slot, to);
                }
            }
            6..9 => {
                let (page, offset) = (fixture.number(PAGES) as u32, fixture.number(4096) as u32);
                let len = fixture.number(600) as u32 + 1;
                let hit =
                    fixture.all().into_iter().filter(|&id| fixture.cache.block(id).covers(page, offset, len));
                let hit: Vec<_> = hit.filter(|&id| fixture.cache.block(id).valid).collect();
                fixture.cache.written(&fixture.ram, page, offset, len);
                assert!(hit.iter().all(|&id| !fixture.cache.block(id).valid));
            }
            _ => {
                let all = fixture.all();
                if !all.is_empty() {
                    let id = all[fixture.number(all.len() as u64) as usize];
                    fixture.cache.use_table(id, 0);
                }
            }
        }
        fixture.check();
    }
    assert!(fixture.cache.counters.reclaimed > 20, "{:?}", fixture.cache.counters);
    assert!(fixture.cache.buffer.bytes(fixture.cache.buffer.range().start, 100) == [0xcc; 100]);
    let pages: Vec<u32> = (0..PAGES as u32).collect();
    fixture.cache.clear(&fixture.ram);
    assert!(pages.iter().all(|&page| !fixture.ram.is_code(page)) && fixture.all().is_empty());
}

#[test]
fn what_is_mostly_of_no_use_goes_before_memory_is_taken() {
    let mut fixture = Fixture::new(1);
    let fill = |fixture: &mut Fixture, first: u64| {
        let (mut region, mut made) = (fixture.region(), Vec::new());
        for n in first.. {
            let key = TbKey::new(n % PAGES * 4096, n * 0x10000, MODE);
            let id = fixture.block(key);
            if region.is_some() && fixture.region() != region {
                return made;
            }
            region = fixture.region();
            made.push((id, key));
        }
        made
    };
    let first = fill(&mut fixture, 0);
    assert_eq!(fixture.region(), Some(1));
    for &(id, _) in &first {
        fixture.cache.use_table(id, 0);
    }
    fill(&mut fixture, 1000);
    assert_eq!((fixture.region(), fixture.cache.counters.reclaimed), (Some(0), 1));
    assert!(first.iter().all(|(_, key)| fixture.cache.find(key).is_none()));
    fill(&mut fixture, 2000);
    fill(&mut fixture, 3000);
    assert_eq!((fixture.region(), fixture.cache.counters.reclaimed), (Some(3), 1), "all is of use");
    fill(&mut fixture, 4000);
    assert_eq!((fixture.region(), fixture.cache.counters.reclaimed), (Some(1), 2), "the oldest");
    fixture.check();
}

use super::*;

/// One for each test: they run side by side.
const MACHINE: usize = 1;
const SECOND_MACHINE: usize = 2;
const THIRD_MACHINE: usize = 3;
/// Where nothing lies in a test's process.
const FREE: u64 = 0x3100_0000_0000;
const REGION: u64 = 1 << REGION_BITS;
const HERE: Claim = Claim::Granted { shift: 0 };

/// Programs at addresses of their own have windows side by side; one within reach of another has them elsewhere.
#[test]
fn a_region_is_one_address_spaces() {
    let (one, joined) = join(0x1000, MACHINE, 0);
    assert!(!joined);
    let (other, _) = join(0x2000, MACHINE, 1);
    assert_eq!(claim(one, FREE, 0), HERE);
    assert_eq!(claim(one, FREE + REGION, 0), HERE);
    assert_eq!(claim(one, FREE, 5), HERE, "once for all");
    // Out of reach of the other's, and of its own that are shifted by more or less.
    for near in [FREE - 1, FREE, FREE + REGION, FREE + 2 * REGION] {
        assert_eq!(claim(other, near, 0), Claim::Granted { shift: 2 }, "{near:#x}");
    }
    assert_eq!(claim(other, FREE - 3 * REGION, 0), HERE);
    assert_eq!(claim(other, FREE + 7 * REGION, 0), Claim::Granted { shift: 1 });
    let offset = |address| offset_at(other, address).map(|offset| offset >> SHIFT_BITS);
    assert_eq!(offset(FREE - 2 * REGION - REACH), Some(0));
    assert_eq!([offset(FREE + 3 * REGION - REACH), offset(FREE + 3 * REGION - REACH - 1)], [Some(2), None]);
    assert_eq!([offset(FREE + 6 * REGION), offset(FREE + 7 * REGION + REACH - 1)], [Some(2); 2]);
    assert_eq!([offset(FREE + 7 * REGION + REACH), offset(FREE + 9 * REGION)], [None, Some(1)]);
    assert!(is_taken(0x2000, FREE) && !is_taken(0x1000, FREE) && is_taken(0x1000, FREE - 2 * REGION));
    assert_eq!(another(MACHINE, other), Some(one));
    assert_eq!(another(usize::MAX, other), None);

    assert!(end(one, members(one, MACHINE).expect("its machine")));
    assert_eq!(claim(other, FREE + 12 * REGION, 0), HERE);
    assert_eq!(claim(one, FREE + REGION, 0), Claim::Refused, "what has ended asks for nothing");
    leave(other, 1);
    assert!(is_unused(other, Duration::MAX));
}

/// The last CPU that leaves closes them. One that was told to leave, and is slow, does not close those that came after.
#[test]
fn windows_last_as_long_as_a_cpu_reaches_them() {
    let owner = 0x3000;
    let cpus = |tenure| members(tenure, SECOND_MACHINE).expect("its machine").cpus;
    let (tenure, _) = join(owner, SECOND_MACHINE, 0);
    assert_eq!(join(owner, SECOND_MACHINE, 5), (tenure, true));
    let asked = members(tenure, SECOND_MACHINE).expect("its machine");
    assert_eq!(asked.cpus, 0b10_0001);
    assert_eq!(members(tenure, MACHINE), None);
    leave(tenure, 0);
    assert_eq!(cpus(tenure), 0b10_0000);
    // One that has left comes back before all have been heard of: it is not to lose what it reaches.
    assert_eq!(join(owner, SECOND_MACHINE, 0), (tenure, true));
    assert!(!end(tenure, asked));
    assert_eq!(cpus(tenure), 0b10_0001);
    let asked = members(tenure, SECOND_MACHINE).expect("its machine");
    assert!(end(tenure, asked));

    let (next, joined) = join(owner, SECOND_MACHINE, 0);
    assert!(!joined && next != tenure);
    leave(tenure, 5);
    leave(tenure, 0);
    assert!(end(tenure, asked));
    assert_eq!(cpus(next), 1);
    leave(next, 0);
    assert_eq!(cpus(next), 0);
}

/// A guest whose programs come and go at random addresses does not use up what can be reserved.
#[test]
fn regions_that_nobody_uses_are_given_back() {
    for round in 0..3 {
        let (tenure, _) = join(0x4000, THIRD_MACHINE, 0);
        for number in 0..MAX_REGIONS as u64 / 2 {
            let address = 0x4000_0000_0000 + (round * MAX_REGIONS as u64 + 2 * number) * REGION;
            assert_eq!(claim(tenure, address, 0), HERE, "{address:#x}");
        }
        leave(tenure, 0);
    }
}

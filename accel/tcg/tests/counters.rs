//! What the translator counts, of a guest that does a known number of each thing.

#[path = "support/long_guest.rs"]
mod long_guest;

use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};
use long_guest::{CODE, DATA, Guest};
use tracing::{Event, Level, Metadata, Subscriber, span};

/// Rounds of the guest's loop.
const ROUNDS: u64 = 1000;

/// Wants what `-d jit` does.
struct Jit;

impl Subscriber for Jit {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "jit" && *metadata.level() <= Level::TRACE
    }
    fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}
    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}
    fn event(&self, _event: &Event<'_>) {}
    fn enter(&self, _span: &span::Id) {}
    fn exit(&self, _span: &span::Id) {}
}

/// Each round: a call with its return, SMSW (a helper's), and accesses to two constant pages, each of which misses the
/// slot that they share.
fn code() -> Vec<u8> {
    let mut e = VecAssembler::<X64Relocation>::new(0);
    dynasm!(e ; .arch x64
        ; mov r12d, ROUNDS as i32
        ; again:
        ; call >function
        ; smsw eax
        ; inc QWORD [DATA as i32]
        ; inc QWORD [DATA as i32 + 0x10000]
        ; dec r12d
        ; jnz <again
        ; syscall
        ; function:
        ; ret);
    e.finalize().expect("labels are bound")
}

/// The guest after its run, and the rows of its statistics.
fn run() -> impl FnMut(&str) -> Option<u64> {
    let mut guest = Guest::new(&[(CODE, code())]);
    guest.run(3);
    let mut counted = move |name: &str| guest.counted(name);
    let mut count = |name| counted(name).expect("a row of that name");
    assert_eq!(count("instructions executed by a helper") / ROUNDS, 1);
    let misses = count("slot misses");
    assert!((2 * ROUNDS - 10..2 * ROUNDS + 10).contains(&misses), "{misses} slot misses");
    assert!(count("blocks") >= 3);
    assert!(count("guest bytes") > count("guest instructions"));
    assert!(count("jumps linked") >= 1);
    assert!(count("link") >= count("jumps linked"));
    assert!(count("soft-TLB refills") >= 2);
    assert_eq!(count("exceptions delivered"), 0);
    counted
}

#[test]
fn misses_are_counted_always_and_checks_on_demand() {
    let mut counted = run();
    assert_eq!(counted("returns predicted"), None);
    tracing::subscriber::with_default(Jit, || {
        let mut counted = run();
        assert!(counted("checks by slot, together") >= Some(2 * ROUNDS));
        assert_eq!(counted("returns predicted"), Some(ROUNDS));
    });
}

//! What the program's exit status means.
//!
//! | status | meaning |
//! |---|---|
//! | 0 | the guest switched itself off, or reset itself under `-no-reboot`; or the user ended the program (Ctrl-A x) |
//! | 1 | the program could not do what it was asked: bad option, missing file, no usable accelerator, host failure |
//! | odd | the guest's own: isa-debug-exit makes `(value << 1) \| 1` of what it writes |
//! | 120 | the guest crashed: a CPU's triple fault, or a panic of its kernel that pvpanic told of |
//! | 122 | the engine could not execute the guest: its own fault, or KVM gave up on an instruction |
//! | 124 | `-timeout` |
//!
//! Our own codes above 1 are even, so the guest's cannot be taken for them. A signal that ended the program is passed
//! on: the parent sees the program die of it (shells show 128 plus its number).

/// Power-off, reset under `-no-reboot`, or the user's wish.
pub const SUCCESS: u8 = 0;
/// The program could not do what it was asked.
pub const ERROR: u8 = 1;
/// Triple fault, or a panic that was told.
pub const GUEST_CRASH: u8 = 120;
/// The engine could not execute the guest.
pub const ENGINE_FAILURE: u8 = 122;
/// `-timeout`.
pub const TIMEOUT: u8 = 124;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_choose_ours() {
        let ours = [GUEST_CRASH, ENGINE_FAILURE, TIMEOUT];
        for value in 0..=u8::MAX {
            let of_guest = (value << 1) | 1;
            assert!(of_guest != SUCCESS && !ours.contains(&of_guest));
        }
    }
}

//! Ranks of the machine's locks, checked in debug builds (DESIGN.md, *The lifecycle*: locks).
//!
//! A thread takes locks in the order of their ranks only, and never two of one rank: a device drives its line, the line
//! its pin, the pin an interrupt controller, that one a CPU's mailbox. Whoever goes the other way must let go first.
//! Two threads can then not wait for each other. A CPU holds none in the guest.
//!
//! Locks that nobody takes another under (backends' buffers, a clock's queue) need no rank.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{LockResult, PoisonError};

/// The ranks, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Rank {
    /// A device's registers.
    Device,
    /// One device's wire.
    Line,
    /// An interrupt controller's input, which wires share.
    Pin,
    /// An interrupt controller's registers.
    Irqchip,
    /// The mailbox of a CPU's thread.
    Mailbox,
}

thread_local! {
    /// A bit per rank that this thread holds.
    static HELD: Cell<u8> = const { Cell::new(0) };
}

/// Loom's threads share one thread of the host, so the check is off there.
const CHECKED: bool = cfg!(all(debug_assertions, not(loom)));

/// That the thread holds a lock of some rank, until dropped.
#[must_use]
pub struct Held {
    rank: Rank,
    not_send: PhantomData<*const ()>,
}

/// Says that the thread is about to take a lock of `rank`.
///
/// Panics in debug builds if it holds one of that rank or a higher one.
pub fn hold(rank: Rank) -> Held {
    if CHECKED {
        let held = HELD.get();
        assert!(held >> rank as u8 == 0, "lock of rank {rank:?} with ranks {held:#b} held");
        HELD.set(held | 1 << rank as u8);
    }
    Held { rank, not_send: PhantomData }
}

/// Panics in debug builds if the thread holds a ranked lock.
pub fn assert_none_held() {
    if CHECKED {
        let held = HELD.get();
        assert!(held == 0, "ranks {held:#b} held");
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if CHECKED {
            HELD.set(HELD.get() & !(1 << self.rank as u8));
        }
    }
}

/// A rank as a type, so that a lock's rank stands in its declaration.
pub trait Ranked {
    /// The rank.
    const RANK: Rank;
}

/// [`std::sync::Mutex`] with a rank.
#[derive(Debug)]
pub struct Mutex<T, R> {
    inner: std::sync::Mutex<T>,
    rank: PhantomData<fn() -> R>,
}

/// [`std::sync::MutexGuard`] of a [`Mutex`].
pub struct MutexGuard<'a, T> {
    // In the order of release: the lock, then the rank.
    inner: std::sync::MutexGuard<'a, T>,
    _held: Held,
}

impl<T, R: Ranked> Mutex<T, R> {
    /// An unlocked lock around `value`.
    pub fn new(value: T) -> Self {
        Self { inner: std::sync::Mutex::new(value), rank: PhantomData }
    }

    /// Waits for the lock and takes it; an error where a holder has panicked.
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        let held = hold(R::RANK);
        match self.inner.lock() {
            Ok(inner) => Ok(MutexGuard { inner, _held: held }),
            Err(poisoned) => Err(PoisonError::new(MutexGuard { inner: poisoned.into_inner(), _held: held })),
        }
    }
}

impl<T: Default, R: Ranked> Default for Mutex<T, R> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

macro_rules! ranks {
    ($($(#[$doc:meta])* $module:ident: $rank:ident;)*) => {
        $(
            $(#[$doc])*
            pub mod $module {
                /// The rank as a type.
                #[derive(Debug)]
                pub struct Rank;
                impl super::Ranked for Rank {
                    const RANK: super::Rank = super::Rank::$rank;
                }
                /// A lock of this rank.
                pub type Mutex<T> = super::Mutex<T, Rank>;
                pub use super::MutexGuard;
            }
        )*
    };
}

ranks! {
    /// Locks of devices.
    device: Device;
    /// Locks of wires.
    line: Line;
    /// Locks of shared pins.
    pin: Pin;
    /// Locks of interrupt controllers.
    irqchip: Irqchip;
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn up_is_fine_in_any_order_of_release() {
        let (low, high) = (device::Mutex::new(1), irqchip::Mutex::new(2));
        let first = low.lock().unwrap();
        let second = high.lock().unwrap();
        drop(first);
        assert_eq!(*second, 2);
        drop(second);
        assert_none_held();
        *low.lock().unwrap() += 1;
        assert_eq!(*low.lock().unwrap(), 2);
    }

    #[test]
    #[cfg_attr(not(debug_assertions), ignore = "checked in debug builds")]
    #[should_panic(expected = "lock of rank Device")]
    fn down_is_told() {
        let (low, high) = (device::Mutex::new(1), irqchip::Mutex::new(2));
        let _high = high.lock().unwrap();
        let _low = low.lock();
    }

    #[test]
    #[cfg_attr(not(debug_assertions), ignore = "checked in debug builds")]
    #[should_panic(expected = "lock of rank Device")]
    fn two_of_a_rank_are_told() {
        let (one, other) = (device::Mutex::new(1), device::Mutex::new(2));
        let _one = one.lock().unwrap();
        let _other = other.lock();
    }

    #[test]
    #[cfg_attr(not(debug_assertions), ignore = "checked in debug builds")]
    #[should_panic(expected = "held")]
    fn into_the_guest_with_a_lock_is_told() {
        let lock = device::Mutex::new(1);
        let _guard = lock.lock().unwrap();
        assert_none_held();
    }
}

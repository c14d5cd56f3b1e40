//! Stress: translated code without one or another thing that makes it fast, or with what is rare happening all the time.
//! The guest must not notice any of it, so each mode runs ways through the translator that are hard to come by otherwise.

use std::str::FromStr;

/// What is done without, or all the time. Nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stress {
    /// Nothing is entered into the soft TLB, and no slot matches: every access misses, and is translated by a helper.
    pub misses: bool,
    /// No check of a group is made good: the blocks go on without groups.
    pub ungrouped: bool,
    /// Whenever the loop looks for a block, and after each helper, everything that the MMU holds is flushed: soft TLB, slots,
    /// jump and return caches. Code memory is as small as can be, so that all code is thrown away every now and then, too.
    pub flushes: bool,
    /// Each poll leaves but those of blocks that the loop enters, and so does each helper.
    pub kicks: bool,
    /// No block leads to the next: no linked jumps, no jump caches, no return caches.
    pub unchained: bool,
    /// One instruction to a block.
    pub one_instruction: bool,
    /// The loop is asked after each instruction, as under a debugger.
    pub stepped: bool,
    /// Every access is looked up in the table, none in slots.
    pub hashed: bool,
    /// Blocks end at their first jump.
    pub short: bool,
    /// User programs have windows from their first instruction on; with several CPUs, from their first timer tick on, and each CPU has
    /// another one lose them at every few ticks.
    pub windows: bool,
    /// All windows are elsewhere than where the program has its memory.
    pub shifts: bool,
    /// Code memory is as small as can be, and so are its regions: one is reclaimed for every few blocks.
    pub reclaims: bool,
}

/// Where a switch is.
type Switch = fn(&mut Stress) -> &mut bool;

impl Stress {
    /// The switches by name.
    const NAMES: [(&str, Switch); 12] = [
        ("misses", |stress| &mut stress.misses),
        ("ungrouped", |stress| &mut stress.ungrouped),
        ("flushes", |stress| &mut stress.flushes),
        ("kicks", |stress| &mut stress.kicks),
        ("unchained", |stress| &mut stress.unchained),
        ("one-instruction", |stress| &mut stress.one_instruction),
        ("stepped", |stress| &mut stress.stepped),
        ("hashed", |stress| &mut stress.hashed),
        ("short", |stress| &mut stress.short),
        ("windows", |stress| &mut stress.windows),
        ("shifts", |stress| &mut stress.shifts),
        ("reclaims", |stress| &mut stress.reclaims),
    ];

    /// The names.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().map(|(name, _)| name)
    }
}

/// There is no stress of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no stress '{0}' ({known}, joined by +)", known = Stress::names().collect::<Vec<_>>().join(", "))]
pub struct UnknownStress(String);

impl FromStr for Stress {
    type Err = UnknownStress;

    /// Names joined by `+`.
    fn from_str(text: &str) -> Result<Self, UnknownStress> {
        let mut stress = Self::default();
        for name in text.split('+') {
            let known = Self::NAMES.into_iter().find(|(known, _)| *known == name);
            let (_, switch) = known.ok_or_else(|| UnknownStress(name.into()))?;
            *switch(&mut stress) = true;
        }
        Ok(stress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_set_their_switches() {
        let both = Stress { misses: true, kicks: true, ..Stress::default() };
        assert_eq!("misses+kicks".parse(), Ok(both));
        for name in Stress::names() {
            assert_ne!(name.parse(), Ok(Stress::default()), "{name}");
        }
        let error = "misses+mist".parse::<Stress>().unwrap_err().to_string();
        assert!(error.starts_with("no stress 'mist' (misses, "), "{error}");
    }
}

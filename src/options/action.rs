//! `-action EVENT=ACTION`, and what `-no-reboot`, `-no-shutdown` and `-watchdog-action` say of the same (QEMU, *Invocation*).

use super::error::{Context, OptionError};
use super::syntax;

/// What follows a panic of the guest's kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PanicAction {
    /// The program ends, with the code of a crash.
    #[default]
    End,
    /// The guest is stopped, and the program stays.
    Pause,
    /// Nothing.
    None,
}

/// What follows when a watchdog was not fed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WatchdogAction {
    /// The guest is reset.
    #[default]
    Reset,
    /// The program ends, with the code of a crash.
    Poweroff,
    /// The guest is stopped, and the program stays.
    Pause,
    /// A line tells of it.
    Debug,
    /// Nothing.
    None,
    /// CPU 0 gets an NMI.
    InjectNmi,
}

impl WatchdogAction {
    /// QEMU's names.
    const NAMES: &[(&str, Self)] = &[
        ("reset", Self::Reset),
        ("poweroff", Self::Poweroff),
        ("pause", Self::Pause),
        ("debug", Self::Debug),
        ("none", Self::None),
        ("inject-nmi", Self::InjectNmi),
    ];

    /// Reads one.
    pub fn of(context: Context, name: &str) -> Result<Self, OptionError> {
        if name == "shutdown" {
            return Err(context.not_built("a power button, to ask the guest with"));
        }
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        let expected = || {
            let names: Vec<&str> = Self::NAMES.iter().map(|(name, _)| *name).collect();
            context.bad(format!("the watchdog's action is one of {}", names.join(", ")))
        };
        found.map(|(_, action)| *action).ok_or_else(expected)
    }
}

/// What follows what guests do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    /// A reset ends the program.
    pub no_reboot: bool,
    /// A power-off does not end the program.
    pub no_shutdown: bool,
    /// After a panic.
    pub panic: PanicAction,
    /// After a watchdog's time.
    pub watchdog: WatchdogAction,
}

impl Actions {
    /// Reads one `-action`.
    pub fn add(&mut self, context: Context) -> Result<(), OptionError> {
        for pair in syntax::pairs(context.value, "") {
            match (pair.key.as_str(), pair.value.as_str()) {
                ("reboot", "reset") => self.no_reboot = false,
                ("reboot", "shutdown") => self.no_reboot = true,
                ("reboot", _) => return Err(context.bad("reboot= takes reset or shutdown")),
                ("shutdown", "poweroff") => self.no_shutdown = false,
                ("shutdown", "pause") => self.no_shutdown = true,
                ("shutdown", _) => return Err(context.bad("shutdown= takes poweroff or pause")),
                // Never 0: whoever runs guests in scripts wants to know.
                ("panic", "shutdown" | "exit-failure") => self.panic = PanicAction::End,
                ("panic", "pause") => self.panic = PanicAction::Pause,
                ("panic", "none") => self.panic = PanicAction::None,
                ("panic", _) => {
                    return Err(context.bad("panic= takes shutdown, exit-failure, pause or none"));
                }
                ("watchdog", name) => self.watchdog = WatchdogAction::of(context, name)?,
                ("", _) => return Err(context.bad("takes EVENT=ACTION")),
                (key, _) => {
                    return Err(
                        context.unknown_of(key, ["reboot", "shutdown", "panic", "watchdog"].into_iter())
                    );
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Result<Actions, String> {
        let mut actions = Actions::default();
        actions.add(Context { option: "-action", value }).map_err(|error| error.to_string())?;
        Ok(actions)
    }

    #[test]
    fn events_have_actions() {
        let expected = Actions {
            no_reboot: true,
            no_shutdown: true,
            panic: PanicAction::Pause,
            watchdog: WatchdogAction::InjectNmi,
        };
        assert_eq!(read("reboot=shutdown,shutdown=pause,panic=pause,watchdog=inject-nmi"), Ok(expected));
        assert_eq!(read("reboot=reset,shutdown=poweroff,panic=exit-failure"), Ok(Actions::default()));
        assert_eq!(read("panic=none").unwrap().panic, PanicAction::None);
        for (value, part) in [
            ("reboot", "takes EVENT=ACTION"),
            ("reboot=on", "reboot= takes reset or shutdown"),
            ("shutdown=off", "shutdown= takes poweroff or pause"),
            ("panic=run", "panic= takes shutdown, exit-failure, pause or none"),
            ("watchdog=bark", "reset, poweroff, pause, debug, none, inject-nmi"),
            ("watchdog=shutdown", "a power button, to ask the guest with: not built yet"),
            ("panik=none", "did you mean 'panic'?"),
        ] {
            let error = read(value).unwrap_err();
            assert!(error.contains(part), "{value}: {error}");
        }
    }
}

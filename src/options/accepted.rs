//! Options that are read, and then have no effect since what they ask for is so anyway; what would have one is refused (QEMU,
//! *Invocation*).

use super::error::{Context, OptionError};
use super::syntax;

/// `-boot`: there is no firmware that would choose among devices; the kernel is on the command line.
pub fn boot(context: Context) -> Result<(), OptionError> {
    let known = ["order", "once", "menu", "splash", "splash-time", "reboot-timeout", "strict"];
    for pair in syntax::pairs(context.value, "order") {
        let (key, value) = (pair.key.as_str(), pair.value.as_str());
        let switch = || syntax::on_off(value).ok_or_else(|| context.bad(format!("{key}= takes on or off")));
        match key {
            "order" | "once" => {
                let is_drive = |drive: char| ('a'..='p').contains(&drive);
                let twice = value.char_indices().any(|(at, drive)| value[..at].contains(drive));
                if !value.chars().all(is_drive) || twice {
                    return Err(context.bad(format!("{key}= takes letters a to p, each once")));
                }
            }
            "strict" => drop(switch()?),
            "menu" if !switch()? => {}
            "reboot-timeout" if value == "-1" || syntax::integer(value).is_some() => {}
            "reboot-timeout" => return Err(context.bad("reboot-timeout= takes milliseconds, or -1")),
            "menu" | "splash" | "splash-time" => {
                return Err(context.not_built(&format!("{key}= (there is no firmware)")));
            }
            _ => return Err(context.unknown_of(key, known.into_iter())),
        }
    }
    Ok(())
}

/// Options whose switches are all off here.
pub fn all_off(context: Context, first: &str, known: &[&str]) -> Result<(), OptionError> {
    for pair in syntax::pairs(context.value, first) {
        if !known.contains(&pair.key.as_str()) {
            return Err(context.unknown_of(&pair.key, known.iter().copied()));
        }
        match syntax::on_off(&pair.value) {
            Some(false) => {}
            _ => return Err(context.not_built(&format!("{}={}", pair.key, pair.value))),
        }
    }
    Ok(())
}

/// `-audio`, `-audiodev`: none.
pub fn audio(context: Context) -> Result<(), OptionError> {
    match &syntax::pairs(context.value, "driver")[0] {
        pair if pair.key == "driver" && pair.value == "none" => Ok(()),
        _ => Err(OptionError::Never { option: context.option.into(), why: super::refused::SOUND }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_orders() {
        let read = |value| boot(Context { option: "-boot", value }).map_err(|error| error.to_string());
        for good in ["c", "order=dc,once=d,menu=off,strict=on", "nc", "reboot-timeout=-1"] {
            assert_eq!(read(good), Ok(()), "{good}");
        }
        for (value, part) in [
            ("cc", "order= takes letters a to p, each once"),
            ("order=z", "order= takes letters"),
            ("order=é", "order= takes letters"),
            ("order=ééc", "order= takes letters"),
            ("menu=on", "there is no firmware"),
            ("strict=maybe", "strict= takes on or off"),
            ("ordr=c", "did you mean 'order'?"),
        ] {
            let error = read(value).unwrap_err();
            assert!(error.contains(part), "{value}: {error}");
        }
    }

    #[test]
    fn what_is_off_anyway() {
        let read = |value| {
            all_off(Context { option: "-overcommit", value }, "mem-lock", &["mem-lock", "cpu-pm"])
                .map_err(|error| error.to_string())
        };
        assert_eq!(read("mem-lock=off,cpu-pm=off"), Ok(()));
        assert!(read("cpu-pm=on").unwrap_err().ends_with("cpu-pm=on: not built yet"));
        assert!(read("cpu-pn=off").unwrap_err().contains("did you mean 'cpu-pm'?"));
    }
}

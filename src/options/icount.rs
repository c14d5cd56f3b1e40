//! `-icount` and `-rtc` (QEMU, *Invocation*).

use std::time::Duration;

use devices::clock::icount::{MAX_SHIFT, Pace, Shift, Sleep};

use super::accel::{AccelChoice, TcgThread};
use super::error::{Context, OptionError};
use super::syntax;

/// Reads the argument of `-icount`.
pub fn pace(context: Context) -> Result<Pace, OptionError> {
    let mut shift = None;
    let mut sleep = Sleep::On;
    let mut align = false;
    for pair in syntax::pairs(context.value, "shift") {
        let on_off = || {
            syntax::on_off(&pair.value).ok_or_else(|| context.bad(format!("{}= takes on or off", pair.key)))
        };
        match pair.key.as_str() {
            "shift" if pair.value == "auto" => shift = Some(Shift::Auto),
            "shift" => {
                let bits = pair.value.parse().ok().filter(|&bits| bits <= MAX_SHIFT);
                let bits =
                    bits.ok_or_else(|| context.bad(format!("shift= takes 0 to {MAX_SHIFT}, or auto")))?;
                shift = Some(Shift::Fixed(bits));
            }
            "sleep" => sleep = if on_off()? { Sleep::On } else { Sleep::Off },
            "align" => align = on_off()?,
            "rr" | "rrfile" | "rrsnapshot" => return Err(context.not_built(&pair.key)),
            _ => return Err(context.unknown(&pair.key)),
        }
    }
    let shift = shift.ok_or_else(|| context.bad("needs shift=N or shift=auto"))?;
    if align && shift == Shift::Auto {
        return Err(context.bad("align=on needs a fixed shift"));
    }
    if align && sleep == Sleep::Off {
        return Err(context.bad("align=on and sleep=off contradict each other"));
    }
    Ok(Pace { shift, sleep, align })
}

/// What of `choices` can count instructions: the translator, on one thread. `asked`: the user named them.
pub fn restrict(choices: Vec<AccelChoice>, asked: bool) -> Result<Vec<AccelChoice>, OptionError> {
    let mut restricted = Vec::new();
    for choice in choices {
        match choice {
            AccelChoice::Kvm(_) if asked => return Err(OptionError::IcountNeedsTcg),
            AccelChoice::Kvm(_) => {}
            AccelChoice::Tcg(tcg) if tcg.thread == Some(TcgThread::Multi) => {
                return Err(OptionError::IcountNeedsOneThread);
            }
            AccelChoice::Tcg(tcg) => restricted.push(AccelChoice::Tcg(tcg)),
        }
    }
    Ok(restricted)
}

/// The date that the guest's real-time clock shows at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RtcBase {
    /// The host's.
    Host,
    /// What clocks on the wall show where the host is.
    Local,
    /// This one, since 1970 (UTC).
    At(Duration),
}

/// The date under `-icount` unless `-rtc` says another: 1 January 2024, 00:00 UTC. The host's would make runs differ.
pub const ICOUNT_DATE: RtcBase = RtcBase::At(Duration::from_secs(1_704_067_200));

/// Reads the argument of `-rtc`.
pub fn rtc(context: Context) -> Result<Option<RtcBase>, OptionError> {
    let mut base = None;
    for pair in syntax::pairs(context.value, "base") {
        match pair.key.as_str() {
            "base" if pair.value == "utc" => base = Some(RtcBase::Host),
            "base" if pair.value == "localtime" => base = Some(RtcBase::Local),
            "base" => {
                let date = date(&pair.value).ok_or_else(|| {
                    context.bad("base= takes utc, localtime, or a date as 2006-06-17[T16:01:21]")
                })?;
                base = Some(RtcBase::At(date));
            }
            // The clock goes by guest time.
            "clock" if matches!(pair.value.as_str(), "host" | "vm") => {}
            "clock" if pair.value == "rt" => return Err(context.not_built("clock=rt")),
            "clock" => return Err(context.bad("clock= takes host or vm")),
            "driftfix" if pair.value == "none" => {}
            "driftfix" => return Err(context.not_built(&format!("driftfix={}", pair.value))),
            key => return Err(context.unknown_of(key, ["base", "clock", "driftfix"].into_iter())),
        }
    }
    Ok(base)
}

/// `YYYY-MM-DD`, with or without `THH:MM:SS`, since 1970.
fn date(text: &str) -> Option<Duration> {
    let (day, time) = text.split_once('T').unwrap_or((text, "00:00:00"));
    let numbers = |text: &str, by: char, digits: [usize; 3]| -> Option<[u64; 3]> {
        let mut parts = text.split(by);
        let mut part = |digits| {
            let part = parts.next()?;
            let all_digits = part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit());
            all_digits.then(|| part.parse().ok()).flatten()
        };
        let numbers = [part(digits[0])?, part(digits[1])?, part(digits[2])?];
        parts.next().is_none().then_some(numbers)
    };
    let [year, month, day] = numbers(day, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    if year < 1970 || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let february = if leap(year) { 29 } else { 28 };
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let length = *months.get(usize::try_from(month).ok()?.checked_sub(1)?)?;
    if !(1..=length).contains(&day) {
        return None;
    }
    let years: u64 = (1970..year).map(|year| if leap(year) { 366 } else { 365 }).sum();
    let before: u64 = months.iter().take(usize::try_from(month).ok()? - 1).sum();
    let days = years + before + day - 1;
    Some(Duration::from_secs(((days * 24 + hour) * 60 + minute) * 60 + second))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::accel::{KvmChoice, TcgChoice};

    fn read(value: &str) -> Result<Pace, String> {
        pace(Context { option: "-icount", value }).map_err(|error| error.to_string())
    }

    #[test]
    fn shift_sleep_and_align() {
        let fixed = |bits| Pace { shift: Shift::Fixed(bits), sleep: Sleep::On, align: false };
        assert_eq!(read("shift=7"), Ok(fixed(7)));
        assert_eq!(read("0"), Ok(fixed(0)));
        assert_eq!(read("10,align=on"), Ok(Pace { align: true, ..fixed(10) }));
        let auto = Pace { shift: Shift::Auto, sleep: Sleep::Off, align: false };
        assert_eq!(read("auto,sleep=off"), Ok(auto));
        assert_eq!(read("sleep=off,shift=auto,align=off"), Ok(auto));
    }

    #[test]
    fn bad_values_are_named() {
        for (value, part) in [
            ("shift=11", "shift= takes 0 to 10, or auto"),
            ("shift=-1", "shift= takes 0 to 10, or auto"),
            ("", "shift= takes 0 to 10, or auto"),
            ("sleep=off", "needs shift=N or shift=auto"),
            ("3,sleep=maybe", "sleep= takes on or off"),
            ("3,align=", "align= takes on or off"),
            ("auto,align=on", "align=on needs a fixed shift"),
            ("3,align=on,sleep=off", "contradict"),
            ("3,rr=record", "rr: not built yet"),
            ("3,frob=1", "frob"),
        ] {
            let error = read(value).unwrap_err();
            assert!(
                error.contains(part) && error.contains("-icount") && !error.contains('\n'),
                "{value}: {error}"
            );
        }
    }

    #[test]
    fn only_the_translator_on_one_thread_counts() {
        let kvm = || AccelChoice::Kvm(KvmChoice::default());
        let tcg = |thread| AccelChoice::Tcg(TcgChoice { thread, ..TcgChoice::default() });
        assert_eq!(restrict(vec![kvm(), tcg(None)], false).unwrap(), [tcg(None)]);
        let single = Some(TcgThread::Single);
        assert_eq!(restrict(vec![tcg(single)], true).unwrap(), [tcg(single)]);
        for refused in [vec![kvm()], vec![kvm(), tcg(None)], vec![tcg(Some(TcgThread::Multi))]] {
            let error = restrict(refused, true).unwrap_err().to_string();
            assert!(error.starts_with("-icount"), "{error}");
        }
    }

    #[test]
    fn dates() {
        let read = |value| rtc(Context { option: "-rtc", value }).map_err(|error| error.to_string());
        let at = |seconds| Ok(Some(RtcBase::At(Duration::from_secs(seconds))));
        assert_eq!(read("base=utc,clock=host"), Ok(Some(RtcBase::Host)));
        assert_eq!(read("localtime,driftfix=none"), Ok(Some(RtcBase::Local)));
        assert_eq!(read("clock=vm"), Ok(None));
        assert_eq!(read("base=1970-01-01"), at(0));
        assert_eq!(read("base=2006-06-17T16:01:21"), at(1_150_560_081));
        assert_eq!(read("2024-02-29"), at(1_709_164_800));
        assert_eq!(read("base=2000-03-01T00:00:01"), at(951_868_801));
        assert_eq!(Ok(Some(ICOUNT_DATE)), read("2024-01-01"));
        for value in [
            "2023-02-29",
            "2024-13-01",
            "2024-00-01",
            "2024-1-1",
            "1969-12-31",
            "2024-01-01T24:00:00",
            "2024-01-01T00:00",
            "2024-01-01-01",
            "+024-01-01",
            "base=now",
            "clock=sun",
        ] {
            assert!(read(value).is_err(), "{value}");
        }
    }
}

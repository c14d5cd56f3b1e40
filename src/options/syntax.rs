//! The `key=value,,` lists of QEMU's command line (QEMU, *Invocation*).

/// One `key=value` of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The key; that of the first item may be left out on the command line.
    pub key: String,
    /// The value; `on` where there was none.
    pub value: String,
}

/// Cuts `text` at single commas; a doubled one stands for itself.
pub fn split(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            items.push(String::new());
        } else {
            items.last_mut().expect("starts with one item and only grows").push(c);
        }
    }
    items
}

/// Reads a list. `first_key` is the key of a first item that has none.
pub fn pairs(text: &str, first_key: &str) -> Vec<Pair> {
    split(text)
        .into_iter()
        .enumerate()
        .map(|(index, item)| match item.split_once('=') {
            Some((key, value)) => Pair { key: key.into(), value: value.into() },
            None if index == 0 => Pair { key: first_key.into(), value: item },
            None => Pair { key: item, value: "on".into() },
        })
        .collect()
}

/// A switch.
pub fn on_off(value: &str) -> Option<bool> {
    match value {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// An integer, decimal or with `0x`.
pub fn integer(value: &str) -> Option<u64> {
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => value.parse().ok(),
    }
}

/// A size in bytes: a number, perhaps with a fraction and one of the suffixes K M G T (powers of 1024), of which
/// `unit` is the one that a number without suffix counts in.
pub fn size(value: &str, unit: u64) -> Option<u64> {
    let (number, unit) = match value.char_indices().next_back()? {
        (_, '0'..='9') => (value, unit),
        (at, suffix) => {
            let shift = match suffix.to_ascii_uppercase() {
                'B' => 0,
                'K' => 10,
                'M' => 20,
                'G' => 30,
                'T' => 40,
                _ => return None,
            };
            (&value[..at], 1u64 << shift)
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = u128::from(unit) * fraction.parse::<u128>().ok()? / scale;
    whole.parse::<u64>().ok()?.checked_mul(unit)?.checked_add(u64::try_from(part).ok()?)
}

/// The name among `known` that `word` is most likely a slip for, if there is one.
pub fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let slips = (word.len() / 3).max(1);
    let near = known.map(|name| (strsim::osa_distance(word, name), name)).filter(|&(slip, _)| slip <= slips);
    near.min_by_key(|&(slip, _)| slip).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised() {
        let known = || ["serial", "drive", "num-queues"].into_iter();
        assert_eq!(nearest("seriel", known()), Some("serial"));
        assert_eq!(nearest("num_queues", known()), Some("num-queues"));
        assert_eq!(nearest("driv", known()), Some("drive"));
        assert_eq!(nearest("frob", known()), None);
        assert_eq!(nearest("dirve", known()), Some("drive"));
    }

    #[test]
    fn a_doubled_comma_is_a_comma() {
        assert_eq!(split("a,b"), ["a", "b"]);
        assert_eq!(split("a,,b"), ["a,b"]);
        assert_eq!(split("a,,,b"), ["a,", "b"]);
        assert_eq!(split(",,"), [","]);
        assert_eq!(split(""), [""]);
    }

    #[test]
    fn the_first_key_may_be_left_out() {
        let pair = |key: &str, value: &str| Pair { key: key.into(), value: value.into() };
        assert_eq!(pairs("kvm,thread=single", "accel"), [pair("accel", "kvm"), pair("thread", "single")]);
        assert_eq!(pairs("accel=tcg,nochain", "accel"), [pair("accel", "tcg"), pair("nochain", "on")]);
        assert_eq!(pairs("a=b=c", "x"), [pair("a", "b=c")]);
    }

    #[test]
    fn sizes() {
        const MIB: u64 = 1 << 20;
        assert_eq!(size("512", MIB), Some(512 * MIB));
        assert_eq!(size("1k", MIB), Some(1024));
        assert_eq!(size("1.5G", MIB), Some(1536 * MIB));
        assert_eq!(size("99T", MIB), Some(99 << 40));
        assert_eq!(size("7b", MIB), Some(7));
        for bad in ["", "k", "-1", "1x", "1.", ".5", "1 k", "99999999999T", "0x10", "é"] {
            assert_eq!(size(bad, MIB), None, "{bad}");
        }
    }

    #[test]
    fn integers() {
        assert_eq!(integer("0xf4"), Some(0xf4));
        assert_eq!(integer("17"), Some(17));
        assert_eq!(integer("f4"), None);
        assert_eq!(integer("+1x"), None);
    }
}

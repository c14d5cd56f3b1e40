//! `-m SIZE` (QEMU, *Invocation*).

use super::error::{Context, OptionError};
use super::syntax;

/// Without `-m`.
pub const DEFAULT_BYTES: u64 = 128 << 20;
/// Below this not even the boot structures fit.
const MIN_BYTES: u64 = 1 << 20;
/// As far as every host's physical addresses reach under the identity-mapped boot page tables.
const MAX_BYTES: u64 = 4 << 40;
const PAGE: u64 = 4096;

/// More than there are places for memory in any PC.
const MAX_SLOTS: u64 = 256;

/// Reads the argument of `-m`: bytes, a multiple of the page size. Memory that could be plugged in later (`slots=`, `maxmem=`) is
/// read and not heard of again: nothing plugs it in.
pub fn bytes(context: Context) -> Result<u64, OptionError> {
    let mut bytes = DEFAULT_BYTES;
    let mut most = None;
    for pair in syntax::pairs(context.value, "size") {
        match pair.key.as_str() {
            "size" => {
                bytes = syntax::size(&pair.value, 1 << 20)
                    .ok_or_else(|| context.bad("takes a size in MiB, or with a suffix K M G T"))?;
            }
            "maxmem" => {
                let size = syntax::size(&pair.value, 1 << 20);
                most = Some(size.ok_or_else(|| context.bad("maxmem= takes a size, such as 4G"))?);
            }
            "slots" => {
                if syntax::integer(&pair.value).is_none_or(|slots| slots > MAX_SLOTS) {
                    return Err(context.bad(format!("slots= takes 0 to {MAX_SLOTS}")));
                }
            }
            key => return Err(context.unknown_of(key, ["size", "slots", "maxmem"].into_iter())),
        }
    }
    if most.is_some_and(|most| most < bytes) {
        return Err(context.bad("maxmem= is less than the size"));
    }
    Ok(check(context, bytes)?.next_multiple_of(PAGE))
}

/// `bytes` if that can be a guest's memory.
pub fn check(context: Context, bytes: u64) -> Result<u64, OptionError> {
    if !(MIN_BYTES..=MAX_BYTES).contains(&bytes) {
        return Err(context.bad("guest memory is 1M to 4T"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_limits() {
        let read = |value| bytes(Context { option: "-m", value });
        assert_eq!(read("512"), Ok(512 << 20));
        assert_eq!(read("size=2G"), Ok(2 << 30));
        assert_eq!(read("2000k"), Ok(2000 << 10));
        assert_eq!(read("1k").unwrap_err().to_string(), "-m 1k: guest memory is 1M to 4T");
        assert_eq!(read("99T").unwrap_err().to_string(), "-m 99T: guest memory is 1M to 4T");
        assert!(read("lots").unwrap_err().to_string().starts_with("-m lots: takes"));
        assert_eq!(read("1G,slots=2,maxmem=4G"), Ok(1 << 30));
        assert!(read("1G,slots=257").unwrap_err().to_string().ends_with("slots= takes 0 to 256"));
        assert!(read("1G,maxmem=512M").unwrap_err().to_string().ends_with("maxmem= is less than the size"));
        assert!(read("1G,foo=2").unwrap_err().to_string().ends_with("unknown property 'foo'"));
        assert!(read("").is_err());
    }
}

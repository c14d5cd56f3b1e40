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

/// Reads the argument of `-m`: bytes, a multiple of the page size.
pub fn bytes(context: Context) -> Result<u64, OptionError> {
    let mut bytes = DEFAULT_BYTES;
    for pair in syntax::pairs(context.value, "size") {
        match pair.key.as_str() {
            "size" => {
                bytes = syntax::size(&pair.value, 1 << 20)
                    .ok_or_else(|| context.bad("takes a size in MiB, or with a suffix K M G T"))?;
            }
            "slots" | "maxmem" => return Err(context.not_built(&pair.key)),
            _ => return Err(context.unknown(&pair.key)),
        }
    }
    if !(MIN_BYTES..=MAX_BYTES).contains(&bytes) {
        return Err(context.bad("guest memory is 1M to 4T"));
    }
    Ok(bytes.next_multiple_of(PAGE))
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
        assert!(read("1G,slots=2").unwrap_err().to_string().ends_with("slots: not built yet"));
        assert!(read("1G,foo=2").unwrap_err().to_string().ends_with("unknown property 'foo'"));
        assert!(read("").is_err());
    }
}

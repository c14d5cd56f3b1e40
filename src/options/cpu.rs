//! `-cpu NAME,+feature,-feature` (QEMU, *Invocation*; *QEMU / KVM CPU model configuration*).

use accel::cpu_model::{self, CpuModel};

use super::error::{Context, OptionError};

/// Reads the argument of `-cpu`.
pub fn model(context: Context) -> Result<CpuModel, OptionError> {
    cpu_model::parse(context.value).map_err(|error| context.bad(error.to_string()))
}

/// The text of `-cpu help`.
pub fn help() -> String {
    cpu_model::help()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(value: &str) -> Result<CpuModel, OptionError> {
        model(Context { option: "-cpu", value })
    }

    #[test]
    fn the_unknown_is_named() {
        assert_eq!(
            cpu("max,+foo").unwrap_err().to_string(),
            "-cpu max,+foo: no CPU feature 'foo' (see -cpu help)"
        );
        assert!(cpu("pentium9").unwrap_err().to_string().contains("'pentium9'"));
        assert!(cpu("max,foo=on").unwrap_err().to_string().contains("'foo'"));
        assert!(cpu("max,avx2=maybe").is_err());
    }
}

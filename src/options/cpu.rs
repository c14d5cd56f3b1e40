//! `-cpu NAME,+feature,-feature` and `-smp` (QEMU, *Invocation*; *QEMU / KVM CPU model configuration*).

use accel::cpu_model::{self, CpuModel};

use super::error::{Context, OptionError};
use super::syntax;

/// Reads the argument of `-cpu`.
pub fn model(context: Context) -> Result<CpuModel, OptionError> {
    cpu_model::parse(context.value).map_err(|error| context.bad(error.to_string()))
}

/// How many CPUs a machine may have.
pub const MAX_CPUS: u64 = 1;

/// Reads the argument of `-smp`: the number of CPUs.
pub fn count(context: Context) -> Result<usize, OptionError> {
    let mut cpus = None;
    let mut product = 1u64;
    for pair in syntax::pairs(context.value, "cpus") {
        let number = syntax::integer(&pair.value)
            .filter(|&n| (1..=0xffff).contains(&n))
            .ok_or_else(|| context.bad(format!("'{}' takes a number from 1", pair.key)))?;
        match pair.key.as_str() {
            "cpus" => cpus = Some(number),
            "maxcpus" if number == 1 => {}
            "maxcpus" => return Err(context.not_built("CPUs added later")),
            "sockets" | "dies" | "clusters" | "modules" | "cores" | "threads" => {
                product = product.saturating_mul(number)
            }
            other => return Err(context.unknown(other)),
        }
    }
    let cpus = cpus.unwrap_or(product);
    if product != 1 && product != cpus {
        return Err(context.bad(format!("the topology has {product} CPUs, not {cpus}")));
    }
    if cpus > MAX_CPUS {
        return Err(context.not_built("more than one CPU"));
    }
    Ok(usize::try_from(cpus).expect("at most MAX_CPUS"))
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

    fn smp(value: &str) -> Result<usize, OptionError> {
        count(Context { option: "-smp", value })
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

    #[test]
    fn one_cpu_for_now() {
        assert_eq!(smp("1"), Ok(1));
        assert_eq!(smp("cpus=1,sockets=1,cores=1"), Ok(1));
        assert!(smp("2").unwrap_err().to_string().ends_with("more than one CPU: not built yet"));
        for bad in ["0", "x", "1,foo=2", "1,cores=2", "-1"] {
            assert!(smp(bad).is_err(), "{bad}");
        }
    }
}

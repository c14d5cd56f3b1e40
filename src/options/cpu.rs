//! `-cpu NAME,+feature,-feature` and `-smp` (QEMU, *Invocation*; *QEMU / KVM CPU model configuration*).

use accel::cpu_model::{CpuModel, ModelBase};

use super::cpu_features;
use super::error::{Context, OptionError};
use super::syntax;

/// Reads the argument of `-cpu`.
pub fn model(context: Context) -> Result<CpuModel, OptionError> {
    let mut items = syntax::split(context.value).into_iter();
    let name = items.next().expect("a split has at least one item");
    let base = match name.as_str() {
        "max" | "host" => ModelBase::Max,
        _ => {
            let (name, features) = cpu_features::of_model(&name)
                .ok_or_else(|| context.bad(format!("no CPU model '{name}' (see -cpu help)")))?;
            ModelBase::Named { name, features }
        }
    };
    let mut model = CpuModel { base, added: Vec::new(), removed: Vec::new() };
    for item in items {
        let (name, on) = switch(context, &item)?;
        let feature = cpu_features::find(name)
            .ok_or_else(|| context.bad(format!("no CPU feature '{name}' (see -cpu help)")))?;
        // The last word on a feature counts, as in QEMU.
        model.added.retain(|other| *other != feature);
        model.removed.retain(|other| *other != feature);
        if on { model.added.push(feature) } else { model.removed.push(feature) }
    }
    Ok(model)
}

/// `+name`, `-name`, `name=on`, `name=off`, `name`.
fn switch<'a>(context: Context, item: &'a str) -> Result<(&'a str, bool), OptionError> {
    if let Some(name) = item.strip_prefix('+') {
        return Ok((name, true));
    }
    if let Some(name) = item.strip_prefix('-') {
        return Ok((name, false));
    }
    match item.split_once('=') {
        None => Ok((item, true)),
        Some((name, value)) if cpu_features::find(name).is_some() => match syntax::on_off(value) {
            Some(on) => Ok((name, on)),
            None => Err(context.bad(format!("feature '{name}' takes on or off"))),
        },
        Some((name, _)) => Err(context.unknown(name)),
    }
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
    let mut text = String::from("CPU models:\n  max, host      all that the engine can do on this host\n");
    for (name, levels) in cpu_features::NAMED {
        let count: usize = levels.iter().map(|level| level.len()).sum();
        text += &format!("  {name:<14} {count} features\n");
    }
    text += "\nFeatures (NAME,+FEATURE or NAME,-FEATURE):\n";
    let mut line = String::new();
    for feature in cpu_features::all() {
        if line.len() + feature.name.len() > 100 {
            text += &format!(" {line}\n");
            line.clear();
        }
        line += " ";
        line += feature.name;
    }
    text + &format!(" {line}\n")
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
    fn features_come_and_go() {
        let model = cpu("max,+avx2,-avx512f,xsave=off,sse4_1=on").unwrap();
        assert_eq!(model.base, ModelBase::Max);
        assert_eq!(model.added.iter().map(|f| f.name).collect::<Vec<_>>(), ["avx2", "sse4.1"]);
        assert_eq!(model.removed.iter().map(|f| f.name).collect::<Vec<_>>(), ["avx512f", "xsave"]);
        let last = cpu("max,+avx2,-avx2").unwrap();
        assert!(last.added.is_empty() && last.removed.len() == 1);
    }

    #[test]
    fn the_unknown_is_named() {
        assert_eq!(
            cpu("max,+foo").unwrap_err().to_string(),
            "-cpu max,+foo: no CPU feature 'foo' (see -cpu help)"
        );
        assert!(cpu("pentium9").unwrap_err().to_string().contains("'pentium9'"));
        assert!(cpu("max,foo=on").unwrap_err().to_string().contains("unknown property 'foo'"));
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

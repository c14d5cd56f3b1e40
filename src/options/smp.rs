//! `-smp N,sockets=N,cores=N,threads=N,maxcpus=N` (QEMU, *Invocation*).

use accel::MAX_CPUS;
use accel::cpu_model::CpuTopology;

use super::error::{Context, OptionError};
use super::syntax;

/// What `-smp` said so far; what was not said is worked out at the end.
#[derive(Clone, Debug, Default)]
pub struct SmpArgument {
    cpus: Option<u64>,
    maxcpus: Option<u64>,
    sockets: Option<u64>,
    cores: Option<u64>,
    threads: Option<u64>,
    /// The last `-smp` as written, for messages.
    written: Option<(String, String)>,
}

/// Above any product that is not refused.
const MAX_COUNT: u64 = 0xffff;

impl SmpArgument {
    /// Adds one `-smp`; what a later one says overrides.
    pub fn add(&mut self, context: Context) -> Result<(), OptionError> {
        for pair in syntax::pairs(context.value, "cpus") {
            let field = match pair.key.as_str() {
                "cpus" => &mut self.cpus,
                "maxcpus" => &mut self.maxcpus,
                "sockets" => &mut self.sockets,
                "cores" => &mut self.cores,
                "threads" => &mut self.threads,
                // The levels that other machines have.
                "dies" | "clusters" | "modules" | "books" | "drawers" => {
                    if count(context, &pair)? != 1 {
                        return Err(context.bad(format!("this machine has no {}", pair.key)));
                    }
                    continue;
                }
                other => return Err(context.unknown(other)),
            };
            *field = Some(count(context, &pair)?);
        }
        self.written = Some((context.option.into(), context.value.into()));
        Ok(())
    }

    /// How many CPUs of which kind. What is missing is worked out from what is there: cores first, then sockets, then
    /// threads.
    pub fn topology(&self) -> Result<CpuTopology, OptionError> {
        let Some((option, value)) = &self.written else { return Ok(CpuTopology::default()) };
        let context = Context { option, value };
        let Self { cpus, maxcpus, mut sockets, mut cores, mut threads, .. } = *self;
        let total = maxcpus.or(cpus);
        if let Some(total) = total {
            let rest = |a: u64, b: u64| (total / (a * b)).max(1);
            if cores.is_none() {
                cores = Some(rest(sockets.unwrap_or(1), threads.unwrap_or(1)));
                (sockets, threads) = (sockets.or(Some(1)), threads.or(Some(1)));
            } else if sockets.is_none() {
                sockets = Some(rest(cores.unwrap_or(1), threads.unwrap_or(1)));
                threads = threads.or(Some(1));
            }
            threads = threads.or_else(|| Some(rest(sockets.unwrap_or(1), cores.unwrap_or(1))));
        }
        let [sockets, cores, threads] = [sockets, cores, threads].map(|count| count.unwrap_or(1));
        let product = sockets.saturating_mul(cores).saturating_mul(threads);
        let maxcpus = total.unwrap_or(product);
        if product != maxcpus {
            return Err(context.bad(format!(
                "the topology has {product} CPUs (sockets {sockets} * cores {cores} * threads {threads}), not {maxcpus}"
            )));
        }
        let cpus = cpus.unwrap_or(maxcpus);
        if maxcpus < cpus {
            return Err(context.bad(format!("maxcpus={maxcpus} is less than the {cpus} CPUs there are")));
        }
        if maxcpus > MAX_CPUS as u64 {
            return Err(context.bad(format!("a machine has {MAX_CPUS} CPUs at most")));
        }
        if maxcpus > cpus {
            return Err(context.not_built("CPUs added later (maxcpus above cpus)"));
        }
        let narrow = |count: u64| u32::try_from(count).expect("at most MAX_CPUS");
        Ok(CpuTopology { sockets: narrow(sockets), cores: narrow(cores), threads: narrow(threads) })
    }
}

fn count(context: Context, pair: &syntax::Pair) -> Result<u64, OptionError> {
    syntax::integer(&pair.value)
        .filter(|number| (1..=MAX_COUNT).contains(number))
        .ok_or_else(|| context.bad(format!("'{}' takes a number from 1", pair.key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smp(values: &[&str]) -> Result<(u32, u32, u32), OptionError> {
        let mut argument = SmpArgument::default();
        for value in values {
            argument.add(Context { option: "-smp", value })?;
        }
        argument.topology().map(|topology| (topology.sockets, topology.cores, topology.threads))
    }

    fn refusal(value: &str) -> String {
        let text = smp(&[value]).unwrap_err().to_string();
        assert!(text.starts_with(&format!("-smp {value}: ")) && !text.contains('\n'), "{text}");
        text
    }

    #[test]
    fn what_is_not_said_is_worked_out() {
        assert_eq!(smp(&[]), Ok((1, 1, 1)));
        for (value, wanted) in [
            ("1", (1, 1, 1)),
            ("4", (1, 4, 1)),
            ("cpus=4", (1, 4, 1)),
            ("64", (1, 64, 1)),
            ("4,sockets=2", (2, 2, 1)),
            ("4,cores=2", (2, 2, 1)),
            ("4,threads=2", (1, 2, 2)),
            ("8,sockets=2,cores=2", (2, 2, 2)),
            ("8,cores=2,threads=2", (2, 2, 2)),
            ("sockets=2,cores=3", (2, 3, 1)),
            ("threads=2", (1, 1, 2)),
            ("maxcpus=4,sockets=1", (1, 4, 1)),
            ("4,maxcpus=4,dies=1,clusters=1", (1, 4, 1)),
        ] {
            assert_eq!(smp(&[value]), Ok(wanted), "{value}");
        }
    }

    #[test]
    fn a_later_one_adds_and_overrides() {
        assert_eq!(smp(&["4", "cores=2"]), Ok((2, 2, 1)));
        assert_eq!(smp(&["4", "2"]), Ok((1, 2, 1)));
    }

    #[test]
    fn refusals_name_the_thing() {
        assert!(refusal("0").ends_with("'cpus' takes a number from 1"));
        assert!(refusal("4,threads=0").ends_with("'threads' takes a number from 1"));
        assert!(refusal("x").ends_with("'cpus' takes a number from 1"));
        assert!(refusal("-1").ends_with("'cpus' takes a number from 1"));
        assert!(refusal("2,foo=2").ends_with("unknown property 'foo'"));
        assert!(refusal("2,dies=2").ends_with("this machine has no dies"));
        assert!(refusal("4,maxcpus=2").ends_with("maxcpus=2 is less than the 4 CPUs there are"));
        assert!(refusal("2,maxcpus=4").ends_with("CPUs added later (maxcpus above cpus): not built yet"));
        assert!(refusal("65").ends_with("a machine has 64 CPUs at most"));
        assert!(refusal("sockets=60000,cores=60000,threads=60000").ends_with("64 CPUs at most"));
        for (value, product) in [
            ("4,sockets=3", "3 CPUs (sockets 3 * cores 1 * threads 1), not 4"),
            ("4,cores=8", "8 CPUs (sockets 1 * cores 8 * threads 1), not 4"),
        ] {
            assert!(refusal(value).contains(product), "{}", refusal(value));
        }
    }
}

//! `-accel NAME,property=value` and its like on `-M` (QEMU, *Invocation*).

use std::path::PathBuf;

use accel_tcg::Stress;

use super::error::{Context, OptionError};
use super::syntax;

/// An engine to try, with its properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccelChoice {
    /// The kernel's KVM.
    Kvm(KvmChoice),
    /// The translator.
    Tcg(TcgChoice),
}

/// Properties of `-accel kvm`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvmChoice {
    /// `kernel-irqchip`.
    pub irqchip: KernelIrqchip,
    /// `device`: instead of `/dev/kvm`.
    pub device: PathBuf,
}

impl Default for KvmChoice {
    fn default() -> Self {
        Self { irqchip: KernelIrqchip::On, device: "/dev/kvm".into() }
    }
}

/// Properties of `-accel tcg`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcgChoice {
    /// `thread`, if it was given; else [`TcgThread::Multi`], or [`TcgThread::Single`] under `-icount`.
    pub thread: Option<TcgThread>,
    /// `one-insn-per-tb` and `x-stress`.
    pub stress: Stress,
}

/// Who models the interrupt controllers under KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelIrqchip {
    /// The kernel, all of them.
    On,
    /// The kernel the local APICs, we the others.
    Split,
    /// We.
    Off,
}

/// How the translator's CPUs map to host threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcgThread {
    /// One thread for all CPUs.
    Single,
    /// A thread per CPU.
    Multi,
}

/// The engines asked for, in turn, with the properties that came with them.
#[derive(Clone, Debug, Default)]
pub struct AccelList {
    choices: Vec<AccelChoice>,
}

impl AccelList {
    /// Whether no engine was asked for.
    pub fn is_empty(&self) -> bool {
        self.choices.is_empty()
    }

    /// The engines to try: what was asked for, else KVM, then the translator.
    pub fn into_choices(self) -> Vec<AccelChoice> {
        if self.choices.is_empty() {
            vec![AccelChoice::Kvm(KvmChoice::default()), AccelChoice::Tcg(TcgChoice::default())]
        } else {
            self.choices
        }
    }

    /// Adds the engines of one `-accel`, or of `-M accel=` (`names` with colons).
    pub fn push_names(&mut self, context: Context, names: &str) -> Result<Vec<AccelChoice>, OptionError> {
        let mut added = Vec::new();
        for name in names.split(':') {
            added.push(match name {
                "kvm" => AccelChoice::Kvm(KvmChoice::default()),
                "tcg" => AccelChoice::Tcg(TcgChoice::default()),
                "qtest" | "hvf" | "nvmm" | "whpx" | "xen" | "hax" | "mshv" => {
                    return Err(context.not_built(&format!("accelerator '{name}'")));
                }
                _ => return Err(context.bad(format!("no accelerator '{name}' (kvm, tcg, kvm:tcg)"))),
            });
        }
        Ok(added)
    }

    /// Adds engines whose properties are set.
    pub fn extend(&mut self, choices: Vec<AccelChoice>) {
        for choice in choices {
            if !self
                .choices
                .iter()
                .any(|other| std::mem::discriminant(other) == std::mem::discriminant(&choice))
            {
                self.choices.push(choice);
            }
        }
    }

    /// Adds one `-accel`.
    pub fn add(&mut self, context: Context) -> Result<(), OptionError> {
        let mut pairs = syntax::pairs(context.value, "accel").into_iter();
        let first = pairs.next().expect("a list has at least one item");
        if first.key != "accel" {
            return Err(context.bad("the accelerator's name comes first"));
        }
        let mut choices = self.push_names(context, &first.value)?;
        for pair in pairs {
            set(&mut choices, context, &pair.key, &pair.value)?;
        }
        self.extend(choices);
        Ok(())
    }
}

/// Sets a property on those of `choices` that have it; one at least must.
pub fn set(choices: &mut [AccelChoice], context: Context, key: &str, value: &str) -> Result<(), OptionError> {
    let mut taken = false;
    for choice in choices {
        taken |= match choice {
            AccelChoice::Kvm(kvm) => kvm.set(context, key, value)?,
            AccelChoice::Tcg(tcg) => tcg.set(context, key, value)?,
        };
    }
    if taken { Ok(()) } else { Err(context.unknown(key)) }
}

impl KvmChoice {
    /// False if KVM has no property `key`.
    fn set(&mut self, context: Context, key: &str, value: &str) -> Result<bool, OptionError> {
        match key {
            "kernel-irqchip" => self.irqchip = kernel_irqchip(context, value)?,
            "device" if value.is_empty() => return Err(context.bad("device= needs a path")),
            "device" => self.device = value.into(),
            "dirty-ring-size" | "kvm-shadow-mem" | "notify-vmexit" | "notify-window" | "eager-split-size"
            | "honor-guest-pat" | "rapl" | "xen-version" => return Err(context.not_built(key)),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl TcgChoice {
    /// False if the translator has no property `key`.
    fn set(&mut self, context: Context, key: &str, value: &str) -> Result<bool, OptionError> {
        match key {
            "thread" => {
                self.thread = match value {
                    "single" => Some(TcgThread::Single),
                    "multi" => Some(TcgThread::Multi),
                    _ => return Err(context.bad("thread= takes single or multi")),
                }
            }
            "one-insn-per-tb" => {
                let on = syntax::on_off(value);
                self.stress.one_instruction =
                    on.ok_or_else(|| context.bad("one-insn-per-tb= takes on or off"))?;
            }
            "x-stress" => {
                let stress: Stress = value.parse().map_err(|error| context.bad(format!("{error}")))?;
                let one_instruction = self.stress.one_instruction || stress.one_instruction;
                self.stress = Stress { one_instruction, ..stress };
            }
            "tb-size" | "split-wx" => return Err(context.not_built(key)),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Reads a value of `kernel-irqchip`.
pub fn kernel_irqchip(context: Context, value: &str) -> Result<KernelIrqchip, OptionError> {
    match value {
        "on" => Ok(KernelIrqchip::On),
        "split" => Ok(KernelIrqchip::Split),
        "off" => Ok(KernelIrqchip::Off),
        _ => Err(context.bad("kernel-irqchip= takes on, split or off")),
    }
}

/// The text of `-accel help`.
pub const HELP: &str = "\
Accelerators (-accel NAME, or NAME:NAME to take the first that works; default kvm:tcg):
  kvm   the kernel's KVM              kernel-irqchip=on|split|off, device=PATH
  tcg   translation, needs no KVM     thread=single|multi, one-insn-per-tb=on|off
";

#[cfg(test)]
mod tests {
    use super::*;

    fn list(values: &[&str]) -> Result<Vec<AccelChoice>, OptionError> {
        let mut list = AccelList::default();
        for value in values {
            list.add(Context { option: "-accel", value })?;
        }
        Ok(list.into_choices())
    }

    fn names(choices: &[AccelChoice]) -> Vec<&'static str> {
        choices
            .iter()
            .map(|choice| if matches!(choice, AccelChoice::Kvm(_)) { "kvm" } else { "tcg" })
            .collect()
    }

    #[test]
    fn a_preference_list_in_three_spellings() {
        assert_eq!(names(&list(&[]).unwrap()), ["kvm", "tcg"]);
        assert_eq!(names(&list(&["kvm:tcg"]).unwrap()), ["kvm", "tcg"]);
        assert_eq!(names(&list(&["tcg", "kvm"]).unwrap()), ["tcg", "kvm"]);
        assert_eq!(names(&list(&["kvm", "kvm"]).unwrap()), ["kvm"]);
    }

    #[test]
    fn properties_go_to_those_that_have_them() {
        let choices = list(&["kvm:tcg,thread=single,kernel-irqchip=off,device=/x,,y"]).unwrap();
        assert_eq!(
            choices,
            [
                AccelChoice::Kvm(KvmChoice { irqchip: KernelIrqchip::Off, device: "/x,y".into() }),
                AccelChoice::Tcg(TcgChoice { thread: Some(TcgThread::Single), ..TcgChoice::default() })
            ]
        );
        assert_eq!(
            list(&["kvm,thread=single"]).unwrap_err().to_string(),
            "-accel kvm,thread=single: unknown property 'thread'"
        );
        assert!(list(&["tcg,kernel-irqchip=on"]).is_err());
        assert!(list(&["tcg,thread=both"]).is_err());
    }

    #[test]
    fn stress_adds_up() {
        let one = Stress { one_instruction: true, ..Stress::default() };
        let tcg = |stress| [AccelChoice::Tcg(TcgChoice { stress, ..TcgChoice::default() })];
        assert_eq!(list(&["tcg,one-insn-per-tb=on"]).unwrap(), tcg(one));
        let kicked = Stress { kicks: true, ..one };
        assert_eq!(list(&["tcg,one-insn-per-tb=on,x-stress=kicks"]).unwrap(), tcg(kicked));
        assert!(list(&["tcg,one-insn-per-tb=maybe"]).is_err());
        assert!(list(&["tcg,x-stress=rain"]).unwrap_err().to_string().contains("no stress 'rain'"));
    }

    #[test]
    fn the_unknown_and_the_unbuilt_differ() {
        assert!(list(&["frob"]).unwrap_err().to_string().contains("no accelerator 'frob'"));
        assert!(list(&["whpx"]).unwrap_err().to_string().ends_with("not built yet"));
        assert!(list(&["tcg,tb-size=64"]).unwrap_err().to_string().ends_with("not built yet"));
        assert!(list(&[""]).is_err());
        assert!(list(&["thread=multi"]).is_err());
    }
}

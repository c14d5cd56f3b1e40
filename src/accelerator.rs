//! Chooses the engine: the first of the preference list that works, and KVM only if it can run Linux.

use std::error::Error;
use std::sync::Arc;

use accel::{Accelerator, Threading};
use accel_kvm::{Kvm, KvmOptions};
use accel_tcg::{Tcg, TcgOptions};
use devices::clock::icount::Pace;

use crate::options::accel::{AccelChoice, KernelIrqchip, KvmChoice, TcgChoice, TcgThread};

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum AccelError {
    /// KVM cannot be had.
    #[error("-accel kvm: {}", chain(.0))]
    Kvm(accel_kvm::OpenError),
    /// KVM opens, but something better was asked for.
    #[error("-accel kvm: {0}")]
    Unfit(accel_kvm::ProbeFailure),
    /// The translator cannot be had.
    #[error("-accel tcg: {}", chain(.0))]
    Tcg(accel_tcg::TcgError),
}

/// An error with its causes on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

/// The first of `choices` that works; under `icount`, choices that can count. What is passed over, and what is taken against advice, is told through `tell`,
/// one line each.
pub fn choose(
    choices: &[AccelChoice],
    icount: Option<Pace>,
    mut tell: impl FnMut(String),
) -> Result<Arc<dyn Accelerator>, AccelError> {
    let (last, earlier) = choices.split_last().expect("a preference list is not empty");
    let mut reasons = Vec::new();
    for choice in earlier {
        match open(choice, icount, Fitness::Required) {
            Ok((accelerator, _)) => {
                tell_fallback(&reasons, accelerator.name(), &mut tell);
                return Ok(accelerator);
            }
            Err(error) => reasons.push(error.to_string()),
        }
    }
    let (accelerator, doubt) = open(last, icount, Fitness::Advised)?;
    tell_fallback(&reasons, accelerator.name(), &mut tell);
    if let Some(doubt) = doubt {
        tell(format!(
            "warning: -accel kvm: Linux will not run on this KVM: {doubt} (`-accel tcg` does without)"
        ));
    }
    Ok(accelerator)
}

fn tell_fallback(reasons: &[String], taken: &str, tell: &mut impl FnMut(String)) {
    if !reasons.is_empty() {
        tell(format!("falling back to {taken}: {}", reasons.join("; ")));
    }
}

/// What a KVM that opens must be able to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fitness {
    /// There is something else: only one that runs Linux.
    Required,
    /// The user insists: one that does not is told.
    Advised,
}

type Opened = (Arc<dyn Accelerator>, Option<accel_kvm::ProbeFailure>);

fn open(choice: &AccelChoice, icount: Option<Pace>, fitness: Fitness) -> Result<Opened, AccelError> {
    match choice {
        AccelChoice::Kvm(choice) => kvm(choice, fitness),
        AccelChoice::Tcg(choice) => tcg(choice, icount).map(|accelerator| (accelerator, None)),
    }
}

fn kvm(choice: &KvmChoice, fitness: Fitness) -> Result<Opened, AccelError> {
    let kernel_irqchip = match choice.irqchip {
        KernelIrqchip::On => accel_kvm::KernelIrqchip::On,
        KernelIrqchip::Split => accel_kvm::KernelIrqchip::Split,
        KernelIrqchip::Off => accel_kvm::KernelIrqchip::Off,
    };
    let options = KvmOptions { kernel_irqchip, device: choice.device.clone() };
    let kvm = Kvm::open(&options).map_err(AccelError::Kvm)?;
    let doubt = kvm.probe().err();
    match doubt {
        Some(doubt) if fitness == Fitness::Required => Err(AccelError::Unfit(doubt)),
        doubt => Ok((Arc::new(kvm), doubt)),
    }
}

fn tcg(choice: &TcgChoice, icount: Option<Pace>) -> Result<Arc<dyn Accelerator>, AccelError> {
    let threading = match choice.thread {
        Some(TcgThread::Single) => Threading::RoundRobin,
        Some(TcgThread::Multi) | None => Threading::PerCpu,
    };
    let options = TcgOptions { threading, icount, stress: choice.stress, ..TcgOptions::default() };
    let tcg = Tcg::new(options).map_err(AccelError::Tcg)?;
    Ok(Arc::new(tcg))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn absent() -> AccelChoice {
        AccelChoice::Kvm(KvmChoice { device: "/no/such/kvm".into(), ..KvmChoice::default() })
    }

    #[test]
    fn an_absent_kvm_is_named() {
        let error = choose(&[absent()], None, |line| panic!("told {line}"))
            .err()
            .expect("no such device")
            .to_string();
        assert!(error.starts_with("-accel kvm: /no/such/kvm"), "{error}");
        assert!(!error.contains('\n'));
    }
}

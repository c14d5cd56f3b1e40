//! The argument of `-cpu`: `NAME[,+FEATURE][,-FEATURE][,FEATURE=on|off]...` (QEMU, *Invocation*).

use super::{CpuModel, Feature, feature, features, models};

/// What is wrong with an argument of `-cpu`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuModelError {
    /// No such model.
    #[error("no CPU model '{0}' (see -cpu help)")]
    UnknownModel(String),
    /// No such feature.
    #[error("no CPU feature '{0}' (see -cpu help)")]
    UnknownFeature(String),
    /// `FEATURE=VALUE` with another value than on or off.
    #[error("CPU feature '{0}' takes on or off")]
    BadSwitch(&'static str),
    /// A feature was asked for, and one that it is nothing without was taken away.
    #[error("CPU feature '{0}' is not possible without '{1}'")]
    Conflict(&'static str, &'static str),
}

/// Reads the argument of `-cpu`. The last word on a feature counts.
pub fn parse(argument: &str) -> Result<CpuModel, CpuModelError> {
    let mut items = argument.split(',');
    let name = items.next().unwrap_or_default();
    let mut model = CpuModel::named(name).ok_or_else(|| CpuModelError::UnknownModel(name.to_owned()))?;
    for item in items {
        let (feature, on) = switch(item)?;
        model.added.retain(|other| *other != feature);
        model.removed.retain(|other| *other != feature);
        if on { model.added.push(feature) } else { model.removed.push(feature) }
    }
    for &removed in &model.removed {
        let lost = features::with_dependents(&[removed]);
        if let Some(added) = model.added.iter().find(|added| lost.contains(added)) {
            return Err(CpuModelError::Conflict(added.name, removed.name));
        }
    }
    Ok(model)
}

/// `+name`, `-name`, `name=on`, `name=off`, `name`.
fn switch(item: &str) -> Result<(Feature, bool), CpuModelError> {
    let find = |name: &str| feature(name).ok_or_else(|| CpuModelError::UnknownFeature(name.to_owned()));
    if let Some(name) = item.strip_prefix('+') {
        return Ok((find(name)?, true));
    }
    if let Some(name) = item.strip_prefix('-') {
        return Ok((find(name)?, false));
    }
    let Some((name, value)) = item.split_once('=') else { return Ok((find(item)?, true)) };
    let feature = find(name)?;
    match value {
        "on" | "yes" | "true" | "y" => Ok((feature, true)),
        "off" | "no" | "false" | "n" => Ok((feature, false)),
        _ => Err(CpuModelError::BadSwitch(feature.name)),
    }
}

/// The text of `-cpu help`.
pub fn help() -> String {
    let mut text = String::from("CPU models:\n");
    let max = ("max, host", "all that the engine can do on this host");
    for (name, description) in std::iter::once(max).chain(models::list()) {
        text += &format!("  {name:<22} {description}\n");
    }
    text += "\nFeatures (NAME,+FEATURE or NAME,-FEATURE):\n";
    let mut line = String::new();
    for feature in super::features() {
        if line.len() + feature.name.len() > 100 {
            text += &format!(" {line}\n");
            line.clear();
        }
        line += " ";
        line += feature.name;
    }
    text + &format!(" {line}\n")
}

//! `-global DRIVER.PROPERTY=VALUE`: properties of all devices of a kind (QEMU, *Invocation*).

use super::devices;
use super::error::{Context, OptionError};
use super::line::Item;
use super::syntax::{self, Pair};
use super::table::{Kind, Value};

/// What was said of one property.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Global {
    driver: String,
    pair: Pair,
}

/// What was said of all devices of a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Globals {
    all: Vec<Global>,
    /// Those that nothing here has an ear for, as lines for the user.
    pub unheard: Vec<String>,
}

/// What scripts say of drivers that are no devices here, and that asks for what is so anyway.
const SO_ANYWAY: &[(&str, &str, &[&str])] = &[
    ("virtio-mmio", "force-legacy", &["off", "false", "no"]),
    ("kvm-pit", "lost_tick_policy", &["delay", "discard"]),
    ("mc146818rtc", "lost_tick_policy", &["discard"]),
    ("ICH9-LPC", "disable_s3", &["1", "on"]),
    ("ICH9-LPC", "disable_s4", &["1", "on"]),
    ("PIIX4_PM", "disable_s3", &["1", "on"]),
    ("PIIX4_PM", "disable_s4", &["1", "on"]),
];

impl Globals {
    /// All that a command line says. They count for devices before them, too.
    pub fn of(items: &[Result<Item, OptionError>]) -> Result<Self, OptionError> {
        let mut globals = Self::default();
        for item in items.iter().flatten() {
            if let (Kind::Value(Value::Global), Some(value)) = (item.kind, &item.value) {
                globals.add(Context { option: &item.option, value })?;
            }
        }
        Ok(globals)
    }

    fn add(&mut self, context: Context) -> Result<(), OptionError> {
        let (driver, property, value) = read(context)?;
        match devices::check_property(context, &driver, &property) {
            Some(result) => {
                result?;
                self.all.push(Global { driver, pair: Pair { key: property, value } });
            }
            None if SO_ANYWAY.iter().any(|(known, name, values)| {
                *known == driver && *name == property && values.contains(&value.as_str())
            }) => {}
            None if SO_ANYWAY.iter().any(|(known, name, _)| *known == driver && *name == property) => {
                return Err(context.not_built(&format!("{driver}.{property}={value}")));
            }
            None => {
                let (option, text) = (context.option, context.value);
                self.unheard.push(format!("{option} {text}: there is no device '{driver}'; without effect"));
            }
        }
        Ok(())
    }

    /// The properties that devices of this kind have unless they say otherwise in `own`. The last one counts.
    pub fn complete(&self, is_driver: impl Fn(&str) -> bool, own: Vec<Pair>) -> Vec<Pair> {
        let mut pairs: Vec<Pair> = Vec::new();
        for global in self.all.iter().rev().filter(|global| is_driver(&global.driver)) {
            let key = &global.pair.key;
            if !own.iter().chain(&pairs).any(|pair| pair.key == *key) {
                pairs.push(global.pair.clone());
            }
        }
        pairs.extend(own);
        pairs
    }
}

/// `DRIVER.PROPERTY=VALUE`, or `driver=,property=,value=`: driver, property, value.
fn read(context: Context) -> Result<(String, String, String), OptionError> {
    let bad = || context.bad("takes DRIVER.PROPERTY=VALUE");
    if context.value.starts_with("driver=") {
        let pairs = syntax::pairs(context.value, "driver");
        let known = ["driver", "property", "value"];
        if let Some(pair) = pairs.iter().find(|pair| !known.contains(&pair.key.as_str())) {
            return Err(context.unknown_of(&pair.key, known.into_iter()));
        }
        let of = |key: &str| pairs.iter().find(|pair| pair.key == key).map(|pair| pair.value.clone());
        return Ok((
            of("driver").ok_or_else(bad)?,
            of("property").ok_or_else(bad)?,
            of("value").ok_or_else(bad)?,
        ));
    }
    let (name, value) = context.value.split_once('=').ok_or_else(bad)?;
    let (driver, property) = name.split_once('.').ok_or_else(bad)?;
    if driver.is_empty() || property.is_empty() {
        return Err(bad());
    }
    Ok((driver.to_owned(), property.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn globals(values: &[&str]) -> Result<Globals, String> {
        let mut globals = Globals::default();
        for value in values {
            let added = globals.add(Context { option: "-global", value });
            added.map_err(|error| error.to_string())?;
        }
        Ok(globals)
    }

    #[test]
    fn they_complete_what_a_device_says() {
        let globals = globals(&[
            "virtio-blk-device.num-queues=2",
            "virtio-blk-device.num-queues=4",
            "driver=virtio-blk-device,property=serial,value=S",
            "virtio-rng-device.rng=r",
        ])
        .unwrap();
        let pair = |key: &str, value: &str| Pair { key: key.into(), value: value.into() };
        let own = vec![pair("drive", "d"), pair("serial", "mine")];
        let complete = globals.complete(|driver| driver == "virtio-blk-device", own);
        assert_eq!(complete, [pair("num-queues", "4"), pair("drive", "d"), pair("serial", "mine")]);
    }

    #[test]
    fn what_nobody_hears_is_told_and_mistakes_are_refused() {
        assert_eq!(globals(&["virtio-mmio.force-legacy=false"]), Ok(Globals::default()));
        let heard = globals(&["cfi.pflash01.secure=on"]).unwrap();
        assert!(heard.unheard[0].contains("there is no device 'cfi'"), "{:?}", heard.unheard);
        for (value, part) in [
            ("virtio-blk-device.num-queue=1", "did you mean 'num-queues'?"),
            ("virtio-mmio.force-legacy=on", "force-legacy=on: not built yet"),
            ("virtio-mmio", "takes DRIVER.PROPERTY=VALUE"),
            (".x=1", "takes DRIVER.PROPERTY=VALUE"),
            ("driver=x,value=y", "takes DRIVER.PROPERTY=VALUE"),
            ("driver=x,proprty=y", "did you mean 'property'?"),
        ] {
            let error = globals(&[value]).unwrap_err();
            assert!(error.contains(part), "{value}: {error}");
        }
    }
}

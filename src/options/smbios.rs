//! `-smbios type=N,...` (QEMU, *Invocation*): what the tables say of the machine.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::{Context, OptionError};
use super::syntax::{self, Pair};
use super::uuid::Uuid;

/// What a property takes.
#[derive(Clone, Copy)]
enum Takes {
    Text,
    /// A number up to this.
    Number(u64),
    /// `MAJOR.MINOR`, bytes.
    Release,
    Switch,
    Uuid,
}

use Takes::{Number, Release, Switch, Text};

/// The types, and their properties with what they take.
const TYPES: &[(u8, &[(&str, Takes)])] = &[
    (0, &[("vendor", Text), ("version", Text), ("date", Text), ("release", Release), ("uefi", Switch)]),
    (
        1,
        &[
            ("manufacturer", Text),
            ("product", Text),
            ("version", Text),
            ("serial", Text),
            ("uuid", Takes::Uuid),
            ("sku", Text),
            ("family", Text),
        ],
    ),
    (
        2,
        &[
            ("manufacturer", Text),
            ("product", Text),
            ("version", Text),
            ("serial", Text),
            ("asset", Text),
            ("location", Text),
        ],
    ),
    (3, &[("manufacturer", Text), ("version", Text), ("serial", Text), ("asset", Text), ("sku", Text)]),
    (
        4,
        &[
            ("sock_pfx", Text),
            ("manufacturer", Text),
            ("version", Text),
            ("serial", Text),
            ("asset", Text),
            ("part", Text),
            ("max-speed", Number(0xffff)),
            ("current-speed", Number(0xffff)),
            ("processor-family", Number(0xffff)),
            ("processor-id", Number(u64::MAX)),
        ],
    ),
    (11, &[("value", Text), ("path", Text)]),
    (
        17,
        &[
            ("loc_pfx", Text),
            ("bank", Text),
            ("manufacturer", Text),
            ("serial", Text),
            ("asset", Text),
            ("part", Text),
            ("speed", Number(0xffff)),
        ],
    ),
];

/// A string of type 11.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OemString {
    /// This.
    Value(String),
    /// What is in a file.
    File(PathBuf),
}

/// What the command line says of the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Smbios {
    /// By type and property.
    fields: BTreeMap<(u8, &'static str), String>,
    /// Types that were named.
    named: Vec<u8>,
    /// The strings of type 11.
    pub oem_strings: Vec<OemString>,
    /// The machine's UUID, of `-uuid` or `type=1,uuid=`.
    pub uuid: Option<Uuid>,
}

impl Smbios {
    /// Reads one `-smbios`. What a later one says of a property counts.
    pub fn add(&mut self, context: Context) -> Result<(), OptionError> {
        let mut pairs = syntax::pairs(context.value, "type");
        if pairs.iter().any(|pair| pair.key == "file") {
            return Err(context.not_built("file="));
        }
        let Some(at) = pairs.iter().position(|pair| pair.key == "type") else {
            return Err(context.bad("needs type=N"));
        };
        let kind = pairs.remove(at).value;
        let number = kind.parse().ok();
        let Some(&(kind, known)) = TYPES.iter().find(|(known, _)| Some(*known) == number) else {
            return Err(match number {
                Some(8 | 9 | 41) => context.not_built(&format!("type={kind}")),
                _ => context.bad("type= takes 0, 1, 2, 3, 4, 11 or 17"),
            });
        };
        if !self.named.contains(&kind) {
            self.named.push(kind);
        }
        for pair in pairs {
            let Some(&(name, takes)) = known.iter().find(|(name, _)| *name == pair.key) else {
                return Err(context.unknown_of(&pair.key, known.iter().map(|(name, _)| *name)));
            };
            check(context, &pair, takes)?;
            match (kind, name) {
                (1, "uuid") => self.uuid = Uuid::parse(&pair.value),
                (11, "value") => self.oem_strings.push(OemString::Value(pair.value)),
                (11, "path") => self.oem_strings.push(OemString::File(pair.value.into())),
                _ => drop(self.fields.insert((kind, name), pair.value)),
            }
        }
        Ok(())
    }

    /// Whether this type was named.
    pub fn has(&self, kind: u8) -> bool {
        self.named.contains(&kind)
    }

    /// A property of a type, if it was given.
    pub fn text(&self, kind: u8, property: &'static str) -> Option<&str> {
        self.fields.get(&(kind, property)).map(String::as_str)
    }

    /// The same as a number.
    pub fn number(&self, kind: u8, property: &'static str) -> Option<u64> {
        syntax::integer(self.text(kind, property)?)
    }

    /// The same as a switch.
    pub fn switch(&self, kind: u8, property: &'static str) -> Option<bool> {
        syntax::on_off(self.text(kind, property)?)
    }

    /// The same as `MAJOR.MINOR`.
    pub fn release(&self, kind: u8, property: &'static str) -> Option<(u8, u8)> {
        release(self.text(kind, property)?)
    }
}

fn release(text: &str) -> Option<(u8, u8)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn check(context: Context, pair: &Pair, takes: Takes) -> Result<(), OptionError> {
    let (key, value) = (&pair.key, &pair.value);
    match takes {
        Text if value.contains('\0') => Err(context.bad(format!("{key}= takes no NUL"))),
        Number(most) if syntax::integer(value).is_none_or(|number| number > most) => {
            Err(context.bad(format!("{key}= takes a number up to {most}")))
        }
        Release if release(value).is_none() => Err(context.bad(format!("{key}= takes MAJOR.MINOR"))),
        Switch if syntax::on_off(value).is_none() => Err(context.bad(format!("{key}= takes on or off"))),
        Takes::Uuid if Uuid::parse(value).is_none() => {
            Err(context.bad(format!("{key}= takes a UUID, such as 12345678-1234-1234-1234-123456789abc")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Result<Smbios, String> {
        let mut smbios = Smbios::default();
        for value in values {
            smbios.add(Context { option: "-smbios", value }).map_err(|error| error.to_string())?;
        }
        Ok(smbios)
    }

    #[test]
    fn properties_add_up() {
        let smbios = read(&[
            "type=1,manufacturer=A,,B,serial=1",
            "type=1,serial=2,uuid=12345678-9abc-def0-1122-334455667788",
            "type=0,release=4.7,uefi=on",
            "type=4,max-speed=0x10",
            "type=11,value=one,path=/two,value=three",
            "2,asset=x",
        ])
        .unwrap();
        assert_eq!(smbios.text(1, "manufacturer"), Some("A,B"));
        assert_eq!(smbios.text(1, "serial"), Some("2"));
        assert_eq!(smbios.text(1, "product"), None);
        assert_eq!((smbios.release(0, "release"), smbios.switch(0, "uefi")), (Some((4, 7)), Some(true)));
        assert_eq!(smbios.number(4, "max-speed"), Some(16));
        let value = |text: &str| OemString::Value(text.into());
        assert_eq!(smbios.oem_strings, [value("one"), OemString::File("/two".into()), value("three")]);
        assert!(smbios.uuid.is_some() && smbios.has(2) && !smbios.has(3));
    }

    #[test]
    fn mistakes_are_named() {
        for (value, part) in [
            ("type=1,manufacturr=x", "did you mean 'manufacturer'?"),
            ("type=99", "type= takes 0, 1, 2"),
            ("type=x", "type= takes 0, 1, 2"),
            ("type=41,kind=ethernet", "type=41: not built yet"),
            ("file=x", "file=: not built yet"),
            ("serial=1", "needs type=N"),
            ("type=0,release=4", "release= takes MAJOR.MINOR"),
            ("type=0,release=4.256", "release= takes MAJOR.MINOR"),
            ("type=0,uefi=maybe", "uefi= takes on or off"),
            ("type=1,uuid=1234", "uuid= takes a UUID"),
            ("type=17,speed=65536", "speed= takes a number up to 65535"),
        ] {
            let error = read(&[value]).unwrap_err();
            assert!(error.starts_with("-smbios ") && error.contains(part), "{value}: {error}");
        }
    }
}

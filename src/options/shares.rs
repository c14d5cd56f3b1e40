//! `-fsdev`, `-virtfs` and the device that guests see (QEMU, *Invocation*).

use std::path::PathBuf;

use devices::p9::{Multidevs, SecurityModel, ShareOptions};
use devices::virtio::p9::MAX_TAG_BYTES;

use super::devices::{DeviceChoice, Model, property};
use super::error::{Context, OptionError};
use super::syntax::{self, Pair};

/// The device, as `-device` knows it.
pub(super) const MODEL: Model = Model {
    name: "virtio-9p-device",
    alias: Some("virtio-9p"),
    help: "a shared folder (in Linux: mount -t 9p -o trans=virtio,version=9p2000.L TAG FOLDER)",
    properties: &[
        property("id", "NAME"),
        property("fsdev", "NAME of an -fsdev"),
        property("mount_tag", "NAME that guests mount it by, of 32 bytes at most"),
    ],
    read: virtio_9p,
};

/// A folder of the host's for guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedFolder {
    /// What devices call it.
    pub id: String,
    /// The option that named it, for messages.
    pub option: String,
    /// The folder.
    pub path: PathBuf,
    /// Its rules.
    pub rules: ShareOptions,
}

/// The properties that are built, besides `id`.
const BUILT: &[&str] = &["path", "security_model", "readonly", "multidevs", "fmode", "dmode"];

/// Those that QEMU has besides. `throttling.` is a family of them.
const NOT_BUILT: &[&str] = &["writeout", "socket", "sock_fd"];

/// QEMU's modes of new files and folders on the host.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// Reads the argument of `-fsdev`.
pub fn fsdev(context: Context) -> Result<SharedFolder, OptionError> {
    let mut pairs = driver(context)?;
    let id = take(&mut pairs, "id").ok_or_else(|| context.bad("needs id=, which names it for a device"))?;
    folder(context, id, &pairs, &["id"])
}

/// Reads the argument of `-virtfs`: a folder, and the device for it.
pub fn virtfs(context: Context) -> Result<(SharedFolder, DeviceChoice), OptionError> {
    let mut pairs = driver(context)?;
    let tag = take(&mut pairs, "mount_tag").ok_or_else(|| context.bad("needs mount_tag=NAME"))?;
    let mount_tag = checked_tag(context, tag)?;
    let id = take(&mut pairs, "id").unwrap_or_else(|| mount_tag.clone());
    let folder = folder(context, id.clone(), &pairs, &["id", "mount_tag"])?;
    Ok((folder, DeviceChoice::Virtio9p { fsdev: id, mount_tag }))
}

/// Reads the properties of the device.
fn virtio_9p(context: Context, mut pairs: Vec<Pair>) -> Result<DeviceChoice, OptionError> {
    let fsdev = take(&mut pairs, "fsdev").ok_or_else(|| context.bad("needs fsdev=NAME"))?;
    let tag = take(&mut pairs, "mount_tag").ok_or_else(|| context.bad("needs mount_tag=NAME"))?;
    Ok(DeviceChoice::Virtio9p { fsdev, mount_tag: checked_tag(context, tag)? })
}

fn checked_tag(context: Context, tag: String) -> Result<String, OptionError> {
    if tag.is_empty() || tag.len() > MAX_TAG_BYTES {
        return Err(context.bad(format!("mount_tag= takes a name of 1 to {MAX_TAG_BYTES} bytes")));
    }
    Ok(tag)
}

/// The pairs behind the driver's name.
fn driver(context: Context) -> Result<Vec<Pair>, OptionError> {
    let mut pairs = syntax::pairs(context.value, "fsdriver");
    let driver = pairs.remove(0);
    match (driver.key.as_str(), driver.value.as_str()) {
        ("fsdriver", "local") => Ok(pairs),
        ("fsdriver", other @ ("proxy" | "synth")) => Err(context.not_built(other)),
        ("fsdriver", other) => Err(context.bad(format!("no kind of folder '{other}' (there is: local)"))),
        _ => Err(context.bad("the kind of folder comes first: local")),
    }
}

/// The last value of `key`, which is taken out.
fn take(pairs: &mut Vec<Pair>, key: &str) -> Option<String> {
    let last = pairs.iter().rev().find(|pair| pair.key == key).map(|pair| pair.value.clone());
    pairs.retain(|pair| pair.key != key);
    last
}

fn folder(
    context: Context,
    id: String,
    pairs: &[Pair],
    others: &[&'static str],
) -> Result<SharedFolder, OptionError> {
    let (mut path, mut model, mut read_only) = (None, None, false);
    let (mut file_mode, mut directory_mode) = (None, None);
    let mut multidevs = Multidevs::default();
    for Pair { key, value } in pairs {
        match key.as_str() {
            "path" => path = Some(PathBuf::from(value)),
            "security_model" => model = Some(value.as_str()),
            "readonly" => {
                let switch = syntax::on_off(value);
                read_only = switch.ok_or_else(|| context.bad("readonly= takes on or off"))?;
            }
            "multidevs" => {
                multidevs = match value.as_str() {
                    "remap" => Multidevs::Remap,
                    "warn" => Multidevs::Warn,
                    "forbid" => Multidevs::Forbid,
                    _ => return Err(context.bad("multidevs= takes remap, warn or forbid")),
                }
            }
            "fmode" => file_mode = Some(mode(context, key, value)?),
            "dmode" => directory_mode = Some(mode(context, key, value)?),
            _ if key.starts_with("throttling.") || NOT_BUILT.contains(&key.as_str()) => {
                return Err(context.not_built(key));
            }
            _ => {
                let known = BUILT.iter().chain(NOT_BUILT).chain(others).copied();
                return Err(context.unknown_of(key, known));
            }
        }
    }
    let path = path.filter(|path| !path.as_os_str().is_empty());
    let path = path.ok_or_else(|| context.bad("needs path=FOLDER"))?;
    let security = match model {
        Some("none") => SecurityModel::None,
        Some("passthrough") => SecurityModel::Passthrough,
        Some("mapped" | "mapped-xattr") => SecurityModel::MappedXattr {
            file_mode: file_mode.unwrap_or(FILE_MODE),
            directory_mode: directory_mode.unwrap_or(DIRECTORY_MODE),
        },
        Some("mapped-file") => return Err(context.not_built("security_model=mapped-file")),
        Some(_) => return Err(context.bad("security_model= takes none, mapped-xattr or passthrough")),
        None => return Err(context.bad("needs security_model=none, mapped-xattr or passthrough")),
    };
    let is_mapped = matches!(security, SecurityModel::MappedXattr { .. });
    if !is_mapped && (file_mode.is_some() || directory_mode.is_some()) {
        return Err(context.bad("fmode= and dmode= are for security_model=mapped-xattr"));
    }
    let option = format!("{} {}", context.option, context.value);
    Ok(SharedFolder { id, option, path, rules: ShareOptions { security, read_only, multidevs } })
}

/// Permission bits: octal where they begin with 0, as in C.
fn mode(context: Context, key: &str, value: &str) -> Result<u32, OptionError> {
    let octal = value.strip_prefix('0').filter(|rest| !rest.is_empty() && !rest.starts_with(['x', 'X']));
    let mode = match octal {
        Some(digits) => u64::from_str_radix(digits, 8).ok(),
        None => syntax::integer(value),
    };
    let mode = mode.and_then(|mode| u32::try_from(mode).ok()).filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| context.bad(format!("{key}= takes permission bits, such as 0600")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fs(value: &str) -> Result<SharedFolder, OptionError> {
        fsdev(Context { option: "-fsdev", value })
    }

    #[test]
    fn folders() {
        let folder = fs("local,id=f,path=/srv,security_model=none").unwrap();
        let rules =
            ShareOptions { security: SecurityModel::None, read_only: false, multidevs: Multidevs::Remap };
        assert_eq!((folder.id.as_str(), folder.path.to_str(), folder.rules), ("f", Some("/srv"), rules));
        let folder = fs("local,path=/a,,b,id=f,security_model=mapped,readonly,multidevs=forbid").unwrap();
        assert_eq!(folder.path.to_str(), Some("/a,b"));
        assert_eq!(folder.rules.security, SecurityModel::MAPPED);
        assert!(folder.rules.read_only && folder.rules.multidevs == Multidevs::Forbid);
        let folder = fs("local,path=/a,id=f,security_model=mapped-xattr,fmode=0640,dmode=0x1ed").unwrap();
        let modes = SecurityModel::MappedXattr { file_mode: 0o640, directory_mode: 0o755 };
        assert_eq!(folder.rules.security, modes);
        let (folder, device) = virtfs(Context {
            option: "-virtfs",
            value: "local,path=/srv,mount_tag=host0,security_model=passthrough",
        })
        .unwrap();
        assert_eq!((folder.id.as_str(), folder.rules.security), ("host0", SecurityModel::Passthrough));
        assert_eq!(device, DeviceChoice::Virtio9p { fsdev: "host0".into(), mount_tag: "host0".into() });
    }

    #[test]
    fn folders_that_cannot_be() {
        for (value, named) in [
            ("local,id=f,security_model=none", "needs path=FOLDER"),
            ("local,path=/a,security_model=none", "needs id="),
            ("local,id=f,path=/a", "needs security_model="),
            ("local,id=f,path=/a,security_model=mapped-file", "mapped-file: not built yet"),
            ("local,id=f,path=/a,security_model=some", "security_model= takes"),
            ("local,id=f,path=/a,security_model=none,fmode=0600", "for security_model=mapped-xattr"),
            ("local,id=f,path=/a,security_model=mapped,fmode=01777", "fmode= takes"),
            ("local,id=f,path=/a,security_model=mapped,fmode=08", "fmode= takes"),
            ("local,id=f,path=/a,security_model=none,readonly=maybe", "readonly= takes on or off"),
            ("local,id=f,path=/a,security_model=none,multidevs=x", "multidevs= takes"),
            ("local,id=f,path=/a,security_model=none,throttling.bps-total=1", "not built yet"),
            ("local,id=f,path=/a,security_model=none,writeout=immediate", "writeout: not built yet"),
            ("local,id=f,path=/a,security_mode=none", "(did you mean 'security_model'?)"),
            ("local,id=f,path=/a,security_model=none,mount_tag=x", "unknown property 'mount_tag'"),
            ("proxy,id=f,socket=/s", "proxy: not built yet"),
            ("remote,id=f", "no kind of folder 'remote'"),
            ("id=f", "comes first"),
        ] {
            let text = fs(value).map_err(|error| error.to_string());
            assert!(text.as_ref().is_err_and(|text| text.contains(named)), "{value}: {text:?}");
        }
        let long = format!("local,path=/a,security_model=none,mount_tag={}", "x".repeat(33));
        for value in ["local,path=/a,security_model=none", &long] {
            let error = virtfs(Context { option: "-virtfs", value }).unwrap_err().to_string();
            assert!(error.contains("mount_tag="), "{error}");
        }
    }
}

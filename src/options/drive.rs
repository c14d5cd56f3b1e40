//! `-drive`, `-hda` and its like, `-blockdev`: images for disks (QEMU, *Invocation*, *Block device options*).

use std::collections::BTreeMap;
use std::path::PathBuf;

use devices::backend::block::CacheMode;

use super::error::{Context, OptionError};
use super::syntax::{self, Pair};

/// How an image holds its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// Its bytes are the disk's.
    Raw,
    /// The same, since nothing was said. An image that looks like another format is refused then.
    Unsaid,
    /// qcow2.
    Qcow2,
}

/// An image to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveChoice {
    /// What devices call it.
    pub id: String,
    /// The option that named it.
    pub option: String,
    /// Its file.
    pub file: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// What the host's page cache does.
    pub cache: CacheMode,
    /// The guest may only read it.
    pub read_only: bool,
    /// What the guest writes is thrown away; `None`: if `-snapshot` says so.
    pub snapshot: Option<bool>,
    /// Discarded space is given back to the host.
    pub unmap: bool,
    /// Keeps a second program off it.
    pub lock: bool,
}

impl DriveChoice {
    fn new(id: String, option: &str) -> Self {
        Self {
            id,
            option: option.into(),
            file: PathBuf::new(),
            format: ImageFormat::Unsaid,
            cache: CacheMode::Writeback,
            read_only: false,
            snapshot: None,
            unmap: false,
            lock: true,
        }
    }
}

/// Who makes the device of a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// The drive brings its virtio-blk device.
    Virtio,
    /// `-device` names it.
    None,
}

const DRIVE_PROPERTIES: &[&str] = &[
    "file",
    "format",
    "if",
    "cache",
    "readonly",
    "id",
    "snapshot",
    "media",
    "index",
    "aio",
    "discard",
    "detect-zeroes",
    "werror",
    "rerror",
    "file.locking",
    "locking",
    "node-name",
];

fn format(context: Context, value: &str) -> Result<ImageFormat, OptionError> {
    match value {
        "raw" => Ok(ImageFormat::Raw),
        "qcow2" => Ok(ImageFormat::Qcow2),
        "qcow" | "qed" | "vdi" | "vhdx" | "vmdk" | "vpc" | "luks" | "parallels" | "bochs" | "cloop"
        | "dmg" => Err(context.not_built(&format!("format {value}"))),
        _ => Err(context.bad(format!("no format '{value}' (there are raw and qcow2)"))),
    }
}

fn on_off(context: Context, pair: &Pair) -> Result<bool, OptionError> {
    syntax::on_off(&pair.value).ok_or_else(|| context.bad(format!("{}= takes on or off", pair.key)))
}

/// What only tunes, or asks for what is so anyway. False: it is neither.
fn without_effect(context: Context, pair: &Pair) -> Result<bool, OptionError> {
    let values: &[&str] = match pair.key.as_str() {
        "aio" => &["threads"],
        "detect-zeroes" => &["off"],
        "werror" | "rerror" => &["report"],
        "index" if pair.value.parse::<u32>().is_ok() => return Ok(true),
        "index" => return Err(context.bad("index= takes a number")),
        _ => return Ok(false),
    };
    if values.contains(&pair.value.as_str()) {
        Ok(true)
    } else {
        Err(context.not_built(&format!("{}={}", pair.key, pair.value)))
    }
}

fn discard(context: Context, value: &str) -> Result<bool, OptionError> {
    match value {
        "unmap" | "on" => Ok(true),
        "ignore" | "off" => Ok(false),
        _ => Err(context.bad("discard= takes unmap or ignore")),
    }
}

fn locking(context: Context, value: &str) -> Result<bool, OptionError> {
    match value {
        "auto" | "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(context.bad("locking= takes on, off or auto")),
    }
}

/// Reads the argument of `-drive`. `number`: how many drives there are before it.
pub fn drive(context: Context, number: usize) -> Result<(DriveChoice, Interface), OptionError> {
    let mut drive = DriveChoice::new(format!("drive{number}"), &format!("-drive {}", context.value));
    let mut interface = Interface::Virtio;
    for pair in syntax::pairs(context.value, "file") {
        match pair.key.as_str() {
            "file" => drive.file = pair.value.into(),
            "format" | "driver" => drive.format = format(context, &pair.value)?,
            "id" | "node-name" => drive.id = pair.value,
            "readonly" | "read-only" => drive.read_only = on_off(context, &pair)?,
            "snapshot" => drive.snapshot = Some(on_off(context, &pair)?),
            "discard" => drive.unmap = discard(context, &pair.value)?,
            "locking" | "file.locking" => drive.lock = locking(context, &pair.value)?,
            "if" => {
                interface = match pair.value.as_str() {
                    "virtio" => Interface::Virtio,
                    "none" => Interface::None,
                    "ide" | "scsi" | "sd" | "mtd" | "floppy" | "pflash" | "xen" => {
                        return Err(context.not_built(&format!("if={}", pair.value)));
                    }
                    _ => return Err(context.bad("if= takes virtio or none")),
                }
            }
            "cache" => {
                let mode = CacheMode::NAMES.iter().find(|(name, _)| *name == pair.value);
                let expected = "cache= takes writeback, none, writethrough, directsync or unsafe";
                drive.cache = mode.ok_or_else(|| context.bad(expected))?.1;
            }
            "media" => match pair.value.as_str() {
                "disk" => {}
                "cdrom" => drive.read_only = true,
                _ => return Err(context.bad("media= takes disk or cdrom")),
            },
            key if key.starts_with("throttling.") || matches!(key, "bps" | "iops" | "copy-on-read") => {
                return Err(context.not_built(key));
            }
            _ if without_effect(context, &pair)? => {}
            key => return Err(context.unknown_of(key, DRIVE_PROPERTIES.iter().copied())),
        }
    }
    if drive.file.as_os_str().is_empty() {
        return Err(context.bad("needs an image, file=PATH"));
    }
    Ok((drive, interface))
}

/// `-hda FILE`, `-cdrom FILE` and their like, as virtio disks.
pub fn image(context: Context, number: usize, read_only: bool) -> Result<DriveChoice, OptionError> {
    let file = super::path(context)?;
    let option = format!("{} {}", context.option, context.value);
    Ok(DriveChoice { file, read_only, ..DriveChoice::new(format!("drive{number}"), &option) })
}

const NODE_PROPERTIES: &[&str] = &[
    "driver",
    "node-name",
    "filename",
    "file",
    "read-only",
    "auto-read-only",
    "cache.direct",
    "cache.no-flush",
    "discard",
    "locking",
    "aio",
    "detect-zeroes",
    "file.driver",
    "file.filename",
];

/// The nodes of `-blockdev`, by name.
#[derive(Clone, Debug, Default)]
pub struct Nodes(BTreeMap<String, DriveChoice>);

impl Nodes {
    /// Adds the argument of one `-blockdev`.
    pub fn add(&mut self, context: Context) -> Result<(), OptionError> {
        if context.value.starts_with('{') {
            return Err(context.not_built("JSON"));
        }
        let pairs = syntax::pairs(context.value, "driver");
        let get = |key: &str| pairs.iter().find(|pair| pair.key == key).map(|pair| pair.value.as_str());
        let name = get("node-name").ok_or_else(|| context.bad("needs a name, node-name=NAME"))?;
        let mut node = DriveChoice::new(name.into(), &format!("-blockdev {}", context.value));
        match get("driver") {
            Some("file" | "host_device") => node.format = ImageFormat::Raw,
            Some(driver) => {
                if let Some(below) = get("file") {
                    let Some(below) = self.0.get(below) else {
                        return Err(context.bad(format!("there is no node '{below}' before it")));
                    };
                    node = DriveChoice { id: node.id, option: node.option, ..below.clone() };
                }
                node.format = format(context, driver)?;
            }
            None => return Err(context.bad("needs driver=file, raw or qcow2")),
        }
        let (mut direct, mut no_flush) = (node.cache.is_direct(), node.cache == CacheMode::Unsafe);
        for pair in &pairs {
            match pair.key.as_str() {
                "driver" | "node-name" | "file" => {}
                "file.driver" if matches!(pair.value.as_str(), "file" | "host_device") => {}
                "file.driver" => return Err(context.not_built(&format!("file.driver={}", pair.value))),
                "filename" | "file.filename" => node.file = pair.value.clone().into(),
                "read-only" => node.read_only = on_off(context, pair)?,
                "auto-read-only" => drop(on_off(context, pair)?),
                "cache.direct" | "file.cache.direct" => direct = on_off(context, pair)?,
                "cache.no-flush" | "file.cache.no-flush" => no_flush = on_off(context, pair)?,
                "discard" | "file.discard" => node.unmap = discard(context, &pair.value)?,
                "locking" | "file.locking" => node.lock = locking(context, &pair.value)?,
                _ if without_effect(context, pair)? => {}
                key => return Err(context.unknown_of(key, NODE_PROPERTIES.iter().copied())),
            }
        }
        if direct && no_flush {
            return Err(context.not_built("cache.direct=on with cache.no-flush=on"));
        }
        node.cache = match (direct, no_flush) {
            (true, _) => CacheMode::None,
            (_, true) => CacheMode::Unsafe,
            _ => CacheMode::Writeback,
        };
        if node.file.as_os_str().is_empty() {
            return Err(context.bad("needs an image, filename=PATH or file=NODE"));
        }
        if self.0.contains_key(name) {
            return Err(context.bad(format!("there is a node '{name}' already")));
        }
        self.0.insert(name.into(), node);
        Ok(())
    }

    /// The node of that name.
    pub fn get(&self, name: &str) -> Option<&DriveChoice> {
        self.0.get(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Result<(DriveChoice, Interface), OptionError> {
        drive(Context { option: "-drive", value }, 0)
    }

    #[test]
    fn drives() {
        let (choice, interface) =
            read("file=a,,b.img,format=raw,if=none,id=d,cache=none,readonly=on").unwrap();
        assert_eq!(
            (choice.file.to_str(), choice.id.as_str(), interface),
            (Some("a,b.img"), "d", Interface::None)
        );
        assert_eq!(
            (choice.cache, choice.read_only, choice.format),
            (CacheMode::None, true, ImageFormat::Raw)
        );
        assert!(choice.lock && !choice.unmap && choice.snapshot.is_none());
        let (choice, interface) = read("x,snapshot=on,discard=unmap,file.locking=off,index=0").unwrap();
        assert_eq!((choice.format, interface), (ImageFormat::Unsaid, Interface::Virtio));
        assert!(!choice.lock && choice.unmap && choice.snapshot == Some(true));
    }

    #[test]
    fn drives_that_cannot_be() {
        for (value, named) in [
            ("format=raw", "needs an image"),
            ("file=x,format=vmdk", "format vmdk: not built yet"),
            ("file=x,format=frob", "'frob'"),
            ("file=x,if=ide", "if=ide: not built yet"),
            ("file=x,cache=some", "cache= takes"),
            ("file=x,readonly=maybe", "readonly= takes on or off"),
            ("file=x,cach=none", "unknown property 'cach' (did you mean 'cache'?)"),
            ("file=x,cahce=none", "unknown property 'cahce' (did you mean 'cache'?)"),
            ("file=x,aio=native", "aio=native: not built yet"),
        ] {
            let text = read(value).unwrap_err().to_string();
            assert!(text.contains(named), "{text}");
        }
    }

    #[test]
    fn nodes_stand_on_nodes() {
        let mut nodes = Nodes::default();
        let mut add = |value| nodes.add(Context { option: "-blockdev", value });
        add("driver=file,filename=f.img,node-name=f,cache.direct=on").unwrap();
        add("qcow2,file=f,node-name=q").unwrap();
        add("driver=raw,file.driver=file,file.filename=g.img,node-name=g,read-only=on").unwrap();
        for (value, named) in [
            ("driver=raw,file=h,node-name=i", "no node 'h'"),
            ("driver=raw,node-name=i", "needs an image"),
            ("driver=file,filename=x", "node-name=NAME"),
            ("driver=nbd,node-name=n", "no format 'nbd'"),
            ("driver=file,filename=x,node-name=f", "node 'f' already"),
            ("driver=file,filenam=x,node-name=y", "did you mean 'filename'?"),
            ("{}", "JSON: not built yet"),
        ] {
            let text = add(value).unwrap_err().to_string();
            assert!(text.contains(named), "{text}");
        }
        let node = nodes.get("q").unwrap();
        assert_eq!((node.file.to_str(), node.format), (Some("f.img"), ImageFormat::Qcow2));
        assert_eq!(node.cache, CacheMode::None);
        assert!(nodes.get("g").unwrap().read_only);
    }
}

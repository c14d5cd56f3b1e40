//! `-readconfig FILE`: options in a file (QEMU, *Invocation*): groups in brackets, `key = "value"` below.
//!
//! ```text
//! [drive "disk0"]
//!   file = "root.img"
//!   format = "raw"
//! ```

use std::io::Read;

use super::error::OptionError;
use super::line::Item;
use super::{json, table};

/// No list of options is longer.
const MOST_BYTES: u64 = 1 << 20;

/// Groups: name, the option that says the same, and the property that its readers want first.
const GROUPS: &[(&str, &str, &str)] = &[
    ("accel", "accel", "accel"),
    ("action", "action", ""),
    ("boot-opts", "boot", "order"),
    ("chardev", "chardev", "backend"),
    ("device", "device", "driver"),
    ("drive", "drive", "file"),
    ("fsdev", "fsdev", "fsdriver"),
    ("fw_cfg", "fw_cfg", "name"),
    ("global", "global", "driver"),
    ("icount", "icount", "shift"),
    ("machine", "machine", "type"),
    ("memory", "m", "size"),
    ("mon", "mon", "chardev"),
    ("msg", "msg", "timestamp"),
    ("name", "name", "guest"),
    ("netdev", "netdev", "type"),
    ("numa", "numa", "type"),
    ("object", "object", "qom-type"),
    ("overcommit", "overcommit", "mem-lock"),
    ("rtc", "rtc", "base"),
    ("sandbox", "sandbox", "enable"),
    ("smbios", "smbios", "type"),
    ("smp-opts", "smp", "cpus"),
    ("virtfs", "virtfs", "fsdriver"),
];

/// A group of the file.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    line: usize,
    name: String,
    pairs: Vec<(String, String)>,
}

/// The options of a file, up to the first mistake. `option`: `-readconfig` as written.
pub fn items(option: &str, file: &str) -> Vec<Result<Item, OptionError>> {
    let error = |why: String| OptionError::ConfigFile { option: option.into(), file: file.into(), why };
    let text = match read(file) {
        Ok(bytes) if bytes.len() as u64 > MOST_BYTES => Err("too long for a file of options".to_owned()),
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned()),
        Err(source) => Err(crate::accelerator::chain(&source)),
    };
    let groups = match text.and_then(|text| groups(&text)) {
        Ok(groups) => groups,
        Err(why) => return vec![Err(error(why))],
    };
    let mut items = Vec::new();
    for group in groups {
        let found = GROUPS.iter().find(|(name, _, _)| *name == group.name);
        let Some(&(_, name, first_key)) = found else {
            let known = GROUPS.iter().map(|(name, _, _)| *name);
            let nearest = super::syntax::nearest(&group.name, known);
            let nearest = nearest.map(|name| format!(" (did you mean [{name}]?)")).unwrap_or_default();
            let why = format!("line {}: unknown group [{}]{nearest}", group.line, group.name);
            items.push(Err(error(why)));
            return items;
        };
        let mut pairs = group.pairs;
        pairs.sort_by_key(|(key, _)| key != first_key);
        let list = pairs.iter().map(|(key, value)| format!("{key}={}", value.replace(',', ",,")));
        let list = list.collect::<Vec<_>>().join(",");
        let option = format!("{option} {file}: line {}: -{name}", group.line);
        let kind = table::find(name).expect("a group's option is one");
        let value = json::pairs(&option, kind, list);
        items.push(value.map(|value| Item { option, kind, value: Some(value) }));
    }
    items
}

/// The beginning of the file: a device may have no end.
fn read(file: &str) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn groups(text: &str) -> Result<Vec<Group>, String> {
    let mut groups: Vec<Group> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        let bad = || format!("line {number}: neither [GROUP], [GROUP \"ID\"] nor KEY = \"VALUE\"");
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            let header = header.strip_suffix(']').ok_or_else(bad)?;
            let (name, id) = header.split_once(char::is_whitespace).unwrap_or((header, ""));
            let id = match id.trim() {
                "" => None,
                id => Some(quoted(id).ok_or_else(bad)?),
            };
            let pairs = id.map(|id| ("id".to_owned(), id.to_owned())).into_iter().collect();
            groups.push(Group { line: number, name: name.to_owned(), pairs });
            continue;
        }
        let (key, value) = line.split_once('=').ok_or_else(bad)?;
        let value = quoted(value.trim()).ok_or_else(bad)?;
        let key = key.trim();
        if key.is_empty() || key.contains(',') {
            return Err(bad());
        }
        let group = groups.last_mut().ok_or_else(|| format!("line {number}: no group before it"))?;
        group.pairs.push((key.to_owned(), value.to_owned()));
    }
    Ok(groups)
}

/// What stands between quotation marks.
fn quoted(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    (!inner.contains('"')).then_some(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_their_pairs() {
        let text = "# a machine\n\n[memory]\n  size = \"512\"\n[device \"d0\"]\n drive=\"a\"\n\tdriver = \"x\"\n[rtc]\n";
        let read = groups(text).unwrap();
        assert_eq!(read.len(), 3);
        assert_eq!((read[0].name.as_str(), read[0].line), ("memory", 3));
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(read[1].pairs, [pair("id", "d0"), pair("drive", "a"), pair("driver", "x")]);
        assert_eq!(read[2].pairs, []);
    }

    #[test]
    fn mistakes_have_line_numbers() {
        for (text, part) in [
            ("[memory]\nsize = 512", "line 2: neither"),
            ("size = \"512\"", "line 1: no group before it"),
            ("[memory", "line 1: neither"),
            ("[device d0]", "line 1: neither"),
            ("[memory]\n= \"1\"", "line 2: neither"),
            ("[memory]\na = \"1\"2\"", "line 2: neither"),
        ] {
            let why = groups(text).unwrap_err();
            assert!(why.contains(part), "{text}: {why}");
        }
    }

    #[test]
    fn a_file_without_end_is_refused() {
        let mut items = items("-readconfig /dev/zero", "/dev/zero");
        let error = items.remove(0).expect_err("no options").to_string();
        assert!(items.is_empty() && error.contains("too long for a file of options"), "{error}");
    }

    #[test]
    fn every_group_has_an_option() {
        for (group, option, _) in GROUPS {
            assert!(table::find(option).is_some(), "[{group}]");
        }
    }
}

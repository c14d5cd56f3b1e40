//! `-fw_cfg` (QEMU, *Invocation*): files for the guest.

use std::path::PathBuf;

use super::error::{Context, OptionError};
use super::syntax;

/// A file of the firmware configuration device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FwCfgFile {
    /// Its name.
    pub name: String,
    /// What is in it.
    pub content: FwCfgContent,
}

/// Where a file's content comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FwCfgContent {
    /// From the command line.
    Text(String),
    /// From a file of the host.
    File(PathBuf),
}

/// Bytes that a name may have.
const NAME_BYTES: usize = devices::chipset::fw_cfg::spec::FILE_NAME_BYTES - 1;

/// Reads one `-fw_cfg`.
pub fn file(context: Context) -> Result<FwCfgFile, OptionError> {
    let (mut name, mut text, mut file) = (None, None, None);
    for pair in syntax::pairs(context.value, "name") {
        match pair.key.as_str() {
            "name" => name = Some(pair.value),
            "string" => text = Some(pair.value),
            "file" => file = Some(PathBuf::from(pair.value)),
            "gen_id" => return Err(context.not_built("gen_id")),
            key => return Err(context.unknown_of(key, ["name", "string", "file"].into_iter())),
        }
    }
    let name = name.filter(|name| (1..=NAME_BYTES).contains(&name.len()) && !name.contains('\0'));
    let name = name.ok_or_else(|| context.bad(format!("needs name=NAME, 1 to {NAME_BYTES} bytes")))?;
    let content = match (text, file) {
        (Some(text), None) => FwCfgContent::Text(text),
        (None, Some(file)) if !file.as_os_str().is_empty() => FwCfgContent::File(file),
        _ => return Err(context.bad("needs either file=PATH or string=TEXT")),
    };
    Ok(FwCfgFile { name, content })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_one_content() {
        let read =
            |value: &str| file(Context { option: "-fw_cfg", value }).map_err(|error| error.to_string());
        let text = FwCfgContent::Text("a=b,c".into());
        assert_eq!(read("opt/x,string=a=b,,c"), Ok(FwCfgFile { name: "opt/x".into(), content: text }));
        let path = FwCfgContent::File("/x".into());
        assert_eq!(read("name=opt/x,file=/x"), Ok(FwCfgFile { name: "opt/x".into(), content: path }));
        for (value, part) in [
            ("opt/x", "needs either file=PATH or string=TEXT"),
            ("opt/x,file=", "needs either file=PATH or string=TEXT"),
            ("opt/x,file=a,string=b", "needs either"),
            ("string=b", "needs name=NAME, 1 to 55 bytes"),
            ("name=,string=b", "needs name=NAME"),
            ("opt/x,strin=b", "did you mean 'string'?"),
            ("opt/x,gen_id=o", "gen_id: not built yet"),
        ] {
            let error = read(value).unwrap_err();
            assert!(error.contains(part), "{value}: {error}");
        }
        assert!(read(&format!("{},string=x", "n".repeat(56))).is_err());
    }
}

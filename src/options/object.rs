//! `-object` (QEMU, *Invocation*): the sources of random bytes. Those of memory are in [`super::memory_backend`].

use std::path::PathBuf;

use super::error::{Context, OptionError};
use super::syntax;

/// Reads the argument of `-object`: a name, and the file that random bytes come from.
pub fn object(context: Context) -> Result<(String, PathBuf), OptionError> {
    let mut pairs = syntax::pairs(context.value, "qom-type");
    let kind = pairs.remove(0).value;
    let (mut id, mut filename) = (None, None);
    let known: &[&str] = match kind.as_str() {
        "rng-random" => &["id", "filename"],
        "rng-builtin" => &["id"],
        _ => return Err(context.not_built(&format!("object '{kind}'"))),
    };
    for pair in pairs {
        match pair.key.as_str() {
            "id" => id = Some(pair.value),
            "filename" if known.contains(&"filename") => filename = Some(pair.value.into()),
            key => return Err(context.unknown_of(key, known.iter().copied())),
        }
    }
    let id = id.ok_or_else(|| context.bad("needs id=NAME"))?;
    Ok((id, filename.unwrap_or_else(|| RNG_SOURCE.into())))
}

/// The text of `-object help`.
pub const OBJECT_HELP: &str = "\
Objects:
  rng-random,id=NAME[,filename=FILE]: random bytes from a file (default /dev/urandom)
  rng-builtin,id=NAME: random bytes from the host
  memory-backend-ram,id=NAME,size=SIZE[,share=on|off][,prealloc=on|off]: memory without a name
  memory-backend-memfd,id=NAME,size=SIZE[,share=on|off][,prealloc=on|off][,hugetlb=on|off][,hugetlbsize=SIZE]: a memfd
  memory-backend-file,id=NAME,size=SIZE,mem-path=PATH[,share=on|off][,prealloc=on|off]: a file
";

/// Where random bytes come from.
pub const RNG_SOURCE: &str = "/dev/urandom";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects() {
        let object = |value| object(Context { option: "-object", value });
        assert_eq!(object("rng-random,id=r,filename=/dev/hwrng"), Ok(("r".into(), "/dev/hwrng".into())));
        assert_eq!(object("rng-builtin,id=r"), Ok(("r".into(), RNG_SOURCE.into())));
        assert!(object("rng-random").unwrap_err().to_string().ends_with("needs id=NAME"));
        assert!(object("rng-random,id=r,filenam=x").unwrap_err().to_string().contains("'filename'?"));
        assert!(object("secret,id=s").unwrap_err().to_string().ends_with("not built yet"));
    }
}

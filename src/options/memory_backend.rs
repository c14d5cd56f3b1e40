//! `-object memory-backend-ram|memfd|file`, `-mem-path`, `-mem-prealloc`, `-numa`: what guest RAM is made of (QEMU, *Invocation*).

use std::path::PathBuf;

use super::error::{Context, OptionError};
use super::syntax;

/// What guest RAM is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryBackend {
    /// What `-machine memory-backend=` calls it.
    pub id: String,
    /// Where the memory is from.
    pub source: MemorySource,
    /// Bytes; `None`: as many as `-m` says.
    pub size: Option<u64>,
    /// Other processes may map it: what the guest writes is written to the file.
    pub share: bool,
    /// All of it is had before the guest starts.
    pub prealloc: bool,
}

/// Where memory is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemorySource {
    /// Without a name; a memfd if it is shared.
    Ram,
    /// A memfd.
    Memfd {
        /// Of huge pages of so many bytes; `Some(0)`: of the host's usual ones.
        huge_page: Option<u64>,
    },
    /// A file, made if it is not there; in a folder: a file without a name.
    File(PathBuf),
}

/// Whether `-object` is about memory.
pub fn is_memory(context: Context) -> bool {
    let first = syntax::pairs(context.value, "qom-type").swap_remove(0);
    first.key == "qom-type" && first.value.starts_with("memory-backend-")
}

const KINDS: &[(&str, &[&str])] = &[
    ("memory-backend-ram", &[]),
    ("memory-backend-memfd", &["hugetlb", "hugetlbsize", "seal"]),
    ("memory-backend-file", &["mem-path", "discard-data", "readonly"]),
];
/// Of all kinds. The last ones tune what is not tuned here; they take what QEMU takes them to be unless told otherwise.
const PROPERTIES: &[&str] =
    &["id", "size", "share", "prealloc", "prealloc-threads", "merge", "dump", "reserve", "policy"];
const NOT_BUILT: &[&str] = &["host-nodes", "align", "offset", "pmem", "rom", "prealloc-context"];

/// Reads an `-object memory-backend-...`.
pub fn object(context: Context) -> Result<MemoryBackend, OptionError> {
    let mut pairs = syntax::pairs(context.value, "qom-type");
    let kind = pairs.remove(0).value;
    let found = KINDS.iter().find(|(name, _)| *name == kind);
    let (_, more) = found.ok_or_else(|| context.not_built(&format!("object '{kind}'")))?;
    let (mut id, mut size, mut path) = (None, None, None);
    let (mut hugetlb, mut huge_page) = (false, 0);
    // QEMU's memfds are shared unless told otherwise.
    let (mut share, mut prealloc) = (kind == "memory-backend-memfd", false);
    for pair in pairs {
        let (key, value) = (pair.key.as_str(), pair.value.as_str());
        let switch = || syntax::on_off(value).ok_or_else(|| context.bad(format!("{key}= takes on or off")));
        let bytes = || {
            let bytes = syntax::size(value, 1).filter(|&bytes| bytes > 0);
            bytes.ok_or_else(|| context.bad(format!("{key}= takes a size, such as 2M")))
        };
        if NOT_BUILT.contains(&key) {
            return Err(context.not_built(key));
        }
        if !PROPERTIES.contains(&key) && !more.contains(&key) {
            return Err(context.unknown_of(key, PROPERTIES.iter().chain(*more).copied()));
        }
        match key {
            "id" => id = Some(value.to_owned()),
            "size" => size = Some(bytes()?),
            "share" => share = switch()?,
            "prealloc" => prealloc = switch()?,
            "hugetlb" => hugetlb = switch()?,
            "hugetlbsize" => {
                huge_page = bytes()?;
                if !huge_page.is_power_of_two() {
                    return Err(context.bad("hugetlbsize= takes a power of two"));
                }
            }
            "mem-path" => path = Some(PathBuf::from(value)),
            "merge" | "dump" | "seal" => drop(switch()?),
            "prealloc-threads" if syntax::integer(value).is_some() => {}
            "discard-data" | "readonly" if !switch()? => {}
            "reserve" if switch()? => {}
            "policy" if value == "default" => {}
            _ => return Err(context.not_built(&format!("{key}={value}"))),
        }
    }
    if huge_page > 0 && !hugetlb {
        return Err(context.bad("hugetlbsize= needs hugetlb=on"));
    }
    let source = match (kind.as_str(), path) {
        ("memory-backend-ram", _) => MemorySource::Ram,
        ("memory-backend-memfd", _) => MemorySource::Memfd { huge_page: hugetlb.then_some(huge_page) },
        (_, Some(path)) if !path.as_os_str().is_empty() => MemorySource::File(path),
        _ => return Err(context.bad("needs mem-path=PATH")),
    };
    let id = id.ok_or_else(|| context.bad("needs id=NAME"))?;
    if size.is_none() {
        return Err(context.bad("needs size=SIZE"));
    }
    Ok(MemoryBackend { id, source, size, share, prealloc })
}

/// What the command line says of guest RAM beside `-m`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryArgument {
    /// The objects.
    pub backends: Vec<MemoryBackend>,
    /// `-mem-path`.
    pub path: Option<PathBuf>,
    /// `-mem-prealloc`.
    pub prealloc: bool,
    /// `-numa node,memdev=`.
    pub memdev: Option<String>,
    nodes: usize,
}

impl MemoryArgument {
    /// Reads one `-numa`. There is one node.
    pub fn add_numa(&mut self, context: Context) -> Result<(), OptionError> {
        let mut pairs = syntax::pairs(context.value, "type").into_iter();
        match pairs.next() {
            Some(first) if first.key == "type" && first.value == "node" => {}
            Some(first) if first.key == "type" => return Err(context.not_built(&first.value)),
            _ => return Err(context.bad("takes node[,nodeid=0][,memdev=NAME][,cpus=FIRST-LAST]")),
        }
        self.nodes += 1;
        if self.nodes > 1 {
            return Err(context.not_built("more than one node"));
        }
        for pair in pairs {
            match (pair.key.as_str(), pair.value.as_str()) {
                ("memdev", _) => self.memdev = Some(pair.value),
                ("nodeid", "0") | ("cpus", _) => {}
                ("nodeid", _) => return Err(context.bad("the only node has nodeid=0")),
                (key @ ("mem" | "initiator"), _) => return Err(context.not_built(key)),
                (key, _) => return Err(context.unknown_of(key, ["memdev", "nodeid", "cpus"].into_iter())),
            }
        }
        Ok(())
    }

    /// What guest RAM is made of, and its bytes. `named`: by `-machine memory-backend=`; `bytes`: by `-m`, if it was said.
    pub fn choose(
        self,
        named: Option<String>,
        bytes: Option<u64>,
    ) -> Result<(Option<MemoryBackend>, Option<u64>), OptionError> {
        let named = match (named, self.memdev) {
            (Some(_), Some(_)) => {
                return Err(OptionError::Conflict("-machine memory-backend=".into(), "-numa memdev=".into()));
            }
            (named, memdev) => named.or(memdev),
        };
        let Some(id) = named else {
            let source = self.path.map(MemorySource::File);
            if source.is_none() && !self.prealloc {
                return Ok((None, bytes));
            }
            let source = source.unwrap_or(MemorySource::Ram);
            let prealloc = self.prealloc;
            let backend = MemoryBackend { id: String::new(), source, size: None, share: false, prealloc };
            return Ok((Some(backend), bytes));
        };
        if self.path.is_some() {
            return Err(OptionError::Conflict("-mem-path".into(), "a memory backend".into()));
        }
        let backend = self.backends.into_iter().find(|backend| backend.id == id);
        let backend = backend.ok_or(OptionError::NoMemoryBackend(id))?;
        match (bytes, backend.size) {
            (Some(bytes), Some(size)) if bytes != size => {
                Err(OptionError::MemorySizes { id: backend.id, backend: size, memory: bytes })
            }
            (bytes, size) => Ok((Some(backend), bytes.or(size))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Result<MemoryBackend, String> {
        object(Context { option: "-object", value }).map_err(|error| error.to_string())
    }

    #[test]
    fn backends() {
        let memfd =
            read("memory-backend-memfd,id=m,size=512M,hugetlb=on,hugetlbsize=2M,prealloc=on").unwrap();
        let source = MemorySource::Memfd { huge_page: Some(2 << 20) };
        let expected =
            MemoryBackend { id: "m".into(), source, size: Some(512 << 20), share: true, prealloc: true };
        assert_eq!(memfd, expected);
        let file = read("memory-backend-file,id=f,size=1G,mem-path=/dev/shm,share=on").unwrap();
        assert_eq!((file.source, file.share), (MemorySource::File("/dev/shm".into()), true));
        assert!(!read("memory-backend-ram,id=r,size=1G,merge=off,dump=off,policy=default").unwrap().share);
        for (value, part) in [
            ("memory-backend-ram,size=1G", "needs id=NAME"),
            ("memory-backend-ram,id=m", "needs size=SIZE"),
            ("memory-backend-ram,id=m,size=x", "size= takes a size"),
            ("memory-backend-file,id=m,size=1G", "needs mem-path=PATH"),
            ("memory-backend-ram,id=m,size=1G,mem-path=/x", "unknown property 'mem-path'"),
            ("memory-backend-ram,id=m,size=1G,shar=on", "did you mean 'share'?"),
            ("memory-backend-memfd,id=m,size=1G,hugetlbsize=2M", "hugetlbsize= needs hugetlb=on"),
            ("memory-backend-memfd,id=m,size=1G,hugetlb=on,hugetlbsize=3M", "a power of two"),
            ("memory-backend-ram,id=m,size=1G,policy=bind", "policy=bind: not built yet"),
            ("memory-backend-epc,id=m,size=1G", "object 'memory-backend-epc': not built yet"),
        ] {
            let error = read(value).unwrap_err();
            assert!(error.contains(part), "{value}: {error}");
        }
    }

    #[test]
    fn the_machine_has_one_of_the_right_size() {
        let argument = || MemoryArgument {
            backends: vec![read("memory-backend-ram,id=m,size=1G").unwrap()],
            ..MemoryArgument::default()
        };
        let choose = |argument: MemoryArgument, named: Option<&str>, bytes| {
            argument.choose(named.map(str::to_owned), bytes).map_err(|error| error.to_string())
        };
        let (backend, bytes) = choose(argument(), Some("m"), None).unwrap();
        assert_eq!((backend.unwrap().id.as_str(), bytes), ("m", Some(1 << 30)));
        assert_eq!(choose(argument(), None, Some(5)), Ok((None, Some(5))));
        let error = choose(argument(), Some("m"), Some(2 << 30)).unwrap_err();
        assert!(error.contains("'m' has 1024 MiB and -m says 2048"), "{error}");
        assert!(choose(argument(), Some("n"), None).unwrap_err().contains("no memory backend 'n'"));
        let mut numa = argument();
        numa.add_numa(Context { option: "-numa", value: "node,memdev=m,cpus=0-1" }).unwrap();
        assert!(choose(numa.clone(), None, None).unwrap().0.is_some());
        assert!(choose(numa.clone(), Some("m"), None).unwrap_err().contains("exclude each other"));
        let second = numa.add_numa(Context { option: "-numa", value: "node" }).unwrap_err();
        assert!(second.to_string().contains("more than one node"), "{second}");
        let legacy = MemoryArgument { path: Some("/x".into()), prealloc: true, ..MemoryArgument::default() };
        let (backend, _) = choose(legacy, None, None).unwrap();
        assert_eq!(backend.unwrap().source, MemorySource::File("/x".into()));
    }
}

//! What can be wrong with a command line. Each message is one line that names the thing and, where there is one, the cure.

/// Why a command line is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Nobody knows this option.
    #[error("{option}: unknown option ({}see -help)", nearest.as_ref().map(|name| format!("did you mean {name}? or ")).unwrap_or_default())]
    Unknown {
        /// The option as written.
        option: String,
        /// One that is written much the same.
        nearest: Option<String>,
    },
    /// QEMU has it, or had it; it will not be here.
    #[error("{option}: {why}")]
    Never {
        /// The option as written.
        option: String,
        /// Why.
        why: &'static str,
    },
    /// A file of options cannot be used.
    #[error("{option} {file}: {why}")]
    ConfigFile {
        /// `-readconfig` as written.
        option: String,
        /// The file.
        file: String,
        /// Why.
        why: String,
    },
    /// Memory is to be of a backend that there is not.
    #[error("there is no memory backend '{0}' (-object memory-backend-memfd,id={0},size=SIZE is one)")]
    NoMemoryBackend(String),
    /// Two options say of how many bytes memory is.
    #[error("memory backend '{id}' has {} MiB and -m says {} (leave -m out)", backend >> 20, memory >> 20)]
    MemorySizes {
        /// The backend.
        id: String,
        /// Its bytes.
        backend: u64,
        /// Those of `-m`.
        memory: u64,
    },
    /// QEMU has it.
    #[error("{0}: not built yet")]
    NotBuilt(String),
    /// The option stands last, without its argument.
    #[error("{0}: needs an argument")]
    MissingArgument(String),
    /// The argument is not one that the option takes.
    #[error("{option} {value}: {expected}")]
    BadValue {
        /// The option as written.
        option: String,
        /// Its argument.
        value: String,
        /// What it takes.
        expected: String,
    },
    /// A property that this option does not have.
    #[error("{option} {value}: unknown property '{property}'{}", nearest.as_ref().map(|name| format!(" (did you mean '{name}'?)")).unwrap_or_default())]
    UnknownProperty {
        /// The option as written.
        option: String,
        /// Its argument.
        value: String,
        /// The property.
        property: String,
        /// One that it has and that is written much the same.
        nearest: Option<String>,
    },
    /// A device names a drive that there is not.
    #[error("-device {device}: there is no drive '{drive}'")]
    NoDrive {
        /// The device.
        device: &'static str,
        /// The drive's name.
        drive: String,
    },
    /// Two devices name one drive, or two drives have one name.
    #[error("drive '{0}' is there twice, or for two devices")]
    DriveTaken(String),
    /// A device names an object that there is not.
    #[error("-device {device}: there is no object '{object}'")]
    NoObject {
        /// The device.
        device: &'static str,
        /// The object's name.
        object: String,
    },
    /// A card names a network that there is not.
    #[error("-device virtio-net: there is no -netdev with id={netdev}")]
    NoNetwork {
        /// The network's name.
        netdev: String,
    },
    /// Two cards are on one network.
    #[error("-device virtio-net: netdev '{0}' has a card already")]
    CardTaken(String),
    /// What a network brings depends on the host's time.
    #[error(
        "-icount: what a network brings is not recorded, so no two runs would be the same (leave the card out)"
    )]
    IcountNetwork,
    /// A device that a board has once.
    #[error("-device {0}: there can be one only")]
    DeviceTwice(&'static str),
    /// A random identifier is another one each time.
    #[error("-icount: -device vmgenid,guid=auto is another identifier in each run (give a UUID)")]
    IcountGuid,
    /// A device names a folder that there is not.
    #[error("-device virtio-9p: there is no -fsdev with id={fsdev}")]
    NoShare {
        /// The folder's name.
        fsdev: String,
    },
    /// Two folders have one name.
    #[error("-fsdev: there are two with id={0}")]
    ShareTaken(String),
    /// What is written to a folder has the host's times.
    #[error(
        "-icount: what a guest writes to a shared folder has the host's times, so no two runs would be the same (say readonly=on)"
    )]
    IcountShare,
    /// What the host's programs send depends on the host's time.
    #[error(
        "-icount: what comes through vsock is not recorded, so no two runs would be the same (leave it out)"
    )]
    IcountVsock,
    /// What another program answers depends on the host's time.
    #[error(
        "-icount: what a vhost-user back end does is not recorded, so no two runs would be the same (use -virtfs with readonly=on)"
    )]
    IcountVhostUser,
    /// A back end is not behind such a character device.
    #[error(
        "-chardev id={0}: a vhost-user back end is at the other end of a Unix socket that we connect to: socket,id={0},path=PATH and no more"
    )]
    NotBackEnd(String),
    /// Two networks have one name.
    #[error("-netdev: there are two with id={0}")]
    NetworkTaken(String),
    /// Two options exclude each other.
    #[error("{0} and {1} exclude each other")]
    Conflict(String, String),
    /// Two character devices want the terminal.
    #[error(
        "stdio: the terminal is for one character device only (with mux=on several devices can share that)"
    )]
    StdioTaken,
    /// A device names a character device that there is not.
    #[error("{device}: there is no -chardev with id={chardev}")]
    NoChardev {
        /// The device.
        device: String,
        /// The character device's name.
        chardev: String,
    },
    /// Two character devices have one name.
    #[error("-chardev: there are two with id={0}")]
    ChardevTwice(String),
    /// More devices than one can serve name a character device.
    #[error("chardev '{chardev}' is for {most} device{} at most{}", if *most > 1 { "s" } else { "" }, if *most > 1 { "" } else { " (mux=on shares it)" })]
    ChardevTaken {
        /// The character device's name.
        chardev: String,
        /// How many it serves.
        most: usize,
    },
    /// A port that cannot be.
    #[error("{option}: {why}")]
    SerialPort {
        /// The option as written.
        option: String,
        /// Why.
        why: String,
    },
    /// A port whose input depends on the host's time.
    #[error(
        "-icount: what comes from chardev '{0}' is not recorded, so no two runs would be the same (leave its port out, or use a kind without input)"
    )]
    IcountPort(String),
    /// There are two balloons.
    #[error("-device virtio-balloon-device: a machine has one balloon at most")]
    BalloonTwice,
    /// No kernel was given.
    #[error("no kernel: give one with -kernel FILE (booting firmware or a disk is not built yet)")]
    NoKernel,
    /// KVM does not count instructions.
    #[error("-icount: KVM cannot count instructions (use -accel tcg)")]
    IcountNeedsTcg,
    /// CPUs on threads of their own come to a timer in another order each time.
    #[error("-icount: all CPUs are on one thread then (not thread=multi)")]
    IcountNeedsOneThread,
    /// An argument that is no text.
    #[error("argument {0} of the command line is not UTF-8")]
    NotUtf8(usize),
}

/// An option as it stood on the command line, for messages.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The option as written.
    pub option: &'a str,
    /// Its argument.
    pub value: &'a str,
}

impl Context<'_> {
    /// The argument is not one that the option takes.
    pub fn bad(&self, expected: impl Into<String>) -> OptionError {
        OptionError::BadValue {
            option: self.option.into(),
            value: self.value.into(),
            expected: expected.into(),
        }
    }

    /// `property` is nothing that this option has.
    pub fn unknown(&self, property: &str) -> OptionError {
        OptionError::UnknownProperty {
            option: self.option.into(),
            value: self.value.into(),
            property: property.into(),
            nearest: None,
        }
    }

    /// `property` is none of `known`, of which the nearest is named.
    pub fn unknown_of<'k>(&self, property: &str, known: impl Iterator<Item = &'k str>) -> OptionError {
        OptionError::UnknownProperty {
            option: self.option.into(),
            value: self.value.into(),
            property: property.into(),
            nearest: super::syntax::nearest(property, known).map(str::to_owned),
        }
    }

    /// `what` is something that QEMU has.
    pub fn not_built(&self, what: &str) -> OptionError {
        OptionError::NotBuilt(format!("{} {}: {what}", self.option, self.value))
    }
}

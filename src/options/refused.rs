//! Options of QEMU's that will never be here, each with its reason.

const GRAPHICS: &str =
    "there are no graphics here, and there will be none (-nographic shows the serial port)";
/// Of sound.
pub const SOUND: &str = "there is no sound here, and there will be none (none is accepted)";
const USB: &str = "there is no USB here, and there will be none (disks and network cards are virtio devices)";
const FLOPPY: &str = "there are no floppy disks, flash chips and memory cards here, and there will be none";
const OTHER_CPU: &str = "it is about CPUs that are no x86 CPUs";
const XEN: &str = "there is no Xen here, and there will be none";
const GONE: &str = "QEMU had it once, and has it no more";

/// Name and reason.
pub const NEVER: &[(&str, &str)] = &[
    ("alt-grab", GRAPHICS),
    ("audio-help", SOUND),
    ("ctrl-grab", GRAPHICS),
    ("curses", GRAPHICS),
    ("dtb", OTHER_CPU),
    ("enable-fips", GONE),
    ("fda", FLOPPY),
    ("fdb", FLOPPY),
    ("full-screen", GRAPHICS),
    ("g", GRAPHICS),
    ("k", GRAPHICS),
    ("mtdblock", FLOPPY),
    ("no-frame", GONE),
    ("no-quit", GONE),
    ("old-param", OTHER_CPU),
    ("portrait", GRAPHICS),
    ("prom-env", OTHER_CPU),
    ("rotate", GRAPHICS),
    ("sd", FLOPPY),
    ("sdl", GRAPHICS),
    ("semihosting", OTHER_CPU),
    ("semihosting-config", OTHER_CPU),
    ("show-cursor", GONE),
    ("soundhw", SOUND),
    ("spice", GRAPHICS),
    ("usb", USB),
    ("usbdevice", USB),
    ("vnc", GRAPHICS),
    ("watchdog", GONE),
    ("win2k-hack", GONE),
    ("writeconfig", GONE),
    ("xen-attach", XEN),
    ("xen-domid", XEN),
    ("xen-domid-restrict", XEN),
];

/// Of displays: `-vga`, `-display`.
pub const DISPLAY: &str = GRAPHICS;

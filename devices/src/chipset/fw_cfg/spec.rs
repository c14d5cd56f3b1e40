//! Registers and keys of the firmware configuration device (QEMU, *QEMU Firmware Configuration (fw_cfg) Device*).

/// First port: the selector, 16 bits; its second byte's port is the data register, 8 bits.
pub const PORT: u16 = 0x510;
/// Selector and data.
pub const PORTS: u64 = 2;
/// Offset of the data register from [`PORT`].
pub const DATA: u64 = 1;
/// The DMA address register, 64 bits, big-endian.
pub const DMA_PORT: u16 = 0x514;
/// Bytes of the DMA address register.
pub const DMA_PORTS: u64 = 8;
/// From the selector to the end of the DMA address register.
pub const ALL_PORTS: u8 = 12;
/// What the DMA address register reads.
pub const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";

/// Keys of items.
pub mod key {
    /// `QEMU`.
    pub const SIGNATURE: u16 = 0x00;
    /// The interface's features, see [`super::id`].
    pub const ID: u16 = 0x01;
    /// The machine's UUID, 16 bytes.
    pub const UUID: u16 = 0x02;
    /// RAM in bytes, 64 bits.
    pub const RAM_SIZE: u16 = 0x03;
    /// Whether there is no display, 16 bits.
    pub const NOGRAPHIC: u16 = 0x04;
    /// CPUs at the start, 16 bits.
    pub const NB_CPUS: u16 = 0x05;
    /// Where the kernel's protected-mode part goes, 32 bits.
    pub const KERNEL_ADDR: u16 = 0x07;
    /// Its length, 32 bits.
    pub const KERNEL_SIZE: u16 = 0x08;
    /// Where the initial RAM disk goes, 32 bits.
    pub const INITRD_ADDR: u16 = 0x0a;
    /// Its length, 32 bits.
    pub const INITRD_SIZE: u16 = 0x0b;
    /// Whether there is a boot menu, 16 bits.
    pub const BOOT_MENU: u16 = 0x0e;
    /// CPUs at most, 16 bits.
    pub const MAX_CPUS: u16 = 0x0f;
    /// The kernel's protected-mode part.
    pub const KERNEL_DATA: u16 = 0x11;
    /// The initial RAM disk.
    pub const INITRD_DATA: u16 = 0x12;
    /// Where the command line goes, 32 bits.
    pub const CMDLINE_ADDR: u16 = 0x13;
    /// Its length with the closing zero, 32 bits.
    pub const CMDLINE_SIZE: u16 = 0x14;
    /// The command line.
    pub const CMDLINE_DATA: u16 = 0x15;
    /// Where the kernel's real-mode part goes, 32 bits.
    pub const SETUP_ADDR: u16 = 0x16;
    /// Its length, 32 bits.
    pub const SETUP_SIZE: u16 = 0x17;
    /// The kernel's real-mode part.
    pub const SETUP_DATA: u16 = 0x18;
    /// The list of files.
    pub const FILE_DIR: u16 = 0x19;
    /// The first file.
    pub const FILE_FIRST: u16 = 0x20;
    /// Of the architecture; not of all machines.
    pub const ARCH_LOCAL: u16 = 0x8000;
    /// A key's bit that asked to write; no item is another one for it.
    pub const WRITE_CHANNEL: u16 = 0x4000;
    /// Whether ISA interrupt 0 is at pin 2, 32 bits.
    pub const IRQ0_OVERRIDE: u16 = ARCH_LOCAL | 0x02;
}

/// Bits of [`key::ID`].
pub mod id {
    /// Selector and data register.
    pub const TRADITIONAL: u32 = 1 << 0;
    /// The DMA interface.
    pub const DMA: u32 = 1 << 1;
}

/// A file's name with its closing zero, in the directory.
pub const FILE_NAME_BYTES: usize = 56;

/// The control word of a DMA access, the first of its structure (big-endian: control, length, 64-bit address).
pub mod dma {
    /// The structure's length.
    pub const ACCESS_BYTES: usize = 16;
    /// Set by the device: the access failed.
    pub const ERROR: u32 = 1 << 0;
    /// Item to memory.
    pub const READ: u32 = 1 << 1;
    /// Neither, but the offset moves on.
    pub const SKIP: u32 = 1 << 2;
    /// First select the item of the upper 16 bits.
    pub const SELECT: u32 = 1 << 3;
    /// Memory to item.
    pub const WRITE: u32 = 1 << 4;
    /// Where the key is.
    pub const KEY_SHIFT: u32 = 16;
}

/// The file `etc/vmcoreinfo`, which a guest writes (QEMU, *VMCoreInfo device*).
pub mod vmcoreinfo {
    /// Its name.
    pub const FILE: &str = "etc/vmcoreinfo";
    /// Host's format, guest's format (16 bits each), size (32 bits), guest-physical address (64 bits).
    pub const BYTES: usize = 16;
    /// An ELF note.
    pub const FORMAT_ELF: u16 = 1;
}

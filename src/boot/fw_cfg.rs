//! The kernel, its initial RAM disk and its command line as items of the firmware configuration device: for firmware and
//! option ROMs that load them. They lie in memory anyway.

use std::io;

use devices::chipset::fw_cfg::spec::key;
use devices::chipset::fw_cfg::{Content, Items};

use super::{BootSource, Image, layout};

/// Where QEMU has the real-mode part.
const SETUP_ADDRESS: u32 = 0x1_0000;

impl BootSource {
    /// Adds the items. Files are read when the guest asks for them.
    pub fn describe(&self, items: &mut Items) -> io::Result<()> {
        let address = |address: u64| u32::try_from(address).expect("boot structures are below 4 GiB");
        let mut sized = |keys: [u16; 3], address: u32, content: Content| {
            let [address_key, size_key, data_key] = keys;
            items.set(address_key, &address.to_le_bytes());
            items.set(size_key, &content.len().to_le_bytes());
            items.set_content(data_key, content);
        };
        if let Image::BzImage(image) = &self.image {
            let setup = u32::try_from(image.setup_bytes()).expect("256 sectors at most");
            let (file, rest) = (self.kernel.try_clone()?, self.kernel.try_clone()?);
            let content = Content::File { file, offset: 0, len: setup };
            sized([key::SETUP_ADDR, key::SETUP_SIZE, key::SETUP_DATA], SETUP_ADDRESS, content);
            let len = u32::try_from(image.payload_bytes()).unwrap_or(u32::MAX);
            let content = Content::File { file: rest, offset: u64::from(setup), len };
            let keys = [key::KERNEL_ADDR, key::KERNEL_SIZE, key::KERNEL_DATA];
            sized(keys, address(layout::HIGH_RAM), content);
        }
        if let Some(initrd) = &self.initrd {
            let len = u32::try_from(initrd.bytes).unwrap_or(u32::MAX);
            let content = Content::File { file: initrd.file.try_clone()?, offset: 0, len };
            let keys = [key::INITRD_ADDR, key::INITRD_SIZE, key::INITRD_DATA];
            sized(keys, address(initrd.address), content);
        }
        let content = Content::Bytes(self.command_line.clone());
        let keys = [key::CMDLINE_ADDR, key::CMDLINE_SIZE, key::CMDLINE_DATA];
        sized(keys, address(layout::COMMAND_LINE), content);
        Ok(())
    }
}

//! Vector state in the standard XSAVE format (SDM vol. 1, *Managing State Using the XSAVE Feature Set*; Linux,
//! Documentation/virt/kvm/api.rst, *KVM_GET_XSAVE2*).

#![expect(unsafe_code, reason = "the kernel writes as many bytes as it said the state has")]

use accel::VcpuError;
use kvm_bindings::{Xsave, kvm_xsave};
use kvm_ioctls::VcpuFd;

use super::host;

/// Size of `struct kvm_xsave` without the tail that KVM_CAP_XSAVE2 adds.
const BASE: usize = 4096;
/// FCW and MXCSR of the legacy region, and their reset values.
const FCW: std::ops::Range<usize> = 0..2;
const FCW_RESET: u16 = 0x37f;
const MXCSR: std::ops::Range<usize> = 24..28;
const MXCSR_RESET: u32 = 0x1f80;

/// The state that an empty [`accel::CpuArchState::xsave`] stands for: no component in use.
fn initial() -> Vec<u8> {
    let mut bytes = vec![0; BASE];
    bytes[FCW].copy_from_slice(&FCW_RESET.to_le_bytes());
    bytes[MXCSR].copy_from_slice(&MXCSR_RESET.to_le_bytes());
    bytes
}

/// `size`: what KVM_CAP_XSAVE2 says, 0 where the kernel is too old for it.
fn buffer(size: usize) -> Xsave {
    Xsave::new(size.saturating_sub(BASE).div_ceil(size_of::<u32>()))
        .expect("the state is a few pages at most")
}

pub(super) fn read(fd: &VcpuFd, size: usize) -> Result<Vec<u8>, VcpuError> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    if size <= BASE {
        let xsave = fd.get_xsave().map_err(host("KVM_GET_XSAVE failed"))?;
        return Ok(words(&xsave.region));
    }
    let mut xsave = buffer(size);
    // SAFETY: the buffer has the size that the kernel asked for, and no XSTATE component is enabled by arch_prctl later.
    unsafe { fd.get_xsave2(&mut xsave) }.map_err(host("KVM_GET_XSAVE2 failed"))?;
    let mut bytes = words(&xsave.as_fam_struct_ref().xsave.region);
    bytes.extend(words(xsave.as_slice()));
    bytes.truncate(size);
    Ok(bytes)
}

pub(super) fn write(fd: &VcpuFd, size: usize, bytes: &[u8]) -> Result<(), VcpuError> {
    let initial = if bytes.is_empty() { initial() } else { Vec::new() };
    let bytes = if bytes.is_empty() { &initial } else { bytes };
    if bytes.len() > size.max(BASE) {
        return Err(VcpuError::Unsupported("vector state larger than this host's"));
    }
    let mut words = bytes.chunks(4).map(|chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        u32::from_le_bytes(word)
    });
    let mut xsave = buffer(size);
    let mut base = kvm_xsave::default();
    for (slot, word) in base.region.iter_mut().zip(&mut words) {
        *slot = word;
    }
    for (slot, word) in xsave.as_mut_slice().iter_mut().zip(&mut words) {
        *slot = word;
    }
    // SAFETY: the tail is not touched: only the fixed part is replaced.
    unsafe { xsave.as_mut_fam_struct() }.xsave.region = base.region;
    // SAFETY: the buffer has the size that the kernel asked for.
    unsafe { fd.set_xsave2(&xsave) }.map_err(host("KVM_SET_XSAVE failed"))
}

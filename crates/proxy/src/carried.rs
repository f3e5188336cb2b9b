//! The runtime components that this program carries, one per guest platform.
//!
//! Knows their bytes and their checksums; nothing of how they get into a guest.

use sha2::{Digest, Sha256};
use std::borrow::Cow;

/// A runtime component, ready to be put into a guest.
#[derive(Clone)]
pub struct Image {
    /// The whole file.
    pub plain: Payload,
    /// The same, packed by gzip, where it was packed.
    pub packed: Option<Payload>,
}

/// Bytes to be sent, and how to check that they arrived.
#[derive(Clone)]
pub struct Payload {
    /// All of them.
    pub bytes: Cow<'static, [u8]>,
    /// Their SHA-256, 64 hexadecimal digits.
    pub sha256: String,
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({} bytes, sha256 {})", self.bytes.len(), self.sha256)
    }
}

impl Payload {
    /// These bytes.
    pub fn new(bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        let bytes = bytes.into();
        let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Payload { bytes, sha256 }
    }
}

impl Image {
    /// An image of these bytes, which is sent as it is.
    pub fn new(bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        Image { plain: Payload::new(bytes), packed: None }
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({} bytes, sha256 {})", self.plain.bytes.len(), self.plain.sha256)
    }
}

/// A platform whose component this program does not carry.
#[derive(Debug, Clone, thiserror::Error)]
#[error("this build of Lull carries no runtime component for {platform}; build it with {variable} set to one")]
pub struct NotCarried {
    platform: &'static str,
    variable: &'static str,
}

/// The component for Linux guests on x86-64.
#[cfg(carries_linux_x86_64)]
pub fn linux_x86_64() -> Result<Image, NotCarried> {
    static CARRIED: std::sync::OnceLock<Image> = std::sync::OnceLock::new();
    let carried = || Image {
        plain: Payload::new(include_bytes!(env!("LULL_CARRIED_LINUX_X86_64")).as_slice()),
        packed: Some(Payload::new(include_bytes!(env!("LULL_CARRIED_LINUX_X86_64_GZIP")).as_slice())),
    };
    Ok(CARRIED.get_or_init(carried).clone())
}

/// The component for Linux guests on x86-64.
#[cfg(not(carries_linux_x86_64))]
pub fn linux_x86_64() -> Result<Image, NotCarried> {
    Err(NotCarried { platform: "Linux on x86-64", variable: "LULL_RUNTIME_LINUX" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_bytes() {
        let empty = Image::new(&b""[..]);
        assert_eq!(empty.plain.sha256, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[cfg(carries_linux_x86_64)]
    #[test]
    fn the_carried_component_is_a_static_program_of_at_most_two_and_a_half_megabytes() {
        let image = linux_x86_64().unwrap().plain;
        assert_eq!(&image.bytes[..4], b"\x7fELF");
        assert!(image.bytes.len() <= 2_500_000, "{} bytes", image.bytes.len());
        // Program headers of a 64-bit ELF file: offset at 32, size of one at 54, count at 56; type 3 names an interpreter.
        let number = |at: usize| u16::from_le_bytes([image.bytes[at], image.bytes[at + 1]]) as usize;
        let types = (0..number(56)).map(|i| image.bytes[number(32) + i * number(54)]);
        assert!(types.clone().any(|t| t == 1), "no segment to load was found: the headers were read wrongly");
        assert!(types.clone().all(|t| t != 3), "the component must not need the guest's dynamic linker");
    }
}

//! The runtime components that this program carries, one per guest platform.
//!
//! Knows their bytes and their checksums; nothing of how they get into a guest.

use sha2::{Digest, Sha256};
use std::borrow::Cow;

/// A runtime component, ready to be put into a guest.
#[derive(Clone)]
pub struct Image {
    /// The whole file.
    pub bytes: Cow<'static, [u8]>,
    /// Its SHA-256, 64 hexadecimal digits.
    pub sha256: String,
}

impl Image {
    /// An image of these bytes.
    pub fn new(bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        let bytes = bytes.into();
        let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Image { bytes, sha256 }
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({} bytes, sha256 {})", self.bytes.len(), self.sha256)
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
    let carried = || Image::new(include_bytes!(env!("LULL_CARRIED_LINUX_X86_64")).as_slice());
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
        assert_eq!(empty.sha256, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[cfg(carries_linux_x86_64)]
    #[test]
    fn the_carried_component_is_a_static_program_of_at_most_two_and_a_half_megabytes() {
        let image = linux_x86_64().unwrap();
        assert_eq!(&image.bytes[..4], b"\x7fELF");
        assert!(image.bytes.len() <= 2_500_000, "{image:?}");
        let has_interpreter = image.bytes.windows(14).any(|w| w == b"ld-linux-x86-6");
        assert!(!has_interpreter, "the component must not need the guest's dynamic linker");
    }
}

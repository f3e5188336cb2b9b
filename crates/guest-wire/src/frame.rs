//! Frames: `u32` little-endian length of the rest, one version byte, then one message in postcard.
//!
//! Every length is bounded before anything is allocated. Knows nothing of what a message means.

use serde::{Serialize, de::DeserializeOwned};
use std::io::{Read, Write};

/// Version of the protocol; the first byte of every frame's body.
pub const PROTOCOL_VERSION: u8 = 3;
/// Longest body of a frame, version byte included, in bytes.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Bytes before the body.
pub const HEADER_BYTES: usize = 4;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream ended between two frames.
    #[error("the other side closed the connection")]
    Closed,
    /// The stream failed, or ended inside a frame.
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    /// A length outside 1..=[`FRAME_BYTES_MAX`].
    #[error("a frame of {0} bytes, allowed are 1 to {FRAME_BYTES_MAX}")]
    Length(usize),
    /// Another version of the protocol.
    #[error("protocol version {0}, this side speaks {PROTOCOL_VERSION}")]
    Version(u8),
    /// The body is no message of ours.
    #[error("a frame that is no message")]
    Malformed(#[from] postcard::Error),
}

/// The bytes of one frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes.push(PROTOCOL_VERSION);
    let mut bytes = postcard::to_extend(message, bytes)?;
    let body = bytes.len() - HEADER_BYTES;
    bytes[..HEADER_BYTES].copy_from_slice(&header(body)?);
    Ok(bytes)
}

fn header(body: usize) -> Result<[u8; HEADER_BYTES], FrameError> {
    match u32::try_from(body) {
        Ok(length) if body <= FRAME_BYTES_MAX => Ok(length.to_le_bytes()),
        _ => Err(FrameError::Length(body)),
    }
}

/// Body length announced by a header, checked.
pub fn body_length(header: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    match u32::from_le_bytes(header) as usize {
        length @ 1..=FRAME_BYTES_MAX => Ok(length),
        length => Err(FrameError::Length(length)),
    }
}

/// The message in a frame's body (version byte first).
pub fn decode_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    match body.split_first() {
        Some((&PROTOCOL_VERSION, message)) => Ok(postcard::from_bytes(message)?),
        Some((&version, _)) => Err(FrameError::Version(version)),
        None => Err(FrameError::Length(0)),
    }
}

/// Writes one frame and flushes.
pub fn write<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), FrameError> {
    to.write_all(&encode(message)?)?;
    Ok(to.flush()?)
}

/// Reads one frame, waiting for it. [`FrameError::Closed`] only between two frames.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> Result<T, FrameError> {
    let mut header = [0; HEADER_BYTES];
    let mut filled = 0;
    while filled < HEADER_BYTES {
        match from.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Err(FrameError::Closed),
            Ok(0) => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let mut body = vec![0; body_length(header)?];
    from.read_exact(&mut body)?;
    decode_body(&body)
}

/// Takes the first whole frame off `buffer`, if there is one: for sides that read without blocking.
pub fn take<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> Result<Option<T>, FrameError> {
    let Some((header, rest)) = buffer.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let length = body_length(*header)?;
    let Some(body) = rest.get(..length) else { return Ok(None) };
    let message = decode_body(body)?;
    buffer.drain(..HEADER_BYTES + length);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_survives_the_wire_in_any_pieces() {
        let bytes = encode(&("hello".to_string(), 7u32)).unwrap();
        let mut buffer = Vec::new();
        for (i, byte) in bytes.iter().enumerate() {
            buffer.push(*byte);
            let got: Option<(String, u32)> = take(&mut buffer).unwrap();
            assert_eq!(got.is_some(), i + 1 == bytes.len());
        }
        assert!(buffer.is_empty());
        assert_eq!(read::<(String, u32)>(&mut bytes.as_slice()).unwrap(), ("hello".into(), 7));
    }

    #[test]
    fn a_huge_length_is_refused_before_it_is_believed() {
        let mut bytes: &[u8] = &[0xff, 0xff, 0xff, 0xff, 1];
        assert!(matches!(read::<u32>(&mut bytes), Err(FrameError::Length(0xffff_ffff))));
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = encode(&1u32).unwrap();
        bytes[HEADER_BYTES] = 9;
        assert!(matches!(read::<u32>(&mut bytes.as_slice()), Err(FrameError::Version(9))));
    }

    #[test]
    fn an_end_between_frames_is_not_an_end_inside_one() {
        assert!(matches!(read::<u32>(&mut [].as_slice()), Err(FrameError::Closed)));
        assert!(matches!(read::<u32>(&mut [1u8, 0].as_slice()), Err(FrameError::Io(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic_or_allocate_without_bound(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read::<crate::FromRuntime>(&mut bytes.as_slice());
            let _ = read::<crate::ToRuntime>(&mut bytes.as_slice());
        }
    }
}

//! The channel to the proxy: frames in from standard input, frames out to standard output.
//!
//! Reads only what is there; one frame at a time. The buffer has the size of the largest frame from the start, so that nothing grows
//! while file systems are frozen. Knows nothing of what a message means.

use lull_guest_wire::{FRAME_BYTES_MAX, FrameError, FromRuntime, ToRuntime, frame};
use std::fs::File;
use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;

/// Standard input and output, and what was read but not yet used.
pub struct Channel {
    input: ManuallyDrop<File>,
    output: ManuallyDrop<File>,
    buffer: Vec<u8>,
    piece: Box<[u8]>,
}

const PIECE_BYTES: usize = 64 * 1024;

impl Default for Channel {
    fn default() -> Self {
        Channel::new()
    }
}

impl Channel {
    /// Over descriptors 0 and 1, which stay open when it is dropped.
    pub fn new() -> Channel {
        // SAFETY: 0 and 1 stay open for the life of the process (ManuallyDrop), and only the channel reads and writes them.
        let (input, output) = unsafe { (File::from_raw_fd(0), File::from_raw_fd(1)) };
        Channel {
            input: ManuallyDrop::new(input),
            output: ManuallyDrop::new(output),
            buffer: Vec::with_capacity(FRAME_BYTES_MAX + frame::HEADER_BYTES + PIECE_BYTES),
            piece: vec![0; PIECE_BYTES].into(),
        }
    }

    /// Reads once, without waiting if standard input is ready. False when the proxy closed the channel.
    pub fn fill(&mut self) -> Result<bool, FrameError> {
        match self.input.read(&mut self.piece) {
            Ok(0) => Ok(false),
            Ok(n) => {
                self.buffer.extend_from_slice(&self.piece[..n]);
                Ok(true)
            }
            Err(e) if matches!(e.kind(), std::io::ErrorKind::Interrupted | std::io::ErrorKind::WouldBlock) => Ok(true),
            Err(e) => Err(e.into()),
        }
    }

    /// The next command that is there in full.
    pub fn next_order(&mut self) -> Result<Option<ToRuntime>, FrameError> {
        frame::take(&mut self.buffer)
    }

    /// Sends one message.
    pub fn send(&mut self, message: &FromRuntime) -> Result<(), FrameError> {
        let bytes = frame::encode(message)?;
        self.output.write_all(&bytes)?;
        Ok(self.output.flush()?)
    }
}

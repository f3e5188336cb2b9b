//! The channel to the proxy: frames in from standard input, frames out to standard output.
//!
//! Reads only what is there; one frame at a time. The buffer has the size of the largest frame from the start, so that nothing grows
//! while file systems are frozen. Writes only what the other side takes now; the rest waits, in order, for [`Channel::flush`].
//! Knows nothing of what a message means.

use crate::kernel;
use lull_guest_wire::{FRAME_BYTES_MAX, FrameError, FromRuntime, ToRuntime, frame};
use std::fs::File;
use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd};

/// Standard input and output, what was read but not yet used, and what was said but not yet written.
pub struct Channel {
    input: ManuallyDrop<File>,
    output: ManuallyDrop<File>,
    buffer: Vec<u8>,
    piece: Box<[u8]>,
    waiting: Vec<u8>,
    /// So much of `waiting` is written.
    written: usize,
}

const PIECE_BYTES: usize = 64 * 1024;
/// What is ready for writing takes so much without making the writer wait, whether it is a pipe (`PIPE_BUF`) or a socket.
const WRITE_BYTES: usize = 4096;
/// With so much waiting no more commands are read: their answers have to be kept too.
const WAITING_BYTES_MAX: usize = FRAME_BYTES_MAX;

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
            waiting: Vec::with_capacity(PIECE_BYTES),
            written: 0,
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

    /// Sends one message behind those that wait; writes what can be written now.
    pub fn send(&mut self, message: &FromRuntime) -> Result<(), FrameError> {
        self.waiting.extend_from_slice(&frame::encode(message)?);
        self.flush()
    }

    /// Whether something waits to be written.
    pub fn has_waiting(&self) -> bool {
        self.written < self.waiting.len()
    }

    /// Whether the other side takes so little that its commands have to wait.
    pub fn is_congested(&self) -> bool {
        self.waiting.len() - self.written > WAITING_BYTES_MAX
    }

    /// Writes what can be written without waiting.
    pub fn flush(&mut self) -> Result<(), FrameError> {
        self.flush_for(Some(0))
    }

    /// Writes what the other side takes while it goes on taking, waiting so long for it.
    pub fn flush_within(&mut self, wait_ms: u64) -> Result<(), FrameError> {
        self.flush_for(Some(wait_ms))
    }

    /// Writes all, however long the other side takes it.
    pub fn flush_all(&mut self) -> Result<(), FrameError> {
        self.flush_for(None)
    }

    fn flush_for(&mut self, wait_ms: Option<u64>) -> Result<(), FrameError> {
        while self.has_waiting() {
            let mut polled = [kernel::waiting(self.output.as_raw_fd(), libc::POLLOUT)];
            kernel::poll(&mut polled, wait_ms);
            if polled[0].revents == 0 {
                match wait_ms {
                    Some(_) => return Ok(()),
                    None => continue,
                }
            }
            let end = self.waiting.len().min(self.written + WRITE_BYTES);
            match self.output.write(&self.waiting[self.written..end]) {
                Ok(0) => return Err(std::io::Error::from(std::io::ErrorKind::WriteZero).into()),
                Ok(n) => self.written += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                // Somebody else made it non-blocking: then there was no room after all.
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && wait_ms.is_some() => return Ok(()),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.waiting.clear();
        self.written = 0;
        Ok(())
    }
}

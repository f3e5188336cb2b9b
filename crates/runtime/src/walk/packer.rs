//! Packs what one walker finds into compressed frames. Its memory is taken once.
//!
//! Knows nothing of where the entries come from.

use super::outgoing::{Outgoing, Stopped};
use lull_guest_wire::listing::{COMPRESSED_BYTES_MAX, Entry, ListingWriter};
use std::sync::Arc;
use zstd_safe::{CCtx, CParameter};

/// Higher levels cost the guest more than they save the network.
const LEVEL: i32 = 1;

/// Packs listings.
pub struct Packer {
    writer: ListingWriter,
    zstd: CCtx<'static>,
    compressed: Box<[u8]>,
    outgoing: Arc<Outgoing>,
}

impl Packer {
    /// Its frames go to `outgoing`.
    pub fn new(outgoing: Arc<Outgoing>) -> Result<Packer, String> {
        let mut zstd = CCtx::try_create().ok_or("there is no memory to compress what was found")?;
        for parameter in [CParameter::CompressionLevel(LEVEL), CParameter::ChecksumFlag(true)] {
            zstd.set_parameter(parameter).map_err(explained)?;
        }
        let compressed = vec![0; COMPRESSED_BYTES_MAX].into();
        Ok(Packer { writer: ListingWriter::new(), zstd, compressed, outgoing })
    }

    /// Adds an entry of the folder at `path`.
    pub fn entry(&mut self, path: &[u8], entry: &Entry<'_>) -> Result<(), Stopped> {
        if self.writer.entry(entry) { Ok(()) } else { self.end(path, None, true) }
    }

    /// Ends the folder at `path`; the error says why not all of its entries are there.
    pub fn end_folder(&mut self, path: &[u8], error: Option<&str>) -> Result<(), Stopped> {
        self.end(path, error, false)
    }

    fn end(&mut self, path: &[u8], error: Option<&str>, more: bool) -> Result<(), Stopped> {
        if !self.writer.fits(path) {
            self.flush()?;
        }
        self.writer.end_folder(path, error, more);
        Ok(())
    }

    /// Sends what is there.
    pub fn flush(&mut self) -> Result<(), Stopped> {
        let Packer { writer, zstd, compressed, outgoing } = self;
        let Some(result) = writer.take(|packed| zstd.compress2(&mut compressed[..], packed)) else { return Ok(()) };
        match result {
            Ok(bytes) => outgoing.push(compressed[..bytes].to_vec()),
            Err(code) => {
                outgoing.stop(explained(code));
                Err(Stopped)
            }
        }
    }
}

fn explained(code: usize) -> String {
    format!("what was found could not be compressed: {}", zstd_safe::get_error_name(code))
}

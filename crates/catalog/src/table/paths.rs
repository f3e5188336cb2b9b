//! Many paths in one piece of memory. Pure.

use std::ops::Range;

/// Paths, one after another.
#[derive(Debug, Default)]
pub struct Paths {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Paths {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How long they are together, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Where one lies in [`Paths::into_bytes`].
    pub fn range(&self, index: usize) -> Range<usize> {
        let begin = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        begin..self.ends[index] as usize
    }

    /// One of them.
    pub fn get(&self, index: usize) -> &[u8] {
        &self.bytes[self.range(index)]
    }

    /// The last one; empty where there is none.
    pub fn last(&self) -> &[u8] {
        self.ends.len().checked_sub(1).map_or(&[], |index| self.get(index))
    }

    /// Forgets them, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// Adds one.
    pub fn push(&mut self, path: &[u8]) {
        self.bytes.extend_from_slice(path);
        self.ends.push(self.bytes.len() as u32);
    }

    /// Adds one that shares its first `shared` bytes with the last one. False, and nothing is added, where that is shorter.
    pub fn push_sharing(&mut self, shared: usize, suffix: &[u8]) -> bool {
        let last = self.ends.len().checked_sub(1).map_or(0..0, |index| self.range(index));
        if shared > last.len() {
            return false;
        }
        self.bytes.extend_from_within(last.start..last.start + shared);
        self.bytes.extend_from_slice(suffix);
        self.ends.push(self.bytes.len() as u32);
        true
    }

    /// The memory behind them, taken out; begin anew afterwards.
    pub fn take_bytes(&mut self) -> Vec<u8> {
        let capacity = self.bytes.len();
        std::mem::replace(&mut self.bytes, Vec::with_capacity(capacity))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_may_share_its_beginning_with_the_one_before() {
        let mut paths = Paths::default();
        assert!(!paths.push_sharing(1, b"a"), "there is none before");
        assert!(paths.push_sharing(0, b"/usr/lib"));
        assert!(paths.push_sharing(5, b"bin"));
        assert!(paths.push_sharing(8, b""));
        assert!(!paths.push_sharing(9, b"x"));
        paths.push(b"/var");
        let all: Vec<&[u8]> = (0..paths.len()).map(|index| paths.get(index)).collect();
        assert_eq!(all, [&b"/usr/lib"[..], b"/usr/bin", b"/usr/bin", b"/var"]);
        assert_eq!((paths.last(), paths.bytes()), (&b"/var"[..], 28));
    }
}

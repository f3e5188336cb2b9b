//! Many paths in one piece of memory. Pure.

use std::ops::Range;

/// Paths, one after another. A path that is the same as the one before may share its place.
#[derive(Debug, Default)]
pub struct Paths {
    bytes: Vec<u8>,
    places: Vec<(u32, u32)>,
}

impl Paths {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// How much memory they take, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Where one lies in [`Paths::take_bytes`].
    pub fn range(&self, index: usize) -> Range<usize> {
        let (begin, end) = self.places[index];
        begin as usize..end as usize
    }

    /// Whether one is known to be the same as the one before it, without a look at it.
    pub fn is_repeated(&self, index: usize) -> bool {
        index > 0 && self.places[index] == self.places[index - 1]
    }

    /// One of them.
    pub fn get(&self, index: usize) -> &[u8] {
        &self.bytes[self.range(index)]
    }

    /// The last one; empty where there is none.
    pub fn last(&self) -> &[u8] {
        self.places.len().checked_sub(1).map_or(&[], |index| self.get(index))
    }

    /// Forgets them, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.places.clear();
    }

    /// Adds one.
    pub fn push(&mut self, path: &[u8]) {
        let begin = self.bytes.len() as u32;
        self.bytes.extend_from_slice(path);
        self.places.push((begin, self.bytes.len() as u32));
    }

    /// Adds one that shares its first `shared` bytes with the last one. False, and nothing is added, where that is shorter.
    pub fn push_sharing(&mut self, shared: usize, suffix: &[u8]) -> bool {
        let last = self.places.len().checked_sub(1).map_or(0..0, |index| self.range(index));
        if shared > last.len() {
            return false;
        }
        if suffix.is_empty() && shared == last.len() && shared > 0 {
            // Versions of one file follow each other.
            self.places.extend_from_within(self.places.len() - 1..);
            return true;
        }
        let begin = self.bytes.len() as u32;
        self.bytes.extend_from_within(last.start..last.start + shared);
        self.bytes.extend_from_slice(suffix);
        self.places.push((begin, self.bytes.len() as u32));
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
        let repeated: Vec<bool> = (0..paths.len()).map(|index| paths.is_repeated(index)).collect();
        assert_eq!(repeated, [false, false, true, false]);
        assert_eq!((paths.last(), paths.bytes()), (&b"/var"[..], 20));
    }
}

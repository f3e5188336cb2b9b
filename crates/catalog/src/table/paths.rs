//! Many paths in one piece of memory. Pure.

use std::ops::Range;

/// Paths, one after another. A path that is the same as the one before may share its place.
#[derive(Debug, Default)]
pub struct Paths {
    bytes: Vec<u8>,
    places: Vec<(u32, u32)>,
    /// Those that are not known to be the same as the one before them.
    firsts: Vec<u32>,
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

    /// Runs of those that are known to be the same, without a look at them.
    pub fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        let ends = self.firsts.iter().skip(1).map(|first| *first as usize).chain([self.len()]);
        self.firsts.iter().zip(ends).map(|(first, end)| *first as usize..end)
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
        self.firsts.clear();
    }

    /// Adds one.
    pub fn push(&mut self, path: &[u8]) {
        let begin = self.bytes.len() as u32;
        self.bytes.extend_from_slice(path);
        self.firsts.push(self.places.len() as u32);
        self.places.push((begin, self.bytes.len() as u32));
    }

    /// Adds one that shares its first `shared` bytes with the last one. False, and nothing is added, where that is shorter.
    pub fn push_sharing(&mut self, shared: usize, suffix: &[u8]) -> bool {
        let (last_begin, last_end) = self.places.last().copied().unwrap_or_default();
        let last_bytes = (last_end - last_begin) as usize;
        if shared > last_bytes {
            return false;
        }
        if suffix.is_empty() && shared == last_bytes && shared > 0 {
            // Versions of one file follow each other.
            self.places.push((last_begin, last_end));
            return true;
        }
        let begin = self.bytes.len() as u32;
        self.bytes.extend_from_within(last_begin as usize..last_begin as usize + shared);
        self.bytes.extend_from_slice(suffix);
        self.firsts.push(self.places.len() as u32);
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
        assert_eq!(paths.runs().collect::<Vec<_>>(), [0..1, 1..3, 3..4]);
        assert_eq!((paths.last(), paths.bytes()), (&b"/var"[..], 20));
    }
}

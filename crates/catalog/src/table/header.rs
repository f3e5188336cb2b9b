//! What lies in a table beside its rows: whose it is, its restore points, and where its row groups lie, with checksums. Pure.

use crate::point::Point;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The header, kept as JSON in the file's metadata. Fields may be added to it without a new format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Format of the table.
    pub format: u32,
    /// Whose table it is.
    pub vm: Uuid,
    /// The highest number that ever was among its points.
    pub number_highest: u32,
    /// Rows in all groups.
    pub rows: u64,
    /// Its points, ordered by number.
    pub points: Vec<Point>,
    /// Its row groups, in the order of the file.
    pub groups: Vec<Group>,
}

/// One row group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Rows in it.
    pub rows: u32,
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// How many they are.
    pub bytes: u64,
    /// Their CRC-32 (as in zlib).
    pub crc32: u32,
    /// Its columns, in the order of the schema: where the dictionary page begins (0 without one), where the data pages begin, how many bytes
    /// they are together. The file's own metadata, which has no checksum, must say the same.
    pub columns: Vec<[u64; 3]>,
    /// Its first path.
    #[serde(with = "hexadecimal")]
    pub path_first: Vec<u8>,
    /// Its last path.
    #[serde(with = "hexadecimal")]
    pub path_last: Vec<u8>,
    /// The smallest `first` of its rows.
    pub first_min: u32,
    /// The greatest `last` of its rows.
    pub last_max: u32,
}

impl Header {
    /// Number of the newest indexed point that still lives; 0 before there is one.
    pub fn number_newest(&self) -> u32 {
        self.points.last().map_or(0, |point| point.number)
    }

    /// The point with this id.
    pub fn point(&self, id: Uuid) -> Option<&Point> {
        self.points.iter().find(|point| point.id == id)
    }
}

/// Bytes as lower-case hexadecimal digits.
pub fn hexadecimal_digits(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect()
}

/// What [`hexadecimal_digits`] was made of.
pub fn of_hexadecimal_digits(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::hexadecimal_digits(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        super::of_hexadecimal_digits(&text).ok_or_else(|| D::Error::custom("no hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_say_bytes_and_nothing_else_does() {
        assert_eq!(hexadecimal_digits(b"\x00/\xff"), "002fff");
        assert_eq!(of_hexadecimal_digits("002FfF"), Some(b"\x00/\xff".to_vec()));
        for wrong in ["0", "0g", "+1", "\u{e4}", " 1"] {
            assert_eq!(of_hexadecimal_digits(wrong), None, "{wrong}");
        }
    }
}

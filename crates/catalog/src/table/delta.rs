//! Unpacks a page of Parquet's DELTA_BYTE_ARRAY encoding straight into [`Paths`].
//!
//! The parquet crate's own decoder allocates twice for each value; a search reads nothing but paths most of the time, so this is where its
//! time goes. The encoding is told in Parquet's Encodings.md: two DELTA_BINARY_PACKED sequences, the lengths of shared
//! beginnings and of the rest, then the rests. Pure; whatever the bytes say, it neither panics nor allocates beyond its bounds.

use super::paths::Paths;

/// Appends `values` paths to `paths`, up to `bytes_max` of path bytes in it altogether. The first path of a page shares nothing.
///
/// # Errors
/// What is wrong with the page.
pub fn unpack(page: &[u8], values: usize, bytes_max: usize, paths: &mut Paths) -> Result<(), &'static str> {
    let mut rest = page;
    let shared = lengths(&mut rest, values)?;
    let suffixes = lengths(&mut rest, values)?;
    let mut is_first = true;
    for (shared, suffix) in shared.into_iter().zip(suffixes) {
        let (shared, suffix) = (shared as usize, suffix as usize);
        if is_first && shared != 0 {
            return Err("the first path of a page shares bytes with one before it");
        }
        is_first = false;
        let bytes = rest.get(..suffix).ok_or("a page ends inside a path")?;
        rest = &rest[suffix..];
        if paths.bytes() + shared + suffix > bytes_max {
            return Err("the paths of a row group are longer than it may hold");
        }
        if !paths.push_sharing(shared, bytes) {
            return Err("a path shares more bytes than the one before it has");
        }
    }
    Ok(())
}

/// A DELTA_BINARY_PACKED sequence of `values` lengths.
fn lengths(rest: &mut &[u8], values: usize) -> Result<Vec<u32>, &'static str> {
    let block_values = varint(rest)?;
    let miniblocks = varint(rest)?;
    let total = varint(rest)?;
    let mut value = zigzag(varint(rest)?);
    if total != values as u64 {
        return Err("a page holds another number of lengths than of values");
    }
    if !(1..=1 << 16).contains(&block_values) || !(1..=256).contains(&miniblocks) {
        return Err("lengths in blocks of an impossible size");
    }
    let per_miniblock = (block_values / miniblocks) as usize;
    if per_miniblock == 0 || !per_miniblock.is_multiple_of(8) {
        return Err("lengths in blocks of an impossible size");
    }
    let mut all = Vec::with_capacity(values);
    if values > 0 {
        all.push(length(value)?);
    }
    while all.len() < values {
        let delta_min = zigzag(varint(rest)?);
        let widths = split(rest, miniblocks as usize)?;
        for width in widths {
            if all.len() == values {
                break;
            }
            let width = usize::from(*width);
            if width > 32 {
                return Err("a length of more than 32 bits");
            }
            let packed = split(rest, per_miniblock / 8 * width)?;
            let wanted = per_miniblock.min(values - all.len());
            let mut bits = 0u64;
            let mut have = 0;
            let mut from = packed.iter();
            for _ in 0..wanted {
                while have < width {
                    // The miniblock is as long as its values are wide.
                    bits |= u64::from(*from.next().unwrap_or(&0)) << have;
                    have += 8;
                }
                let delta = (bits & ((1u64 << width) - 1)) as i64;
                bits >>= width;
                have -= width;
                value = value.wrapping_add(delta_min).wrapping_add(delta);
                all.push(length(value)?);
            }
        }
    }
    Ok(all)
}

fn length(value: i64) -> Result<u32, &'static str> {
    // Parquet computes in 32 bits here, with wrap-around.
    u32::try_from(value as i32).map_err(|_| "a length below zero")
}

fn split<'a>(rest: &mut &'a [u8], bytes: usize) -> Result<&'a [u8], &'static str> {
    let (taken, after) = rest.split_at_checked(bytes).ok_or("a page ends inside its lengths")?;
    *rest = after;
    Ok(taken)
}

fn varint(rest: &mut &[u8]) -> Result<u64, &'static str> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first().ok_or("a page ends inside its lengths")?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number that does not end")
}

fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use parquet::basic::Encoding;
    use parquet::column::page::Page;
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::properties::{EnabledStatistics, WriterProperties};
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// A page as the parquet crate packs it.
    fn page(values: &[Vec<u8>]) -> Vec<u8> {
        let schema = Arc::new(parse_message_type("message m { required binary path; }").unwrap());
        let properties = WriterProperties::builder()
            .set_dictionary_enabled(false)
            .set_encoding(Encoding::DELTA_BYTE_ARRAY)
            .set_statistics_enabled(EnabledStatistics::None)
            .build();
        let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = values.iter().map(|value| ByteArray::from(value.clone())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        let reader = SerializedFileReader::new(Bytes::from(writer.into_inner().unwrap())).unwrap();
        let mut pages = reader.get_row_group(0).unwrap().get_column_page_reader(0).unwrap();
        match pages.get_next_page().unwrap() {
            Some(Page::DataPage { buf, .. }) => buf.to_vec(),
            _ => panic!("no data page"),
        }
    }

    proptest! {
        #[test]
        fn what_the_parquet_crate_packs_is_unpacked(
            values in proptest::collection::vec(proptest::collection::vec(0xfeu8.., 0..300), 1..400), sort in any::<bool>(),
        ) {
            let mut values = values;
            if sort { values.sort() }
            let mut paths = Paths::default();
            unpack(&page(&values), values.len(), 1 << 30, &mut paths).unwrap();
            for (index, value) in values.iter().enumerate() {
                prop_assert_eq!(paths.get(index), value.as_slice());
            }
            prop_assert_eq!(paths.len(), values.len());
        }

        #[test]
        fn no_bytes_make_it_panic_or_exceed_its_bound(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), at in any::<proptest::sample::Index>(), flip in 1u8.., values in 0usize..50,
        ) {
            let mut paths = Paths::default();
            let _ = unpack(&bytes, values, 1_000, &mut paths);
            prop_assert!(paths.bytes() <= 1_000);
            let mut page = page(&vec![b"/usr/share/doc".to_vec(); 40]);
            let at = at.index(page.len());
            page[at] ^= flip;
            paths.clear();
            let _ = unpack(&page, 40, 1_000, &mut paths);
            prop_assert!(paths.bytes() <= 1_000);
        }
    }
}

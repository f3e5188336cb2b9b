//! What is searched for, what is found, and in which order. Pure.

use crate::error::CatalogError;
use crate::pattern::Pattern;
use crate::point::Presence;
use crate::table::header::{hexadecimal_digits, of_hexadecimal_digits};
use crate::version::{Interval, Kind, Version};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use uuid::Uuid;

/// Most hits of one page that is ordered by time: they are held in memory until the search is over.
pub const NEWEST_FIRST_MAX: usize = 10_000;
/// Most bytes of paths that such a page holds: with very long paths it ends before its limit, and the next page goes on there.
pub const NEWEST_FIRST_BYTES_MAX: usize = 16 << 20;

/// A search. The default one finds everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query {
    /// Only in these VMs.
    pub vms: Option<Vec<Uuid>>,
    /// Only what existed in this restore point. A table without it has no hits: whether it is indexed at all, [`crate::Catalog::points`] says.
    pub point: Option<Uuid>,
    /// Only what looks like this.
    pub pattern: Option<Pattern>,
    /// At least so many bytes.
    pub size_bytes_min: Option<u64>,
    /// At most so many bytes.
    pub size_bytes_max: Option<u64>,
    /// Changed at this time or later, in microseconds since 1970.
    pub mtime_us_min: Option<i64>,
    /// Changed at this time or before.
    pub mtime_us_max: Option<i64>,
    /// Only of these kinds.
    pub kinds: Option<Vec<Kind>>,
    /// In which order.
    pub order: Order,
    /// At most so many hits; without a limit all, or [`NEWEST_FIRST_MAX`] where they are ordered by time; then
    /// fewer where their paths have more than [`NEWEST_FIRST_BYTES_MAX`] bytes.
    pub limit: Option<usize>,
    /// Only what comes after this.
    pub after: Option<PageToken>,
}

/// The order of hits. What a token gives out keeps its place in either, whatever restore points come or go between two pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// The version that was changed last comes first. The whole search goes before the first hit.
    #[default]
    NewestFirst,
    /// By VM, path and restore point: hits come as they are found, in any number.
    Path,
}

/// One version of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// Whose file.
    pub vm: Uuid,
    /// Its absolute path, as bytes.
    pub path: Vec<u8>,
    /// What it was.
    pub version: Version,
    /// The restore points in which it existed, ordered by number.
    pub points: Vec<Presence>,
}

/// Where the next page begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PageToken(pub String);

/// What decides the place of a hit. None of it ever changes for a row, so a place is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Ordered by time: its time, the latest first. Else nothing.
    pub(crate) mtime_us: Option<Reverse<i64>>,
    pub(crate) vm: Uuid,
    pub(crate) path: Vec<u8>,
    pub(crate) first: u32,
}

impl Place {
    pub(crate) fn token(&self) -> Result<PageToken, CatalogError> {
        postcard::to_stdvec(self).map(|bytes| PageToken(hexadecimal_digits(&bytes))).map_err(|_| CatalogError::Token)
    }
}

impl Query {
    pub(crate) fn place_after(&self) -> Result<Option<Place>, CatalogError> {
        let Some(PageToken(text)) = &self.after else { return Ok(None) };
        let bytes = of_hexadecimal_digits(text).ok_or(CatalogError::Token)?;
        let place: Place = postcard::from_bytes(&bytes).map_err(|_| CatalogError::Token)?;
        if place.mtime_us.is_some() != (self.order == Order::NewestFirst) {
            return Err(CatalogError::Token);
        }
        Ok(Some(place))
    }

    pub(crate) fn page_hits(&self) -> Result<usize, CatalogError> {
        match (self.order, self.limit) {
            (Order::Path, limit) => Ok(limit.unwrap_or(usize::MAX)),
            (Order::NewestFirst, None) => Ok(NEWEST_FIRST_MAX),
            (Order::NewestFirst, Some(limit)) if limit <= NEWEST_FIRST_MAX => Ok(limit),
            (Order::NewestFirst, Some(asked)) => Err(CatalogError::Limit { asked, max: NEWEST_FIRST_MAX }),
        }
    }

    /// Whether anything but path and point decides.
    pub(crate) fn admits(&self, version: &Version) -> bool {
        self.size_bytes_min.is_none_or(|min| version.size_bytes >= min)
            && self.size_bytes_max.is_none_or(|max| version.size_bytes <= max)
            && self.mtime_us_min.is_none_or(|min| version.mtime_us >= min)
            && self.mtime_us_max.is_none_or(|max| version.mtime_us <= max)
            && self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&version.kind))
    }
}

/// A row that was found, not yet told.
pub(crate) struct Found {
    pub(crate) place: Place,
    pub(crate) version: Version,
    pub(crate) interval: Interval,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_given_out_and_only_for_its_order() {
        let place =
            Place { mtime_us: Some(Reverse(-5)), vm: Uuid::from_u128(7), path: b"/\xff\n".to_vec(), first: u32::MAX };
        let mut query = Query { after: Some(place.token().unwrap()), ..Query::default() };
        assert_eq!(query.place_after().unwrap(), Some(place));
        query.order = Order::Path;
        assert!(matches!(query.place_after(), Err(CatalogError::Token)));
        for text in ["", "00", "zz", "\u{e4}"] {
            query.after = Some(PageToken(text.to_string()));
            assert!(matches!(query.place_after(), Err(CatalogError::Token)), "{text}");
        }
    }

    #[test]
    fn a_page_ordered_by_time_is_bounded() {
        let mut query = Query { limit: Some(NEWEST_FIRST_MAX + 1), ..Query::default() };
        assert!(matches!(query.page_hits(), Err(CatalogError::Limit { asked: 10_001, max: 10_000 })));
        query.order = Order::Path;
        assert_eq!(query.page_hits().unwrap(), NEWEST_FIRST_MAX + 1);
    }
}

//! Finds every directory that a cluster writes to and the superblock each lies on, as its own processes see them.
//!
//! A data directory is rarely one piece: WAL is moved by a symlink or by a mount, tablespaces are symlinks, and administrators link or mount
//! single databases. Directories that recovery does not need (logs, statistics) are left out. Knows nothing of what is frozen.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::view::{ProcessView, ViewError};
use super::{PLACES_MAX, Place, PlaceRole};

/// Directories of a data directory that recovery reads. WAL and tablespaces have roles of their own.
const PARTS: [&str; 8] =
    ["base", "global", "pg_commit_ts", "pg_logical", "pg_multixact", "pg_replslot", "pg_twophase", "pg_xact"];

/// Why the places are not known.
#[derive(Debug, Error)]
pub(super) enum PlacesError {
    /// A directory could not be looked up.
    #[error("{path}: {detail}")]
    Lookup {
        /// The directory.
        path: String,
        /// What failed.
        detail: String,
    },
    /// More than [`PLACES_MAX`].
    #[error("more than {PLACES_MAX} tablespaces and separate parts")]
    TooMany,
}

/// All places of the cluster in `data_dir` (a path in `view`), the data directory first.
pub(super) fn find(view: &ProcessView, data_dir: &Path) -> Result<Vec<Place>, PlacesError> {
    let mut places =
        vec![place(view, PlaceRole::Data, data_dir)?, place(view, PlaceRole::Wal, &data_dir.join("pg_wal"))?];
    // The kernel's path, without symlinks, is what mount points are compared with.
    let data = PathBuf::from(&places[0].path);

    for name in names_in(view, &data.join("pg_tblspc"))? {
        let Ok(oid) = name.parse() else { continue };
        push(&mut places, place(view, PlaceRole::Tablespace(oid), &data.join("pg_tblspc").join(&name))?)?;
    }
    let databases = names_in(view, &data.join("base"))?.into_iter().map(|name| format!("base/{name}"));
    for part in PARTS.into_iter().map(str::to_owned).chain(databases) {
        if view.is_symlink(&data.join(&part)) {
            push(&mut places, place(view, PlaceRole::Part(part.clone()), &data.join(&part))?)?;
        }
    }
    for mounted in mounts_below(view, &places) {
        let name = mounted.strip_prefix(&data).unwrap_or(&mounted).to_string_lossy().into_owned();
        push(&mut places, place(view, PlaceRole::Part(name), &mounted)?)?;
    }
    Ok(places)
}

/// Mount points inside the places found so far that are not one themselves.
fn mounts_below(view: &ProcessView, places: &[Place]) -> Vec<PathBuf> {
    let below =
        |point: &Path| places.iter().any(|place| point != Path::new(&place.path) && point.starts_with(&place.path));
    let known = |point: &Path| places.iter().any(|place| point == Path::new(&place.path));
    let mut points: Vec<_> =
        view.mount_points().filter(|point| below(point) && !known(point)).map(Path::to_owned).collect();
    points.sort();
    points.dedup();
    points
}

fn push(places: &mut Vec<Place>, place: Place) -> Result<(), PlacesError> {
    if places.len() >= PLACES_MAX {
        return Err(PlacesError::TooMany);
    }
    places.push(place);
    Ok(())
}

fn place(view: &ProcessView, role: PlaceRole, path: &Path) -> Result<Place, PlacesError> {
    let failed = |detail: String| PlacesError::Lookup { path: path.display().to_string(), detail };
    let found = view.directory(path).map_err(|error: ViewError| failed(error.to_string()))?;
    let path = found.path.to_str().ok_or_else(|| failed("its path is not UTF-8".to_owned()))?;
    Ok(Place { role, path: path.to_owned(), device: found.device })
}

fn names_in(view: &ProcessView, dir: &Path) -> Result<Vec<String>, PlacesError> {
    let failed = |error: io::Error| PlacesError::Lookup { path: dir.display().to_string(), detail: error.to_string() };
    let mut names = view.names_in(dir).map_err(failed)?;
    names.sort();
    Ok(names)
}

//! The catalog's folder: where the tables lie, how one replaces another, what becomes of a damaged one.
//!
//! `<folder>/<vm>/history.parquet` is a VM's table. It is never written in place: a new one is written beside it, synced, and renamed over
//! it. So whoever kills the process finds the old table or the new one. Knows nothing of what is in a table.

use crate::error::{CatalogError, SetAside};
use crate::ingest::PATH_BYTES_OF_ANY;
use crate::point::Point;
use crate::room::Room;
use crate::sort::{RUNS_FILE, SORT_BYTES_MAX};
use crate::table::GROUP_ROWS_MAX;
use crate::table::header::Header;
use crate::table::read::Table;
use crate::table::write::TableWriter;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

const TABLE_FILE: &str = "history.parquet";
const NEW_FILE: &str = "history.parquet.new";
const DAMAGED_FILE: &str = "history.parquet.damaged";

/// How much an ingest may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Of the sort of a listing, in bytes.
    pub sort_bytes_max: usize,
    /// Rows of a row group, at most [`GROUP_ROWS_MAX`].
    pub group_rows_max: usize,
    /// Bytes of paths that a listing may have however small it came; see [`crate::ingest::PATH_BYTES_PER_COMPRESSED`].
    pub path_bytes_of_any: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { sort_bytes_max: SORT_BYTES_MAX, group_rows_max: GROUP_ROWS_MAX, path_bytes_of_any: PATH_BYTES_OF_ANY }
    }
}

/// All tables below one folder. One process at a time has it open; its threads share it.
pub struct Catalog {
    folder: PathBuf,
    pub(crate) bounds: Bounds,
    pub(crate) room: Room,
    /// One writer per VM; readers need no lock, since a table never changes.
    writers: Mutex<HashMap<Uuid, Arc<Mutex<()>>>>,
}

impl Catalog {
    /// Opens the catalog in `folder`, which is made if there is none, and sweeps what a killed process left half-written.
    ///
    /// # Errors
    /// When the folder cannot be made, read or swept.
    pub fn open(folder: &Path) -> Result<Catalog, CatalogError> {
        fs::create_dir_all(folder).map_err(CatalogError::io("make", folder))?;
        let catalog = Catalog {
            folder: folder.to_path_buf(),
            bounds: Bounds::default(),
            room: Room::whole_disk(),
            writers: Mutex::new(HashMap::new()),
        };
        for vm in catalog.folders()? {
            for name in [NEW_FILE, RUNS_FILE] {
                let path = catalog.vm_folder(vm).join(name);
                remove_if_there(&path).map_err(CatalogError::io("remove", &path))?;
            }
        }
        Ok(catalog)
    }

    /// The same with other bounds.
    pub fn with_bounds(self, bounds: Bounds) -> Catalog {
        Catalog { bounds, ..self }
    }

    /// The same that takes no more of its disk than this says; else as much as there is.
    pub fn with_room(self, room: Room) -> Catalog {
        Catalog { room, ..self }
    }

    /// The VMs that have a table, in the order of their ids.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn vms(&self) -> Result<Vec<Uuid>, CatalogError> {
        let mut vms = self.folders()?;
        vms.retain(|vm| self.table_path(*vm).exists());
        Ok(vms)
    }

    /// The indexed restore points of a VM, ordered by number; none where it has no table.
    ///
    /// # Errors
    /// When its table cannot be read.
    pub fn points(&self, vm: Uuid) -> Result<Vec<Point>, CatalogError> {
        Ok(self.table(vm)?.map(|table| table.header().points.clone()).unwrap_or_default())
    }

    /// The number for the next restore point of a VM: one more than any that was ever indexed.
    ///
    /// # Errors
    /// When its table cannot be read.
    pub fn number_next(&self, vm: Uuid) -> Result<u32, CatalogError> {
        match self.table(vm) {
            Ok(table) => Ok(table.map_or(0, |table| table.header().number_highest).saturating_add(1)),
            // An ingest sets it aside and begins anew.
            Err(CatalogError::Damaged { .. }) => Ok(1),
            Err(error) => Err(error),
        }
    }

    /// How large a VM's table is, in bytes; 0 where it has none.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub fn table_bytes(&self, vm: Uuid) -> Result<u64, CatalogError> {
        let path = self.table_path(vm);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
            Err(error) => Err(CatalogError::io("look at", &path)(error)),
        }
    }

    /// Tables of a VM that were set aside because they were damaged.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn damaged_tables(&self, vm: Uuid) -> Result<Vec<PathBuf>, CatalogError> {
        let names = names_in(&self.vm_folder(vm))?;
        let mut paths: Vec<PathBuf> = names
            .into_iter()
            .filter(|name| name.starts_with(DAMAGED_FILE))
            .map(|name| self.vm_folder(vm).join(name))
            .collect();
        paths.sort();
        Ok(paths)
    }

    /// A VM's table, if it has one.
    pub(crate) fn table(&self, vm: Uuid) -> Result<Option<Table>, CatalogError> {
        Table::open(&self.table_path(vm), vm)
    }

    /// A VM's table.
    pub(crate) fn known_table(&self, vm: Uuid) -> Result<Table, CatalogError> {
        self.table(vm)?.ok_or(CatalogError::NoTable(vm))
    }

    /// Held by whoever writes a VM's table.
    pub(crate) fn writer(&self, vm: Uuid) -> Arc<Mutex<()>> {
        let mut writers: MutexGuard<'_, _> = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        writers.entry(vm).or_default().clone()
    }

    /// Takes a damaged table out of the way, unless another has taken its place meanwhile. `found` is the open table that was
    /// found damaged, or nothing where it could not be opened.
    pub(crate) fn set_aside(
        &self,
        vm: Uuid,
        found: Option<&Table>,
        reason: String,
    ) -> Result<Option<SetAside>, CatalogError> {
        let writer = self.writer(vm);
        let _writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.table_path(vm);
        let is_still_there = match found {
            Some(table) => is_same_file(table.file(), &path),
            None => matches!(Table::open(&path, vm), Err(CatalogError::Damaged { .. })),
        };
        if is_still_there { self.rename_aside(vm, reason).map(Some) } else { Ok(None) }
    }

    /// The same for whoever holds the writer's lock.
    pub(crate) fn rename_aside(&self, vm: Uuid, reason: String) -> Result<SetAside, CatalogError> {
        let from = self.table_path(vm);
        let folder = self.vm_folder(vm);
        let to = (1..).map(|number| folder.join(format!("{DAMAGED_FILE}-{number}"))).find(|path| !path.exists());
        let to = to.unwrap_or_else(|| unreachable!("numbers do not end"));
        fs::rename(&from, &to).map_err(CatalogError::io("set aside", &from))?;
        sync_folder(&folder)?;
        Ok(SetAside { vm, path: to, reason })
    }

    /// Begins a table that will replace the VM's. To be called, and kept, under the writer's lock.
    pub(crate) fn new_table(&self, vm: Uuid) -> Result<NewTable, CatalogError> {
        let folder = self.vm_folder(vm);
        if !folder.exists() {
            fs::create_dir(&folder).map_err(CatalogError::io("make", &folder))?;
            sync_folder(&self.folder)?;
        }
        let path = folder.join(NEW_FILE);
        let file = File::create(&path).map_err(CatalogError::io("write", &path))?;
        let half_written = HalfWritten(path.clone());
        let writer = TableWriter::new(file, &path, vm, self.bounds.group_rows_max, self.room.clone())?;
        Ok(NewTable { writer, half_written, table: self.table_path(vm), folder })
    }

    pub(crate) fn vm_folder(&self, vm: Uuid) -> PathBuf {
        self.folder.join(vm.to_string())
    }

    fn table_path(&self, vm: Uuid) -> PathBuf {
        self.vm_folder(vm).join(TABLE_FILE)
    }

    /// The VMs that have a table, or one that was set aside.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn folders(&self) -> Result<Vec<Uuid>, CatalogError> {
        let mut vms: Vec<Uuid> = names_in(&self.folder)?.iter().filter_map(|name| name.parse().ok()).collect();
        vms.sort();
        Ok(vms)
    }
}

/// A table that is being written beside the one that it will replace.
pub(crate) struct NewTable {
    pub(crate) writer: TableWriter,
    half_written: HalfWritten,
    table: PathBuf,
    folder: PathBuf,
}

impl NewTable {
    /// Completes it and puts it in the place of the old one. After an error the old one is still there.
    pub(crate) fn replace(self, number_highest: u32, points: Vec<Point>) -> Result<Header, CatalogError> {
        let new = &self.half_written.0;
        let (file, header) = self.writer.finish(number_highest, points)?;
        file.sync_all().map_err(CatalogError::io("sync", new))?;
        fs::rename(new, &self.table).map_err(CatalogError::io("replace", &self.table))?;
        sync_folder(&self.folder)?;
        Ok(header)
    }
}

/// Removed when it goes out of scope and still has that name.
struct HalfWritten(PathBuf);

impl Drop for HalfWritten {
    fn drop(&mut self) {
        // What cannot be removed now is swept when the catalog is opened.
        let _ = remove_if_there(&self.0);
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn sync_folder(folder: &Path) -> Result<(), CatalogError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(CatalogError::io("sync", folder))
}

/// The names in a folder that are text; none where there is no folder.
fn names_in(folder: &Path) -> Result<Vec<String>, CatalogError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(CatalogError::io("read", folder)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(CatalogError::io("read", folder))?;
        names.extend(entry.file_name().into_string().ok());
    }
    Ok(names)
}

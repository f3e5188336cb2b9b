//! The applications of the guest: found with the inventory, brought to rest before the freeze, let go after it.
//!
//! Translates between the protocol and each kind's module. PostgreSQL is the only kind so far; it is brought to a checkpoint and
//! holds nothing, so there is nothing to let go. Knows nothing of file systems or of the channel.

use crate::postgres::{self, Cluster, Device, Place, PlaceRole, QuiesceOptions, Quiesced, Stopped, Unreachable};
use lull_guest_wire::{
    Application, ApplicationPlace, ApplicationQuiesced, ApplicationState, LIST_MAX, QuiesceOrder, Superblock,
};
use std::path::Path;
use std::time::Instant;

const STACK_BYTES: usize = 512 * 1024;

/// What a search brought.
#[derive(Debug)]
pub struct Found {
    /// Each of them.
    pub applications: Vec<Application>,
    /// Why there may be more, one sentence each.
    pub incomplete: Vec<String>,
    /// What else is good to know, one sentence each.
    pub notes: Vec<String>,
}

/// What the last inventory found.
#[derive(Debug, Default)]
pub struct Applications {
    clusters: Vec<Cluster>,
    unreachable: Vec<Unreachable>,
}

impl Applications {
    /// Looks for every application that runs or ought to.
    pub fn discover(&mut self) -> Found {
        let found = postgres::discover(Path::new("/proc"));
        (self.clusters, self.unreachable) = (found.clusters, found.unreachable);
        let reachable = self.clusters.iter().map(reachable);
        let unreachable = self.unreachable.iter().map(unreachable);
        let mut list: Vec<Application> = reachable.chain(unreachable).chain(found.stopped.iter().map(down)).collect();
        let mut incomplete = found.incomplete;
        if list.len() > LIST_MAX {
            incomplete.push(format!("{} applications were found, and only {LIST_MAX} are told of", list.len()));
            list.truncate(LIST_MAX);
        }
        Found { applications: list, incomplete, notes: found.left_alone }
    }

    /// Brings those of the last inventory to rest, all at once, so that the first does not wait for the last. One entry each,
    /// in the order of the inventory.
    pub fn quiesce(&self, order: &QuiesceOrder) -> Vec<ApplicationQuiesced> {
        let options = QuiesceOptions {
            checkpoint: order.checkpoint,
            checkpoint_timeout_ms: u32::try_from(order.checkpoint_timeout_ms).unwrap_or(u32::MAX),
            connect_timeout_ms: u32::try_from(order.connect_timeout_ms).unwrap_or(u32::MAX),
        };
        let mut list: Vec<ApplicationQuiesced> = std::thread::scope(|scope| {
            let quiesce = |cluster| {
                let thread = std::thread::Builder::new().name("lull-quiesce".into()).stack_size(STACK_BYTES);
                thread.spawn_scoped(scope, move || quiesce(cluster, &options))
            };
            let running: Vec<_> = self.clusters.iter().map(quiesce).collect();
            let ended = running.into_iter().zip(&self.clusters);
            ended
                .map(|(thread, cluster)| thread.ok().and_then(|t| t.join().ok()).unwrap_or_else(|| broke_off(cluster)))
                .collect()
        });
        list.extend(self.unreachable.iter().map(|unreachable| ApplicationQuiesced {
            key: unreachable_key(unreachable),
            result: Err(unreachable.to_string()),
            caveats: Vec::new(),
            took_ms: 0,
        }));
        list.truncate(LIST_MAX);
        list
    }
}

fn key(cluster: &Cluster) -> String {
    format!("postgresql:{}", cluster.data_dir)
}

/// With the process, since containers tend to have the same data directory.
fn unreachable_key(unreachable: &Unreachable) -> String {
    format!("postgresql:{}#{}", unreachable.data_dir.as_deref().unwrap_or("?"), unreachable.pid)
}

fn reachable(cluster: &Cluster) -> Application {
    Application {
        key: key(cluster),
        name: format!("PostgreSQL {} ({}, port {})", cluster.major, cluster.data_dir, cluster.port),
        places: cluster.places.iter().map(place).collect(),
        state: ApplicationState::Runs,
    }
}

fn down(stopped: &Stopped) -> Application {
    Application {
        key: format!("postgresql:{}", stopped.data_dir),
        name: format!("PostgreSQL {} ({})", stopped.version, stopped.data_dir),
        places: stopped.places.iter().map(place).collect(),
        state: ApplicationState::Down,
    }
}

fn unreachable(unreachable: &Unreachable) -> Application {
    let version = unreachable.major.map(|major| format!(" {major}")).unwrap_or_default();
    let folder = unreachable.data_dir.as_ref().map(|folder| format!("{folder}, ")).unwrap_or_default();
    Application {
        key: unreachable_key(unreachable),
        name: format!("PostgreSQL{version} ({folder}process {})", unreachable.pid),
        places: Vec::new(),
        state: ApplicationState::Unreachable(unreachable.because.to_string()),
    }
}

fn place(place: &Place) -> ApplicationPlace {
    let what = match &place.role {
        PlaceRole::Data => "data".to_string(),
        PlaceRole::Wal => "wal".to_string(),
        PlaceRole::Tablespace(id) => format!("tablespace {id}"),
        PlaceRole::Part(part) => format!("part {part}"),
    };
    let Device { major, minor } = place.device;
    ApplicationPlace { what, path: place.path.clone(), superblock: Superblock { major, minor } }
}

fn quiesce(cluster: &Cluster, options: &QuiesceOptions) -> ApplicationQuiesced {
    let began = Instant::now();
    let quiesced = postgres::quiesce(cluster, options);
    let took_ms = began.elapsed().as_millis() as u64;
    let (result, caveats) = match quiesced {
        Ok(quiesced) => {
            let mut caveats = new_places(&cluster.places, &quiesced.places);
            let facts = facts(&quiesced);
            caveats.extend(quiesced.against_application);
            (Ok(facts), caveats)
        }
        Err(e) => (Err(e.to_string()), Vec::new()),
    };
    ApplicationQuiesced { key: key(cluster), result, caveats, took_ms }
}

/// Places that the inventory did not see: the level was worked out without them.
fn new_places(known: &[Place], now: &[Place]) -> Vec<String> {
    let new = now.iter().filter(|place| !known.contains(place));
    new.map(|new| {
        let ApplicationPlace { what, path, superblock } = place(new);
        format!("its {what} appeared at {path} ({superblock}) after the inventory, so it cannot be said whether it is part of the freeze")
    })
    .collect()
}

fn broke_off(cluster: &Cluster) -> ApplicationQuiesced {
    let result = Err("the attempt broke off inside the component".to_string());
    ApplicationQuiesced { key: key(cluster), result, caveats: Vec::new(), took_ms: 0 }
}

fn facts(quiesced: &Quiesced) -> Vec<(String, String)> {
    let facts = &quiesced.facts;
    let on = |on: bool| if on { "on" } else { "off" }.to_string();
    let mut list = vec![
        ("version", facts.server_version.clone()),
        ("version_num", facts.server_version_num.to_string()),
        ("system_identifier", facts.system_identifier.to_string()),
        ("timeline", facts.timeline.to_string()),
        ("in_recovery", on(facts.in_recovery)),
        ("checkpoint_position", facts.checkpoint_position.to_string()),
        ("redo_position", facts.redo_position.to_string()),
        ("fsync", on(facts.fsync)),
        ("full_page_writes", on(facts.full_page_writes)),
        ("synchronous_commit", facts.synchronous_commit.clone()),
        ("data_checksums", on(facts.data_checksums)),
    ];
    list.extend(facts.wal_position.map(|position| ("wal_position", position.to_string())));
    list.extend(quiesced.checkpoint_ms.map(|ms| ("checkpoint_ms", ms.to_string())));
    list.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::UnreachableBecause;

    fn at(role: PlaceRole, path: &str, minor: u32) -> Place {
        Place { role, path: path.into(), device: Device { major: 254, minor } }
    }

    #[test]
    fn a_tablespace_made_after_the_inventory_is_a_caveat() {
        let data = at(PlaceRole::Data, "/var/lib/postgresql/15/main", 1);
        let space = at(PlaceRole::Tablespace(16_400), "/fast/ts", 16);
        assert!(new_places(std::slice::from_ref(&data), std::slice::from_ref(&data)).is_empty());
        let caveats = new_places(std::slice::from_ref(&data), &[data.clone(), space]);
        assert_eq!(caveats.len(), 1);
        assert!(caveats[0].starts_with("its tablespace 16400 appeared at /fast/ts (254:16)"), "{caveats:?}");
    }

    #[test]
    fn two_containers_with_the_same_folder_are_two_applications() {
        let container = |pid| Unreachable {
            pid,
            data_dir: Some("/var/lib/postgresql/data".into()),
            major: Some(16),
            because: UnreachableBecause::OtherRoot,
        };
        let (one, two) = (unreachable(&container(7)), unreachable(&container(8)));
        assert_ne!(one.key, two.key);
        assert_eq!(one.name, "PostgreSQL 16 (/var/lib/postgresql/data, process 7)");
        assert!(matches!(one.state, ApplicationState::Unreachable(_)));
    }
}

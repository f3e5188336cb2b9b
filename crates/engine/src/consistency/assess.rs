//! The rule that turns evidence into levels. Phrases nothing: reasons are facts.

use super::{
    ApplicationEvidence, ApplicationVerdict, Assessment, CallResult, ConsistencyLevel, Evidence, FileSystemEvidence,
    FileSystemVerdict, FreezeResult, QuiesceResult, Reason, Role, WindowEvidence,
};

/// `EBUSY` on Linux: somebody else's freeze.
const EBUSY: i32 = 16;

/// What a restore point with this evidence is worth.
pub fn assess(evidence: &Evidence) -> Assessment {
    let window = window_flaw(&evidence.window);
    let file_systems: Vec<FileSystemVerdict> =
        evidence.file_systems.iter().map(|fs| judge_file_system(fs, evidence, window.as_ref())).collect();
    let applications: Vec<ApplicationVerdict> =
        evidence.applications.iter().map(|app| judge_application(app, evidence, &file_systems)).collect();
    let (level, reasons) = judge_vm(evidence, &file_systems, &applications);
    Assessment { level, reasons, file_systems, applications }
}

/// Why the snapshot is not known to lie inside the freeze window.
fn window_flaw(window: &WindowEvidence) -> Option<Reason> {
    if window.frozen_id.is_none() {
        Some(Reason::NeverFrozen)
    } else if !window.acknowledged_before_snapshot {
        Some(Reason::SnapshotTooEarly)
    } else if !window.snapshot_returned_before_thaw {
        Some(Reason::SnapshotTooLate)
    } else if window.thawed_id != window.frozen_id {
        Some(Reason::ThawNotConfirmed)
    } else if !window.no_gap {
        Some(Reason::Gap)
    } else {
        None
    }
}

fn judge_file_system(fs: &FileSystemEvidence, evidence: &Evidence, window: Option<&Reason>) -> FileSystemVerdict {
    let (level, reason) = if !evidence.snapshot.taken {
        (None, Some(Reason::NoSnapshot))
    } else if !fs.on_snapshot {
        (None, Some(Reason::NotOnSnapshot))
    } else if !fs.writable {
        // Nothing could write to it, so it was at rest without a freeze.
        (Some(ConsistencyLevel::FileSystem), None)
    } else {
        match freeze_flaw(fs).or_else(|| window.cloned()) {
            None => (Some(ConsistencyLevel::FileSystem), None),
            Some(flaw) if evidence.snapshot.atomic => (Some(ConsistencyLevel::Crash), Some(flaw)),
            Some(_) => (None, Some(Reason::TornSnapshot)),
        }
    };
    FileSystemVerdict {
        superblock: fs.superblock,
        mount_points: fs.mount_points.clone(),
        level,
        counts: !matches!(fs.role, Role::Other)
            || evidence.applications.iter().any(|app| app.superblocks.contains(&fs.superblock)),
        reason,
    }
}

/// Why this file system is not known to have been frozen to the end of its window.
fn freeze_flaw(fs: &FileSystemEvidence) -> Option<Reason> {
    match fs.frozen {
        FreezeResult::NotAttempted if !fs.freezable => Some(Reason::NotFreezable { fs_type: fs.fs_type.clone() }),
        FreezeResult::NotAttempted if fs.excluded => Some(Reason::Excluded),
        FreezeResult::NotAttempted => Some(Reason::NotFrozen),
        FreezeResult::Attempted { freeze, thaw } => match (freeze, thaw) {
            (CallResult::Failed { errno: EBUSY }, _) => Some(Reason::FrozenByAnother),
            (CallResult::Failed { errno }, _) => Some(Reason::FreezeFailed { errno }),
            (CallResult::Unknown, _) => Some(Reason::FreezeUnknown),
            (CallResult::Ok, CallResult::Failed { errno }) => Some(Reason::ThawFailed { errno }),
            (CallResult::Ok, CallResult::Unknown) => Some(Reason::ThawUnknown),
            (CallResult::Ok, CallResult::Ok) => None,
        },
    }
}

fn judge_application(
    app: &ApplicationEvidence,
    evidence: &Evidence,
    file_systems: &[FileSystemVerdict],
) -> ApplicationVerdict {
    // What lies under it bounds it, whatever was done to it.
    let below = app.superblocks.iter().map(|superblock| {
        // Several verdicts on one superblock contradict each other; the worst counts.
        file_systems.iter().filter(|fs| fs.superblock == *superblock).min_by_key(|fs| fs.level).map_or(
            (None, Some(Reason::UnknownFileSystem { superblock: *superblock })),
            |fs| {
                let reason = fs.reason.clone().map(|reason| Reason::FileSystemBelow {
                    mount_point: first_mount_point(fs),
                    reason: Box::new(reason),
                });
                (fs.level, reason)
            },
        )
    });
    let (bound, bound_reason) =
        below.min_by_key(|(level, _)| *level).unwrap_or((None, Some(Reason::WhereaboutsUnknown)));

    let own_reason = match &app.quiesce {
        QuiesceResult::Quiesced if evidence.snapshot.atomic => None,
        QuiesceResult::Quiesced => Some(Reason::NotAtomic),
        QuiesceResult::NotRunning => Some(Reason::NotRunning),
        QuiesceResult::Failed { cause } => Some(Reason::QuiesceFailed { cause: cause.clone() }),
        QuiesceResult::NotAttempted => Some(Reason::NotQuiesced),
    };
    let (level, reason) = if bound < Some(ConsistencyLevel::FileSystem) {
        (bound, bound_reason)
    } else if own_reason.is_some() {
        (Some(ConsistencyLevel::FileSystem), own_reason)
    } else {
        (Some(ConsistencyLevel::Application), None)
    };
    ApplicationVerdict { name: app.name.clone(), level, reason }
}

fn judge_vm(
    evidence: &Evidence,
    file_systems: &[FileSystemVerdict],
    applications: &[ApplicationVerdict],
) -> (Option<ConsistencyLevel>, Vec<Reason>) {
    if !evidence.snapshot.taken {
        return (None, vec![Reason::NoSnapshot]);
    }
    let left_alone = evidence.left_alone.as_ref().map(|cause| Reason::LeftAlone { cause: cause.clone() });
    if let (Some(reason), true, true) = (&left_alone, file_systems.is_empty(), applications.is_empty()) {
        return match evidence.snapshot.atomic {
            true => (Some(ConsistencyLevel::Crash), vec![reason.clone()]),
            false => (None, vec![reason.clone(), Reason::NotAtomic]),
        };
    }
    // Every bound on the VM's level with its reason; the lowest decides, and all below the best are told.
    let mut bounds: Vec<(Option<ConsistencyLevel>, Reason)> = Vec::new();
    if !evidence.file_systems.iter().any(|fs| matches!(fs.role, Role::Root { .. })) {
        // Not even whether it is in the snapshot.
        bounds.push((None, Reason::RootUnknown));
    }
    for fs in file_systems.iter().filter(|fs| fs.counts) {
        if let Some(reason) = &fs.reason {
            let reason = Reason::OfFileSystem { mount_point: first_mount_point(fs), reason: Box::new(reason.clone()) };
            bounds.push((fs.level, reason));
        }
    }
    for app in applications {
        if let Some(reason) = &app.reason {
            let reason = Reason::OfApplication { name: app.name.clone(), reason: Box::new(reason.clone()) };
            bounds.push((app.level, reason));
        }
    }
    for fs in &evidence.file_systems {
        let (Role::Root { applications: names } | Role::ApplicationData { applications: names }) = &fs.role else {
            continue;
        };
        for name in names {
            if !applications.iter().any(|app| app.name == *name) {
                let reason = Reason::UnknownApplication {
                    mount_point: fs.mount_points.first().cloned().unwrap_or_default(),
                    name: name.clone(),
                };
                bounds.push((Some(ConsistencyLevel::FileSystem), reason));
            }
        }
    }
    if !evidence.applications_searched {
        bounds.push((Some(ConsistencyLevel::FileSystem), Reason::NotSearched));
    } else if applications.is_empty() {
        bounds.push((Some(ConsistencyLevel::FileSystem), Reason::NoApplications));
    }

    // Stable: within one level the reasons keep the order above.
    bounds.sort_by_key(|(level, _)| *level);
    let level = match bounds.first() {
        None => Some(ConsistencyLevel::Application),
        Some((level, _)) => *level,
    };
    // It raises and lowers nothing: it says why what is proved is no more.
    let first = left_alone.filter(|_| level < Some(ConsistencyLevel::FileSystem));
    let reasons = first.into_iter().chain(bounds.into_iter().map(|(_, reason)| reason)).collect();
    (level, reasons)
}

fn first_mount_point(fs: &FileSystemVerdict) -> String {
    fs.mount_points.first().cloned().unwrap_or_else(|| fs.superblock.to_string())
}

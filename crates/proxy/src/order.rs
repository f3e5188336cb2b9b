//! An order from the backup server, read and checked before anything is done.
//!
//! Knows the shape of orders; nothing of how they are carried out.

use crate::access::{BadOrder, GuestAccess};
use lull_engine::settings::GuestProcessing;
use lull_guest_wire::Lease;
use lull_hypervisor::{Base, Origin};
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::task_order::Work as WireWork;
use std::path::PathBuf;

/// The work on one VM.
#[derive(Debug, Clone)]
pub struct TaskSpec {
    /// The task's id, as the server wrote it.
    pub task_id: String,
    /// Number of the task's lease.
    pub epoch: u64,
    /// Grows with every order; a guest that a newer one holds is left alone. 0: none.
    pub fence: u64,
    /// The VM's name.
    pub vm_name: String,
    /// How to reach the guest; nothing where it is not to be touched.
    pub guest: Option<GuestAccess>,
    /// How to reach the hypervisor.
    pub qemu: Option<QemuSpec>,
    /// Settings in force for this VM.
    pub settings: GuestProcessing,
    /// What for.
    pub work: Work,
    /// No other proxy can take the task over.
    pub last_proxy: bool,
    /// Without a guest: why it is left alone, where the settings are not the reason.
    pub left_alone_because: Option<String>,
}

/// What a task is for.
#[derive(Debug, Clone)]
pub enum Work {
    /// A restore point.
    Backup(Box<BackupSpec>),
    /// A freeze as long as the caller wants it.
    Hold,
    /// A freeze and a thaw.
    Rehearse,
}

/// Where a restore point goes.
#[derive(Debug, Clone)]
pub struct BackupSpec {
    /// The repository, absolute, on the hypervisor's side.
    pub repository_dir: PathBuf,
    /// Short id of the restore point, as hypervisors take it.
    pub point: String,
    /// 0: none.
    pub speed_limit_bytes_per_s: u64,
    /// Bitmaps that stay, by name.
    pub bitmaps_owed: Vec<String>,
    /// What it builds on.
    pub base: Base,
    /// What the server knows it by; absent in orders of servers that do not say.
    pub origin: Option<Origin>,
}

/// A VM on a QEMU host.
#[derive(Debug, Clone)]
pub struct QemuSpec {
    /// Folder of sockets.
    pub sockets_dir: PathBuf,
    /// The VM's name there.
    pub vm: String,
    /// Folder for fleecing images.
    pub fleecing_dir: PathBuf,
}

/// The id that hypervisors know a restore point by: at most 16 letters and digits. A UUID's last 16 digits are its
/// random part.
pub fn short_id(id: &str) -> Result<String, BadOrder> {
    let compact: String = id.chars().filter(|c| *c != '-').collect();
    if compact.is_empty() || !compact.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(BadOrder(format!("\"{id}\" is no id of a restore point")));
    }
    Ok(compact[compact.len().saturating_sub(16)..].to_ascii_lowercase())
}

/// The names of the bitmaps of these restore points.
pub fn bitmap_names(restore_points: &[String]) -> Result<Vec<String>, BadOrder> {
    restore_points.iter().map(|id| Ok(lull_hypervisor::bitmap_name(&short_id(id)?))).collect()
}

impl TaskSpec {
    /// Reads an order; errors say what is wrong with it.
    pub fn from_wire(order: v1::TaskOrder) -> Result<Self, BadOrder> {
        let vm_name = order.vm_name;
        let bad = |what: &str| BadOrder(format!("the order for VM {vm_name} {what}"));
        let settings: GuestProcessing = match order.settings_json.as_str() {
            "" => GuestProcessing::default(),
            json => {
                serde_json::from_str(json).map_err(|e| bad(&format!("has settings that are not understood: {e}")))?
            }
        };
        let qemu = order.hypervisor.map(|target| qemu(&vm_name, target)).transpose()?;
        let guest = order.guest.map(|target| GuestAccess::from_wire(&vm_name, target)).transpose()?;
        let work = match order.work {
            Some(WireWork::Backup(backup)) => {
                if qemu.is_none() {
                    return Err(bad("asks for a backup without a hypervisor"));
                }
                let base = match backup.parent {
                    Some(parent) => Base::Parent {
                        restore_point: short_id(&parent.restore_point_id)?,
                        dir: parent.directory.into(),
                    },
                    None if backup.full_because.is_empty() => Base::Full { because: "it was ordered so".into() },
                    None => Base::Full { because: backup.full_because },
                };
                let origin = backup.origin.map(|origin| Origin {
                    restore_point_id: origin.restore_point_id,
                    vm_id: order.vm_id.clone(),
                    vm_name: vm_name.clone(),
                    job: Some(origin.job_name).filter(|name| !name.is_empty()),
                    session: order.session_id,
                });
                Work::Backup(Box::new(BackupSpec {
                    base,
                    origin,
                    repository_dir: backup.repository_dir.into(),
                    point: short_id(&backup.restore_point_id)?,
                    speed_limit_bytes_per_s: backup.speed_limit_bytes_per_s,
                    bitmaps_owed: bitmap_names(&backup.bitmaps_owed)?,
                }))
            }
            Some(WireWork::Hold(_)) => Work::Hold,
            Some(WireWork::Rehearse(_)) => Work::Rehearse,
            None => return Err(bad("does not say what to do")),
        };
        if guest.is_none() && !matches!(work, Work::Backup(_)) {
            return Err(bad("asks for a freeze without a guest"));
        }
        let (last_proxy, because) = (order.last_proxy, order.left_alone_because);
        let left_alone_because = Some(because).filter(|because| !because.is_empty());
        let (task_id, epoch, fence) = (order.task_id, order.epoch, order.fence);
        let spec =
            TaskSpec { task_id, epoch, fence, vm_name, guest, qemu, settings, work, last_proxy, left_alone_because };
        spec.lease().check().map_err(|what| BadOrder(format!("the order for VM {}: {what}", spec.vm_name)))?;
        Ok(spec)
    }

    /// The bounds of its freeze.
    pub fn lease(&self) -> Lease {
        Lease { lease_ms: self.settings.lease_ms, budget_ms: self.settings.freeze_budget_ms }
    }
}

/// Settings that hold nothing but the post-thaw script that is owed.
pub fn owed_script(script: v1::OwedScript) -> GuestProcessing {
    let mut settings = GuestProcessing::default();
    settings.scripts.linux.post = Some(script.body);
    settings.scripts.linux.timeout_ms = script.timeout_ms;
    settings
}

/// Reads a hypervisor target.
pub fn qemu(vm_name: &str, target: v1::HypervisorTarget) -> Result<QemuSpec, BadOrder> {
    let Some(v1::hypervisor_target::Kind::Qemu(qemu)) = target.kind else {
        return Err(BadOrder(format!("the order for VM {vm_name} names a hypervisor of no known kind")));
    };
    Ok(QemuSpec { sockets_dir: qemu.sockets_dir.into(), vm: qemu.vm, fleecing_dir: qemu.fleecing_dir.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> v1::TaskOrder {
        let qemu = v1::QemuTarget { sockets_dir: "/s".into(), vm: "db1".into(), fleecing_dir: "/f".into() };
        let backup = v1::BackupWork {
            repository_dir: "/r".into(),
            restore_point_id: "0197a3b2-1111-7222-8333-444455556666".into(),
            ..Default::default()
        };
        v1::TaskOrder {
            vm_name: "db1".into(),
            hypervisor: Some(v1::HypervisorTarget { kind: Some(v1::hypervisor_target::Kind::Qemu(qemu)) }),
            work: Some(WireWork::Backup(backup)),
            ..Default::default()
        }
    }

    #[test]
    fn a_backup_gets_a_short_id_and_default_settings() {
        let spec = TaskSpec::from_wire(order()).unwrap();
        let Work::Backup(backup) = &spec.work else { panic!() };
        assert_eq!(backup.point, "8333444455556666");
        assert_eq!(spec.lease(), Lease::default());
    }

    #[test]
    fn what_a_backup_builds_on_is_read_with_the_folder_it_lies_in() {
        let base = |change: fn(&mut v1::BackupWork)| {
            let mut order = order();
            if let Some(WireWork::Backup(backup)) = &mut order.work {
                change(backup);
            }
            let Work::Backup(backup) = TaskSpec::from_wire(order).unwrap().work else { panic!() };
            (backup.base, backup.origin)
        };
        assert_eq!(base(|_| ()), (Base::Full { because: "it was ordered so".into() }, None));
        let why = base(|b| b.full_because = "the chain is complete".into()).0;
        assert_eq!(why, Base::Full { because: "the chain is complete".into() });
        let (parent, origin) = base(|b| {
            let restore_point_id = "0197a3b2-1111-7222-8333-aaaabbbbcccc".to_string();
            b.parent = Some(v1::ParentPoint { restore_point_id, directory: "/r/db1/8333aaaabbbbcccc".into() });
            b.origin =
                Some(v1::PointOrigin { restore_point_id: b.restore_point_id.clone(), job_name: "nightly".into() });
        });
        let dir = "/r/db1/8333aaaabbbbcccc".into();
        assert_eq!(parent, Base::Parent { restore_point: "8333aaaabbbbcccc".into(), dir });
        assert_eq!(origin.map(|o| (o.vm_name, o.job)), Some(("db1".into(), Some("nightly".into()))));
    }

    #[test]
    fn an_order_that_makes_no_sense_is_refused_in_words() {
        let check = |change: fn(&mut v1::TaskOrder), expect: &str| {
            let mut order = order();
            change(&mut order);
            let error = TaskSpec::from_wire(order).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check(|o| o.work = None, "does not say what to do");
        check(|o| o.hypervisor = None, "without a hypervisor");
        check(|o| o.work = Some(WireWork::Hold(v1::HoldWork {})), "without a guest");
        check(|o| o.settings_json = "{\"leese_ms\":1}".into(), "leese_ms");
        check(|o| o.settings_json = "{\"lease_ms\":1}".into(), "lease_ms is 1");
    }
}

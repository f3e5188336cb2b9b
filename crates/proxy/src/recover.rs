//! Sees to it that a guest is thawed and swept and that the hypervisor holds nothing of ours, whatever an earlier task left.
//!
//! Needs no memory of that task but for its script: it looks, waits for a running watchdog to end, evicts a component of an older order or
//! whose proxy is gone (but leaves a guest alone that a newer order's component holds), thaws by hand where component and watchdog were killed together (the lock's folder tells), sweeps, and runs
//! the post-thaw script where one is owed. Idempotent but for that.

use crate::cancel::{Cancel, EVICTED};
use crate::carried::Image;
use crate::channel::{ChannelError, GuestChannel, Limits, Script, shell_word};
use crate::failure::{self, Stop};
use crate::guest_session::{Connector, GuestSession, tell_accepted, tell_keys};
use crate::order::QemuSpec;
use crate::receipt::{self, GuestLook};
use crate::reporter::{Reporter, StepOutcome};
use lull_engine::failover::FailureClass;
use lull_engine::session::{Hop, TaskFailure};
use lull_engine::settings::GuestProcessing;
use lull_engine::timeline::Step;
use lull_guest_wire::ScriptStage;
use lull_guest_wire::lease::LEASE_MS_DEFAULT;
use lull_hypervisor::{QemuHost, SweepOrder, sweep};
use lull_proxy_wire::v1;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A component whose proxy is gone ends by itself within its lease; then it is evicted.
const PATIENCE: Duration = Duration::from_millis(LEASE_MS_DEFAULT + 2_000);
/// An evicted component's watchdog thaws at once, unless a `FIFREEZE` is in flight.
const GONE_WITHIN: Duration = Duration::from_secs(60);
/// A component of an older order that was asked to go thaws, undoes and goes within this time.
const GO_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// What to see to.
pub struct Recovery<'a> {
    /// Of the order; older ones' components go at once, newer ones' are left alone. 0: none.
    pub fence: u64,
    /// The VM's name, for people.
    pub vm_name: String,
    /// The way into the guest, where there is anything to see to.
    pub connector: Option<&'a dyn Connector>,
    /// Whether something may be frozen there.
    pub maybe_frozen: bool,
    /// Mount points whose file systems the task did not freeze: whoever froze them is not us.
    pub excluded_mount_points: Vec<String>,
    /// What is put there, to run a script or to thaw where the guest has no tool for it.
    pub image: &'a Image,
    /// Settings that hold the post-thaw script, where one is owed.
    pub post_script: Option<GuestProcessing>,
    /// The hypervisor and the folders to sweep, where there is anything to see to.
    pub hypervisor: Option<HypervisorSweep>,
}

/// What to sweep at the hypervisor.
pub struct HypervisorSweep {
    /// The VM.
    pub qemu: QemuSpec,
    /// The repository.
    pub repository_dir: PathBuf,
    /// Bitmaps that stay, by name.
    pub bitmaps_owed: Vec<String>,
    /// The restore point that nobody recorded.
    pub unrecorded: Option<String>,
}

/// Recovers, and gives the account.
pub async fn run(recovery: Recovery<'_>, reporter: Reporter, cancel: Cancel) -> v1::Finished {
    let mut receipt = v1::Receipt::default();
    let mut failure = None;
    if let Some(connector) = recovery.connector {
        let guest = cancel.or(recover_guest(connector, &recovery, &reporter, &cancel)).await;
        match guest {
            Ok(Ok(look)) => {
                receipt.guest_checked = true;
                receipt.thaw_confirmed = true;
                receipt.left_in_guest = look.left();
                receipt.rightly_remains = connector.rightly_remains();
            }
            // Then the hypervisor is its as well.
            Ok(Err(error)) if cancel.is_evicted() => return failed(&error, receipt),
            Ok(Err(error)) => failure = Some(error),
            Err(_) => return cancelled(receipt),
        }
    }
    if let Some(hypervisor) = &recovery.hypervisor {
        let began = reporter.started(Step::Verify, "sweep of the hypervisor");
        let order = SweepOrder {
            bitmaps_owed: hypervisor.bitmaps_owed.clone(),
            fleecing_dir: hypervisor.qemu.fleecing_dir.clone(),
            repository_dir: hypervisor.repository_dir.clone(),
            unrecorded: hypervisor.unrecorded.clone(),
        };
        let host = QemuHost::new(&hypervisor.qemu.sockets_dir);
        match sweep(&host, &hypervisor.qemu.vm, &order).await {
            Ok(report) => {
                for removed in &report.removed {
                    reporter.info(format!("removed {removed}"));
                }
                if report.continued {
                    reporter.warning("the VM stood still because of an earlier task and was continued");
                }
                let removed = format!("{} things removed", report.removed.len());
                receipt.left_in_hypervisor = report.remaining;
                match report.vm_gone {
                    None => {
                        receipt.hypervisor_checked = true;
                        reporter.ended(Step::Verify, StepOutcome::Ok, removed, began.elapsed());
                    }
                    // A socket that does not answer does not say that nothing is behind it: a VM that runs keeps our
                    // filters, and what was not looked at is not called clean.
                    Some(why) => {
                        let line = format!("{removed}, files only: {why}");
                        reporter.ended(Step::Verify, StepOutcome::Failed, line, began.elapsed());
                        let remedy = "the VM is swept when its socket answers; if it is off, the next task sweeps it";
                        let class = FailureClass::Hypervisor;
                        failure.get_or_insert_with(|| failure::of(Step::Verify, Hop::Hypervisor, class, why, remedy));
                    }
                }
            }
            Err(e) => {
                reporter.ended(
                    Step::Verify,
                    StepOutcome::Failed,
                    format!("{}; {}", e.cause, e.remedy),
                    began.elapsed(),
                );
                failure.get_or_insert_with(|| failure::of_hypervisor(Step::Verify, &e));
            }
        }
    }
    let clean = receipt.left_in_guest.is_empty() && receipt.left_in_hypervisor.is_empty();
    let outcome = match (&failure, clean && !reporter.has_warnings()) {
        (Some(_), _) => "failed",
        (None, true) => "success",
        (None, false) => "warning",
    };
    v1::Finished {
        outcome: outcome.into(),
        failure_json: failure.and_then(|failure| serde_json::to_string(&failure).ok()).unwrap_or_default(),
        receipt: Some(receipt),
        ..Default::default()
    }
}

fn failed(failure: &TaskFailure, receipt: v1::Receipt) -> v1::Finished {
    let failure_json = serde_json::to_string(failure).unwrap_or_default();
    v1::Finished { outcome: "failed".into(), failure_json, receipt: Some(receipt), ..Default::default() }
}

fn cancelled(receipt: v1::Receipt) -> v1::Finished {
    v1::Finished { outcome: "cancelled".into(), receipt: Some(receipt), ..Default::default() }
}

async fn recover_guest(
    connector: &dyn Connector,
    recovery: &Recovery<'_>,
    reporter: &Reporter,
    cancel: &Cancel,
) -> Result<GuestLook, TaskFailure> {
    let began = reporter.started(Step::Connect, "");
    let connected = connector.connect().await;
    if let Ok((_, seen)) = &connected {
        tell_accepted(reporter, seen.as_ref());
    }
    let (channel, _) = told(reporter, Step::Connect, began, connected, |(channel, _)| channel.describe())?;

    let began = reporter.started(Step::Thaw, "");
    let thawed = thaw(channel.as_ref(), connector, recovery, reporter, cancel).await;
    let outcome = if thawed.is_ok() { StepOutcome::Ok } else { StepOutcome::Failed };
    let line = match &thawed {
        Ok(line) => line.clone(),
        Err(failure) => failure.to_string(),
    };
    reporter.ended(Step::Thaw, outcome, line, began.elapsed());
    thawed?;

    let began = reporter.started(Step::Remove, "");
    let swept = receipt::sweep(channel.as_ref(), recovery.fence).await;
    told(reporter, Step::Remove, began, swept, |swept| match swept.as_slice() {
        [] => "nothing was left".to_string(),
        folders => format!("removed {}", folders.join(", ")),
    })?;

    let guest = GuestSession::new(connector, recovery.image, &recovery.vm_name, reporter.clone(), cancel.clone());
    let mut guest = guest.of_fence(recovery.fence).over(channel);
    if let Some(settings) = &recovery.post_script {
        owed_script(&mut guest, settings, reporter).await?;
    }

    let began = reporter.started(Step::Receipt, "");
    let look = look_until_gone(&mut guest).await;
    let look = told(reporter, Step::Receipt, began, look, |look| match look.left().as_slice() {
        [] => "nothing of ours is left".to_string(),
        left => format!("left: {}", left.join(", ")),
    })?;
    guest.close().await;
    Ok(look)
}

/// Runs the script. One that failed has run: it is told, and not run again.
async fn owed_script(
    guest: &mut GuestSession<'_>,
    settings: &GuestProcessing,
    reporter: &Reporter,
) -> Result<(), TaskFailure> {
    let began = reporter.started(Step::PostScript, "owed since the pre-freeze script ran");
    let ran = match guest.redeploy().await {
        Ok(()) => guest.script(ScriptStage::PostThaw, settings).await,
        Err(e) => Err(failure::of_channel(Step::PostScript, &e).into()),
    };
    let end = |outcome, line: String| reporter.ended(Step::PostScript, outcome, line, began.elapsed());
    match ran {
        Ok(line) => end(StepOutcome::Ok, line),
        Err(Stop::Failed(failure)) if failure.class == FailureClass::Script => {
            reporter.warning(format!("the post-thaw script: {failure}"));
            end(StepOutcome::Warning, failure.cause);
        }
        Err(Stop::Failed(failure)) => {
            end(StepOutcome::Failed, format!("{}; {}", failure.cause, failure.remedy));
            return Err(*failure);
        }
        // Only a pre-freeze script can be cancelled.
        Err(Stop::Cancelled(reason)) => {
            end(StepOutcome::Cancelled, reason.clone());
            let remedy = "it is tried again";
            return Err(failure::of(Step::PostScript, Hop::Script, FailureClass::Cancelled, reason, remedy));
        }
    }
    // What it says is the receipt's business.
    let _ = guest.remove().await;
    Ok(())
}

/// A component that was told to go may be on its way.
async fn look_until_gone(guest: &mut GuestSession<'_>) -> Result<GuestLook, ChannelError> {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let look = guest.look().await?;
        if look.processes.is_empty() || tokio::time::Instant::now() >= until {
            return Ok(look);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn told<T>(
    reporter: &Reporter,
    step: Step,
    began: Instant,
    result: Result<T, ChannelError>,
    line: impl FnOnce(&T) -> String,
) -> Result<T, TaskFailure> {
    match result {
        Ok(value) => {
            reporter.ended(step, StepOutcome::Ok, line(&value), began.elapsed());
            Ok(value)
        }
        Err(e) => {
            reporter.ended(step, StepOutcome::Failed, format!("{e}; {}", e.remedy), began.elapsed());
            tell_keys(reporter, &e);
            Err(of_channel(step, &e))
        }
    }
}

/// Here every answer that stayed out is a refusal: what it may have left is owed anyway.
fn of_channel(step: Step, error: &ChannelError) -> TaskFailure {
    let mut failure = failure::of_channel(step, error);
    if error.kind.ends_attempts() {
        failure.class = FailureClass::RefusedCredential;
    }
    failure
}

/// Nobody of ours alive, and nothing of ours frozen.
async fn thaw(
    channel: &dyn GuestChannel,
    connector: &dyn Connector,
    recovery: &Recovery<'_>,
    reporter: &Reporter,
    cancel: &Cancel,
) -> Result<String, TaskFailure> {
    let of_channel = |e: ChannelError| of_channel(Step::Thaw, &e);
    let fence = recovery.fence;
    let left_to_newer = || {
        cancel.evict();
        let remedy = "see what became of the newer task";
        failure::of(Step::Thaw, Hop::Runtime, FailureClass::ProxyLost, EVICTED, remedy)
    };
    // One of an older order has no business here any more; where the order has no fence, it may just be about to end.
    let mut look = match fence {
        0 => wait_until_gone(channel, PATIENCE).await,
        _ => receipt::look(channel).await,
    };
    if let (Ok(found), 1..) = (&look, fence)
        && !found.processes.is_empty()
        && !found.has_newer(fence)
    {
        reporter.info("a component of an earlier task still runs and is asked to go");
        receipt::ask_to_go(channel, found).await.map_err(of_channel)?;
        look = wait_until_gone(channel, GO_WITHIN).await;
    }
    let mut look = look.map_err(of_channel)?;
    if look.has_newer(fence) {
        return Err(left_to_newer());
    }
    if !look.processes.is_empty() {
        reporter.info("a component of an earlier task still runs and is ended");
        receipt::evict(channel, &look).await.map_err(of_channel)?;
        look = wait_until_gone(channel, GONE_WITHIN).await.map_err(of_channel)?;
    }
    if look.has_newer(fence) {
        return Err(left_to_newer());
    }
    if !look.processes.is_empty() {
        let cause = format!("{} does not end", look.left().join(", "));
        let remedy = "see what it waits for in the guest's kernel log; a disk that hangs is the usual reason";
        return Err(failure::of(Step::Thaw, Hop::Runtime, FailureClass::GuestSide, cause, remedy));
    }
    // Whoever ends in order takes the lock's folder along.
    if !look.lock_folder {
        return Ok("no component is alive, and the last one ended in order".into());
    }
    if !recovery.maybe_frozen {
        receipt::remove_lock(channel).await.map_err(of_channel)?;
        return Ok("an earlier component was killed before it froze anything; its lock is removed".into());
    }
    let mount_points = block_mounts(channel, &recovery.excluded_mount_points).await.map_err(of_channel)?;
    // Nobody who could say what it froze is alive: whatever it may have frozen is thawed.
    let thawed = match mount_points.as_slice() {
        [] => Ok("nothing that it may have frozen is mounted".into()),
        _ => receipt::thaw_by_hand(channel, recovery.image, fence, &mount_points).await,
    };
    match thawed {
        Ok(line) => {
            receipt::remove_lock(channel).await.map_err(of_channel)?;
            Ok(format!("component and watchdog were killed or gave up; {line}"))
        }
        Err(why) if why.newer => Err(left_to_newer()),
        Err(why) => {
            let refused = why.channel.as_ref().is_some_and(|error| error.kind.ends_attempts());
            let class = if refused { FailureClass::RefusedCredential } else { FailureClass::FileSystem };
            let command = connector.thaw_command(&mount_points);
            let cause = format!("nobody could confirm the thaw of {}: {why}; run this: {command}", recovery.vm_name);
            let remedy = "run that command in the guest at once, or restart the guest";
            Err(failure::of(Step::Thaw, Hop::FileSystem, class, cause, remedy))
        }
    }
}

async fn wait_until_gone(channel: &dyn GuestChannel, patience: Duration) -> Result<GuestLook, ChannelError> {
    let until = tokio::time::Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(tokio::time::Instant::now());
        let look = receipt::look_when_gone(channel, left).await?;
        if look.processes.is_empty() || tokio::time::Instant::now() >= until {
            return Ok(look);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Where file systems on block devices are mounted, each device once, outermost first, but for those mounted at an
/// excluded place.
async fn block_mounts(channel: &dyn GuestChannel, excluded: &[String]) -> Result<Vec<String>, ChannelError> {
    let script = Script::new("list its mounts", "cat /proc/mounts");
    let output = channel.exec_elevated(&script, b"", Limits::default()).await?;
    Ok(block_mounts_in(&String::from_utf8_lossy(&output.stdout), excluded))
}

fn block_mounts_in(mounts: &str, excluded: &[String]) -> Vec<String> {
    let mut devices: Vec<(&str, Vec<String>)> = Vec::new();
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(device), Some(mount_point)) = (words.next(), words.next()) else { continue };
        let mount_point = unescape(mount_point);
        match devices.iter_mut().find(|(known, _)| *known == device) {
            Some((_, places)) => places.push(mount_point),
            None if device.starts_with("/dev/") => devices.push((device, vec![mount_point])),
            None => {}
        }
    }
    let frozen = devices.into_iter().map(|(_, places)| places);
    frozen
        .filter(|places| !places.iter().any(|place| excluded.contains(place)))
        // A bind mount thaws as well as the first place, where that has a name that no shell can be told.
        .filter_map(|places| places.iter().find(|place| shell_word(place).is_some()).or(places.first()).cloned())
        .collect()
}

/// The kernel writes blank, tab, newline and backslash in a path as three octal digits.
fn unescape(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if byte == b'\\' => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_device_is_thawed_once_outermost_first() {
        let mounts = "proc /proc proc rw 0 0\n/dev/vda / ext4 rw 0 0\n/dev/vdb /srv/my\\040data xfs rw 0 0\n\
                      tmpfs /run tmpfs rw 0 0\n/dev/vda /bind ext4 rw 0 0\n";
        assert_eq!(block_mounts_in(mounts, &[]), ["/", "/srv/my data"]);
    }

    #[test]
    fn what_the_task_excluded_is_left_alone_wherever_it_is_mounted() {
        let mounts = "/dev/vda / ext4 rw 0 0\n/dev/vdb /srv ext4 rw 0 0\n/dev/vdb /mnt/a\\011b ext4 rw 0 0\n/dev/vdc /c xfs rw 0 0\n";
        assert_eq!(block_mounts_in(mounts, &["/mnt/a\tb".into()]), ["/", "/c"]);
        assert_eq!(block_mounts_in(mounts, &["/nowhere".into()]), ["/", "/srv", "/c"]);
    }

    #[test]
    fn every_escape_of_the_kernel_is_read() {
        assert_eq!(unescape("/a\\040b\\011c\\012d\\134040"), "/a b\tc\nd\\040");
        assert_eq!(unescape("/no\\9escape\\"), "/no\\9escape\\");
        // The place that a shell can be told is taken.
        assert_eq!(block_mounts_in("/dev/vda /a\\012b ext4 rw 0 0\n/dev/vda /c ext4 rw 0 0\n", &[]), ["/c"]);
    }

    #[tokio::test]
    async fn a_hypervisor_that_does_not_answer_is_not_called_swept() {
        let folder = tempfile::tempdir().unwrap();
        let qemu = QemuSpec {
            sockets_dir: folder.path().into(),
            vm: "shop".into(),
            fleecing_dir: folder.path().join("fleecing"),
        };
        let repository_dir = folder.path().join("repository");
        let hypervisor = Some(HypervisorSweep { qemu, repository_dir, bitmaps_owed: vec![], unrecorded: None });
        let recovery = Recovery {
            fence: 0,
            vm_name: "shop".into(),
            connector: None,
            maybe_frozen: false,
            excluded_mount_points: vec![],
            image: &Image::new(&b""[..]),
            post_script: None,
            hypervisor,
        };
        let finished = run(recovery, Reporter::new().0, Cancel::default()).await;
        assert_eq!(finished.outcome, "failed", "{finished:?}");
        assert!(finished.failure_json.contains("shop.qmp"), "{finished:?}");
        assert!(!finished.receipt.unwrap().hypervisor_checked);
    }
}

//! A fresh look into the guest for anything of ours, the sweep, and the thaw by hand: by the guest's own tools. Only where
//! it has no `fsfreeze` is the component put there once more, to thaw and to go.
//!
//! What we look for: processes of a component, deployment folders, the lock's folder, mounts. Knows nothing of tasks.

use crate::cancel::EVICTED;
use crate::carried::Image;
use crate::channel::{ChannelError, Exit, FailureKind, GuestChannel, Hop, Limits, Script, shell_word};
use crate::deploy;
use std::time::Duration;

/// Where the component keeps its lock; the same path as in the component.
const LOCK_FOLDER: &str = "/run/lull.lock";
const THAW_LIMIT: Duration = Duration::from_secs(20);
/// What the thaw by hand says where it cannot.
const NO_FSFREEZE: &str = "no fsfreeze";
/// And where it must not.
const NEWER: &str = "newer";

/// What of ours is in a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestLook {
    /// Root's components that run: process and program.
    pub processes: Vec<(u32, String)>,
    /// Files and folders.
    pub files: Vec<String>,
    /// The lock's folder is there.
    pub lock_folder: bool,
    /// Mounts.
    pub mounts: Vec<String>,
}

impl GuestLook {
    /// Whether a component of a newer order than that of `fence` runs. Then nothing else that is there is certainly ours.
    pub fn has_newer(&self, fence: u64) -> bool {
        fence > 0 && self.processes.iter().any(|(_, program)| fence_of(program).is_some_and(|other| other > fence))
    }

    /// One line for each thing that is left; empty is the promise.
    pub fn left(&self) -> Vec<String> {
        let processes = self.processes.iter().map(|(pid, program)| format!("process {pid} ({program})"));
        let lock = self.lock_folder.then(|| format!("lock {LOCK_FOLDER}"));
        let mounts = self.mounts.iter().map(|mount| format!("mount {mount}"));
        processes.chain(self.files.iter().cloned()).chain(lock).chain(mounts).collect()
    }
}

/// The fence in a component's path: `…/lull-SUFFIX.FENCE/lull-runtime (deleted)`.
fn fence_of(program: &str) -> Option<u64> {
    let (folder, _) = program.rsplit_once("/lull-runtime")?;
    let (_, fence) = folder.rsplit_once('/').map_or(folder, |(_, name)| name).split_once('.')?;
    fence.parse().ok()
}

/// Looks. Starts three programs in the guest.
pub async fn look(channel: &dyn GuestChannel) -> Result<GuestLook, ChannelError> {
    look_when_gone(channel, Duration::ZERO).await
}

/// Looks once no component runs any more, or after `patience`. It waits in the guest: there every new command costs, and
/// while root is frozen its log line may be the one that no longer fits.
pub async fn look_when_gone(channel: &dyn GuestChannel, patience: Duration) -> Result<GuestLook, ChannelError> {
    let digits = "[0-9a-f]".repeat(16);
    let places = deploy::FOLDERS.map(|folder| format!("{folder}/lull-{digits}*")).join(" ");
    let script = format!(
        r#"n=0;
        while [ $n -lt {tries} ] && ls -l /proc/[0-9]*/exe 2>/dev/null | grep -q "/lull-[0-9a-f.]*/lull-runtime"; do
          sleep 0.2; n=$(($n + 1));
        done;
        ls -l /proc/[0-9]*/exe 2>/dev/null | grep "/lull-[0-9a-f.]*/lull-runtime";
        for o in {places}; do if [ -e $o ]; then echo "file $o"; fi; done;
        if [ -d {LOCK_FOLDER} ]; then echo "lock"; fi;
        while read -r a b c; do case $b in */lull-*) echo "mount $b";; esac; done </proc/mounts;
        echo end"#,
        tries = patience.as_millis() / 200
    );
    let limits = Limits { timeout: Limits::default().timeout + patience, ..Limits::default() };
    let output = channel.exec_elevated(&Script::new("look for leftovers", &script), b"", limits).await?;
    let text = String::from_utf8_lossy(&output.stdout);
    if output.exit != Exit::Code(0) || !text.trim_end().ends_with("end") {
        return Err(ChannelError::new(
            Hop::Exec,
            FailureKind::GuestSide,
            format!("the look for leftovers in {} ended with {}: {}", channel.describe(), output.exit, output.stderr),
            "see whether the guest is out of memory or processes",
        ));
    }
    Ok(parse(&text))
}

fn parse(text: &str) -> GuestLook {
    let mut look = GuestLook::default();
    for line in text.lines() {
        if let Some(file) = line.strip_prefix("file ") {
            look.files.push(file.into());
        } else if line == "lock" {
            look.lock_folder = true;
        } else if let Some(mount) = line.strip_prefix("mount ") {
            look.mounts.push(mount.into());
        } else if let Some((left, program)) = line.split_once(" -> ")
            && let Some(pid) = left.rsplit("/proc/").next().and_then(|rest| rest.strip_suffix("/exe")?.parse().ok())
            // Anybody can call his program as he likes.
            && matches!(left.split_whitespace().nth(2), Some("root" | "0"))
        {
            look.processes.push((pid, program.into()));
        }
    }
    look
}

/// Removes folders that earlier tasks left, but for those of newer orders than that of `fence`; which.
pub async fn sweep(channel: &dyn GuestChannel, fence: u64) -> Result<Vec<String>, ChannelError> {
    let output = channel.exec_elevated(&deploy::sweep_script(fence), b"", Limits::default()).await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(|line| line.strip_prefix("~ ")).map(str::to_string).collect())
}

/// Asks components to thaw, to undo and to go. One that stands still hears it too.
pub async fn ask_to_go(channel: &dyn GuestChannel, look: &GuestLook) -> Result<(), ChannelError> {
    let pids: Vec<String> = look.processes.iter().map(|(pid, _)| pid.to_string()).collect();
    let script = format!(
        r#"for p in {}; do
          if read -r name </proc/$p/comm; then
            if [ "$name" = lull-watchdog ]; then :; else kill -USR2 $p; fi; kill -CONT $p;
          fi;
        done 2>/dev/null; exit 0"#,
        pids.join(" ")
    );
    let script = Script::new("ask the component of an earlier task to go", &script);
    channel.exec_elevated(&script, b"", Limits::default()).await?;
    Ok(())
}

/// Ends components whose proxy is gone: their main process is killed, and the watchdog then thaws and ends by itself. A
/// watchdog is never killed here.
pub async fn evict(channel: &dyn GuestChannel, look: &GuestLook) -> Result<(), ChannelError> {
    let pids: Vec<String> = look.processes.iter().map(|(pid, _)| pid.to_string()).collect();
    // By its name: an orphaned watchdog's parent is not one of ours any more.
    let script = format!(
        r#"for p in {}; do
          if read -r name </proc/$p/comm; then if [ "$name" = lull-watchdog ]; then :; else kill -9 $p; fi; fi;
        done 2>/dev/null; exit 0"#,
        pids.join(" ")
    );
    channel
        .exec_elevated(&Script::new("end the component of an earlier task", &script), b"", Limits::default())
        .await?;
    Ok(())
}

/// Removes the lock's folder, if nobody holds the lock any more.
pub async fn remove_lock(channel: &dyn GuestChannel) -> Result<(), ChannelError> {
    // The kernel's setting that it had changed for the freeze is noted there.
    let script = format!(
        "n={LOCK_FOLDER}/rcu_expedited; if [ -f $n ]; then cat $n >/sys/kernel/rcu_expedited && rm -f $n; fi;
        if [ -d {LOCK_FOLDER} ]; then rmdir {LOCK_FOLDER}; fi; exit 0"
    );
    channel.exec_elevated(&Script::new("remove the lock of an earlier task", &script), b"", Limits::default()).await?;
    Ok(())
}

/// Waits until these processes are gone, at most `patience`; where they ended without taking the lock's folder along (killed),
/// or did not end, thaws by hand. One command for all of it: while root is frozen the guest's log stands still, and every
/// new command may be the one whose log line no longer fits.
pub async fn watchdog_or_by_hand(
    channel: &dyn GuestChannel,
    image: &Image,
    fence: u64,
    pids: &[u32],
    mount_points: &[String],
    patience: Duration,
) -> Result<String, NotThawed> {
    let pids = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let wait = format!(
        r#"n=0; a=y;
        while [ -n "$a" ] && [ $n -lt {tries} ]; do
          a=; for p in {pids}; do if [ -d /proc/$p ]; then a=y; fi; done;
          if [ -n "$a" ]; then sleep 0.2; n=$(($n + 1)); fi;
        done;
        if [ -z "$a" ]; then if [ -d {LOCK_FOLDER} ]; then :; else echo watchdog; exit 0; fi; fi;"#,
        tries = patience.as_millis() / 200
    );
    run_thaw(channel, image, &(wait + &unless_newer(fence)), mount_points, patience).await
}

/// Ends a script where a newer order's component runs: what is frozen then may be its own.
fn unless_newer(fence: u64) -> String {
    if fence == 0 {
        return String::new();
    }
    format!(
        r#" n=$(ls -l /proc/[0-9]*/exe 2>/dev/null | while read -r a b u r; do
          case "$u $r" in ("root "*/lull-*.*/lull-runtime*)
            f=${{r%/lull-runtime*}}; if [ "${{f##*.}}" -gt {fence} ] 2>/dev/null; then echo y; fi;;
          esac;
        done); if [ -n "$n" ]; then echo {NEWER}; exit 0; fi;"#
    )
}

/// Why a thaw by hand could not be confirmed.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct NotThawed {
    why: String,
    /// The way into the guest failed with this.
    pub channel: Option<Box<ChannelError>>,
    /// A newer order's component holds the guest: nothing was tried.
    pub newer: bool,
}

impl From<String> for NotThawed {
    fn from(why: String) -> Self {
        NotThawed { why, channel: None, newer: false }
    }
}

impl From<ChannelError> for NotThawed {
    fn from(error: ChannelError) -> Self {
        NotThawed { why: error.to_string(), channel: Some(Box::new(error)), newer: false }
    }
}

/// Thaws these file systems with the guest's own `fsfreeze`, or with the component where it has none. One that is not
/// frozen is fine.
pub async fn thaw_by_hand(
    channel: &dyn GuestChannel,
    image: &Image,
    fence: u64,
    mount_points: &[String],
) -> Result<String, NotThawed> {
    run_thaw(channel, image, &unless_newer(fence), mount_points, Duration::ZERO).await
}

async fn run_thaw(
    channel: &dyn GuestChannel,
    image: &Image,
    first: &str,
    mount_points: &[String],
    patience: Duration,
) -> Result<String, NotThawed> {
    let mut words = Vec::new();
    for mount_point in mount_points {
        words.push(shell_word(mount_point).ok_or_else(|| format!("no shell can be told the path {mount_point:?}"))?);
    }
    let script = format!(
        r#"{first}
        if command -v fsfreeze >/dev/null; then :; else echo {NO_FSFREEZE}; exit 0; fi;
        for m in {}; do
          if e=$(LC_ALL=C fsfreeze --unfreeze "$m" 2>&1); then echo "thawed $m";
          else case $e in *"Invalid argument"*) echo "free $m";; *) echo "failed $m" ${{e##*: }};; esac; fi;
        done"#,
        words.join(" ")
    );
    let limits = Limits { timeout: patience + THAW_LIMIT, ..Limits::default() };
    let output = channel.exec_elevated(&Script::new("thaw by hand", &script), b"", limits).await?;
    let said = String::from_utf8_lossy(&output.stdout);
    if said.trim_end() == NEWER {
        return Err(NotThawed { why: EVICTED.into(), channel: None, newer: true });
    }
    if said.trim_end() != NO_FSFREEZE {
        return Ok(judge_thaw(&said, mount_points.len())?);
    }
    let said = deploy::thaw(channel, image, &words, THAW_LIMIT).await?;
    let line = judge_thaw(&said, mount_points.len())?;
    Ok(format!("{line} (with the component: the guest has no fsfreeze)"))
}

fn judge_thaw(text: &str, expected: usize) -> Result<String, String> {
    let lines: Vec<&str> = text.lines().collect();
    if lines == ["watchdog"] {
        return Ok("by the watchdog".into());
    }
    match lines.iter().find(|line| line.starts_with("failed ")) {
        Some(failed) => Err(failed.to_string()),
        None if lines.len() < expected => Err(format!("only {} of {expected} file systems answered", lines.len())),
        None => {
            let thawed = lines.iter().filter(|line| line.starts_with("thawed ")).count();
            Ok(format!("by hand: {thawed} of {expected} file systems were still frozen"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_named() {
        let text = "lrwxrwxrwx 1 root root 0 Nov 22 12:00 /proc/811/exe -> /run/lull-00c0ffee00c0ffee/lull-runtime (deleted)\n\
                    file /tmp/lull-00c0ffee00c0ffee\nlock\nmount /run/lull-x\nend\n";
        let left = parse(text).left();
        assert_eq!(
            left,
            [
                "process 811 (/run/lull-00c0ffee00c0ffee/lull-runtime (deleted))",
                "/tmp/lull-00c0ffee00c0ffee",
                "lock /run/lull.lock",
                "mount /run/lull-x",
            ]
        );
        assert!(parse("end\n").left().is_empty());
    }

    #[test]
    fn only_roots_components_count_and_their_path_tells_whether_they_are_newer() {
        let line = |pid: u32, user: &str, folder: &str| {
            format!("lrwxrwxrwx 1 {user} {user} 0 Nov 22 12:00 /proc/{pid}/exe -> {folder}/lull-runtime (deleted)\n")
        };
        let look =
            parse(&(line(1, "user", "/home/user/lull-0.99") + &line(2, "root", "/run/lull-00c0ffee00c0ffee.17")));
        assert_eq!(look.processes.len(), 1);
        assert!(look.has_newer(16) && !look.has_newer(17) && !look.has_newer(0));
        assert!(!parse(&line(2, "0", "/run/lull-00c0ffee00c0ffee")).has_newer(1));
    }

    #[test]
    fn a_thaw_by_hand_is_believed_only_when_every_file_system_answered() {
        assert_eq!(judge_thaw("thawed /\nfree /boot\n", 2).unwrap(), "by hand: 1 of 2 file systems were still frozen");
        assert_eq!(judge_thaw("watchdog\n", 2).unwrap(), "by the watchdog");
        assert!(judge_thaw("thawed /\n", 2).is_err());
        assert_eq!(judge_thaw("failed / not found\n", 1).unwrap_err(), "failed / not found");
    }
}

//! What the scripts that look at a machine told, and what follows from it: findings, and the list of what an installation changes. Pure.

use super::unit::{self, UnitSettings};
use lull_proxy_wire::v1;
use std::collections::BTreeMap;

/// Beyond the program itself so much must be free where it goes, in KiB: room for the next one beside it at an upgrade.
const SPARE_KIB: u64 = 16 << 10;
/// The state folder needs next to nothing, in KiB.
const STATE_KIB: u64 = 4 << 10;
/// Clocks that are further apart than this are worth a word, in seconds.
const CLOCK_S_MAX: u64 = 60;
/// The first systemd with `DynamicUser` and state folders for it.
const SYSTEMD_MIN: u32 = 235;

/// A machine, as it told of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    words: BTreeMap<String, Vec<String>>,
}

impl Facts {
    /// Reads lines `KEY VALUE`.
    pub(super) fn read(said: &str) -> Facts {
        let mut words = BTreeMap::<String, Vec<String>>::new();
        for line in said.lines() {
            let (key, value) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            if !key.is_empty() {
                words.entry(key.into()).or_default().push(value.trim().into());
            }
        }
        Facts { words }
    }

    pub(super) fn first(&self, key: &str) -> &str {
        self.all(key).first().map_or("", String::as_str)
    }

    fn all(&self, key: &str) -> &[String] {
        self.words.get(key).map_or(&[], Vec::as_slice)
    }

    /// systemd runs there.
    pub(super) fn has_systemd(&self) -> bool {
        self.words.contains_key("systemd")
    }

    /// The proxy that runs there and, once it was ended, is started again by nobody: its process, the watcher's.
    pub(super) fn ends_for_good(&self) -> Option<&str> {
        let numbers = self.all("running").iter().map(String::as_str);
        numbers.min_by_key(|number| number.parse().unwrap_or(u64::MAX)).filter(|_| !self.has_systemd())
    }

    /// The unit's settings there: the folders of hypervisors whose sockets are on this machine.
    pub(super) fn unit_settings(&self, settings: &v1::MachineSettings) -> UnitSettings {
        let mut folders = Vec::new();
        for host in &settings.hypervisors {
            if self.all("folder").contains(&host.sockets_dir) {
                folders.extend([host.sockets_dir.clone(), host.fleecing_dir.clone()]);
            }
        }
        if !folders.is_empty() {
            folders.extend(settings.repositories.iter().cloned());
        }
        folders.retain(|folder| unit::can_be_named(folder));
        folders.sort();
        folders.dedup();
        UnitSettings { slots: settings.slots, folders }
    }
}

/// What is to be found out about a machine.
pub(super) struct Expected<'a> {
    /// Of the proxy to be.
    pub settings: &'a v1::MachineSettings,
    /// A proxy of this server's is expected there.
    pub is_ours: bool,
    /// Size of the program, in KiB.
    pub program_kib: u64,
    /// Our clock, seconds since 1970, when the machine told its own.
    pub now_s: u64,
}

fn finding(check: &str, level: &str, what: impl Into<String>, remedy: &str) -> v1::MachineFinding {
    v1::MachineFinding { check: check.into(), level: level.into(), what: what.into(), remedy: remedy.into() }
}

/// What the look alone tells. Whether the program is worth trying there: no finding is an error.
pub(super) fn of_look(facts: &Facts, expected: &Expected<'_>) -> Vec<v1::MachineFinding> {
    let mut found = vec![system(facts), finding("root", "ok", "the account has root's rights", "")];
    found.push(service(facts));
    found.extend(space(facts, expected));
    found.push(clock(facts, expected.now_s));
    found.push(earlier(facts, expected.is_ours));
    let folders = facts.unit_settings(expected.settings).folders;
    if !folders.is_empty() {
        let what = format!("hypervisor folders are here: the proxy may read and write {}", folders.join(", "));
        found.push(finding("hypervisor", "ok", what, ""));
    }
    found
}

fn system(facts: &Facts) -> v1::MachineFinding {
    let (os, arch) = (facts.first("os"), facts.first("arch"));
    let name = Some(facts.first("distribution")).filter(|name| !name.is_empty()).unwrap_or(os);
    match (os, arch) {
        ("Linux", arch) if arch == std::env::consts::ARCH => finding("system", "ok", format!("{name} on {arch}"), ""),
        ("Linux", arch) => {
            let what =
                format!("{name} on {arch}: this backup server carries the program for {}", std::env::consts::ARCH);
            finding("system", "error", what, "choose a machine of that architecture")
        }
        (os, _) => finding("system", "error", format!("this is {os}, not Linux"), "choose a Linux machine"),
    }
}

fn service(facts: &Facts) -> v1::MachineFinding {
    if !facts.has_systemd() {
        return finding(
            "service",
            "warning",
            "systemd does not run here: everything is installed but the service",
            "have the machine's own service manager run the proxy; the command is told at the end",
        );
    }
    let version = facts.first("systemd");
    match version.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().parse::<u32>() {
        Ok(number) if number < SYSTEMD_MIN => finding(
            "service",
            "warning",
            format!(
                "systemd {version} does not know DynamicUser (since {SYSTEMD_MIN}): the proxy runs as root there, with few rights"
            ),
            "",
        ),
        _ => finding("service", "ok", format!("systemd {version} runs the proxy"), ""),
    }
}

fn space(facts: &Facts, expected: &Expected<'_>) -> Vec<v1::MachineFinding> {
    let mut found = Vec::new();
    for at in facts.all("readonly") {
        found.push(finding("space", "error", format!("{at} cannot be written to"), "mount it writable"));
    }
    for at in facts.all("noexec") {
        if unit::PROGRAM_FOLDER.starts_with(at.as_str()) {
            let what = format!("{at} is mounted so that no program in it can be started (noexec)");
            found.push(finding("space", "error", what, "mount it without noexec"));
        }
    }
    for line in facts.all("space") {
        let mut words = line.split(' ');
        let (place, free, at) = (words.next().unwrap_or(""), words.next().unwrap_or(""), words.next().unwrap_or(""));
        let needed = match place {
            // The new one and, at an upgrade, the one before.
            unit::PROGRAM_FOLDER => expected.program_kib + SPARE_KIB,
            unit::STATE => STATE_KIB,
            _ => continue,
        };
        match free.parse::<u64>() {
            Ok(free) if free < needed => {
                let what = format!("{} MB are free at {at}, {} MB are needed for {place}", free >> 10, needed >> 10);
                found.push(finding("space", "error", what, "make room there"));
            }
            Ok(free) => found.push(finding("space", "ok", format!("{} MB are free for {place}", free >> 10), "")),
            Err(_) => {
                let what = format!("how much is free for {place} is not known");
                found.push(finding("space", "warning", what, ""));
            }
        }
    }
    found
}

fn clock(facts: &Facts, now_s: u64) -> v1::MachineFinding {
    let Ok(theirs) = facts.first("clock").parse::<u64>() else {
        return finding("clock", "warning", "the machine did not tell its time", "");
    };
    match (theirs.abs_diff(now_s), theirs > now_s) {
        (apart, _) if apart <= CLOCK_S_MAX => finding("clock", "ok", format!("its clock differs by {apart} s"), ""),
        (apart, ahead) => finding(
            "clock",
            "warning",
            format!(
                "its clock is {apart} s {} the backup server's; the proxy works, but times in its log mislead",
                if ahead { "ahead of" } else { "behind" }
            ),
            "set it right, with NTP for instance",
        ),
    }
}

fn earlier(facts: &Facts, is_ours: bool) -> v1::MachineFinding {
    let (there, joined) = (facts.all("ours"), facts.first("joined"));
    let whose = if joined.is_empty() { String::new() } else { format!(", which is the proxy {joined}") };
    match (there, is_ours) {
        ([], false) => finding("earlier", "ok", "no Lull proxy is installed", ""),
        ([], true) => finding(
            "earlier",
            "warning",
            "nothing of Lull's is there any more",
            "`lull managed-server repair` puts it back",
        ),
        (_, true) => finding("earlier", "ok", format!("a Lull proxy is installed{whose}"), ""),
        (paths, false) => finding(
            "earlier",
            "error",
            format!("a Lull proxy is installed already{whose}: {}", paths.join(", ")),
            "where it is one of this backup server's: lull managed-server repair NAME; else stop it and remove these paths first",
        ),
    }
}

/// What the trial of the program told.
pub(super) fn of_trial(said: &str, server: &str) -> Vec<v1::MachineFinding> {
    let facts = Facts::read(said);
    let coded = |key: &str| {
        let (code, text) = facts.first(key).split_once(' ').unwrap_or((facts.first(key), ""));
        (code.to_string(), text.to_string())
    };
    let (code, version) = coded("version");
    let program = match code.as_str() {
        "0" => finding("program", "ok", format!("the program runs there: {version}"), ""),
        "" => {
            let why: Vec<&str> = facts.all("-").iter().map(String::as_str).collect();
            let what = format!("no folder there takes the program: {}", why.join(", "));
            finding("program", "error", what, "make room in /var/tmp, or mount it without noexec")
        }
        code => finding(
            "program",
            "error",
            format!("the program does not run there (exit code {code}): {version}"),
            "the machine's C library is older than the backup server's program needs, or a policy forbids programs: see the words above",
        ),
    };
    if code != "0" {
        return vec![program];
    }
    let (code, words) = coded("probe");
    let server = match code.as_str() {
        "0" => finding("server", "ok", format!("the backup server is reached from there at {server}"), ""),
        _ => finding(
            "server",
            "error",
            format!("the backup server is not reached from there at {server}: {words}"),
            "open that port towards the backup server, or give the address that is right from there with --server-address HOST:PORT",
        ),
    };
    vec![program, server]
}

/// What an installation changes on the machine, one line each.
pub(super) fn changes(facts: &Facts, settings: &v1::MachineSettings, is_ours: bool, program_mib: u64) -> Vec<String> {
    let of_unit = facts.unit_settings(settings);
    let mut lines = vec![
        format!("{} {} ({program_mib} MB)", if is_ours { "replace" } else { "put" }, unit::PROGRAM),
        format!("make {} (mode 0700) with this proxy's key and certificate", unit::STATE),
    ];
    if let Some(process) = facts.ends_for_good() {
        let again = unit::command(settings.slots);
        lines.push(format!("end the running proxy (process {process}): it has to be started again by hand: {again}"));
    }
    if facts.has_systemd() {
        lines.push(format!("write {}, enable it for every boot, start it", unit::UNIT_FILE));
        lines.push(format!("it runs as {}", unit::account(&of_unit)));
        for folder in &of_unit.folders {
            lines.push(format!("it may read and write {folder}"));
        }
    }
    lines.push("no package, no lasting account, no setting of the system's".into());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: &str = "os Linux\narch x86_64\nhostname db1\nclock 1000\ndistribution Debian GNU/Linux 12 (bookworm)\nsystemd 252\n\
        space /usr/local/lib/lull 900000 /usr/local/lib\nspace /var/lib/lull-proxy 900000 /var/lib\n";

    fn settings() -> v1::MachineSettings {
        v1::MachineSettings {
            server_address: "backup:7421".into(),
            hypervisors: vec![v1::HypervisorFolders {
                sockets_dir: "/run/vms".into(),
                fleecing_dir: "/srv/fleecing".into(),
            }],
            repositories: vec!["/srv/backup".into(), "/bad\"one".into()],
            ..Default::default()
        }
    }

    fn check(look: &str, is_ours: bool, expect: &[&str]) {
        let facts = Facts::read(look);
        let settings = settings();
        let expected = Expected { settings: &settings, is_ours, program_kib: 70 << 10, now_s: 1_000 };
        let found = of_look(&facts, &expected);
        let bad: Vec<String> =
            found.iter().filter(|f| f.level != "ok").map(|f| format!("{} {}: {}", f.level, f.check, f.what)).collect();
        assert_eq!(bad, expect, "{look}");
    }

    #[test]
    fn what_stands_in_the_way_is_named() {
        check(LOOK, false, &[]);
        check(
            &LOOK.replace("x86_64", "aarch64"),
            false,
            &[
                "error system: Debian GNU/Linux 12 (bookworm) on aarch64: this backup server carries the program for x86_64",
            ],
        );
        check(
            &LOOK.replace("systemd 252\n", ""),
            false,
            &["warning service: systemd does not run here: everything is installed but the service"],
        );
        check(
            &LOOK.replace("lull 900000", "lull 50000"),
            false,
            &["error space: 48 MB are free at /usr/local/lib, 86 MB are needed for /usr/local/lib/lull"],
        );
        check(
            &LOOK.replace("clock 1000", "clock 87400"),
            false,
            &[
                "warning clock: its clock is 86400 s ahead of the backup server's; the proxy works, but times in its log mislead",
            ],
        );
        let there = format!("{LOOK}ours /var/lib/lull-proxy\njoined web-1\n");
        check(
            &there,
            false,
            &["error earlier: a Lull proxy is installed already, which is the proxy web-1: /var/lib/lull-proxy"],
        );
        check(&there, true, &[]);
    }

    #[test]
    fn the_trial_tells_whether_the_program_runs_and_reaches_its_server() {
        let levels = |said: &str| -> Vec<String> {
            of_trial(said, "b:1").iter().map(|f| format!("{} {}", f.level, f.check)).collect()
        };
        assert_eq!(levels("version 0 lull 0.1.0\nprobe 0 reached\n"), ["ok program", "ok server"]);
        assert_eq!(levels("version 0 lull 0.1.0\nprobe 4 refused\n"), ["ok program", "error server"]);
        assert_eq!(levels("version 1 GLIBC_2.34 not found\nprobe 1 x\n"), ["error program"]);
        assert_eq!(levels("- /tmp noexec\n"), ["error program"]);
    }

    #[test]
    fn a_running_proxy_that_nobody_starts_again_is_among_what_is_changed() {
        let slots = v1::MachineSettings { slots: 3, ..settings() };
        let ends = |look: &str| -> Vec<String> {
            let lines = changes(&Facts::read(look), &slots, true, 70);
            lines.into_iter().filter(|line| line.contains("end the running proxy")).collect()
        };
        let running = format!("{LOOK}running 812\nrunning 97\n");
        assert_eq!(ends(&running), Vec::<String>::new(), "systemd starts it again");
        assert_eq!(ends(&LOOK.replace("systemd 252\n", "")), Vec::<String>::new(), "none runs");
        assert_eq!(
            ends(&running.replace("systemd 252\n", "")),
            [
                "end the running proxy (process 97): it has to be started again by hand: /usr/local/lib/lull/bin/lull --state-dir \
              /var/lib/lull-proxy proxy run --slots 3"
            ]
        );
    }

    #[test]
    fn folders_of_a_hypervisor_are_opened_where_they_are() {
        let here = Facts::read(&format!("{LOOK}folder /run/vms\n")).unit_settings(&settings());
        assert_eq!(here.folders, ["/run/vms", "/srv/backup", "/srv/fleecing"], "what cannot be named is not");
        let elsewhere = Facts::read(LOOK);
        assert!(elsewhere.unit_settings(&settings()).folders.is_empty());
        assert!(changes(&elsewhere, &settings(), false, 70).iter().any(|line| line.contains("DynamicUser")));
    }
}

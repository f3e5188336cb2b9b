//! Hosts, VMs, credentials, repositories and a doctor's findings.

use super::table::{facts, or_dash, table};
use super::text::one_line;
use super::{Look, Tone, tone_of, units};
use lull_api::infrastructure::{Credential, Elevation, Finding, Host, Repository, RepositoryScan, Vm};

/// Hosts.
pub fn hosts(hosts: &[Host], look: &Look) -> String {
    let rows = hosts.iter().map(|host| {
        vec![
            host.name.clone(),
            host.kind.clone(),
            host.vms.to_string(),
            host.qemu_dir.clone(),
            host.fleecing_dir.clone(),
            or_dash(host.problem.as_deref()),
        ]
    });
    let nothing = "There is no hypervisor host yet; `lull host add NAME --qemu DIR` adds one.";
    table(look, &["host", "kind", "vms", "sockets", "fleecing", "problem"], rows.collect(), nothing)
}

/// One host.
pub fn host(host: &Host, look: &Look) -> String {
    facts(
        look,
        &[
            ("host", host.name.clone()),
            ("kind", host.kind.clone()),
            ("vms", host.vms.to_string()),
            ("sockets", host.qemu_dir.clone()),
            ("fleecing", host.fleecing_dir.clone()),
            ("at once", limit(host.max_tasks)),
            ("problem", host.problem.clone().unwrap_or_default()),
        ],
    )
}

fn limit(max_tasks: u32) -> String {
    if max_tasks == 0 { "unlimited".into() } else { format!("at most {max_tasks} backups") }
}

/// VMs.
pub fn vms(vms: &[Vm], look: &Look) -> String {
    let rows = vms.iter().map(|vm| {
        vec![
            vm.name.clone(),
            vm.host.clone(),
            vm.state.clone(),
            or_dash(vm.guest_os.as_deref()),
            or_dash(Some(&addresses(vm).join(", "))),
            or_dash(vm.connect.as_deref()),
            or_dash(vm.credential.as_deref()),
        ]
    });
    let nothing = "There is no VM yet; `lull host add NAME --qemu DIR` finds the VMs of a host.";
    table(look, &["vm", "host", "state", "os", "addresses", "connect", "credential"], rows.collect(), nothing)
}

/// What can be connected to; where names lead nowhere, the names.
fn addresses(vm: &Vm) -> Vec<String> {
    if vm.known_addresses.is_empty() {
        return vm.addresses.clone();
    }
    vm.known_addresses.iter().map(|known| known.address.clone()).collect()
}

/// Each with who says so.
fn with_sources(vm: &Vm) -> Vec<String> {
    if vm.known_addresses.is_empty() {
        return vm.addresses.clone();
    }
    vm.known_addresses.iter().map(|known| format!("{} ({})", known.address, known.from)).collect()
}

/// One VM.
pub fn vm(vm: &Vm, look: &Look) -> String {
    facts(
        look,
        &[
            ("vm", vm.name.clone()),
            ("host", vm.host.clone()),
            ("state", vm.state.clone()),
            ("guest os", or_dash(vm.guest_os.as_deref())),
            ("addresses", or_dash(Some(&with_sources(vm).join("\n")))),
            ("problem", vm.address_problem.clone().unwrap_or_default()),
            ("connect", vm.connect.clone().unwrap_or_default()),
            ("credential", or_dash(vm.credential.as_deref())),
            ("host key", vm.host_key.clone().unwrap_or_else(|| "- (pinned at the first contact)".into())),
            ("refused key", vm.refused_host_key.clone().unwrap_or_default()),
            ("disks", or_dash(Some(&vm.disks.join("\n")))),
        ],
    )
}

/// Credentials; their secrets are never shown.
pub fn credentials(credentials: &[Credential], look: &Look) -> String {
    let rows = credentials.iter().map(|credential| {
        vec![
            credential.name.clone(),
            credential.user.clone(),
            credential.login.clone(),
            elevation(credential.elevation).to_string(),
            or_dash(Some(&credential.used_by.join(", "))),
            or_dash(Some(&credential.refused_by.join(", "))),
            units::time(&credential.changed_at, look),
        ]
    });
    let nothing = "There is no credential yet; `lull credential add NAME --user USER` adds one.";
    table(
        look,
        &["credential", "user", "login", "elevation", "used by", "refused by", "changed"],
        rows.collect(),
        nothing,
    )
}

/// One credential.
pub fn credential(credential: &Credential, look: &Look) -> String {
    facts(
        look,
        &[
            ("credential", credential.name.clone()),
            ("user", credential.user.clone()),
            ("login", credential.login.clone()),
            ("elevation", elevation(credential.elevation).to_string()),
            ("used by", credential.used_by.join(", ")),
            ("refused by", credential.refused_by.join(", ")),
            ("changed", units::time(&credential.changed_at, look)),
        ],
    )
}

fn elevation(elevation: Elevation) -> &'static str {
    match elevation {
        Elevation::None => "-",
        Elevation::Sudo => "sudo",
        Elevation::SudoNopasswd => "sudo, no password",
        Elevation::Su => "su",
    }
}

/// Repositories.
pub fn repositories(repositories: &[Repository], look: &Look) -> String {
    let rows = repositories.iter().map(|repository| {
        vec![
            repository.name.clone(),
            repository.path.clone(),
            repository.free_bytes.map_or("-".into(), units::bytes),
            repository.restore_points.to_string(),
            or_dash(repository.problem.as_deref()),
        ]
    });
    let nothing = "There is no repository yet; `lull repository add NAME PATH` adds one.";
    table(look, &["repository", "path", "free", "restore points", "problem"], rows.collect(), nothing)
}

/// One repository.
pub fn repository(repository: &Repository, look: &Look) -> String {
    facts(
        look,
        &[
            ("repository", repository.name.clone()),
            ("path", repository.path.clone()),
            ("free", repository.free_bytes.map_or("-".into(), units::bytes)),
            ("restore points", repository.restore_points.to_string()),
            ("at once", limit(repository.max_tasks)),
            ("problem", repository.problem.clone().unwrap_or_default()),
        ],
    )
}

/// What a scan of a repository found.
pub fn scan(scan: &RepositoryScan, _: &Look) -> String {
    let mut text = format!("{} restore points recorded, {} known before\n", scan.recorded.len(), scan.known);
    let parts = [("left out", &scan.left_out), ("missing", &scan.missing), ("no restore point", &scan.strangers)];
    for (what, findings) in parts {
        for finding in findings {
            let line = format!("{what}: {}: {}", finding.path, finding.why);
            text.push_str(&format!("  {}\n", one_line(&line)));
        }
    }
    if scan.more_strangers > 0 {
        text.push_str(&format!("  no restore point: {} more\n", scan.more_strangers));
    }
    if scan.cut_short {
        text.push_str("  the repository holds more folders than a scan looks into: the rest was not read\n");
    }
    text
}

/// A doctor's findings, with what to do about them.
pub fn findings(findings: &[Finding], look: &Look) -> String {
    let mut text = String::new();
    for finding in findings {
        let (mark, tone) = match tone_of(&finding.state) {
            Tone::Good => ("✓", Tone::Good),
            Tone::Bad => ("✗", Tone::Bad),
            _ => ("!", Tone::Warning),
        };
        text.push_str(&format!(
            "{} {}: {}\n",
            look.paint(tone, mark),
            one_line(&finding.subject),
            one_line(&finding.text)
        ));
        if let Some(remedy) = &finding.remedy {
            text.push_str(&format!("    do: {}\n", one_line(remedy)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use lull_api::infrastructure::KnownAddress;

    fn known(address: &str, from: &str) -> KnownAddress {
        KnownAddress { address: address.into(), from: from.into() }
    }

    fn pg() -> Vm {
        Vm {
            id: uuid::Uuid::nil(),
            name: "pg".into(),
            host: "local".into(),
            guest_os: None,
            addresses: vec!["10.0.0.5".into(), "pg.example".into()],
            known_addresses: vec![known("10.0.0.5", "by hand"), known("fd00::5", "DNS pg.example")],
            address_problem: None,
            connect: None,
            credential: Some("root-key".into()),
            host_key: None,
            refused_host_key: None,
            state: "running".into(),
            disks: vec!["disk0".into()],
        }
    }

    #[test]
    fn a_vm_as_row_and_as_sheet() {
        assert_eq!(
            vms(&[pg()], &Look::plain(None)),
            "\
VM  HOST   STATE    OS  ADDRESSES          CONNECT  CREDENTIAL
pg  local  running  -   10.0.0.5, fd00::5  -        root-key
"
        );
        assert_eq!(
            vm(&pg(), &Look::plain(None)),
            "\
vm          pg
host        local
state       running
guest os    -
addresses   10.0.0.5 (by hand)
            fd00::5 (DNS pg.example)
credential  root-key
host key    - (pinned at the first contact)
disks       disk0
"
        );
    }

    #[test]
    fn findings_say_what_to_do() {
        let finding = |state: &str, remedy: Option<&str>| Finding {
            subject: "qemu-img".into(),
            state: state.into(),
            text: "is not there".into(),
            remedy: remedy.map(str::to_string),
        };
        assert_eq!(
            findings(&[finding("ok", None), finding("error", Some("install qemu-utils"))], &Look::plain(None)),
            "✓ qemu-img: is not there\n✗ qemu-img: is not there\n    do: install qemu-utils\n"
        );
    }
}

//! Managed servers, what a look at a machine found, and the steps of work on it.

use super::table::table;
use super::text::one_line;
use super::{Look, Tone};
use lull_api::managed::{MachineCheck, ManagedServer};

/// All managed servers.
pub fn list(servers: &[ManagedServer], look: &Look) -> String {
    let rows = servers.iter().map(|server| {
        let place = match &server.machine {
            Some(machine) if machine.port == 22 => one_line(&machine.host),
            Some(machine) => one_line(&format!("{} port {}", machine.host, machine.port)),
            None if server.is_backup_server => "this backup server".into(),
            None => "joined by hand".into(),
        };
        let version = if server.upgrade { format!("{} (upgrade)", server.version) } else { server.version.clone() };
        vec![one_line(&server.name), server.kind.clone(), state(server), place, server.networks.join(", "), version]
    });
    table(
        look,
        &["name", "kind", "state", "machine", "networks", "version"],
        rows.collect(),
        "There is no managed server.",
    )
}

fn state(server: &ManagedServer) -> String {
    if server.licensed { server.state.clone() } else { format!("{}, not licensed", server.state) }
}

/// One managed server.
pub fn server(server: &ManagedServer, look: &Look) -> String {
    let tone = if server.state == "online" && server.licensed { Tone::Good } else { Tone::Bad };
    let mut text =
        format!("{}: {} server, {}\n", one_line(&server.name), server.kind, look.paint(tone, &state(server)));
    let mut line = |title: &str, value: String| {
        if !value.is_empty() {
            text.push_str(&format!("  {title:<10} {}\n", one_line(&value)));
        }
    };
    line("problem", server.problem.clone().unwrap_or_default());
    if let Some(machine) = &server.machine {
        line("machine", format!("{} port {}, host key {}", machine.host, machine.port, machine.host_key));
        line("reaches us", machine.server_address.clone());
        line("service", if machine.service { "lull-proxy.service".into() } else { "none: there is no systemd".into() });
        line("run there", machine.run_instead.clone().unwrap_or_default());
    }
    line("networks", server.networks.join(", "));
    line("slots", server.slots.to_string());
    line("channels", server.channels.join(", "));
    line("hosts", server.hosts.join(", "));
    line("version", if server.upgrade { format!("{}; upgrade it", server.version) } else { server.version.clone() });
    text
}

/// What a look at a machine found, and what would be changed.
pub fn check(check: &MachineCheck, look: &Look) -> String {
    let mut text = String::new();
    for finding in &check.findings {
        let (mark, tone) = match finding.level.as_str() {
            "ok" => ("✓", Tone::Good),
            "warning" => ("!", Tone::Warning),
            _ => ("✗", Tone::Bad),
        };
        text.push_str(&format!("  {} {}\n", look.paint(tone, mark), one_line(&finding.what)));
        if let Some(remedy) = &finding.remedy {
            text.push_str(&format!("      do: {}\n", one_line(remedy)));
        }
    }
    if check.passed {
        text.push('\n');
        text.push_str(&changes("This will be changed there:", &check.changes));
    }
    text
}

/// A list of changes below its title.
pub fn changes(title: &str, changes: &[String]) -> String {
    let lines = changes.iter().map(|change| format!("  - {}\n", one_line(change)));
    format!("{title}\n{}", lines.collect::<String>())
}

/// What an upgrade changes.
pub fn upgrade(server: &ManagedServer) -> Vec<String> {
    let service = match server.machine.as_ref().map(|machine| machine.service) {
        Some(true) => "the service lull-proxy.service starts anew",
        Some(false) => "the running proxy goes on with the program before until it is started again by hand",
        None => "the service lull-proxy.service, where there is one, starts anew",
    };
    vec![
        "/usr/local/lib/lull/bin/lull is replaced by the backup server's own program".into(),
        service.into(),
        "the proxy's identity and its settings stay as they are".into(),
    ]
}

/// What a removal removes.
pub fn removal(server: &ManagedServer) -> Vec<String> {
    const UNIT: &str = "with its file in /etc/systemd/system";
    let proxy = match server.machine.as_ref().map(|machine| machine.service) {
        Some(true) => format!("the service lull-proxy.service, stopped and disabled, {UNIT}"),
        Some(false) => "the running proxy, which is ended".to_string(),
        None => format!("the running proxy, and the service lull-proxy.service, where there is one, {UNIT}"),
    };
    let folders = ["/usr/local/lib/lull with the program", "/var/lib/lull-proxy with the proxy's key and certificate"];
    [vec![proxy], folders.map(str::to_string).to_vec()].concat()
}

/// A step that ended, or one that may take long.
pub fn step(step: &str, outcome: &str, detail: &str, look: &Look) -> Option<String> {
    let (mark, tone) = match outcome {
        "ok" => ("✓", Tone::Good),
        "warning" => ("!", Tone::Warning),
        "failed" => ("✗", Tone::Bad),
        _ if detail.is_empty() => return None,
        _ => ("·", Tone::Faint),
    };
    Some(format!("  {} {:<8} {}", look.paint(tone, mark), one_line(step), one_line(detail)).trim_end().to_string())
}

//! Proxies, and why one of them was chosen.

use super::table::table;
use super::text::{columns, one_line, pad, wrap};
use super::{Look, Tone, units};
use lull_api::infrastructure::{JoinToken, Proxy, ProxyCandidate, ProxyExplanation};

/// Port for proxies unless told.
const DEFAULT_PORT: u16 = 7421;

/// All proxies.
pub fn list(proxies: &[Proxy], look: &Look) -> String {
    let rows = proxies.iter().map(|proxy| {
        let name = if proxy.is_backup_server { format!("{} (backup server)", proxy.name) } else { proxy.name.clone() };
        vec![
            name,
            if proxy.licensed { proxy.state.clone() } else { format!("{}, not licensed", proxy.state) },
            format!("{} of {}{}", proxy.running_tasks, proxy.slots, proxy.slots_set.map_or("", |_| " (set)")),
            proxy.platform.clone(),
            proxy.channels.join(", "),
            proxy.networks.join(", "),
            proxy.version.clone(),
        ]
    });
    let titles = ["name", "state", "tasks", "platform", "channels", "networks", "version"];
    let mut text = table(look, &titles, rows.collect(), "There is no guest interaction proxy.");
    for proxy in proxies {
        if let Some(problem) = &proxy.problem {
            let line = format!("{}: {}", one_line(&proxy.name), one_line(problem));
            text.push_str(&format!("{} {line}\n", look.paint(Tone::Bad, "!")));
        }
    }
    text
}

/// A join token, and what to do with it.
pub fn token(token: &JoinToken, look: &Look) -> String {
    let whom = token.name.as_deref().map(|name| format!(" as {}", one_line(name))).unwrap_or_default();
    let port = if token.port == DEFAULT_PORT { String::new() } else { format!(":{}", token.port) };
    format!(
        "{}\n\nGood for one machine{whom}, until {}. On that machine, as root:\n  \
         lull proxy join THIS-SERVER{port} --token-file FILE   (or --token with the line above)\n  lull proxy run\n",
        one_line(&token.token),
        units::time(&token.expires_at, look),
    )
}

/// A proxy that was cut off.
pub fn revoked(proxy: &Proxy) -> String {
    format!(
        "{} is cut off: its certificate does not count any more, and its tasks go to other proxies.\n",
        one_line(&proxy.name)
    )
}

/// One line: which proxy, in which tier, and the sentence about it, without the VM's name before it.
pub fn summary(explanation: &ProxyExplanation) -> String {
    let why = one_line(&explanation.summary);
    let why = why.strip_prefix(&format!("{}: ", one_line(&explanation.vm))).unwrap_or(&why);
    let Some(chosen) = &explanation.chosen else { return format!("none: {why}") };
    let chosen = one_line(chosen);
    match explanation.tier {
        Some(tier) => format!("{chosen} (tier {tier}): {why}"),
        None => format!("{chosen}: {why}"),
    }
}

/// The answer of `proxy explain`.
pub fn explanation(explanation: &ProxyExplanation, look: &Look) -> String {
    let vm = one_line(&explanation.vm);
    let head = match &explanation.chosen {
        Some(chosen) => format!("{vm} would be served by {}", look.paint(Tone::Good, &one_line(chosen))),
        None => format!("{} can serve {vm}", look.paint(Tone::Bad, "No proxy")),
    };
    let tier = explanation.tier.map(|tier| format!(", tier {tier} ({})", tier_meaning(tier))).unwrap_or_default();
    let mut text = format!("{head}{tier}.\n");
    // The chosen candidate's own line may say it all.
    let is_said_below = |c: &ProxyCandidate| c.chosen && c.reason.contains(&explanation.summary);
    if !explanation.candidates.iter().any(is_said_below) {
        for line in wrap(&explanation.summary, look.width) {
            text.push_str(&line);
            text.push('\n');
        }
    }
    if !explanation.candidates.is_empty() {
        text.push('\n');
    }
    for line in against(explanation, look, look.width) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// The candidates, and how many more there were for each reason.
pub fn against(explanation: &ProxyExplanation, look: &Look, width: Option<usize>) -> Vec<String> {
    let more = explanation.more.iter().map(|more| format!("… {} more: {}", more.servers, one_line(&more.reason)));
    candidates(&explanation.candidates, look, width).into_iter().chain(more).collect()
}

/// One line (or more, where wrapped) per candidate, best first, within `width` columns.
pub fn candidates(candidates: &[ProxyCandidate], look: &Look, width: Option<usize>) -> Vec<String> {
    let name_columns = candidates.iter().map(|c| columns(&one_line(&c.name))).max().unwrap_or(0);
    let mut lines = Vec::new();
    for candidate in candidates {
        let (mark, tone) = match (candidate.chosen, candidate.tier) {
            (true, _) => ("✓", Tone::Good),
            (false, Some(_)) => ("·", Tone::Faint),
            (false, None) => ("✗", Tone::Bad),
        };
        let tier = candidate.tier.map_or("      ".to_string(), |tier| format!("tier {tier}"));
        let tasks = match candidate.running_tasks {
            1 => "1 task ".to_string(),
            n => format!("{n} tasks"),
        };
        let head = format!("{}  {tier}  {tasks:>8}  ", pad(&one_line(&candidate.name), name_columns));
        let indent = 2 + columns(&head);
        let reason = wrap(&candidate.reason, width.map(|width| width.saturating_sub(indent)));
        for (n, line) in reason.iter().map(String::as_str).chain(reason.is_empty().then_some("")).enumerate() {
            lines.push(if n == 0 {
                format!("{} {head}{line}", look.paint(tone, mark))
            } else {
                format!("{}{line}", " ".repeat(indent))
            });
        }
    }
    lines
}

fn tier_meaning(tier: u8) -> &'static str {
    match tier {
        1 => "same network as the VM, not the backup server",
        2 => "same network as the VM, the backup server",
        3 => "another network, not the backup server",
        4 => "another network, the backup server",
        _ => "a tier that this program does not know",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lull_api::infrastructure::MoreCandidates;

    fn candidate(name: &str, chosen: bool, tier: Option<u8>, running_tasks: u32, reason: &str) -> ProxyCandidate {
        ProxyCandidate { name: name.into(), chosen, tier, running_tasks, reason: reason.into() }
    }

    fn sample() -> ProxyExplanation {
        ProxyExplanation {
            vm: "pg-demo".into(),
            chosen: Some("site-b".into()),
            tier: Some(1),
            summary: "site-b is in the VM's network and has the fewest running tasks.".into(),
            candidates: vec![
                candidate("site-b", true, Some(1), 0, "chosen"),
                candidate("backup-server", false, Some(4), 1, "another network, and it is the backup server"),
                candidate("win-1", false, None, 0, "offline: last heard of 12 s ago"),
            ],
            more: vec![MoreCandidates { servers: 7, reason: "cannot: it is offline".into() }],
        }
    }

    #[test]
    fn a_choice_names_the_reason_for_and_against_every_candidate() {
        assert_eq!(
            explanation(&sample(), &Look::plain(None)),
            "\
pg-demo would be served by site-b, tier 1 (same network as the VM, not the backup server).
site-b is in the VM's network and has the fewest running tasks.

✓ site-b         tier 1   0 tasks  chosen
· backup-server  tier 4   1 task   another network, and it is the backup server
✗ win-1                   0 tasks  offline: last heard of 12 s ago
… 7 more: cannot: it is offline
"
        );
        let narrow = explanation(&sample(), &Look::plain(Some(60)));
        assert!(narrow.lines().skip(1).all(|line| columns(line) <= 60), "{narrow}");
    }

    #[test]
    fn nobody_to_choose_is_said_first() {
        let none = ProxyExplanation { chosen: None, tier: None, candidates: vec![], more: vec![], ..sample() };
        let none = ProxyExplanation { summary: "The only proxy is offline.".into(), ..none };
        assert_eq!(explanation(&none, &Look::plain(None)), "No proxy can serve pg-demo.\nThe only proxy is offline.\n");
        assert_eq!(summary(&none), "none: The only proxy is offline.");
    }
}

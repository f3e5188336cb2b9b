//! A choice of proxy as people see it. Chooses nothing.

use lull_api::infrastructure::{MoreCandidates, ProxyCandidate, ProxyExplanation};
use lull_engine::ids::ServerId;
use lull_engine::infrastructure::ManagedServer;
use lull_engine::selection::{
    Behind, Decision, Judgement, Rejection, Request, Tier, Verdict, able_without_guest, feasible_without_guest,
    nobody_without_guest,
};
use std::collections::BTreeMap;

/// So many candidates that could serve the VM, and so many that could not, are listed where a choice is kept.
const KEPT_MAX: usize = 10;

/// The engine's decision, every server with the reason for or against it.
pub fn explanation(decision: &Decision, servers: &[ManagedServer]) -> ProxyExplanation {
    build(decision, servers, usize::MAX)
}

/// What a task keeps of the decision: the chosen one, the best of the others, and how many more there were for each reason. A
/// thousand proxies do not make a thousand lines of every task.
pub fn kept(decision: &Decision, servers: &[ManagedServer]) -> ProxyExplanation {
    build(decision, servers, KEPT_MAX)
}

fn build(decision: &Decision, servers: &[ManagedServer], listed_max: usize) -> ProxyExplanation {
    let running: BTreeMap<ServerId, u32> = servers.iter().map(|server| (server.id, server.running_tasks)).collect();
    let why = decision.chosen.as_ref().map(|chosen| {
        let (tasks, slots) = (chosen.running_tasks, chosen.slots);
        let failed = decision.failure_of(chosen.server).map(|failed| format!("; {failed}, and nobody else is better"));
        let failed = failed.unwrap_or_default();
        format!("{}, over {}; {tasks} of {slots} slots in use{failed}", words(chosen.tier), chosen.channel)
    });
    let chosen = decision.chosen.iter().zip(&why).map(|(chosen, why)| ProxyCandidate {
        name: chosen.name.clone(),
        chosen: true,
        tier: Some(chosen.tier.number()),
        running_tasks: chosen.running_tasks,
        reason: format!("chosen: {why}"),
    });
    let mut candidates: Vec<ProxyCandidate> = chosen.collect();
    let mut listed = [0, 0];
    let mut more: BTreeMap<(bool, String), u32> = BTreeMap::new();
    for other in &decision.others {
        let (tier, cannot) = match &other.judgement {
            Judgement::Feasible { rank, .. } => (Some(rank.tier().number()), false),
            Judgement::Rejected { .. } => (None, true),
        };
        if listed[usize::from(cannot)] == listed_max {
            *more.entry((cannot, in_general(&other.judgement))).or_default() += 1;
            continue;
        }
        listed[usize::from(cannot)] += 1;
        candidates.push(ProxyCandidate {
            name: other.name.clone(),
            chosen: false,
            tier,
            running_tasks: running.get(&other.server).copied().unwrap_or(0),
            reason: reason(decision, other),
        });
    }
    let note = decision.note.map(|note| format!("; {note}")).unwrap_or_default();
    ProxyExplanation {
        vm: decision.vm_name.clone(),
        chosen: decision.chosen.as_ref().map(|chosen| chosen.name.clone()),
        tier: decision.chosen.as_ref().map(|chosen| chosen.tier.number()),
        summary: why.unwrap_or_else(|| "no server can serve it".to_string()) + &note,
        candidates,
        more: more.into_iter().map(|((_, reason), servers)| MoreCandidates { servers, reason }).collect(),
    }
}

/// A judgement with the failure that is remembered of the server, where that is not what decided.
fn reason(decision: &Decision, other: &Verdict) -> String {
    let reason = other.judgement.to_string();
    let decided = matches!(&other.judgement, Judgement::Feasible { behind: Behind::RecentlyFailed { .. }, .. });
    match decision.failure_of(other.server).filter(|_| !decided) {
        Some(failed) => format!("{reason}; {failed}"),
        None => reason,
    }
}

/// A judgement without what differs from server to server, so that equal ones can be counted.
fn in_general(judgement: &Judgement) -> String {
    match judgement {
        Judgement::Feasible { rank, behind } => {
            let behind = match behind {
                Behind::RecentlyFailed { .. } => "it failed with this VM within the last 15 minutes".to_string(),
                Behind::MoreTasks { .. } => "it runs more tasks than the chosen one".to_string(),
                Behind::OtherNetwork | Behind::BackupServer | Behind::OrderOfIds => behind.to_string(),
            };
            format!("could serve it (tier {}), but {behind}", rank.tier().number())
        }
        Judgement::Rejected { reason: Rejection::Offline { .. } } => "cannot: it is offline".into(),
        Judgement::Rejected { .. } => judgement.to_string(),
    }
}

/// The same where another server got the task: the best one had no free slot, and this one is as near; or it had none for too long.
pub fn spilled(mut explanation: ProxyExplanation, to: &ManagedServer, tier: Tier) -> ProxyExplanation {
    let as_near = explanation.tier == Some(tier.number());
    let best = explanation.chosen.take().unwrap_or_default();
    let (full, instead) = match as_near {
        true => ("has no free slot", format!("{best}, as near, has no free slot")),
        false => {
            let full = "had no free slot for so long that the next tier may take the task";
            (full, format!("a better one {full}"))
        }
    };
    for candidate in &mut explanation.candidates {
        if candidate.chosen {
            candidate.chosen = false;
            candidate.reason = format!("the best one, but it {full}");
        }
    }
    // Among very many it need not have been listed.
    explanation.candidates.retain(|candidate| candidate.name != to.name);
    let chosen = ProxyCandidate {
        name: to.name.clone(),
        chosen: true,
        tier: Some(tier.number()),
        running_tasks: to.running_tasks,
        reason: format!("chosen, {}: {instead}", words(tier)),
    };
    explanation.candidates.insert(0, chosen);
    explanation.summary = format!("{}; {instead}", words(tier));
    explanation.chosen = Some(to.name.clone());
    explanation.tier = Some(tier.number());
    explanation
}

/// Why nothing is done in the guest of a backup without guest processing.
pub const DISABLED: &str = "guest processing is disabled";

/// Why the guest of a backup in *try* mode is left alone, from what stands against every server.
pub fn left_alone(decision: &str) -> String {
    let why: Vec<&str> = decision.lines().map(str::trim).collect();
    format!("no guest interaction proxy can serve the VM: {}", why.join("; "))
}

/// Why this server makes a backup that leaves the guest alone, and why it is not the backup server where it is not.
pub fn why_without_guest(request: &Request, server: &ManagedServer, because: &str) -> String {
    let why = format!("no proxy is needed to reach the guest: {because}");
    if server.is_backup_server {
        return why;
    }
    match request.servers.iter().find(|server| server.is_backup_server).map(|own| feasible_without_guest(own, request))
    {
        Some(Err(reason)) => format!("{why}; the backup server's own proxy cannot make it: {reason}"),
        Some(Ok(())) => {
            format!("{why}; the backup server's own proxy had no free slot for so long that another may make it")
        }
        None => why,
    }
}

/// A backup that leaves the guest alone, made by this server.
pub fn without_guest(request: &Request, server: &ManagedServer, because: &str) -> ProxyExplanation {
    let reason = why_without_guest(request, server, because);
    ProxyExplanation {
        vm: request.vm.name.clone(),
        chosen: Some(server.name.clone()),
        tier: None,
        summary: reason.clone(),
        candidates: vec![ProxyCandidate {
            name: server.name.clone(),
            chosen: true,
            tier: None,
            running_tasks: server.running_tasks,
            reason,
        }],
        more: Vec::new(),
    }
}

/// Who would make a backup whose guest is left alone, with what is to be said of every other server.
pub fn all_without_guest(request: &Request, because: &str) -> ProxyExplanation {
    let against = explanation(&nobody_without_guest(request), request.servers);
    let able = able_without_guest(request);
    let Some((best, others)) = able.split_first() else { return against };
    let mut explained = without_guest(request, best, because);
    explained.candidates.extend(others.iter().map(|server| ProxyCandidate {
        name: server.name.clone(),
        chosen: false,
        tier: None,
        running_tasks: server.running_tasks,
        reason: "could make it too".into(),
    }));
    explained.candidates.extend(against.candidates);
    explained
}

/// `same network, …` without its number.
pub fn words(tier: Tier) -> String {
    let text = tier.to_string();
    text.split_once(": ").map_or(text.clone(), |(_, words)| words.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use lull_engine::ids::VmId;
    use lull_engine::infrastructure::ChannelKind;
    use lull_engine::selection::{Chosen, Note, Rank};
    use uuid::Uuid;

    #[test]
    fn what_holds_for_the_whole_choice_is_part_of_the_sentence() {
        let chosen = Chosen {
            server: ServerId(Uuid::nil()),
            name: "backup-server".into(),
            tier: Tier::RemoteBackupServer,
            channel: ChannelKind::Ssh,
            running_tasks: 1,
            slots: 4,
            recently_failed: false,
        };
        let mut decision = Decision {
            vm: VmId(Uuid::nil()),
            vm_name: "db".into(),
            chosen: Some(chosen),
            others: Vec::new(),
            note: None,
            failures: Vec::new(),
        };
        let plain = "another network, the backup server, over SSH; 1 of 4 slots in use";
        assert_eq!(explanation(&decision, &[]).summary, plain);
        decision.note = Some(Note::BackupServerTookOver);
        let summary = explanation(&decision, &[]).summary;
        assert!(summary.starts_with(plain) && summary.contains("none of the preferred servers"), "{summary}");
        (decision.chosen, decision.note) = (None, None);
        assert_eq!(explanation(&decision, &[]).summary, "no server can serve it");
    }

    #[test]
    fn what_is_kept_of_a_thousand_servers_is_small_and_loses_nobody() {
        let verdict =
            |n: u128, judgement| Verdict { server: ServerId(Uuid::from_u128(n)), name: format!("p{n}"), judgement };
        let rank = |n: u128| Rank {
            recently_failed: false,
            other_network: n > 400,
            is_backup_server: false,
            running_tasks: n as u32,
            id: ServerId(Uuid::from_u128(n)),
        };
        let feasible = |n: u128| {
            let behind =
                if n > 400 { Behind::OtherNetwork } else { Behind::MoreTasks { running: n as u32, chosen_runs: 0 } };
            verdict(n, Judgement::Feasible { rank: rank(n), behind })
        };
        let offline = |n: u128| {
            let since = Some(Timestamp::from_second(n as i64).unwrap());
            verdict(n, Judgement::Rejected { reason: Rejection::Offline { since } })
        };
        let decision = Decision {
            vm: VmId(Uuid::nil()),
            vm_name: "db".into(),
            chosen: None,
            others: (1..=500).map(feasible).chain((501..=1_000).map(offline)).collect(),
            note: None,
            failures: Vec::new(),
        };
        let kept = kept(&decision, &[]);
        assert_eq!(kept.candidates.len(), 2 * KEPT_MAX);
        assert_eq!((kept.candidates[0].name.as_str(), kept.candidates[10].name.as_str()), ("p1", "p501"));
        let more: Vec<(u32, &str)> = kept.more.iter().map(|more| (more.servers, more.reason.as_str())).collect();
        let expect = [
            (390, "could serve it (tier 1), but it runs more tasks than the chosen one"),
            (100, "could serve it (tier 3), but it is not in the VM's network"),
            (490, "cannot: it is offline"),
        ];
        assert_eq!(more, expect);
        assert!(serde_json::to_string(&kept).unwrap().len() < 4_000);
        assert_eq!(explanation(&decision, &[]).candidates.len(), 1_000);
    }
}

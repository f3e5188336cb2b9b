//! A choice of proxy as people see it. Chooses nothing.

use lull_api::infrastructure::{ProxyCandidate, ProxyExplanation};
use lull_engine::ids::ServerId;
use lull_engine::infrastructure::ManagedServer;
use lull_engine::selection::{Decision, Judgement, Tier};

/// The engine's decision, every server with the reason for or against it.
pub fn explanation(decision: &Decision, servers: &[ManagedServer]) -> ProxyExplanation {
    let running = |id: ServerId| servers.iter().find(|s| s.id == id).map_or(0, |s| s.running_tasks);
    let why = decision.chosen.as_ref().map(|chosen| {
        let (tasks, slots) = (chosen.running_tasks, chosen.slots);
        format!("{}, over {}; {tasks} of {slots} slots in use", words(chosen.tier), chosen.channel)
    });
    let chosen = decision.chosen.iter().zip(&why).map(|(chosen, why)| ProxyCandidate {
        name: chosen.name.clone(),
        chosen: true,
        tier: Some(chosen.tier.number()),
        running_tasks: chosen.running_tasks,
        reason: format!("chosen: {why}"),
    });
    let others = decision.others.iter().map(|other| ProxyCandidate {
        name: other.name.clone(),
        chosen: false,
        tier: match &other.judgement {
            Judgement::Feasible { rank, .. } => Some(rank.tier().number()),
            Judgement::Rejected { .. } => None,
        },
        running_tasks: running(other.server),
        reason: other.judgement.to_string(),
    });
    let text = decision.to_string();
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    // What holds for the whole choice stands in the second line.
    let note = lines.next().filter(|_| decision.note.is_some()).map(|line| format!("; {}", line.trim()));
    let nobody = head.strip_prefix(&format!("{}: ", decision.vm_name)).unwrap_or(head);
    ProxyExplanation {
        vm: decision.vm_name.clone(),
        chosen: decision.chosen.as_ref().map(|chosen| chosen.name.clone()),
        tier: decision.chosen.as_ref().map(|chosen| chosen.tier.number()),
        summary: why.clone().unwrap_or_else(|| nobody.to_string()) + &note.unwrap_or_default(),
        candidates: chosen.chain(others).collect(),
    }
}

/// The same where another server got the task, since the best one had no free slot for too long.
pub fn spilled(mut explanation: ProxyExplanation, to: &ManagedServer, tier: Tier) -> ProxyExplanation {
    let full = "had no free slot for so long that the next tier may take the task";
    for candidate in &mut explanation.candidates {
        if candidate.chosen {
            candidate.chosen = false;
            candidate.reason = format!("the best one, but it {full}");
        }
        if candidate.name == to.name {
            candidate.chosen = true;
            candidate.reason = format!("chosen, {}: a better one {full}", words(tier));
        }
    }
    explanation.summary = format!("{}; a better one {full}", words(tier));
    explanation.chosen = Some(to.name.clone());
    explanation.tier = Some(tier.number());
    explanation
}

/// A backup without guest processing needs no way into the guest: the backup server's own proxy makes it.
pub fn without_guest(vm: &str, server: &ManagedServer, left_alone: Option<&str>) -> ProxyExplanation {
    let because = left_alone.unwrap_or("guest processing is disabled");
    let reason = format!("no proxy is needed to reach the guest: {because}");
    ProxyExplanation {
        vm: vm.to_string(),
        chosen: Some(server.name.clone()),
        tier: None,
        summary: reason.to_string(),
        candidates: vec![ProxyCandidate {
            name: server.name.clone(),
            chosen: true,
            tier: None,
            running_tasks: server.running_tasks,
            reason,
        }],
    }
}

/// `same network, …` without its number.
fn words(tier: Tier) -> String {
    let text = tier.to_string();
    text.split_once(": ").map_or(text.clone(), |(_, words)| words.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lull_engine::ids::VmId;
    use lull_engine::infrastructure::ChannelKind;
    use lull_engine::selection::{Chosen, Note};
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
        };
        let plain = "another network, the backup server, over SSH; 1 of 4 slots in use";
        assert_eq!(explanation(&decision, &[]).summary, plain);
        decision.note = Some(Note::BackupServerTookOver);
        let summary = explanation(&decision, &[]).summary;
        assert!(summary.starts_with(plain) && summary.contains("none of the preferred servers"), "{summary}");
        (decision.chosen, decision.note) = (None, None);
        assert_eq!(explanation(&decision, &[]).summary, "no server can serve it");
    }
}

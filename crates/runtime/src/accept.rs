//! Which command is accepted when: one closed table.
//!
//! Pure. Between the first `FIFREEZE` and the last `FITHAW` only renew, status and thaw pass, as freeze rule 8 asks.

use lull_guest_wire::{Command, Phase};

/// Nothing, or the sentence that refuses `command` in `phase`. `busy` names a job that runs (inventory, quiesce, …).
pub fn refused(command: &Command, phase: Phase, busy: Option<&str>) -> Option<String> {
    let accepted = match phase {
        Phase::Freezing | Phase::Frozen | Phase::Thawing => {
            matches!(command, Command::Renew(_) | Command::Status | Command::Thaw(_))
        }
        Phase::Armed => {
            matches!(command, Command::Freeze(_) | Command::Status | Command::Thaw(_) | Command::Bye)
        }
        Phase::Script => matches!(command, Command::CancelScript | Command::Status | Command::Bye),
        Phase::Indexing => matches!(command, Command::CancelIndex | Command::Status | Command::Bye),
        Phase::Idle if busy.is_some() => matches!(command, Command::Status | Command::Bye),
        // A walk that ended while the order to cancel it was under way is no reason for a refusal.
        Phase::Idle => !matches!(command, Command::CancelScript),
    };
    if accepted {
        return None;
    }
    let name = name(command);
    Some(match (phase, busy) {
        (Phase::Freezing | Phase::Frozen | Phase::Thawing, _) => {
            format!("{name} is not accepted while file systems are frozen")
        }
        (Phase::Armed, _) => format!("{name} is not accepted between arm and freeze; thaw first"),
        (Phase::Script, _) => format!("{name} is not accepted while a script runs"),
        (Phase::Indexing, _) => format!("{name} is not accepted while the guest's files are listed"),
        (Phase::Idle, Some(job)) => format!("{name} is not accepted while {job} is under way"),
        (Phase::Idle, None) => format!("{name} is not accepted: no script runs"),
    })
}

/// The command's name, for people.
pub fn name(command: &Command) -> &'static str {
    match command {
        Command::Inventory => "inventory",
        Command::Script(_) => "script",
        Command::CancelScript => "cancel script",
        Command::Quiesce(_) => "quiesce",
        Command::Arm(_) => "arm",
        Command::Freeze(_) => "freeze",
        Command::Renew(_) => "renew",
        Command::Status => "status",
        Command::Thaw(_) => "thaw",
        Command::Release => "release",
        Command::Bye => "bye",
        Command::Index(_) => "index",
        Command::CancelIndex => "cancel index",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lull_guest_wire::{ArmOrder, FreezeId, IndexOrder, IndexScope, Lease, QuiesceOrder, ScriptOrder, ScriptStage};

    fn all() -> Vec<Command> {
        let order = ScriptOrder { stage: ScriptStage::PreFreeze, body: vec![], timeout_ms: 1, environment: vec![] };
        let quiesce = QuiesceOrder { checkpoint: true, checkpoint_timeout_ms: 1, connect_timeout_ms: 1 };
        let arm = ArmOrder { freeze: FreezeId(1), lease: Lease::default(), exclude_mount_points: vec![] };
        let index = IndexOrder { scope: IndexScope::Everything, cross_mounts: false, flag_ctime_after_us: None };
        vec![
            Command::Inventory,
            Command::Script(order),
            Command::CancelScript,
            Command::Quiesce(quiesce),
            Command::Arm(arm),
            Command::Freeze(FreezeId(1)),
            Command::Renew(FreezeId(1)),
            Command::Status,
            Command::Thaw(FreezeId(1)),
            Command::Release,
            Command::Bye,
            Command::Index(index),
            Command::CancelIndex,
        ]
    }

    fn check(phase: Phase, busy: Option<&str>, expect: &[&str]) {
        let commands = all();
        let accepted = commands.iter().filter(|command| refused(command, phase, busy).is_none());
        assert_eq!(accepted.map(name).collect::<Vec<_>>(), expect);
    }

    #[test]
    fn each_phase_accepts_its_closed_list() {
        check(Phase::Frozen, None, &["renew", "status", "thaw"]);
        check(Phase::Freezing, None, &["renew", "status", "thaw"]);
        check(Phase::Thawing, None, &["renew", "status", "thaw"]);
        check(Phase::Armed, None, &["freeze", "status", "thaw", "bye"]);
        check(Phase::Script, None, &["cancel script", "status", "bye"]);
        check(Phase::Indexing, Some("a walk"), &["status", "bye", "cancel index"]);
        check(Phase::Idle, Some("an inventory"), &["status", "bye"]);
        check(
            Phase::Idle,
            None,
            &[
                "inventory",
                "script",
                "quiesce",
                "arm",
                "freeze",
                "renew",
                "status",
                "thaw",
                "release",
                "bye",
                "index",
                "cancel index",
            ],
        );
    }
}

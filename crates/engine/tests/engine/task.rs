//! A task to which a test sends events. Checks nothing.

use crate::world::{at_ms, now, server_id};
use lull_engine::ids::TaskId;
use lull_engine::session::{
    Action, Ending, FinalAccount, Left, ProxyReport, TaskEvent, TaskState, Transition, advance, owed_after_finish,
};
use lull_engine::timeline::Step;

/// Sends events to a task and keeps what came of them.
pub struct Task {
    pub state: TaskState,
    /// What the last event asked for.
    pub last: Vec<Action>,
    pub clock_ms: i64,
}

impl Task {
    pub fn new() -> Self {
        Self { state: TaskState::new(now()), last: Vec::new(), clock_ms: 0 }
    }

    pub fn dispatched() -> Self {
        let mut task = Self::new();
        task.send(dispatch(1));
        task
    }

    /// Dispatched, and the proxy reported everything up to this step's beginning.
    pub fn running(step: Step) -> Self {
        let mut task = Self::dispatched();
        for begun in Step::ALL.into_iter().filter(|begun| *begun <= step) {
            task.report(ProxyReport::StepStarted { step: begun });
            match begun {
                Step::Snapshot => task.report(ProxyReport::Frozen { freeze_id: 7 }),
                Step::Release => task.report(ProxyReport::Thawed { freeze_id: 7 }),
                _ => {}
            }
        }
        task
    }

    pub fn try_send(&mut self, event: &TaskEvent) -> Result<Transition, String> {
        self.clock_ms += 1_000;
        advance(&self.state, event, at_ms(self.clock_ms)).map_err(|error| error.to_string())
    }

    pub fn send(&mut self, event: TaskEvent) {
        let transition = self.try_send(&event).expect("a legal event");
        self.state = transition.state;
        self.last = transition.actions;
    }

    pub fn epoch(&self) -> u64 {
        match &self.state {
            TaskState::Waiting { epoch, .. } => *epoch,
            TaskState::Dispatched { hold } | TaskState::Running { hold, .. } | TaskState::Recovering { hold, .. } => {
                hold.epoch
            }
            TaskState::Finished { .. } => 0,
        }
    }

    pub fn cut_at(&self) -> Option<Step> {
        match &self.state {
            TaskState::Recovering { hold, .. } => hold.cut_at,
            other => panic!("{} is not recovering", other.name()),
        }
    }

    pub fn report(&mut self, report: ProxyReport) {
        let epoch = self.epoch();
        self.send(TaskEvent::Report { epoch, report });
    }

    pub fn finish(&mut self, ending: Ending, account: FinalAccount) {
        let owed = owed_after_finish(&self.state, &account);
        self.report(ProxyReport::Finished { ending, owed });
    }

    pub fn recovered(&mut self) {
        for event in
            [TaskEvent::GuestRecovered { epoch: self.epoch() }, TaskEvent::HypervisorSwept { epoch: self.epoch() }]
        {
            self.send(event);
        }
    }

    pub fn ending(&self) -> &Ending {
        match &self.state {
            TaskState::Finished { ending, .. } => ending,
            other => panic!("the task is {}", other.name()),
        }
    }
}

pub fn dispatch(server: u128) -> TaskEvent {
    dispatch_with(server, None, None)
}

pub fn dispatch_with(server: u128, post_script: Option<TaskId>, left: Option<Left>) -> TaskEvent {
    let partial_file = Some("/repo/vm-1.qcow2".into());
    TaskEvent::Dispatch { proxy: server_id(server), partial_file, post_script, left, outlives_server: false }
}

/// The backup server starts again, and nobody wants a task that waits any more.
pub fn restarted() -> TaskEvent {
    TaskEvent::ServerRestarted { waiting_goes_on: false }
}

/// What a proxy says at the end of a task that left nothing.
pub const CLEAN: FinalAccount = FinalAccount { guest_clean: true, hypervisor_clean: true, thaw_confirmed: true };

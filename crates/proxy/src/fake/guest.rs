//! A guest in memory: answers scripts by their purpose, speaks the component's protocol, and keeps account of what is frozen.
//!
//! It freezes nothing; its watchdog thaws when the channel ends, as the real one does. Knobs say which command it dies
//! at, loses the answer to, or refuses.

use crate::channel::Script;
use lull_guest_wire::{
    Answer, Application, ApplicationPlace, ApplicationQuiesced, ApplicationState, Armed, Command, FileSystem,
    Freezable, FreezeId, FromRuntime, Frozen, Hello, Inventory, Lease, Os, Phase, Refusal, RefusalKind, ScriptEnd,
    ScriptResult, ScriptStage, Status, Superblock, SuperblockThaw, ThawResult, Thawed, ToRuntime, frame,
};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;

const ROOT: Superblock = Superblock { major: 254, minor: 0 };

/// What goes wrong in the guest. Commands are named as in the protocol: `freeze`, `thaw`, …
#[derive(Debug, Clone, Default)]
pub struct Behaviour {
    /// The component is killed when this command arrives; before it is obeyed.
    pub dies_at: Option<&'static str>,
    /// The watchdog ends whenever the component does, killed or cut off: nobody thaws.
    pub watchdog_dies_too: bool,
    /// This command is obeyed, its answer never comes.
    pub loses_answer_to: Option<&'static str>,
    /// This command is refused.
    pub refuses: Option<(&'static str, RefusalKind)>,
    /// The application cannot be brought to rest.
    pub application_fails: bool,
    /// Exit code of scripts.
    pub script_exit: i32,
    /// How long each script and quiesce takes.
    pub work_takes: Duration,
}

/// What became of the guest.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Its root is frozen.
    pub frozen: bool,
    /// It was, at some time.
    pub was_frozen: bool,
    /// A component runs.
    pub component: bool,
    /// The lock's folder is there.
    pub lock: bool,
    /// Commands in the order of their arrival.
    pub commands: Vec<&'static str>,
    /// Scripts that ran.
    pub scripts: Vec<ScriptStage>,
    armed: Option<(FreezeId, Lease)>,
    last_renewal: Option<Instant>,
    gap: bool,
    over: Option<FreezeId>,
}

/// A guest in memory.
pub struct FakeGuest {
    component_bytes: usize,
    behaviour: Behaviour,
    state: Mutex<State>,
}

impl FakeGuest {
    /// A guest into which a component of so many bytes is deployed, not packed.
    pub fn new(component_bytes: usize, behaviour: Behaviour) -> Arc<Self> {
        Arc::new(FakeGuest { component_bytes, behaviour, state: Mutex::default() })
    }

    /// What became of it.
    pub fn state(&self) -> State {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Answers one script over `io`.
    pub(super) fn run(self: Arc<Self>, script: &Script, mut io: DuplexStream) {
        let purpose = script.purpose;
        tokio::spawn(async move {
            if purpose == "put the runtime component there" {
                return self.component(io).await;
            }
            let answer = self.answer(purpose);
            let _ = io.write_all(answer.as_bytes()).await;
            let _ = io.shutdown().await;
        });
    }

    fn answer(&self, purpose: &str) -> String {
        let mut state = self.lock();
        match purpose {
            "look for leftovers" => {
                let process = if state.component {
                    "l /proc/7/exe -> /run/lull-00c0ffee00c0ffee/lull-runtime (deleted)\n"
                } else {
                    ""
                };
                let lock = if state.lock { "lock\n" } else { "" };
                format!("{process}{lock}end\n")
            }
            "thaw by hand" if !state.lock && !state.component => "watchdog\n".into(),
            "thaw by hand" => match std::mem::replace(&mut state.frozen, false) {
                true => "thawed /\n".into(),
                false => "free /\n".into(),
            },
            "remove the lock of an earlier task" => {
                state.lock = false;
                String::new()
            }
            "list its mounts" => "/dev/vda / ext4 rw 0 0\n".into(),
            _ => String::new(),
        }
    }

    async fn component(&self, mut io: DuplexStream) {
        if io.write_all(b"+ /run/lull-00c0ffee00c0ffee\n").await.is_err() {
            return;
        }
        let mut binary = vec![0; self.component_bytes];
        if io.read_exact(&mut binary).await.is_err() || io.write_all(b"=\n").await.is_err() {
            return;
        }
        self.lock().component = true;
        let hello = FromRuntime::Hello(Hello { version: "fake".into(), pid: 7, leftovers: vec![] });
        let said = send(&mut io, &hello).await;
        let in_order = said.is_ok() && self.serve(&mut io).await;
        let mut state = self.lock();
        state.component = false;
        let nobody_thaws = !in_order && self.behaviour.watchdog_dies_too;
        state.lock &= nobody_thaws;
        // The watchdog: whatever ended the component, the guest is thawed, unless it died too.
        if !nobody_thaws {
            state.frozen = false;
            state.gap = true;
        }
    }

    /// True when it said goodbye, false when it was killed or cut off.
    async fn serve(&self, io: &mut DuplexStream) -> bool {
        let mut buffer = Vec::new();
        loop {
            let order: ToRuntime = loop {
                match frame::take(&mut buffer) {
                    Ok(Some(order)) => break order,
                    Ok(None) => {}
                    Err(_) => return false,
                }
                if !matches!(io.read_buf(&mut buffer).await, Ok(1..)) {
                    return false;
                }
            };
            let name = name(&order.command);
            self.lock().commands.push(name);
            if self.behaviour.dies_at == Some(name) {
                return false;
            }
            if matches!(order.command, Command::Script(_) | Command::Quiesce(_)) {
                tokio::time::sleep(self.behaviour.work_takes).await;
            }
            let result = match self.behaviour.refuses {
                Some((refused, kind)) if refused == name => Err(refusal(kind, "as the knob says")),
                _ => self.obey(&order.command),
            };
            let leaves = matches!(order.command, Command::Bye);
            if self.behaviour.loses_answer_to != Some(name)
                && send(io, &FromRuntime::Reply { id: order.id, result }).await.is_err()
            {
                return false;
            }
            if leaves {
                return true;
            }
        }
    }

    fn obey(&self, command: &Command) -> Result<Answer, Refusal> {
        let mut state = self.lock();
        let busy = state.frozen && !matches!(command, Command::Renew(_) | Command::Status | Command::Thaw(_));
        if busy {
            return Err(refusal(RefusalKind::NotNow, "not while frozen"));
        }
        match command {
            Command::Inventory => Ok(Answer::Inventory(inventory())),
            Command::Script(order) => {
                state.scripts.push(order.stage);
                let end = ScriptEnd::Exited(self.behaviour.script_exit);
                Ok(Answer::Script(ScriptResult { end, output: b"output\n".to_vec(), dropped_bytes: 0, took_ms: 1 }))
            }
            Command::Quiesce(_) => {
                let result =
                    if self.behaviour.application_fails { Err("it does not answer".into()) } else { Ok(vec![]) };
                Ok(Answer::Quiesced(vec![ApplicationQuiesced {
                    key: "pg".into(),
                    result,
                    caveats: vec![],
                    took_ms: 1,
                }]))
            }
            Command::Arm(order) => {
                state.armed = Some((order.freeze, order.lease));
                state.lock = true;
                Ok(Answer::Armed(Armed { plan: vec![ROOT], watchdog_pid: 8, notes: vec![] }))
            }
            Command::Freeze(freeze) => {
                state.armed_is(*freeze)?;
                (state.frozen, state.was_frozen, state.last_renewal) = (true, true, Some(Instant::now()));
                Ok(Answer::Frozen(Frozen { freeze: *freeze, superblocks: vec![(ROOT, 100)], remaining_ms: 1 }))
            }
            Command::Renew(freeze) => {
                let (_, lease) = state.armed_is(*freeze)?;
                state.check_lease(lease);
                state.last_renewal = Some(Instant::now());
                Ok(Answer::Renewed { remaining_ms: lease.lease_ms })
            }
            Command::Thaw(freeze) => {
                if state.over != Some(*freeze) {
                    let (_, lease) = state.armed_is(*freeze)?;
                    state.check_lease(lease);
                    (state.frozen, state.lock, state.armed, state.over) = (false, false, None, Some(*freeze));
                }
                Ok(Answer::Thawed(thawed(*freeze, state.gap || !state.was_frozen)))
            }
            Command::Status => Ok(Answer::Status(Status { phase: Phase::Idle, freeze: None, remaining_ms: 0 })),
            Command::CancelScript | Command::Release | Command::Bye => Ok(Answer::Done),
        }
    }
}

impl State {
    fn armed_is(&self, freeze: FreezeId) -> Result<(FreezeId, Lease), Refusal> {
        let never = refusal(RefusalKind::NotNow, "never armed");
        self.armed.filter(|(armed, _)| *armed == freeze).ok_or(never)
    }

    fn check_lease(&mut self, lease: Lease) {
        let since = self.last_renewal.map_or(Duration::ZERO, |renewed| renewed.elapsed());
        self.gap |= since >= Duration::from_millis(lease.lease_ms);
    }
}

async fn send(io: &mut DuplexStream, message: &FromRuntime) -> std::io::Result<()> {
    let bytes = frame::encode(message).map_err(std::io::Error::other)?;
    io.write_all(&bytes).await
}

fn refusal(kind: RefusalKind, message: &str) -> Refusal {
    Refusal { kind, message: message.into(), superblocks: vec![] }
}

fn thawed(freeze: FreezeId, gap: bool) -> Thawed {
    let result = if gap { ThawResult::WasThawed } else { ThawResult::Thawed };
    let superblocks = vec![SuperblockThaw { superblock: ROOT, mount_point: "/".into(), result }];
    let gaps = if gap { vec!["the guest thawed by itself".to_string()] } else { vec![] };
    Thawed { freeze, no_gap: !gap, gaps, superblocks, frozen_us: 1_000 }
}

fn name(command: &Command) -> &'static str {
    match command {
        Command::Inventory => "inventory",
        Command::Script(order) if order.stage == ScriptStage::PreFreeze => "pre-script",
        Command::Script(_) => "post-script",
        Command::CancelScript => "cancel-script",
        Command::Quiesce(_) => "quiesce",
        Command::Arm(_) => "arm",
        Command::Freeze(_) => "freeze",
        Command::Renew(_) => "renew",
        Command::Status => "status",
        Command::Thaw(_) => "thaw",
        Command::Release => "release",
        Command::Bye => "bye",
    }
}

fn inventory() -> Inventory {
    let os = Os {
        name: "Fake Linux".into(),
        id: "fake".into(),
        version: "1".into(),
        kernel: "0".into(),
        host_name: "fake".into(),
        machine_id: String::new(),
    };
    let root = FileSystem {
        superblock: ROOT,
        fs_type: "ext4".into(),
        source: "/dev/vda".into(),
        mount_points: vec!["/".into()],
        is_root: true,
        read_only: false,
        freezable: Freezable::Yes,
        disks: vec!["vda".into()],
        on_vm_disks: true,
        inside: None,
        size_bytes: 1 << 30,
        free_bytes: 1 << 29,
    };
    let place = ApplicationPlace { what: "data".into(), path: "/pg".into(), superblock: ROOT };
    let app =
        Application { key: "pg".into(), name: "PostgreSQL".into(), places: vec![place], state: ApplicationState::Runs };
    Inventory { os, file_systems: vec![root], applications: vec![app], incomplete: vec![], notes: vec![] }
}

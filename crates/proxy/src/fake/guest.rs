//! A guest in memory: answers scripts by their purpose, speaks the component's protocol, and keeps account of what is frozen.
//!
//! It freezes nothing; its watchdog thaws when the channel ends, as the real one does. Knobs say which command it dies
//! at, loses the answer to, or refuses.

use crate::channel::Script;
use lull_guest_wire::{
    Answer, Application, ApplicationPlace, ApplicationQuiesced, ApplicationState, Armed, Command, FileSystem,
    Freezable, FreezeId, FromRuntime, Frozen, Hello, IndexSummary, Inventory, Lease, ListingFrame, Os, Phase, Refusal,
    RefusalKind, ScriptEnd, ScriptResult, ScriptStage, Status, Superblock, SuperblockThaw, ThawResult, Thawed,
    ToRuntime, frame,
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
    /// A newer task's component comes when this command arrives: this one thaws, says so and goes.
    pub evicted_at: Option<&'static str>,
    /// It is killed instead, and says nothing.
    pub evicted_in_silence: bool,
    /// The watchdog ends whenever the component does, killed or cut off: nobody thaws.
    pub watchdog_dies_too: bool,
    /// This command is obeyed, its answer never comes.
    pub loses_answer_to: Option<&'static str>,
    /// This command is refused.
    pub refuses: Option<(&'static str, RefusalKind)>,
    /// Every `FITHAW` of component and watchdog fails, until both give up.
    pub thaw_fails: bool,
    /// The guest has no `fsfreeze`.
    pub no_fsfreeze: bool,
    /// The application cannot be brought to rest.
    pub application_fails: bool,
    /// Exit code of scripts.
    pub script_exit: i32,
    /// How long each script and quiesce takes.
    pub work_takes: Duration,
    /// What a walk does.
    pub walk: Walk,
}

/// How the guest's files are listed.
#[derive(Debug, Clone, Default)]
pub struct Walk {
    /// Frames that come.
    pub frames: u32,
    /// How long it takes to the next frame.
    pub frame_takes: Duration,
    /// The component is killed after so many.
    pub dies_after: Option<u32>,
    /// It answers nothing and ends only with the channel.
    pub hangs: bool,
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
    /// A newer task's component runs, besides.
    pub newer: bool,
    /// What was done in the guest while that was so, by what for.
    pub disturbed: Vec<&'static str>,
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

    /// Finds it as something left it.
    pub fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
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

    fn answer(&self, purpose: &'static str) -> String {
        let mut state = self.lock();
        if state.newer && !matches!(purpose, "look for leftovers" | "thaw by hand") {
            state.disturbed.push(purpose);
        }
        match purpose {
            "look for leftovers" => {
                let process = |is_there: bool, pid: u32, fence: &str| match is_there {
                    true => format!(
                        "l 1 root root 0 /proc/{pid}/exe -> /run/lull-00c0ffee00c0ffee{fence}/lull-runtime (deleted)\n"
                    ),
                    false => String::new(),
                };
                let processes = process(state.component, 7, "") + &process(state.newer, 9, ".1000000");
                let lock = if state.lock { "lock\n" } else { "" };
                format!("{processes}{lock}end\n")
            }
            "ask the component of an earlier task to go" => {
                (state.component, state.frozen, state.lock) = (false, false, false);
                String::new()
            }
            "thaw by hand" if state.newer => "newer\n".into(),
            "thaw by hand" if !state.lock && !state.component => "watchdog\n".into(),
            "thaw by hand" if self.behaviour.no_fsfreeze => "no fsfreeze\n".into(),
            "thaw with the component" => {
                let how = if std::mem::replace(&mut state.frozen, false) { "thawed" } else { "was not frozen" };
                format!("+ /run/lull-00c0ffee00c0ffee\n=\n/: {how}\n")
            }
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
        if self.lock().newer {
            self.lock().disturbed.push("put the runtime component there");
        }
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
        let nobody_thaws = !in_order && self.behaviour.watchdog_dies_too || self.behaviour.thaw_fails;
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
            let Some(order) = heard(io, &mut buffer).await else { return false };
            let name = name(&order.command);
            self.lock().commands.push(name);
            if self.behaviour.dies_at == Some(name) {
                return false;
            }
            if self.behaviour.evicted_at == Some(name) {
                {
                    let mut state = self.lock();
                    (state.frozen, state.lock, state.newer) = (false, false, true);
                }
                if !self.behaviour.evicted_in_silence {
                    let _ = send(io, &FromRuntime::Evicted).await;
                }
                return true;
            }
            let refused = self.behaviour.refuses.is_some_and(|(refused, _)| refused == name);
            if matches!(order.command, Command::Index(_)) && !refused {
                if !self.list(io, &mut buffer, order.id).await {
                    return false;
                }
                continue;
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

    /// Sends frames until all are sent or the walk is cancelled; meanwhile obeys. False when the component ended.
    async fn list(&self, io: &mut DuplexStream, buffer: &mut Vec<u8>, index: u32) -> bool {
        let walk = &self.behaviour.walk;
        let mut summary = IndexSummary { complete: true, folders: 1, ..IndexSummary::default() };
        let mut until = Instant::now() + walk.frame_takes;
        while summary.complete && (walk.hangs || summary.entries < walk.frames.into()) {
            if walk.dies_after.is_some_and(|frames| summary.entries >= frames.into()) {
                return false;
            }
            let order = tokio::select! {
                order = heard(io, buffer) => order,
                () = tokio::time::sleep_until(until), if !walk.hangs => {
                    let frame = ListingFrame { compressed: vec![summary.entries as u8; 100] };
                    if send(io, &FromRuntime::Listing(frame)).await.is_err() {
                        return false;
                    }
                    summary.entries += 1;
                    until = Instant::now() + walk.frame_takes;
                    continue;
                }
            };
            let Some(ToRuntime { id, command }) = order else { return false };
            self.lock().commands.push(name(&command));
            if walk.hangs {
                continue;
            }
            if let Command::CancelIndex = command {
                (summary.complete, summary.stopped_because) = (false, Some("it was cancelled".into()));
            }
            if send(io, &FromRuntime::Reply { id, result: self.obey(&command) }).await.is_err() {
                return false;
            }
        }
        if self.behaviour.loses_answer_to == Some("index") {
            return true;
        }
        send(io, &FromRuntime::Reply { id: index, result: Ok(Answer::Indexed(summary)) }).await.is_ok()
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
                    (state.armed, state.over) = (None, Some(*freeze));
                    if !self.behaviour.thaw_fails {
                        (state.frozen, state.lock) = (false, false);
                    }
                }
                let mut thawed = thawed(*freeze, state.gap || !state.was_frozen);
                if self.behaviour.thaw_fails {
                    thawed.superblocks[0].result = ThawResult::Failed("Input/output error".into());
                    (thawed.no_gap, thawed.gaps) = (false, vec!["/ could not be thawed".into()]);
                }
                Ok(Answer::Thawed(thawed))
            }
            Command::Status => Ok(Answer::Status(Status { phase: Phase::Idle, freeze: None, remaining_ms: 0 })),
            Command::Index(_) => Err(refusal(RefusalKind::NotNow, "a walk runs")),
            Command::CancelIndex | Command::CancelScript | Command::Release | Command::Bye => Ok(Answer::Done),
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

/// The next order; nothing once the proxy is gone. Dropping the future loses nothing.
async fn heard(io: &mut DuplexStream, buffer: &mut Vec<u8>) -> Option<ToRuntime> {
    loop {
        if let Some(order) = frame::take(buffer).ok()? {
            return Some(order);
        }
        if !matches!(io.read_buf(buffer).await, Ok(1..)) {
            return None;
        }
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
        Command::Index(_) => "index",
        Command::CancelIndex => "cancel-index",
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

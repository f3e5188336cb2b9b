//! The control loop: one thread that reads commands, gives orders, and answers.
//!
//! It never waits for anything but its own poll: what can take long (inventory, quiesce, sync, scripts) runs as a *job* on one other
//! thread, and `FIFREEZE` and `FITHAW` on theirs, so renew, status and thaw are always answered. No job runs while
//! something is armed. Ends when the channel closes, after everything of ours is thawed, ended and removed.
//! What the proxy does not take at once waits and is written when it does.
//!
//! Knows nothing of how a freeze is done ([`crate::hold`]) or what is accepted when ([`crate::accept`]).

use crate::accept;
use crate::applications::{Applications, Found};
use crate::channel::Channel;
use crate::deployment;
use crate::fence::{self, Entered, Held};
use crate::guard::{self, ArmError, Prepared};
use crate::guest_lock::GuestLock;
use crate::hold::{Ended, Hold, Reply};
use crate::inventory;
use crate::kernel::{self, Bell};
use crate::memory;
use crate::script;
use crate::shared::End;
use crate::walk::outgoing::Outgoing;
use lull_guest_wire::{
    Answer, ArmOrder, Armed, Command, Event, FRAME_BYTES_MAX, FrameError, FreezeId, FromRuntime, Hello, Inventory,
    Phase, Refusal, RefusalKind, SCRIPT_BYTES_MAX, Status, Superblock, ToRuntime,
};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread::JoinHandle;

mod indexing;

/// After a freeze that ended by itself the proxy has this long to speak again, in milliseconds: a component that nobody
/// talks to any more must not stay in the guest.
const SILENCE_AFTER_EXPIRY_MS: u64 = 60_000;
/// The last word waits so long for a proxy that does not read, in milliseconds.
const LAST_WORD_MS: u64 = 1_000;

/// The C library keeps the stack of an ended thread, and while armed it is locked like everything else.
const JOB_STACK_BYTES: usize = 512 * 1024;

/// How the component is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Superblocks that must never be frozen: for test beds that share a kernel with the machine they run on.
    pub never_freeze: Vec<Superblock>,
    /// Folder of the guest's lock.
    pub lock_folder: PathBuf,
}

/// What a job brings back.
enum Done {
    Answer(Result<Answer, Refusal>, Vec<String>),
    Prepared(ArmOrder, Result<Prepared, ArmError>),
}

struct Job {
    reply: u32,
    what: &'static str,
    phase: Phase,
    done: Receiver<(Done, Applications)>,
    cancel: Arc<Bell>,
    lock: Option<GuestLock>,
    thread: JoinHandle<()>,
}

struct Server {
    channel: Channel,
    options: Options,
    bell: Arc<Bell>,
    applications: Option<Applications>,
    job: Option<Job>,
    hold: Option<Hold>,
    last: Option<Ended>,
    /// Frames of the walk that runs, until all are handed on.
    walk: Option<Arc<Outgoing>>,
    silence_ends_ms: Option<u64>,
    /// `Bye` was ordered by this command.
    leaving: Option<u32>,
    /// The channel is closed or broken.
    cut: bool,
}

/// Serves the proxy until it says goodbye or the channel closes.
pub fn run(options: Options) -> ExitCode {
    memory::keep_the_heap();
    // A proxy that is gone shows as an error of the write, not as a signal. Rust's start-up ignores it already; a host program's may not.
    // SAFETY: SIG_IGN is a valid disposition.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let own_fence = fence::own();
    let leftovers = deployment::remove_own_file();
    let bell = match Bell::new() {
        Ok(bell) => Arc::new(bell),
        Err(e) => {
            eprintln!("lull-runtime: cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    fence::heed(bell.clone());
    let mut channel = Channel::new();
    let entered = match own_fence.map_or_else(|| Ok(Entered::default()), fence::enter) {
        Ok(entered) => entered,
        Err(held) => {
            let _ = channel.send(&refused(&held)).and_then(|()| channel.flush_within(LAST_WORD_MS));
            return ExitCode::FAILURE;
        }
    };
    let mut notes = entered.notes;
    if entered.killed {
        notes.extend(guard::thaw_after_kill(&options.lock_folder, &options.never_freeze));
    }
    let mut server = Server {
        channel,
        options,
        bell,
        applications: Some(Applications::default()),
        job: None,
        hold: None,
        last: None,
        walk: None,
        silence_ends_ms: None,
        leaving: None,
        cut: false,
    };
    let hello = Hello { version: env!("CARGO_PKG_VERSION").into(), pid: std::process::id(), leftovers };
    server.send(&FromRuntime::Hello(hello));
    notes.into_iter().for_each(|note| server.note(note));
    let left_well = server.serve();
    server.leave();
    if fence::evicted() {
        let _ = server.channel.send(&FromRuntime::Evicted).and_then(|()| server.channel.flush_within(LAST_WORD_MS));
        return ExitCode::FAILURE;
    }
    if left_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Server {
    /// True when the proxy said goodbye.
    fn serve(&mut self) -> bool {
        loop {
            if let Some(reply) = self.leaving.filter(|_| self.hold.is_none() && self.job.is_none()) {
                self.reply((reply, Ok(Answer::Done)));
                return self.channel.flush_all().is_ok();
            }
            self.cut |= fence::evicted();
            let silent = self.silence_ends_ms.is_some_and(|end| kernel::now_ms() >= end);
            if self.cut || silent {
                return false;
            }
            let watchdog = self.hold.as_ref().map_or(-1, |hold| hold.guard().watchdog_fd());
            let (congested, waits) = (self.channel.is_congested(), self.channel.has_waiting());
            let mut polled = [
                kernel::waiting(0, if congested { 0 } else { libc::POLLIN } | libc::POLLRDHUP),
                kernel::waiting(1, if waits { libc::POLLOUT } else { 0 } | libc::POLLRDHUP),
                kernel::waiting(self.bell.raw(), libc::POLLIN),
                kernel::waiting(watchdog, 0),
            ];
            kernel::poll(&mut polled, self.wait_ms());
            self.bell.hush();
            self.cut |= self.channel.flush().is_err();
            let watchdog_dead = watchdog >= 0 && kernel::hung_up(&polled[3]);
            self.advance(watchdog_dead);
            match congested {
                false if polled[0].revents != 0 => self.read(),
                false => {}
                true => self.cut |= kernel::hung_up(&polled[0]),
            }
            // After reading: commands that came before the proxy closed its side are still obeyed.
            self.cut |= kernel::hung_up(&polled[1]);
            self.advance(watchdog_dead);
            self.hand_on_frames();
        }
    }

    fn wait_ms(&self) -> Option<u64> {
        let now_ms = kernel::now_ms();
        match (&self.hold, self.silence_ends_ms) {
            (Some(hold), _) => Some(hold.wait_ms(now_ms)),
            (None, Some(end)) => Some(end.saturating_sub(now_ms)),
            (None, None) => None,
        }
    }

    fn send(&mut self, message: &FromRuntime) {
        match (self.channel.send(message), message) {
            (Ok(()), _) => {}
            (Err(FrameError::Length(bytes)), FromRuntime::Reply { id, .. }) => {
                self.refuse(
                    *id,
                    RefusalKind::Failed,
                    format!("the answer has {bytes} bytes, at most {FRAME_BYTES_MAX}"),
                );
            }
            (Err(_), _) => self.cut = true,
        }
    }

    fn reply(&mut self, (id, result): Reply) {
        self.send(&FromRuntime::Reply { id, result });
    }

    fn note(&mut self, note: String) {
        self.send(&FromRuntime::Event(Event::Note(note)));
    }

    fn refuse(&mut self, id: u32, kind: RefusalKind, message: String) {
        self.reply((id, Err(Refusal { kind, message, superblocks: Vec::new() })));
    }

    fn read(&mut self) {
        match self.channel.fill() {
            Ok(true) => {}
            Ok(false) | Err(_) => self.cut = true,
        }
        loop {
            match self.channel.next_order() {
                Ok(Some(order)) => self.obey(order),
                Ok(None) => return,
                Err(e) => {
                    // A side that speaks differently cannot be answered in order; closing thaws.
                    self.note(format!("the proxy sent something that cannot be understood: {e}"));
                    self.cut = true;
                    return;
                }
            }
        }
    }

    fn phase(&self) -> Phase {
        match (&self.hold, &self.job) {
            (Some(hold), _) => hold.phase(),
            (None, Some(job)) => job.phase,
            (None, None) => Phase::Idle,
        }
    }

    fn obey(&mut self, ToRuntime { id, command }: ToRuntime) {
        self.silence_ends_ms = None;
        let busy = self.job.as_ref().map(|job| job.what);
        if self.leaving.is_some() {
            return self.refuse(id, RefusalKind::NotNow, "the component is about to end".into());
        }
        if let Some(message) = accept::refused(&command, self.phase(), busy) {
            return self.refuse(id, RefusalKind::NotNow, message);
        }
        match command {
            Command::Inventory => self.start(id, "an inventory", Phase::Idle, None, |applications, _| {
                let (result, notes) = take_inventory(applications);
                Done::Answer(result, notes)
            }),
            Command::Script(order) if order.body.len() > SCRIPT_BYTES_MAX => {
                let message = format!("the script has {} bytes, at most {SCRIPT_BYTES_MAX}", order.body.len());
                self.refuse(id, RefusalKind::BadOrder, message);
            }
            Command::Script(order) => {
                self.start(id, "a script", Phase::Script, None, move |_, cancel| match script::run(&order, cancel) {
                    Ok((result, notes)) => Done::Answer(Ok(Answer::Script(result)), notes),
                    Err(e) => Done::Answer(Err(failed(e.to_string())), Vec::new()),
                })
            }
            Command::CancelScript => {
                if let Some(job) = &self.job {
                    job.cancel.ring();
                }
                self.reply((id, Ok(Answer::Done)));
            }
            Command::Quiesce(order) => self.start(id, "a quiesce", Phase::Idle, None, move |applications, _| {
                Done::Answer(Ok(Answer::Quiesced(applications.quiesce(&order))), Vec::new())
            }),
            Command::Index(order) => self.index(id, order),
            Command::CancelIndex => {
                self.stop_walk("it was cancelled");
                self.reply((id, Ok(Answer::Done)));
            }
            // No kind of application holds anything between quiesce and release yet.
            Command::Release => self.reply((id, Ok(Answer::Done))),
            Command::Arm(order) => self.arm(id, order),
            Command::Freeze(freeze) => match self.hold_of(freeze) {
                Ok(hold) => hold.freeze(id),
                Err(refusal) => self.reply((id, Err(refusal))),
            },
            Command::Renew(freeze) => {
                let result = self.hold_of(freeze).and_then(|hold| hold.renew());
                self.reply((id, result));
            }
            Command::Thaw(freeze) => self.thaw(id, freeze),
            Command::Status => {
                let status = self.status();
                self.reply((id, Ok(Answer::Status(status))));
            }
            Command::Bye => {
                self.leaving = Some(id);
                if let Some(job) = &self.job {
                    job.cancel.ring();
                }
                self.stop_walk("the component was told to end");
                if let Some(hold) = &mut self.hold {
                    hold.end(End::Ordered);
                }
            }
        }
    }

    /// The freeze that is armed or more, if it is this one; else what to answer.
    fn hold_of(&mut self, freeze: FreezeId) -> Result<&mut Hold, Refusal> {
        match (&mut self.hold, &self.last) {
            (Some(hold), _) => {
                let armed = hold.id();
                if armed == freeze {
                    Ok(hold)
                } else {
                    Err(bad_order(format!("freeze {} is armed, not {}", armed.0, freeze.0)))
                }
            }
            (None, Some(last)) if last.thawed.freeze == freeze => Err(last.refusal()),
            (None, _) => Err(Refusal {
                kind: RefusalKind::NotNow,
                message: format!("freeze {} was never armed", freeze.0),
                superblocks: Vec::new(),
            }),
        }
    }

    fn thaw(&mut self, id: u32, freeze: FreezeId) {
        match (self.hold_of(freeze).err(), &self.last) {
            (None, _) => {
                if let Some(hold) = &mut self.hold {
                    hold.thaw(id);
                }
            }
            // A freeze that is over keeps its report, so that an answer that was lost can be had again.
            (Some(_), Some(last)) if self.hold.is_none() && last.thawed.freeze == freeze => {
                let thawed = last.thawed.clone();
                self.reply((id, Ok(Answer::Thawed(thawed))));
            }
            (Some(refusal), _) => self.reply((id, Err(refusal))),
        }
    }

    fn status(&self) -> Status {
        let freeze = match (&self.hold, &self.last) {
            (Some(hold), _) => Some(hold.id()),
            (None, last) => last.as_ref().map(|last| last.thawed.freeze),
        };
        let remaining_ms = self.hold.as_ref().map_or(0, |hold| hold.remaining_ms(kernel::now_ms()));
        Status { phase: self.phase(), freeze, remaining_ms }
    }

    fn arm(&mut self, id: u32, order: ArmOrder) {
        if let Err(message) = order.lease.check() {
            return self.refuse(id, RefusalKind::BadOrder, message);
        }
        let lock = match guard::take_lock(&self.options.lock_folder) {
            Ok(lock) => lock,
            Err(e) => return self.refuse(id, e.kind, e.message),
        };
        let never_freeze = self.options.never_freeze.clone();
        self.start(id, "an arm", Phase::Idle, Some(lock), move |_, _| {
            let prepared = match inventory::storage() {
                Ok(storage) => guard::prepare(&storage, &order.exclude_mount_points, &never_freeze),
                Err(message) => Err(ArmError { kind: RefusalKind::Failed, message }),
            };
            Done::Prepared(order, prepared)
        });
    }

    fn start(
        &mut self,
        reply: u32,
        what: &'static str,
        phase: Phase,
        lock: Option<GuestLock>,
        work: impl FnOnce(&mut Applications, &Bell) -> Done + Send + 'static,
    ) {
        let (send, done) = sync_channel(1);
        let bell = self.bell.clone();
        let mut applications = self.applications.take().unwrap_or_default();
        let started = Bell::new().map(Arc::new).and_then(|cancel| {
            let thread = std::thread::Builder::new().name("lull-job".into()).stack_size(JOB_STACK_BYTES).spawn({
                let cancel = cancel.clone();
                move || {
                    let result = work(&mut applications, &cancel);
                    // The receiver is gone only when the process ends.
                    let _ = send.send((result, applications));
                    bell.ring();
                }
            })?;
            Ok((cancel, thread))
        });
        match started {
            Ok((cancel, thread)) => self.job = Some(Job { reply, what, phase, done, cancel, lock, thread }),
            Err(e) => {
                if let Some(lock) = lock {
                    let _ = lock.release();
                }
                self.refuse(reply, RefusalKind::Failed, format!("{what} could not be started: {e}"));
            }
        }
    }

    fn advance(&mut self, watchdog_dead: bool) {
        self.finish_job();
        let Some(hold) = &mut self.hold else { return };
        let (channel, cut) = (&mut self.channel, &mut self.cut);
        let ended = hold.advance(watchdog_dead, &mut |(id, result)| {
            *cut |= channel.send(&FromRuntime::Reply { id, result }).is_err();
        });
        if let (Some(ended), Some(hold)) = (ended.clone(), self.hold.take_if(|_| ended.is_some())) {
            if !hold.finish() {
                // The watchdog already decided that this process is too late.
                std::process::exit(1);
            }
            if !ended.end.is_orderly() && !self.cut {
                self.note(ended.thawed.gaps.join("; "));
                self.silence_ends_ms = Some(kernel::now_ms() + SILENCE_AFTER_EXPIRY_MS);
            }
            self.last = Some(ended);
        }
    }

    fn finish_job(&mut self) {
        let Some(job) = self.job.take() else { return };
        let (done, applications) = match job.done.try_recv() {
            Ok(done) => done,
            Err(TryRecvError::Empty) => {
                self.job = Some(job);
                return;
            }
            Err(TryRecvError::Disconnected) => {
                self.applications = Some(Applications::default());
                let message = format!("{} broke off inside the component", job.what);
                return self.refuse(job.reply, RefusalKind::Failed, message);
            }
        };
        // The watchdog is forked next, and that needs a single thread.
        let _ = job.thread.join();
        self.hand_on_the_rest();
        self.applications = Some(applications);
        match (done, job.lock) {
            (Done::Answer(result, notes), _) => {
                notes.into_iter().for_each(|note| self.note(note));
                self.reply((job.reply, result));
            }
            (Done::Prepared(order, Ok(prepared)), Some(lock)) if self.leaving.is_none() && !self.cut => {
                match guard::arm(prepared, lock, order.lease, self.bell.clone()) {
                    Ok(guard) => self.armed(job.reply, order.freeze, guard),
                    Err(e) => self.refuse(job.reply, e.kind, e.message),
                }
            }
            (Done::Prepared(_, prepared), lock) => {
                if let Some(lock) = lock {
                    let _ = lock.release();
                }
                let (kind, message) = match prepared {
                    Err(e) => (e.kind, e.message),
                    Ok(_) => (RefusalKind::NotNow, "the component is about to end".into()),
                };
                self.refuse(job.reply, kind, message);
            }
        }
    }

    fn armed(&mut self, reply: u32, freeze: FreezeId, guard: guard::Guard) {
        let armed = Armed {
            plan: guard.targets.iter().map(|target| target.superblock).collect(),
            watchdog_pid: guard.watchdog_pid as u32,
            notes: guard.notes.clone(),
        };
        self.hold = Some(Hold::new(freeze, guard));
        self.reply((reply, Ok(Answer::Armed(armed))));
    }

    /// Leaves nothing: thaws, ends scripts, lets applications and the lock go.
    fn leave(&mut self) {
        let (why, end) = match fence::evicted() {
            true => ("a newer task's component came", End::Evicted),
            false => ("the channel closed", End::Channel),
        };
        self.stop_walk(why);
        if let Some(job) = &mut self.job {
            job.cancel.ring();
            if let Some(lock) = job.lock.take() {
                let _ = lock.release();
            }
        }
        if let Some(hold) = &mut self.hold {
            hold.end(end);
        }
        let script_ends_ms = kernel::now_ms() + script::END_WITHIN_MS;
        while self.hold.is_some() || self.job.as_ref().is_some_and(|job| job.phase == Phase::Script) {
            if self.hold.is_none() && kernel::now_ms() >= script_ends_ms {
                return;
            }
            self.advance(false);
            if self.hold.is_some() || self.job.is_some() {
                kernel::poll(&mut [kernel::waiting(self.bell.raw(), libc::POLLIN)], Some(20));
                self.bell.hush();
            }
        }
    }
}

/// The only word of a component that does not begin.
fn refused(held: &Held) -> FromRuntime {
    let remedy = "see what they wait for in the guest's kernel log; a disk that hangs is the usual reason";
    match held {
        Held::Newer { fence } => FromRuntime::Held(lull_guest_wire::Held {
            fence: *fence,
            message: format!("a newer task's component (fence {fence}) holds the guest"),
        }),
        Held::Stuck { fence, pids } => {
            let pids = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
            let message =
                format!("an older task's component (processes {pids}) does not end, although killed; {remedy}");
            FromRuntime::Held(lull_guest_wire::Held { fence: *fence, message })
        }
        Held::Over => FromRuntime::Evicted,
    }
}

fn failed(message: String) -> Refusal {
    Refusal { kind: RefusalKind::Failed, message, superblocks: Vec::new() }
}

fn bad_order(message: String) -> Refusal {
    Refusal { kind: RefusalKind::BadOrder, message, superblocks: Vec::new() }
}

fn take_inventory(applications: &mut Applications) -> (Result<Answer, Refusal>, Vec<String>) {
    let storage = match inventory::storage() {
        Ok(storage) => storage,
        Err(message) => return (Err(failed(message)), Vec::new()),
    };
    let (file_systems, mut notes) = inventory::file_systems(&storage);
    let Found { applications, incomplete, notes: more } = applications.discover();
    notes.extend(more);
    (
        Ok(Answer::Inventory(Inventory { os: inventory::os(), file_systems, applications, incomplete, notes })),
        Vec::new(),
    )
}

//! The proxy's side of the channel to a component, wherever that runs.

use lull_guest_wire::*;
use lull_runtime::kernel;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest wait for any answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// A component that must make an older one go waits for it.
const FIRST_WORD_WITHIN: Duration = Duration::from_secs(60);

pub struct Component {
    pub process: Child,
    pub hello: Hello,
    to: Option<File>,
    from: Receiver<FromRuntime>,
    reader: Option<(JoinHandle<()>, Arc<AtomicBool>)>,
    next_id: u32,
    pub notes: Vec<String>,
}

impl Component {
    pub fn over_pipes(mut command: std::process::Command) -> Component {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Component::over(process, to.into(), from.into())
    }

    pub fn over(process: Child, to: OwnedFd, from: OwnedFd) -> Component {
        let (send, receive) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let reader = std::thread::spawn({
            let stop = stop.clone();
            move || read_messages(from.into(), &send, &stop)
        });
        let first = receive.recv_timeout(FIRST_WORD_WITHIN).expect("no hello");
        let FromRuntime::Hello(hello) = first else { panic!("no hello: {first:?}") };
        let reader = Some((reader, stop));
        Component { process, hello, to: Some(to.into()), from: receive, reader, next_id: 1, notes: Vec::new() }
    }

    /// Closes the proxy's receiving end.
    pub fn drop_output(&mut self) {
        let (reader, stop) = self.reader.take().unwrap();
        stop.store(true, Ordering::SeqCst);
        reader.join().unwrap();
    }

    pub fn send(&mut self, command: Command) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        frame::write(self.to.as_mut().expect("channel cut"), &ToRuntime { id, command }).unwrap();
        id
    }

    /// Sends a renewal if the channel still takes one; whatever is answered is read by [`Self::channel_closes_within`].
    #[allow(dead_code, reason = "only freeze_guest has a channel that dies under it")]
    pub fn renew_if_alive(&mut self) {
        let (id, command) = (self.next_id, Command::Renew(FreezeId(1)));
        self.next_id += 1;
        let _ = frame::write(self.to.as_mut().expect("channel cut"), &ToRuntime { id, command });
    }

    pub fn answer_to(&mut self, wanted: u32) -> Result<Answer, Refusal> {
        loop {
            match self.from.recv_timeout(ANSWER_WITHIN).expect("no answer in time") {
                FromRuntime::Reply { id, result } if id == wanted => return result,
                FromRuntime::Reply { id, result } => panic!("answer to {id} while waiting for {wanted}: {result:?}"),
                FromRuntime::Event(Event::Note(note)) => self.notes.push(note),
                FromRuntime::Listing(_) => {}
                other => panic!("no answer: {other:?}"),
            }
        }
    }

    pub fn ask(&mut self, command: Command) -> Result<Answer, Refusal> {
        let id = self.send(command);
        self.answer_to(id)
    }

    pub fn arm(&mut self, freeze: u64, lease_ms: u64, budget_ms: u64) -> Armed {
        let order = ArmOrder {
            freeze: FreezeId(freeze),
            lease: Lease { lease_ms, budget_ms },
            exclude_mount_points: Vec::new(),
        };
        match self.ask(Command::Arm(order)) {
            Ok(Answer::Armed(armed)) => armed,
            other => panic!("not armed: {other:?}"),
        }
    }

    pub fn freeze(&mut self, freeze: u64) -> Frozen {
        match self.ask(Command::Freeze(FreezeId(freeze))) {
            Ok(Answer::Frozen(frozen)) => frozen,
            other => panic!("not frozen: {other:?}"),
        }
    }

    pub fn thaw(&mut self, freeze: u64) -> Thawed {
        match self.ask(Command::Thaw(FreezeId(freeze))) {
            Ok(Answer::Thawed(thawed)) => thawed,
            other => panic!("not thawed: {other:?}"),
        }
    }

    pub fn renew(&mut self, freeze: u64) -> Result<Answer, Refusal> {
        self.ask(Command::Renew(FreezeId(freeze)))
    }

    pub fn status(&mut self) -> Status {
        match self.ask(Command::Status) {
            Ok(Answer::Status(status)) => status,
            other => panic!("no status: {other:?}"),
        }
    }

    pub fn bye(mut self) {
        assert_eq!(self.ask(Command::Bye), Ok(Answer::Done));
        assert!(self.process.wait().unwrap().success());
    }

    /// Closes the proxy's sending side.
    pub fn cut(&mut self) {
        self.to = None;
    }

    pub fn signal(&self, signal: i32) {
        send_signal(self.hello.pid, signal);
    }

    /// Whatever comes until the component closes the channel.
    #[allow(dead_code, reason = "only freeze_loop has components that go")]
    pub fn last_words(&mut self) -> Vec<FromRuntime> {
        let mut words = Vec::new();
        loop {
            match self.from.recv_timeout(ANSWER_WITHIN) {
                Ok(word) => words.push(word),
                Err(RecvTimeoutError::Disconnected) => return words,
                Err(RecvTimeoutError::Timeout) => panic!("the channel stays open; what came: {words:?}"),
            }
        }
    }

    /// True when the channel was closed by the component.
    pub fn channel_closes_within(&mut self, limit: Duration) -> bool {
        loop {
            match self.from.recv_timeout(limit) {
                Ok(FromRuntime::Event(Event::Note(note))) => self.notes.push(note),
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return true,
                Err(RecvTimeoutError::Timeout) => return false,
            }
        }
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        self.to = None;
        let _ = self.process.kill();
        // Not for ever: in a failed test it may hang in the kernel, until the host's own drop thaws.
        for _ in 0..100 {
            if !matches!(self.process.try_wait(), Ok(None)) {
                return;
            }
            kernel::sleep_ms(20);
        }
    }
}

/// Hands on what comes, until the other side closes or this side is told to.
fn read_messages(mut from: File, send: &Sender<FromRuntime>, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        let mut polled = [kernel::waiting(from.as_raw_fd(), libc::POLLIN)];
        kernel::poll(&mut polled, Some(10));
        if polled[0].revents == 0 {
            continue;
        }
        let Ok(message) = frame::read(&mut from) else { return };
        if send.send(message).is_err() {
            return;
        }
    }
}

pub fn send_signal(pid: u32, signal: i32) {
    // SAFETY: no pointers; a process that this test started.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0, "{}", std::io::Error::last_os_error());
}

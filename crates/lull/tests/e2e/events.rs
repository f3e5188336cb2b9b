//! A session followed as a program follows it: `lull --json session follow`, one event on each line.

use crate::program::wait_for_end;
use lull_api::session::{EventKind, SessionEvent};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

pub struct Events {
    child: Option<Child>,
    received: Receiver<EventKind>,
}

impl Events {
    /// Follows with a command that prints events.
    pub fn of(mut command: Command) -> Events {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).stdin(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let (sender, received) = channel();
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let Ok(event) = serde_json::from_str::<SessionEvent>(&line) else { continue };
                if sender.send(event.event).is_err() {
                    return;
                }
            }
        });
        Events { child: Some(child), received }
    }

    /// The next event that `is_it`; the stream must not end before.
    pub fn until(&self, seconds: u64, what: &str, is_it: impl Fn(&EventKind) -> bool) -> EventKind {
        let until = Instant::now() + Duration::from_secs(seconds);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.received.recv_timeout(left) {
                Ok(event) if is_it(&event) => return event,
                Ok(_) => {}
                Err(e) => panic!("{what}: no such event within {seconds} s: {e}"),
            }
        }
    }

    pub fn until_step(&self, name: &str) {
        self.until(120, name, |event| matches!(event, EventKind::StepStarted { step, .. } if step == name));
    }

    /// Waits for the end of the stream; the exit code.
    pub fn end(mut self) -> i32 {
        wait_for_end(self.child.take().expect("it ends once"), 120).code
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

//! A relay in front of the guest's control socket: it passes everything on, until it is told at which command to stop.
//!
//! While it holds a command, the test looks at the guest; then the connection is cut, or goes on as if nothing had been.
//! Knows lines and names of commands; knows nothing of what they do.

use crate::guest::Guest;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Where it stops, seen from QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// QEMU does not get the command.
    Before,
    /// QEMU gets the command and nothing after it; its answer is lost.
    After,
    /// QEMU gets the command and what was sent with it; the answers are lost.
    AnswersLost,
}

/// A stop that is planned; it happens once.
struct Planned {
    at: At,
    command: &'static str,
    reached: Sender<()>,
    go: Receiver<Go>,
}

enum Go {
    Cut,
    On,
}

/// A stop as the test sees it.
pub struct Held {
    reached: Receiver<()>,
    go: Sender<Go>,
}

impl Held {
    /// Waits until the command came.
    pub fn wait(&self) {
        self.reached.recv_timeout(Duration::from_secs(120)).expect("the command comes within 120 s");
    }

    /// Cuts the connection; when.
    pub fn cut(self) -> Instant {
        let fault = Instant::now();
        self.go.send(Go::Cut).expect("the relay waits for it");
        fault
    }

    /// Lets the command through, if it is not too late for that. Only a stop before the command can go on.
    pub fn go_on(self) {
        let _ = self.go.send(Go::On);
    }
}

pub struct Relay {
    /// Where Lull connects.
    socket: PathBuf,
    /// Where QEMU listens meanwhile.
    direct: PathBuf,
    plan: Arc<Mutex<Option<Planned>>>,
    over: Arc<AtomicBool>,
}

impl Relay {
    /// Takes the place of the guest's socket until it is dropped.
    pub fn before(guest: &Guest) -> Relay {
        let socket = guest.folder.join(format!("{}.qmp", guest.name));
        let direct = guest.folder.join(format!("{}.direct", guest.name));
        std::fs::rename(&socket, &direct).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let relay = Relay { socket, direct, plan: Arc::default(), over: Arc::default() };
        let (direct, plan, over) = (relay.direct.clone(), relay.plan.clone(), relay.over.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let (direct, plan) = (direct.clone(), plan.clone());
                std::thread::spawn(move || {
                    // A broken pipe is an end like any other.
                    let _ = pass(client, &direct, &plan);
                });
            }
        });
        relay
    }

    /// Stops the next connection that sends `command`.
    pub fn hold(&self, at: At, command: &'static str) -> Held {
        let ((reached, was_reached), (go, gone)) = (channel(), channel());
        *self.plan.lock().unwrap() = Some(Planned { at, command, reached, go: gone });
        Held { reached: was_reached, go }
    }

    fn aside(&self) -> PathBuf {
        self.socket.with_extension("away")
    }

    /// Takes the socket away for new connections; those that exist live on.
    pub fn take_away(&self) {
        std::fs::rename(&self.socket, self.aside()).unwrap();
    }

    /// Puts it back.
    pub fn put_back(&self) {
        std::fs::rename(self.aside(), &self.socket).unwrap();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = std::fs::rename(self.aside(), &self.socket);
        self.over.store(true, Ordering::SeqCst);
        // The thread that waits for clients sees the flag with this one.
        let _ = UnixStream::connect(&self.socket);
        let _ = std::fs::rename(&self.direct, &self.socket);
    }
}

/// One client's connection, until it ends or is cut.
fn pass(mut client: UnixStream, direct: &PathBuf, plan: &Mutex<Option<Planned>>) -> std::io::Result<()> {
    let mut server = UnixStream::connect(direct)?;
    let deaf = Arc::new(AtomicBool::new(false));
    let (mut from, mut to, lost) = (server.try_clone()?, client.try_clone()?, deaf.clone());
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut bytes) {
            if !lost.load(Ordering::SeqCst) && to.write_all(&bytes[..n]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    let mut lines = BufReader::new(client.try_clone()?);
    let mut line = String::new();
    while let Ok(1..) = lines.read_line(&mut line) {
        let planned = plan.lock().unwrap().take_if(|p| line.contains(&format!("\"execute\":\"{}\"", p.command)));
        if let Some(planned) = planned {
            deaf.store(planned.at != At::Before, Ordering::SeqCst);
            if planned.at != At::Before {
                server.write_all(line.as_bytes())?;
            }
            if planned.at == At::AnswersLost {
                pass_what_came_with_it(&mut lines, &mut client, &mut server)?;
            }
            // Long enough for QEMU to have executed what it got.
            std::thread::sleep(Duration::from_millis(100));
            let _ = planned.reached.send(());
            // A test that failed lets go too.
            let go = planned.go.recv_timeout(Duration::from_secs(120)).unwrap_or(Go::Cut);
            if matches!(go, Go::Cut) || planned.at != At::Before {
                break;
            }
        }
        server.write_all(line.as_bytes())?;
        line.clear();
    }
    let _ = client.shutdown(Shutdown::Both);
    server.shutdown(Shutdown::Both)
}

/// The rest of what was sent in one write.
fn pass_what_came_with_it(
    lines: &mut BufReader<UnixStream>,
    client: &mut UnixStream,
    server: &mut UnixStream,
) -> std::io::Result<()> {
    client.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut line = String::new();
    while let Ok(1..) = lines.read_line(&mut line) {
        server.write_all(line.as_bytes())?;
        line.clear();
    }
    client.set_read_timeout(None)
}

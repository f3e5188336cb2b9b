//! A relay in front of the guest's sshd, so that the guest channel can be cut from outside. Knows bytes only.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub struct Wire {
    pub address: String,
    live: Arc<Mutex<Vec<TcpStream>>>,
}

impl Wire {
    /// Passes everything on to the port on loopback, for as long as the tests run.
    pub fn to(port: u16) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Wire { address: listener.local_addr().unwrap().to_string(), live: Arc::default() };
        let live = wire.live.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                let clone = |stream: &TcpStream| stream.try_clone().expect("a socket can be cloned");
                live.lock().unwrap().extend([clone(&client), clone(&server)]);
                for (from, to) in [(clone(&client), clone(&server)), (server, client)] {
                    std::thread::spawn(move || copy(from, to));
                }
            }
        });
        wire
    }

    /// Waits until there is a connection since the last cut.
    pub fn wait_for_somebody(&self) {
        let until = Instant::now() + Duration::from_secs(20);
        while self.live.lock().unwrap().is_empty() {
            assert!(Instant::now() < until, "nobody connects to the guest");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Cuts all connections that there are; new ones are taken. When.
    pub fn cut(&self) -> Instant {
        let fault = Instant::now();
        for stream in self.live.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        fault
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut bytes = [0; 16384];
    while let Ok(n @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

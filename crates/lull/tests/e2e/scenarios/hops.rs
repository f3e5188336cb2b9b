//! The way to the guest broken at each hop: the user is told which.

use crate::told::assert_says;
use crate::world::{JOB, VM, World, sentence};
use std::net::TcpListener;

pub fn unreachable(world: &mut World) {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Accepts (by its backlog) and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (closed, silent_address) = (closed.to_string(), silent.local_addr().unwrap().to_string());
    // Where to connect, what the user is told.
    let table: [(&str, &[&str]); 4] = [
        (&closed, &["between proxy and guest", &closed, "nothing listens", "start sshd"]),
        (&silent_address, &["between proxy and guest", &silent_address, "nothing spoke ssh", "sshd"]),
        // The discard prefix of RFC 6666: nobody has it.
        ("[100::1]:22", &["between proxy and guest", "100::1", "way to", "network"]),
        ("no-such-name.invalid:22", &["between proxy and guest", "no-such-name.invalid", "name", "address"]),
    ];
    for (connect, says) in table {
        world.lull(&["vm", "set", VM, "--connect", connect]).ok();
        let session = world.run_job(JOB);
        assert_says(&sentence(&session), says);
        assert_eq!(session.tasks[0].restore_point, None);
        assert_eq!(session.tasks[0].level, None, "nothing was taken: {session:#?}");
    }
    let connect = world.address();
    world.lull(&["vm", "set", VM, "--connect", &connect]).ok();
}

//! Unknown names and malformed input: what is unknown or wrong, and what exists; nothing is done.

use crate::told::{assert_says, missing};
use crate::world::World;
use std::io::{Read, Write};
use std::net::TcpStream;

pub fn wrong(world: &mut World) {
    let before = world.newest_session();
    let uuid = "00000000-0000-4000-8000-000000000000";
    // Arguments, exit code, what is said.
    let table: [(&[&str], i32, &[&str]); 22] = [
        (&["vm", "show", "shpo"], 3, &["no vm", "shpo", "shop"]),
        (&["vm", "test", "elsewhere/shop"], 3, &["elsewhere", "shop"]),
        (&["vm", "set", "shop", "--credential", "no-such"], 3, &["no-such", "root-key"]),
        (&["vm", "set", "shop", "--address", "999.1.1.1"], 2, &["999.1.1.1"]),
        (&["vm", "set", "shop", "--connect", "nowhere"], 2, &["host:port"]),
        (&["vm", "accept-host-key", "shop", "--fingerprint", "MD5:aa"], 2, &["sha256"]),
        (&["host", "rescan", "there"], 3, &["there", "here"]),
        (&["host", "add", "other", "--qemu", "/no/such/folder"], 3, &["/no/such/folder"]),
        (&["job", "run", "nigthly"], 3, &["nigthly", "nightly"]),
        (&["job", "create", "x", "--vm", "shop,ghost", "--repository", "local"], 3, &["ghost", "shop"]),
        (&["job", "create", "x", "--vm", "shop", "--repository", "lost"], 3, &["lost", "local"]),
        (
            &["job", "create", "nightly", "--vm", "shop", "--repository", "local"],
            3,
            &["a job of this name", "choose another name"],
        ),
        (&["job", "create", "x", "--vm", "shop", "--repository", "local", "--freeze-budget", "2m"], 3, &["60"]),
        (&["job", "create", "x", "--vm", "shop", "--repository", "local", "--lease", "soon"], 2, &["soon"]),
        (&["job", "create", "x", "--vm", "shop", "--repository", "local", "--prefer", "ghost"], 3, &["ghost"]),
        (&["job", "remove", "nothing"], 3, &["nothing", "nightly"]),
        (&["session", "show", "999999"], 3, &["999999"]),
        (&["session", "show", "zero"], 2, &["zero"]),
        (&["restore-point", "show", uuid], 3, &[uuid]),
        (&["restore-point", "verify", "not-an-id"], 3, &["not-an-id"]),
        (&["repository", "add", "bad", "/no/such/folder"], 3, &["/no/such/folder"]),
        (&["quiesce", "ghost", "--", "true"], 125, &["ghost", "shop"]),
    ];
    let wrong: Vec<String> = table
        .iter()
        .filter_map(|(arguments, code, says)| {
            let outcome = world.lull(arguments);
            let missing = missing(&outcome.words(), says);
            (outcome.code != *code || !missing.is_empty())
                .then(|| format!("{arguments:?}: not {code} or not said {missing:?}: {outcome:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(world.newest_session(), before, "nothing was started");
    raw(world);
}

/// What no client of ours would send.
fn raw(world: &World) {
    let address = world.listen_address().to_string();
    let token = std::fs::read_to_string(world.folder.join("state/admin-token")).unwrap();
    let post = |path: &str, token: &str, body: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        let length = body.len();
        write!(
            stream,
            "POST /api/v1{path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let token = token.trim();
    // Path, body, status, what is said.
    let table: [(&str, &str, &str, &[&str]); 5] = [
        ("/jobs", "{", "422", &["json"]),
        ("/jobs", "{\"name\": 7}", "422", &["name"]),
        (
            "/jobs",
            "{\"name\": \"x\", \"vms\": [\"shop\"], \"repository\": \"local\", \"surprise\": 1}",
            "422",
            &["surprise"],
        ),
        ("/no-such-thing", "{}", "404", &["/no-such-thing"]),
        ("/vms/shop/test/../../x", "{}", "404", &[]),
    ];
    for (path, body, status, says) in table {
        let answer = post(path, token, body);
        assert_says(answer.lines().next().unwrap(), &[status]);
        assert_says(&answer, says);
        assert_says(post(path, "not-the-token", body).lines().next().unwrap(), &["401"]);
    }
}

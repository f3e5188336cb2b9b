//! Pre-freeze and post-thaw scripts that fail, hang, or print what no terminal should get.

use crate::scenarios::hold::quiesce;
use crate::told::assert_says;
use crate::world::{World, assert_clean_receipt, sentence, task};

/// Where the post-thaw script leaves its trace in the guest.
const TRACE: &str = "/root/post-thaw-ran";

struct Case {
    pre: &'static str,
    post: &'static str,
    flags: &'static [&'static str],
    /// 125: not brought to rest; 123: COMMAND succeeded, the session failed afterwards.
    code: i32,
    says: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        pre: "echo about to fail; echo the last word >&2; exit 3",
        post: "",
        flags: &[],
        code: 125,
        says: &["at a script", "pre-freeze", "3", "the last word"],
    },
    Case {
        pre: "echo waiting for nothing; sleep 600 & sleep 600",
        post: "",
        flags: &["--script-timeout", "2s"],
        code: 125,
        says: &["at a script", "pre-freeze", "2 s", "waiting for nothing"],
    },
    Case {
        pre: "head -c 300000 /dev/urandom; printf '\\033[2J\\000'; exit 9",
        post: "",
        flags: &[],
        code: 125,
        says: &["at a script", "pre-freeze", "9"],
    },
    Case {
        pre: "true",
        post: "echo cannot start it again; exit 4",
        flags: &[],
        code: 123,
        says: &["at a script", "post-thaw", "4", "cannot start it again"],
    },
];

pub fn bad_scripts(world: &mut World) {
    for case in CASES {
        let flags = written(world, case);
        let flags: Vec<&str> = flags.iter().map(String::as_str).chain(case.flags.iter().copied()).collect();
        let outcome = quiesce(world, &flags, &["true"]);
        assert_eq!(outcome.code, case.code, "{}: {outcome:?}", case.pre);
        let session = world.session(world.newest_session());
        let told = sentence(&session);
        assert_says(&told, case.says);
        assert!(!told.chars().any(char::is_control), "control characters: {told:?}");
        assert_eq!(
            world.guest.ssh(&format!("cat {TRACE}; rm -f {TRACE}; pgrep -f '[s]leep 600' || true")),
            "post-thaw"
        );
        assert_clean_receipt(&session);
    }
    ignored(world);
}

/// With failures ignored the hold goes on, and the session says what failed.
fn ignored(world: &World) {
    let flags = written(world, &CASES[0]);
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(["--scripts", "ignore-failures"]).collect();
    let outcome = quiesce(world, &flags, &["true"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let session = world.session(world.newest_session());
    assert_eq!(session.summary.result.as_deref(), Some("warning"), "{session:#?}");
    assert_says(&task(&session).notes.join(" "), &["pre-freeze", "3"]);
    world.guest.ssh(&format!("rm {TRACE}"));
}

/// The flags for a case's scripts; every post-thaw script leaves its trace.
fn written(world: &World, case: &Case) -> Vec<String> {
    let (pre, post) = (world.folder.join("pre.sh"), world.folder.join("post.sh"));
    std::fs::write(&pre, format!("#!/bin/sh\n{}\n", case.pre)).unwrap();
    std::fs::write(&post, format!("#!/bin/sh\necho $LULL_STAGE >{TRACE}\n{}\n", case.post)).unwrap();
    vec![format!("--pre-freeze-script={}", pre.display()), format!("--post-thaw-script={}", post.display())]
}

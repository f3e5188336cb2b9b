//! Scripts: what they are given, how they end, and what is left of them.

use crate::bed::Bed;
use crate::client::Component;
use crate::deploy::start;
use lull_guest_wire::*;
use std::time::{Duration, Instant};

fn order(body: &[u8], timeout_ms: u64) -> Command {
    Command::Script(ScriptOrder {
        stage: ScriptStage::PreFreeze,
        body: body.to_vec(),
        timeout_ms,
        environment: vec![("JOB".into(), "nightly run".into())],
    })
}

fn run(component: &mut Component, body: &[u8], timeout_ms: u64) -> ScriptResult {
    match component.ask(order(body, timeout_ms)) {
        Ok(Answer::Script(result)) => result,
        other => panic!("no script result: {other:?}"),
    }
}

fn check(component: &mut Component, body: &str, end: ScriptEnd, output: &str) {
    let result = run(component, body.as_bytes(), 10_000);
    assert_eq!((result.end, String::from_utf8_lossy(&result.output).as_ref()), (end, output), "{body}");
}

#[test]
fn the_exit_code_decides_and_the_output_is_kept() {
    let bed = Bed::new();
    let mut component = start(&bed);
    let exited = ScriptEnd::Exited;
    check(&mut component, "#!/bin/sh\necho out; echo err >&2; exit 3\n", exited(3), "out\nerr\n");
    check(&mut component, "echo no interpreter line", exited(0), "no interpreter line\n");
    check(&mut component, "#!/bin/sh -e\nfalse\necho not reached", exited(1), "");
    check(
        &mut component,
        "#!/bin/sh\necho \"$JOB $LULL_STAGE $HOME\"; pwd; cat",
        exited(0),
        "nightly run pre-freeze /root\n/\n",
    );
    check(&mut component, "#!/bin/sh\nkill -9 $$", ScriptEnd::Signalled(9), "");
    let refusal = component.ask(order(b"#!/no/such/interpreter\n", 1_000)).unwrap_err();
    assert!(refusal.message.contains("/no/such/interpreter"), "{}", refusal.message);
    component.bye();
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}

#[test]
fn of_much_output_the_end_is_kept_whatever_bytes_it_has() {
    let bed = Bed::new();
    let mut component = start(&bed);
    let result = run(
        &mut component,
        b"#!/bin/sh\ndd if=/dev/urandom bs=1024 count=300 2>/dev/null; printf 'the end\\000\\377'",
        10_000,
    );
    assert_eq!(result.end, ScriptEnd::Exited(0));
    assert_eq!(result.output.len(), SCRIPT_OUTPUT_BYTES_MAX);
    assert_eq!(result.dropped_bytes as usize, 300 * 1024 + 9 - SCRIPT_OUTPUT_BYTES_MAX);
    assert!(result.output.ends_with(b"the end\0\xff"));
    component.bye();
}

#[test]
fn what_is_no_script_is_refused() {
    let bed = Bed::new();
    let mut component = start(&bed);
    let program = std::fs::read("/bin/busybox").unwrap();
    let refusal = component.ask(order(&program[..4_096], 1_000)).unwrap_err();
    assert!(refusal.message.contains("a program, not a script"), "{}", refusal.message);
    let refusal = component.ask(order(&program[..SCRIPT_BYTES_MAX + 1], 1_000)).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::BadOrder);
    component.bye();
}

#[test]
fn a_script_that_hangs_is_killed_with_everything_it_started() {
    let bed = Bed::new();
    let mut component = start(&bed);
    let body = "#!/bin/sh
trap 'echo asked to stop' TERM
setsid sh -c 'trap \"\" TERM HUP; sleep 1000 & wait; sleep 1000' &
(setsid sleep 1000 >/dev/null 2>&1 &)
sleep 1000 &
wait; wait; sleep 1000
";
    let began = Instant::now();
    let result = run(&mut component, body.as_bytes(), 500);
    assert_eq!(result.end, ScriptEnd::TimedOut);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(String::from_utf8_lossy(&result.output).contains("asked to stop"));
    let left: Vec<_> = bed.processes().into_iter().filter(|(pid, _)| *pid != component.hello.pid).collect();
    assert!(left.is_empty(), "{left:?}");
    component.bye();
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}

#[test]
fn a_cancelled_script_ends_and_the_component_goes_on() {
    let bed = Bed::new();
    let mut component = start(&bed);
    let script = component.send(order(b"#!/bin/sh\necho begun; sleep 1000", 60_000));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(component.status().phase, Phase::Script);
    assert_eq!(component.ask(Command::Inventory).unwrap_err().kind, RefusalKind::NotNow);
    assert_eq!(component.ask(Command::CancelScript), Ok(Answer::Done));
    let Ok(Answer::Script(result)) = component.answer_to(script) else { panic!("no result") };
    assert_eq!((result.end, result.output.as_slice()), (ScriptEnd::Cancelled, b"begun\n".as_slice()));
    component.arm(1, 5_000, 30_000);
    component.freeze(1);
    assert!(component.thaw(1).no_gap);
    component.bye();
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}

#[test]
fn a_daemon_that_a_script_leaves_is_named_and_does_not_hold_the_task() {
    let bed = Bed::new();
    let mut component = start(&bed);
    let began = Instant::now();
    let result = run(&mut component, b"#!/bin/sh\nsetsid sleep 1000 &\nsleep 1; exit 0", 60_000);
    assert_eq!(result.end, ScriptEnd::Exited(0));
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(
        component.notes.iter().any(|note| note.contains("left these processes running: sleep")),
        "{:?}",
        component.notes
    );
    component.arm(1, 5_000, 30_000);
    component.freeze(1);
    assert!(component.thaw(1).no_gap);
    component.bye();
    let left = bed.processes();
    assert_eq!(left.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), ["sleep"], "what it left runs on");
}

#[test]
fn a_cut_channel_ends_the_script() {
    let bed = Bed::new();
    let mut component = start(&bed);
    component.send(order(b"#!/bin/sh\nsleep 1000 & setsid sleep 1000", 60_000));
    std::thread::sleep(Duration::from_millis(300));
    assert!(bed.processes().iter().any(|(_, name)| name == "sleep"));
    component.cut();
    assert!(component.channel_closes_within(Duration::from_secs(8)));
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}

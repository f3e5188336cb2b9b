//! Cancelled at each step: the session says so, and the guest is as before.

use crate::scenarios::hold::Hold;
use crate::world::{World, assert_clean_receipt, task};
use lull_api::session::Session;

/// Steps at which a backup can be cancelled, in their order; the later ones are over before a person can.
const STEPS: &[&str] = &["connect", "deploy", "inventory", "pre-script", "quiesce", "freeze", "copy", "verify"];
/// From here on a cancel may come too late; then the session ends as if nobody had asked.
const MAY_BE_TOO_LATE: &str = "verify";

pub fn at_each_step(world: &mut World) {
    let (pre, post) = (world.folder.join("pre.sh"), world.folder.join("post.sh"));
    std::fs::write(&pre, "#!/bin/sh\ntouch /run/pre-ran\nsleep 3\n").unwrap();
    std::fs::write(&post, "#!/bin/sh\nrm -f /run/pre-ran\n").unwrap();
    let (pre, post) = (pre.display().to_string(), post.display().to_string());
    // Full, so that there is something to copy.
    let full = ["--full-every", "1", "--copy-limit", "16MiB"];
    let scripts = [&["--pre-freeze-script", &pre, "--post-thaw-script", &post], &full[..]].concat();
    world.make_job("with-scripts", &scripts);
    for step in STEPS {
        if *step == MAY_BE_TOO_LATE {
            world.make_job("with-scripts", &scripts[..4]);
        }
        let (id, events) = world.start_job("with-scripts");
        events.until_step(step);
        let asked = world.lull(&["session", "cancel", &id.to_string()]);
        let session = world.finished(id);
        let result = session.summary.result.as_deref();
        // The backup was done; a listing that was not yet is cut, and that is a warning.
        let too_late = *step == MAY_BE_TOO_LATE && matches!(result, Some("success" | "warning"));
        if !too_late {
            assert_eq!((result, asked.code), (Some("cancelled"), 0), "at {step}: {asked:?} {session:#?}");
            assert_eq!(events.end(), 7, "whoever follows is told, at {step}");
            assert_eq!(task(&session).restore_point, None, "at {step}: {session:#?}");
            says_where(&session, step);
        }
        assert_eq!(world.guest.ssh("ls /run/pre-ran 2>/dev/null; true"), "", "the post-thaw script ran, at {step}");
        if task(&session).steps.iter().any(|s| s.step == "deploy") {
            assert_clean_receipt(&session);
        }
        world.assert_calm();
    }
    world.lull(&["job", "remove", "with-scripts"]).ok();
    while_held(world);
}

/// Between these steps and the next the task looks whether it is cancelled; then no step was cut short.
const LOOKS_AFTER: &[&str] = &["quiesce", "freeze"];

/// The step that was cut short is marked so, and it alone: the one that was asked for, or the next where that one was over
/// just then. No later step began.
fn says_where(session: &Session, step: &str) {
    // The listing runs beside the copy, and is cancelled with it.
    let steps: Vec<_> = task(session).steps.iter().filter(|step| step.step != "index").collect();
    let asked = STEPS.iter().position(|s| *s == step).unwrap();
    let cancelled: Vec<&str> = steps.iter().filter(|s| s.state == "cancelled").map(|s| s.step.as_str()).collect();
    let right = match cancelled[..] {
        [] => LOOKS_AFTER.contains(&step),
        [at] => at == step || STEPS.get(asked + 1) == Some(&at),
        _ => false,
    };
    assert!(right, "cancelled at {step}: {steps:#?}");
    let last = asked + usize::from(!cancelled.is_empty() && cancelled != [step]);
    let later = STEPS.iter().skip(last + 1).find(|later| steps.iter().any(|s| s.step == **later));
    assert_eq!(later, None, "begun after the cancel at {step}: {steps:#?}");
}

/// The caller's command is told that it cannot be trusted.
fn while_held(world: &mut World) {
    let pulse = world.guest.pulse();
    let hold = Hold::begin(world, &[]);
    pulse.assert_frozen();
    let fault = std::time::Instant::now();
    world.lull(&["session", "cancel", &hold.session.to_string()]).ok();
    let thawed = pulse.thaw_after(fault);
    println!("   cancelled while held: a write got through after {} ms", thawed.as_millis());
    let id = hold.session;
    assert_eq!(hold.end().code, 124);
    let session = world.finished(id);
    assert_eq!(session.summary.result.as_deref(), Some("cancelled"), "{session:#?}");
    assert_clean_receipt(&session);
}

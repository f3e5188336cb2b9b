//! *Try, ignore failures*: every level to which a backup falls, with its reason, and what is never given up for one.

use crate::Scene;
use lull_engine::consistency::ConsistencyLevel;
use lull_engine::failover::FailureClass;
use lull_engine::settings::{ApplicationAware, ScriptMode};
use lull_guest_wire::RefusalKind;
use lull_proxy::channel::{ChannelError, FailureKind, Hop};
use lull_proxy::fake::guest::Behaviour;
use lull_proxy_wire::v1::task_event::Event;

/// Every level of *try*, with its reason. What fails a task that requires success leaves a restore point here.
#[tokio::test(start_paused = true)]
async fn try_falls_back_level_by_level_and_says_why() {
    type Spoil = fn(&mut Scene);
    let crash = Some(ConsistencyLevel::Crash);
    let file_system = Some(ConsistencyLevel::FileSystem);
    let cases: [(&str, Spoil, Option<ConsistencyLevel>, &str); 10] = [
        (
            "unreachable",
            |s| s.first.refuse = Some(refuse(FailureKind::Unreachable)),
            crash,
            "nothing was frozen in the guest: login: no",
        ),
        (
            "refused",
            |s| s.first.refuse = Some(refuse(FailureKind::Refused)),
            crash,
            "nothing was frozen in the guest: login: no",
        ),
        (
            "another host key",
            |s| s.first.refuse = Some(refuse(FailureKind::HostKey)),
            crash,
            "nothing was frozen in the guest: login: no",
        ),
        ("no deployment", |s| s.first.cut_after_bytes = Some(10), crash, "nothing was frozen in the guest: "),
        (
            "inventory",
            |s| s.behaviour.dies_at = Some("inventory"),
            crash,
            "nothing was frozen in the guest: the inventory failed",
        ),
        (
            "quiesce",
            |s| s.behaviour.dies_at = Some("quiesce"),
            crash,
            "nothing was frozen in the guest: the applications were not asked",
        ),
        (
            "arm",
            |s| s.behaviour.dies_at = Some("arm"),
            crash,
            "nothing was frozen in the guest: the freeze could not be prepared",
        ),
        (
            "freeze",
            |s| s.behaviour.refuses = Some(("freeze", RefusalKind::FreezeFailed)),
            crash,
            "nothing was frozen in the guest: the freeze failed",
        ),
        ("thaw", |s| s.behaviour.dies_at = Some("thaw"), crash, "the file system at /: its thaw was not confirmed"),
        (
            "application",
            |s| s.behaviour.application_fails = true,
            file_system,
            "PostgreSQL: it could not be brought to rest: it does not answer",
        ),
    ];
    for (name, spoil, level, because) in cases {
        for aware in [ApplicationAware::Try, ApplicationAware::RequireSuccess] {
            let mut scene = Scene::default();
            spoil(&mut scene);
            scene.settings.application_aware = aware;
            let played = scene.play().await;
            played.assert_promises(&format!("{name}, {aware:?}"));
            let words = played.words();
            if aware == ApplicationAware::RequireSuccess {
                assert_eq!(
                    (played.finished.outcome.as_str(), played.left_alone()),
                    ("failed", None),
                    "{name}\n{words}"
                );
                continue;
            }
            assert_eq!((played.finished.outcome.as_str(), played.level()), ("warning", level), "{name}\n{words}");
            assert!(played.because().starts_with(because), "{name}: {}", played.because());
            assert!(played.is_point(), "{name}");
            let frozen = level == file_system || name == "thaw";
            assert_eq!(played.snapshotter.snapshot_of_frozen, Some(frozen), "{name}");
            assert_eq!(played.left_alone().is_some(), !frozen, "{name}\n{words}");
        }
    }
}

fn refuse(kind: FailureKind) -> ChannelError {
    ChannelError::new(Hop::Login, kind, "no", "correct it")
}

#[tokio::test(start_paused = true)]
async fn a_refused_login_in_try_mode_is_the_last_one_and_the_server_hears_of_it_before_the_copy() {
    for kind in [FailureKind::Refused, FailureKind::Unknown] {
        let mut scene = Scene::default().with_scripts();
        scene.first.refuse = Some(refuse(kind));
        scene.settings.application_aware = ApplicationAware::Try;
        let played = scene.play().await;
        played.assert_promises("refused");
        assert_eq!((played.logins, played.finished.outcome.as_str()), (1, "warning"));
        assert!(played.guest.commands.is_empty(), "no script, no freeze: {:?}", played.guest.commands);
        let (untouched, refused) = played.left_alone().unwrap();
        assert!(untouched && refused.contains("no"), "{untouched} {refused}");
        let told = played.told.iter().position(|event| matches!(event, Event::GuestLeftAlone(_)));
        assert!(told < Some(played.place_of_end("copy")), "a server that is killed in the copy must know it");
        assert_eq!(played.finished.refused, refused);
    }
}

#[tokio::test(start_paused = true)]
async fn in_try_mode_another_proxy_has_its_turn_before_the_level_is_lowered() {
    let mut scene = Scene { last_proxy: false, ..Scene::default() };
    scene.first.refuse = Some(refuse(FailureKind::Unreachable));
    scene.settings.application_aware = ApplicationAware::Try;
    let played = scene.play().await;
    played.assert_promises("unreachable from here");
    assert_eq!((played.failure().class, played.left_alone()), (FailureClass::GuestUnreachable, None));
    assert!(!played.snapshotter.begun.contains(&"snapshot"));
}

#[tokio::test(start_paused = true)]
async fn scripts_keep_their_own_mode_in_try_mode() {
    let play = |mode: ScriptMode, spoil: fn(&mut Behaviour)| async move {
        let mut scene = Scene::default().with_scripts();
        scene.settings.application_aware = ApplicationAware::Try;
        scene.settings.scripts.linux.mode = mode;
        spoil(&mut scene.behaviour);
        let played = scene.play().await;
        played.assert_promises(&format!("{mode:?}"));
        played
    };
    let exit_3: fn(&mut Behaviour) = |guest| guest.script_exit = 3;
    let played = play(ScriptMode::RequireSuccess, exit_3).await;
    assert_eq!(played.failure().class, FailureClass::Script);
    let played = play(ScriptMode::IgnoreFailures, exit_3).await;
    let (outcome, level) = (played.finished.outcome.as_str(), played.level());
    assert_eq!((outcome, level), ("warning", Some(ConsistencyLevel::Application)));

    let dies: fn(&mut Behaviour) = |guest| guest.dies_at = Some("pre-script");
    let played = play(ScriptMode::RequireSuccess, dies).await;
    assert_eq!(played.finished.outcome, "failed");
    let played = play(ScriptMode::IgnoreFailures, dies).await;
    let (outcome, level) = (played.finished.outcome.as_str(), played.level());
    assert_eq!((outcome, level), ("warning", Some(ConsistencyLevel::Crash)), "{}", played.words());
    assert!(played.because().contains("the pre-freeze script did not run to its end"), "{}", played.because());
}

/// The component that freezes may be lost; that the guest is thawed and released is never given up for a restore point.
#[tokio::test(start_paused = true)]
async fn in_try_mode_a_guest_that_nobody_can_thaw_still_fails_the_task() {
    let mut failed = 0;
    for cut in (100..500).step_by(3) {
        let mut scene = Scene::default();
        scene.settings.application_aware = ApplicationAware::Try;
        scene.behaviour.watchdog_dies_too = true;
        scene.first.cut_after_bytes = Some(cut);
        scene.later.refuse = Some(refuse(FailureKind::Unreachable));
        let played = scene.play().await;
        if played.guest.frozen {
            assert!(played.finished.failure_json.contains("run this: thaw / by hand"), "{}", played.words());
            assert_eq!(played.finished.outcome, "failed");
            failed += 1;
        }
    }
    assert!(failed > 0, "no cut fell into the window");
}

//! Whole tasks against a guest and a hypervisor in memory, with everything going wrong that can.
//!
//! Each ends with the guest thawed, nothing held at the hypervisor, the post-thaw script run where the pre-freeze script
//! ran, and a level that is never better than the truth. Time is paused: waits cost nothing.

mod evicted;
mod falls_back;

use lull_engine::consistency::{ConsistencyLevel, Evidence, assess};
use lull_engine::failover::FailureClass;
use lull_engine::session::TaskFailure;
use lull_engine::settings::{ApplicationAware, GuestProcessing, Indexing};
use lull_engine::task_lease::TASK_LEASE_MS;
use lull_guest_wire::{RefusalKind, ScriptStage};
use lull_hypervisor::Base;
use lull_proxy::cancel::Cancel;
use lull_proxy::carried::Image;
use lull_proxy::channel::{ChannelError, FailureKind, Hop};
use lull_proxy::desk::{Clock, Lease};
use lull_proxy::fake::guest::{Behaviour, FakeGuest, State, Walk};
use lull_proxy::fake::snapshotter::FakeSnapshotter;
use lull_proxy::fake::{FakeConnector, Knobs};
use lull_proxy::order::{BackupSpec, TaskSpec, Work};
use lull_proxy::reporter::Reporter;
use lull_proxy::task::{self, Task};
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::task_event::Event;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// Of the task's order.
const FENCE: u64 = 17;
const COMPONENT: &[u8] = b"not really a program";
const COMMANDS: [&str; 10] =
    ["inventory", "pre-script", "quiesce", "arm", "freeze", "thaw", "release", "post-script", "bye", "renew"];

struct Scene {
    behaviour: Behaviour,
    first: Knobs,
    later: Knobs,
    snapshotter: FakeSnapshotter,
    settings: GuestProcessing,
    cancel_at: Option<&'static str>,
    /// The task lease has ended when this step begins.
    lease_ends_at: Option<&'static str>,
    stop_index: Cancel,
    last_proxy: bool,
}

struct Played {
    finished: v1::Finished,
    told: Vec<Event>,
    guest: State,
    snapshotter: FakeSnapshotter,
    logins: u32,
}

/// Without a listing, unless the scene is about one.
impl Default for Scene {
    fn default() -> Self {
        Scene {
            behaviour: Behaviour::default(),
            first: Knobs::default(),
            later: Knobs::default(),
            snapshotter: FakeSnapshotter::default(),
            settings: GuestProcessing { indexing: Some(Indexing::Disabled), ..GuestProcessing::default() },
            cancel_at: None,
            lease_ends_at: None,
            stop_index: Cancel::default(),
            last_proxy: true,
        }
    }
}

impl Scene {
    fn with_scripts(mut self) -> Self {
        self.settings.scripts.linux.pre = Some("#!/bin/sh\n".into());
        self.settings.scripts.linux.post = Some("#!/bin/sh\n".into());
        self
    }

    /// With a walk that brings so many frames, one each second.
    fn that_lists(mut self, frames: u32) -> Self {
        self.settings.indexing = Some(Indexing::Everything);
        self.behaviour.walk = Walk { frames, frame_takes: Duration::from_secs(1), ..Walk::default() };
        self
    }

    async fn play(mut self) -> Played {
        let guest = FakeGuest::new(COMPONENT.len(), self.behaviour);
        let mut connector = FakeConnector::new(guest.clone());
        (connector.first, connector.later) = (self.first, self.later);
        let (reporter, mut events) = Reporter::new();
        let now_ms = Arc::new(AtomicU64::new(0));
        let lease = Lease::new(Clock::new({
            let now_ms = now_ms.clone();
            move || now_ms.load(Ordering::SeqCst)
        }));
        lease.granted(lease.ask(), TASK_LEASE_MS);
        let cancel = Cancel::under(lease);
        let backup = BackupSpec {
            repository_dir: "/r".into(),
            point: "p1".into(),
            speed_limit_bytes_per_s: 0,
            bitmaps_owed: vec![],
            base: Base::Full { because: "it is the first".into() },
            origin: None,
        };
        let spec = TaskSpec {
            task_id: "t1".into(),
            epoch: 1,
            fence: FENCE,
            vm_name: "fake1".into(),
            guest: None,
            qemu: None,
            settings: self.settings,
            work: Work::Backup(Box::new(backup)),
            last_proxy: self.last_proxy,
            left_alone_because: None,
        };
        let (_hold, hold) = mpsc::channel(1);
        let listener = tokio::spawn({
            let cancel = cancel.clone();
            async move {
                let mut told = vec![];
                while let Some(event) = events.recv().await {
                    let event = event.unwrap().event.unwrap();
                    if matches!(&event, Event::StepStarted(started) if Some(started.step.as_str()) == self.cancel_at) {
                        cancel.cancel("a person asked");
                    }
                    if matches!(&event, Event::StepStarted(started) if Some(started.step.as_str()) == self.lease_ends_at)
                    {
                        now_ms.store(TASK_LEASE_MS, Ordering::SeqCst);
                        cancel.heed_lease();
                    }
                    told.push(event);
                }
                told
            }
        });
        let finished = task::run(Task {
            spec,
            connector: Some(&connector),
            image: &Image::new(COMPONENT),
            snapshotter: Some(&mut self.snapshotter),
            hold,
            reporter,
            cancel,
            stop_index: self.stop_index,
        })
        .await;
        // What the guest's own tasks still do, they do now.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let logins = *connector.connects.lock().unwrap();
        Played { finished, told: listener.await.unwrap(), guest: guest.state(), snapshotter: self.snapshotter, logins }
    }
}

impl Played {
    fn failure(&self) -> TaskFailure {
        serde_json::from_str(&self.finished.failure_json).unwrap_or_else(|e| panic!("{e}: {:?}", self.finished))
    }

    fn level(&self) -> Option<ConsistencyLevel> {
        let evidence: Evidence = serde_json::from_str(&self.finished.evidence_json).unwrap();
        assess(&evidence).level
    }

    /// Why the level is not better, the cause first.
    fn because(&self) -> String {
        let evidence: Evidence = serde_json::from_str(&self.finished.evidence_json).unwrap();
        assess(&evidence).reasons.first().map(ToString::to_string).unwrap_or_default()
    }

    /// What the backup server is told when the guest is left alone: untouched, and why the credential rests.
    fn left_alone(&self) -> Option<(bool, &str)> {
        self.told.iter().find_map(|event| match event {
            Event::GuestLeftAlone(left) => Some((left.untouched, left.refused.as_str())),
            _ => None,
        })
    }

    fn words(&self) -> String {
        self.told.iter().map(|event| format!("{event:?}\n")).collect()
    }

    /// Frames that went up, and how the listing ended; its end comes once, after them all.
    fn listed(&self) -> (usize, v1::IndexEnded) {
        let is_frame = |event: &Event| matches!(event, Event::IndexFrame(_));
        let ends = self.told.iter().enumerate().filter_map(|(at, event)| match event {
            Event::IndexEnded(ended) => Some((at, ended.clone())),
            _ => None,
        });
        let ends: Vec<_> = ends.collect();
        let [(at, ended)] = ends.as_slice() else { panic!("{} ends of one listing\n{}", ends.len(), self.words()) };
        assert!(!self.told[*at..].iter().any(is_frame), "a frame after the end\n{}", self.words());
        let frames = self.told.iter().filter(|event| is_frame(event)).count();
        assert_eq!((ended.frames, ended.bytes), (frames as u64, frames as u64 * 100));
        (frames, ended.clone())
    }

    fn place_of_end(&self, step: &str) -> usize {
        let is_it = |event: &Event| matches!(event, Event::StepEnded(ended) if ended.step == step);
        self.told.iter().position(is_it).unwrap_or_else(|| panic!("{step} did not end\n{}", self.words()))
    }

    /// It told of a restore point, with all that the server must know of it.
    fn is_point(&self) -> bool {
        let told = self.told.iter().filter_map(|event| match event {
            Event::RestorePointDone(done) => Some(done),
            _ => None,
        });
        let told: Vec<_> = told.collect();
        assert!(told.len() <= 1 && told.iter().all(|done| done.files.is_some()), "{told:?}");
        !told.is_empty()
    }

    /// What must hold however it ended.
    fn assert_promises(&self, scene: &str) {
        assert!(!self.guest.frozen, "{scene}: the guest stays frozen\n{}", self.words());
        assert!(!self.guest.component, "{scene}: a component stays\n{}", self.words());
        assert!(!self.snapshotter.holds_something, "{scene}: the hypervisor holds something\n{}", self.words());
        let ran = |stage| self.guest.scripts.contains(&stage);
        // A script whose component dies at it counts as having run: it is not run twice.
        let asked = self.guest.commands.contains(&"post-script");
        assert!(!ran(ScriptStage::PreFreeze) || asked, "{scene}: no post-thaw script\n{}", self.words());
        assert_eq!(self.is_point(), self.snapshotter.finished, "{scene}");
        if self.finished.outcome == "failed" {
            let failure = self.failure();
            assert!(!failure.cause.is_empty() && !failure.remedy.is_empty(), "{scene}: {failure:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_goes_well_reaches_application_level() {
    let played = Scene::default().with_scripts().play().await;
    played.assert_promises("all well");
    assert_eq!(played.finished.outcome, "success", "{}", played.words());
    assert_eq!(played.level(), Some(ConsistencyLevel::Application));
    assert_eq!(
        played.guest.commands,
        ["inventory", "pre-script", "quiesce", "arm", "freeze", "thaw", "release", "post-script", "bye"]
    );
    assert_eq!(played.snapshotter.begun, ["prepare", "snapshot", "copy", "finish", "abandon"]);
}

/// A full backup in an increment's place costs time and space: people learn why, and it is no warning.
#[tokio::test(start_paused = true)]
async fn why_a_backup_is_full_is_said_and_is_no_warning() {
    let because = "the dirty bitmap of disk vd0 is gone";
    let snapshotter = FakeSnapshotter { full_because: Some(because.into()), ..Default::default() };
    let played = Scene { snapshotter, ..Default::default() }.play().await;
    assert_eq!(played.finished.outcome, "success", "{}", played.words());
    let notes = played.told.iter().filter_map(|event| if let Event::Note(note) = event { Some(note) } else { None });
    let said: Vec<_> = notes.filter(|note| note.text.contains(because)).map(|note| note.level.as_str()).collect();
    assert_eq!(said, ["info"]);
    let incremental = Scene::default().play().await;
    assert!(!incremental.words().contains("a full backup"));
}

#[tokio::test(start_paused = true)]
async fn a_component_that_dies_at_any_command_leaves_a_thawed_guest() {
    for command in COMMANDS {
        for aware in [ApplicationAware::RequireSuccess, ApplicationAware::Try] {
            let mut scene = Scene::default().with_scripts();
            scene.behaviour.dies_at = Some(command);
            scene.settings.application_aware = aware;
            let played = scene.play().await;
            let scene = format!("component dies at {command}, {aware:?}");
            played.assert_promises(&scene);
            let dies_in_window = ["arm", "freeze", "thaw"].contains(&command);
            if dies_in_window {
                assert_ne!(played.level(), Some(ConsistencyLevel::Application), "{scene}");
                assert_eq!(
                    played.finished.outcome == "failed",
                    aware == ApplicationAware::RequireSuccess,
                    "{scene}\n{}",
                    played.words()
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_counts_as_done() {
    for command in COMMANDS {
        let mut scene = Scene::default().with_scripts();
        scene.behaviour.loses_answer_to = Some(command);
        let played = scene.play().await;
        played.assert_promises(&format!("lost answer to {command}"));
        if command == "freeze" {
            assert!(played.guest.was_frozen, "it was obeyed");
            assert!(played.guest.commands.contains(&"thaw"), "{:?}", played.guest.commands);
            assert_eq!(played.failure().class, FailureClass::FileSystem);
            assert!(played.level() < Some(ConsistencyLevel::FileSystem));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn component_and_watchdog_killed_together_are_thawed_by_hand() {
    let mut scene = Scene::default();
    (scene.behaviour.dies_at, scene.behaviour.watchdog_dies_too) = (Some("thaw"), true);
    let played = scene.play().await;
    played.assert_promises("both killed");
    assert!(played.words().contains("by hand: 1 of 1 file systems were still frozen"), "{}", played.words());
    assert_eq!(played.finished.outcome, "failed");
}

#[tokio::test(start_paused = true)]
async fn a_thaw_that_failed_is_no_thaw_and_the_next_rung_is_taken() {
    for no_fsfreeze in [false, true] {
        let mut scene = Scene::default().with_scripts();
        (scene.behaviour.thaw_fails, scene.behaviour.no_fsfreeze) = (true, no_fsfreeze);
        let played = scene.play().await;
        played.assert_promises("the component cannot thaw");
        let words = played.words();
        assert!(!played.told.iter().any(|event| matches!(event, Event::Thawed(_))), "{words}");
        assert!(words.contains("by hand: 1 of 1 file systems were still frozen"), "{words}");
        assert_eq!(words.contains("the guest has no fsfreeze"), no_fsfreeze, "{words}");
        assert!(played.failure().cause.contains("/ could not be thawed: Input/output error"), "{words}");
        assert!(played.finished.receipt.unwrap().thaw_confirmed, "by the ladder");
    }
}

#[tokio::test(start_paused = true)]
async fn where_nobody_can_thaw_a_person_gets_the_command() {
    let refuse = ChannelError::new(Hop::Route, FailureKind::Unreachable, "no way there", "build one");
    let mut helpless = 0;
    for cut in (100..500).step_by(3) {
        let mut scene = Scene::default();
        scene.behaviour.watchdog_dies_too = true;
        scene.later.refuse = Some(refuse.clone());
        scene.first.cut_after_bytes = Some(cut);
        let played = scene.play().await;
        let told = played.finished.failure_json.contains("run this: thaw / by hand");
        assert!(told || !played.guest.frozen, "cut after {cut}\n{}", played.words());
        let confirmed = played.finished.receipt.as_ref().is_some_and(|receipt| receipt.thaw_confirmed);
        assert!(!(confirmed && played.guest.frozen), "cut after {cut}\n{}", played.words());
        helpless += u32::from(played.guest.frozen);
    }
    assert!(helpless > 0, "no cut fell into the window");
}

#[tokio::test(start_paused = true)]
async fn a_cut_at_any_byte_leaves_a_thawed_guest() {
    for cut in (0..700).step_by(7) {
        let mut scene = Scene::default().with_scripts();
        scene.first.cut_after_bytes = Some(cut);
        scene.play().await.assert_promises(&format!("cut after {cut} bytes"));
    }
}

#[tokio::test(start_paused = true)]
async fn cancelled_at_any_step_the_guest_is_as_before() {
    let steps = ["connect", "deploy", "inventory", "pre-script", "quiesce", "freeze", "copy"];
    for step in steps {
        let mut scene = Scene { cancel_at: Some(step), ..Scene::default() }.with_scripts();
        scene.behaviour.work_takes = Duration::from_secs(5);
        scene.snapshotter.copy_takes = Duration::from_secs(60);
        let played = scene.play().await;
        played.assert_promises(&format!("cancelled at {step}"));
        assert_eq!(played.finished.outcome, "cancelled", "at {step}\n{}", played.words());
    }
}

#[tokio::test(start_paused = true)]
async fn a_hypervisor_that_fails_at_any_step_leaves_a_thawed_guest() {
    for step in ["prepare", "snapshot", "copy", "finish"] {
        let mut scene = Scene::default().with_scripts();
        scene.snapshotter.fails_at = Some(step);
        let played = scene.play().await;
        played.assert_promises(&format!("hypervisor fails at {step}"));
        assert_eq!(played.failure().class, FailureClass::Hypervisor, "at {step}");
        assert_eq!(played.guest.was_frozen, step != "prepare", "at {step}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_snapshot_is_renewed_and_stays_without_a_gap() {
    let mut scene = Scene::default();
    scene.settings.lease_ms = 2_000;
    scene.snapshotter.snapshot_takes = Duration::from_millis(7_500);
    let played = scene.play().await;
    played.assert_promises("slow snapshot");
    assert_eq!(played.finished.outcome, "success", "{}", played.words());
    let renewals = played.guest.commands.iter().filter(|command| **command == "renew").count();
    assert_eq!(renewals, 7);
}

#[tokio::test(start_paused = true)]
async fn a_refused_freeze_fails_or_falls_back_as_the_settings_say() {
    let play = |kind, aware| async move {
        let mut scene = Scene::default();
        scene.behaviour.refuses = Some(("freeze", kind));
        scene.settings.application_aware = aware;
        let played = scene.play().await;
        played.assert_promises(&format!("{kind:?} {aware:?}"));
        played
    };
    let played = play(RefusalKind::FreezeFailed, ApplicationAware::RequireSuccess).await;
    assert_eq!(played.failure().class, FailureClass::FileSystem);
    let played = play(RefusalKind::FreezeFailed, ApplicationAware::Try).await;
    assert_eq!((played.finished.outcome.as_str(), played.level()), ("warning", Some(ConsistencyLevel::Crash)));
    assert_eq!(played.snapshotter.snapshot_of_frozen, Some(false));
    // Somebody else's freeze is never worked around.
    let played = play(RefusalKind::SomebodyElse, ApplicationAware::Try).await;
    assert_eq!(played.finished.outcome, "failed");
}

#[tokio::test(start_paused = true)]
async fn applications_and_scripts_fail_the_task_or_lower_the_level() {
    let mut scene = Scene::default();
    scene.behaviour.application_fails = true;
    let played = scene.play().await;
    played.assert_promises("application fails");
    assert_eq!(played.failure().class, FailureClass::Application);
    assert!(!played.guest.was_frozen);

    let mut scene = Scene::default();
    scene.behaviour.application_fails = true;
    scene.settings.application_aware = ApplicationAware::Try;
    let played = scene.play().await;
    assert_eq!((played.finished.outcome.as_str(), played.level()), ("warning", Some(ConsistencyLevel::FileSystem)));

    let mut scene = Scene::default().with_scripts();
    scene.behaviour.script_exit = 3;
    let played = scene.play().await;
    played.assert_promises("script fails");
    assert_eq!(played.failure().class, FailureClass::Script);
    assert!(played.failure().cause.contains("exit code 3") && !played.guest.was_frozen, "{:?}", played.failure());
}

#[tokio::test(start_paused = true)]
async fn a_refused_login_is_final_and_touches_nothing() {
    let refuse = ChannelError::new(Hop::Login, FailureKind::Refused, "no", "correct it");
    let mut scene = Scene::default();
    scene.first.refuse = Some(refuse);
    let played = scene.play().await;
    assert_eq!(played.failure().class, FailureClass::RefusedCredential);
    assert!(played.guest.commands.is_empty() && played.snapshotter.begun.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_login_refused_on_the_way_back_is_the_last_one() {
    for kind in [FailureKind::Refused, FailureKind::Unknown] {
        let (mut refused, mut while_frozen) = (0, 0);
        for cut in (0..700).step_by(7) {
            for watchdog_dies_too in [false, true] {
                let mut scene = Scene::default().with_scripts();
                scene.behaviour.watchdog_dies_too = watchdog_dies_too;
                scene.first.cut_after_bytes = Some(cut);
                scene.later.refuse = Some(ChannelError::new(Hop::Login, kind, "no", "correct it"));
                let played = scene.play().await;
                let scene = format!("{kind:?}, cut after {cut}\n{}", played.words());
                assert!(played.logins <= 2, "{} logins: {scene}", played.logins);
                // The backup server must know it, or its recovery would be the next attempt.
                assert_eq!(played.finished.refused.is_empty(), played.logins == 1, "{scene}");
                refused += u32::from(played.logins == 2);
                while_frozen += u32::from(played.guest.frozen);
            }
        }
        assert!(refused > 0 && while_frozen > 0, "no cut reached the ladder: {refused}, {while_frozen}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_files_are_listed_beside_the_copy_and_neither_waits_for_the_other() {
    for (frames, copy_seconds) in [(40, 5), (5, 40)] {
        let mut scene = Scene::default().with_scripts().that_lists(frames);
        scene.snapshotter.copy_takes = Duration::from_secs(copy_seconds);
        let played = scene.play().await;
        played.assert_promises("listed");
        assert_eq!(played.finished.outcome, "success", "{}", played.words());
        assert_eq!(
            played.guest.commands[6..],
            ["release", "post-script", "index", "bye"],
            "after everything that the guest waits for"
        );
        let (sent, ended) = played.listed();
        assert_eq!((sent, ended.complete, ended.entries), (frames as usize, true, frames.into()));
        let backup_first = played.place_of_end("verify") < played.place_of_end("index");
        assert_eq!(backup_first, u64::from(frames) > copy_seconds, "{}", played.words());
    }
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_fails_is_a_warning_and_the_backup_as_good_as_ever() {
    type Spoil = fn(&mut Behaviour);
    let cases: [(&str, Spoil, &str); 5] = [
        ("dies at the order", |guest| guest.dies_at = Some("index"), "the connection to the runtime component broke"),
        ("dies in mid-walk", |guest| guest.walk.dies_after = Some(3), "the connection to the runtime component broke"),
        ("refuses", |guest| guest.refuses = Some(("index", RefusalKind::Failed)), "as the knob says"),
        ("hangs", |guest| guest.walk.hangs = true, "the component said nothing for 60 s"),
        ("never ends", |guest| guest.loses_answer_to = Some("index"), "the walk brought nothing for 15 minutes"),
    ];
    for (scene_name, spoil, why) in cases {
        let mut scene = Scene::default().with_scripts().that_lists(5);
        spoil(&mut scene.behaviour);
        let played = scene.play().await;
        played.assert_promises(scene_name);
        assert_eq!(played.finished.outcome, "warning", "{scene_name}\n{}", played.words());
        assert_eq!(played.level(), Some(ConsistencyLevel::Application), "{scene_name}");
        let (_, ended) = played.listed();
        assert!(!ended.complete && ended.stopped_because.contains(why), "{scene_name}: {ended:?}");
        let warning = format!("the guest's files were not all listed: {}", ended.stopped_because);
        assert!(played.words().contains(&warning), "{scene_name}\n{}", played.words());
    }
}

#[tokio::test(start_paused = true)]
async fn the_server_stops_a_listing_and_the_backup_goes_on() {
    let mut scene = Scene::default().that_lists(1_000);
    scene.snapshotter.copy_takes = Duration::from_secs(30);
    let stop = scene.stop_index.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(10)).await;
        stop.cancel("the backup server's disk is full");
    });
    let played = scene.play().await;
    played.assert_promises("stopped");
    let (frames, ended) = played.listed();
    assert!((5..15).contains(&frames), "{frames}");
    assert_eq!(ended.stopped_because, "the backup server's disk is full");
    assert!(played.guest.commands.contains(&"cancel-index"));
    assert_eq!(played.finished.outcome, "warning");
    assert!(played.is_point());
}

#[tokio::test(start_paused = true)]
async fn a_backup_that_fails_or_is_cancelled_ends_the_listing() {
    let mut scene = Scene::default().that_lists(1_000_000);
    scene.snapshotter.fails_at = Some("finish");
    scene.snapshotter.copy_takes = Duration::from_secs(5);
    let played = scene.play().await;
    played.assert_promises("verify fails");
    assert_eq!(played.failure().class, FailureClass::Hypervisor);
    assert!(!played.listed().1.complete);

    for step in ["index", "copy", "verify"] {
        let mut scene = Scene { cancel_at: Some(step), ..Scene::default() }.that_lists(1_000_000);
        // Cancelled at *verify*, the restore point is there: nothing is left to be cancelled but the listing.
        scene.snapshotter.copy_takes = Duration::from_secs(if step == "verify" { 0 } else { 60 });
        let played = scene.play().await;
        played.assert_promises(&format!("cancelled at {step}"));
        assert_eq!(played.listed().1.stopped_because, "a person asked", "at {step}");
        let expect = if step == "verify" { "warning" } else { "cancelled" };
        assert_eq!(played.finished.outcome, expect, "at {step}\n{}", played.words());
    }
}

#[tokio::test(start_paused = true)]
async fn files_are_listed_unless_the_settings_say_otherwise() {
    let mut scene = Scene::default().that_lists(3);
    scene.settings.indexing = None;
    let played = scene.play().await;
    assert_eq!(played.listed().0, 3, "{}", played.words());

    let mut scene = Scene::default().that_lists(3);
    scene.settings.indexing = Some(Indexing::Disabled);
    let played = scene.play().await;
    assert!(!played.guest.commands.contains(&"index"));
    assert!(!played.words().contains("Index"), "{}", played.words());
}

#[tokio::test(start_paused = true)]
async fn a_cut_while_files_are_listed_leaves_a_restore_point_and_nothing_else() {
    let mut cut_in_the_walk = 0;
    for cut in (600..2_400).step_by(53) {
        let mut scene = Scene::default().that_lists(10);
        scene.first.cut_after_bytes = Some(cut);
        let played = scene.play().await;
        played.assert_promises(&format!("cut after {cut} bytes"));
        if played.told.iter().any(|event| matches!(event, Event::IndexEnded(ended) if !ended.complete)) {
            cut_in_the_walk += 1;
            assert!(played.is_point(), "cut after {cut} bytes\n{}", played.words());
        }
    }
    assert!(cut_in_the_walk > 3, "{cut_in_the_walk} cuts fell into the walk");
}

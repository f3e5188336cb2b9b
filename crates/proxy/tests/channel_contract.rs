//! The fake channel keeps the contract that the real ones keep, and its knobs break it as they say.

#[path = "support/contract.rs"]
mod contract;

use lull_proxy::channel::{FailureKind, GuestChannel, Limits, Script};
use lull_proxy::fake::{FakeChannel, Knobs};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn the_fake_keeps_the_contract() {
    contract::holds(&FakeChannel::local(Knobs::default())).await;
    let slow = Knobs { delay: Duration::from_millis(1), ..Knobs::default() };
    contract::holds(&FakeChannel::local(slow)).await;
}

#[tokio::test]
async fn a_cut_is_a_broken_connection_at_every_byte() {
    let script = Script::new("test", "echo 123456789");
    for cut in 0..10 {
        let knobs = Knobs { cut_after_bytes: Some(cut), ..Knobs::default() };
        let error = FakeChannel::local(knobs).exec_elevated(&script, b"", Limits::default()).await.unwrap_err();
        assert_eq!(error.kind, FailureKind::Unreachable, "cut after {cut}");
    }
}

#[tokio::test]
async fn a_silent_guest_runs_into_the_limit() {
    let silent = FakeChannel::local(Knobs { silent: true, ..Knobs::default() });
    let limits = Limits { timeout: Duration::from_millis(200), ..Limits::default() };
    let error = silent.exec_elevated(&Script::new("test", "echo x; sleep 5"), b"", limits).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::GuestSide);
}

//! What may be retried, what fails over, what is final; remembered failures and refused credentials.

use crate::world::{any_failures, at_ms, failure, now, server_id, vm_id};
use lull_engine::failover::{
    FAILURE_REMEMBERED_MS, FailureClass, FailureMemory, NextMove, Refusal, Refusals, Resting, next_move,
};
use lull_engine::ids::{CredentialId, SessionId};
use proptest::prelude::*;
use uuid::Uuid;

const ALL: [FailureClass; 18] = [
    FailureClass::RefusedCredential,
    FailureClass::ChangedHostKey,
    FailureClass::GuestUnreachable,
    FailureClass::ProxyUnreachable,
    FailureClass::ProxyLost,
    FailureClass::NoProxy,
    FailureClass::GuestSide,
    FailureClass::Script,
    FailureClass::Application,
    FailureClass::FileSystem,
    FailureClass::Hypervisor,
    FailureClass::VmBusy,
    FailureClass::Repository,
    FailureClass::Caller,
    FailureClass::Cancelled,
    FailureClass::ServerRestarted,
    FailureClass::Gone,
    FailureClass::Internal,
];

fn moves(class: FailureClass) -> Vec<NextMove> {
    (1..=11).map(|attempts| next_move(class, attempts)).collect()
}

#[test]
fn a_guest_is_connected_to_once_more_and_a_proxy_ten_times() {
    use NextMove::{NextProxy, RetrySame};
    assert_eq!(moves(FailureClass::GuestUnreachable)[..3], [RetrySame, NextProxy, NextProxy]);
    let proxy = moves(FailureClass::ProxyUnreachable);
    assert_eq!((&proxy[..9], &proxy[9..]), (&[RetrySame; 9][..], &[NextProxy; 2][..]));
    assert_eq!(moves(FailureClass::ProxyLost)[0], NextProxy);
}

#[test]
fn only_what_another_proxy_could_do_better_fails_over() {
    let fail_over: Vec<FailureClass> =
        ALL.into_iter().filter(|class| next_move(*class, u32::MAX) == NextMove::NextProxy).collect();
    assert_eq!(fail_over, [FailureClass::GuestUnreachable, FailureClass::ProxyUnreachable, FailureClass::ProxyLost]);
}

#[test]
fn a_refused_login_is_never_tried_again() {
    assert!(moves(FailureClass::RefusedCredential).iter().all(|next| *next == NextMove::Final));
}

fn credential(n: u128) -> CredentialId {
    CredentialId(Uuid::from_u128(n))
}

fn refusals() -> Refusals {
    let mut refusals = Refusals::default();
    refusals.record(Refusal {
        credential: credential(1),
        revision: 3,
        vm: vm_id(1),
        vm_name: "vm-1".into(),
        session: Some(SessionId(7)),
        at: now(),
        cause: "the login of root was refused".into(),
    });
    refusals
}

#[test]
fn a_refused_credential_rests_for_its_vm_until_it_changes_and_for_others_until_the_session_ends() {
    let refusals = refusals();
    let tried = |vm, revision, session| refusals.may_try(credential(1), revision, vm_id(vm), session);
    let this = Some(SessionId(7));
    let later = Some(SessionId(8));
    assert!(matches!(tried(1, 3, this), Err(Resting::RefusedHere { .. })));
    assert!(matches!(tried(1, 3, later), Err(Resting::RefusedHere { .. })));
    assert!(matches!(tried(1, 3, None), Err(Resting::RefusedHere { .. })), "Test now is bound too");
    assert!(matches!(tried(2, 3, this), Err(Resting::RefusedInThisSession { .. })));
    assert_eq!(tried(2, 3, later), Ok(()));
    assert_eq!(tried(2, 3, None), Ok(()));
    assert_eq!(tried(1, 4, this), Ok(()), "a changed credential may be tried");
    assert_eq!(refusals.may_try(credential(2), 3, vm_id(1), this), Ok(()));
}

#[test]
fn a_resting_credential_says_where_it_was_refused_and_why_it_is_not_tried() {
    let said = refusals().may_try(credential(1), 3, vm_id(1), None).expect_err("it rests").to_string();
    assert_eq!(
        said,
        "vm-1 refused this credential at 2030-01-01T12:00:00Z (the login of root was refused); it was tried once and \
         will not be tried again until it is changed or released"
    );
}

#[test]
fn a_person_releases_a_credential_for_every_vm() {
    let mut refusals = refusals();
    refusals.release(credential(1));
    assert_eq!(refusals.may_try(credential(1), 3, vm_id(1), Some(SessionId(7))), Ok(()));
}

#[test]
fn a_failure_is_forgotten_after_fifteen_minutes_or_a_success() {
    let mut memory = FailureMemory::default();
    memory.remember(failure(vm_id(1), server_id(1), now()));
    let end = i64::try_from(FAILURE_REMEMBERED_MS).expect("it fits");
    assert!(memory.recent(vm_id(1), server_id(1), at_ms(end - 1)).is_some());
    assert!(memory.recent(vm_id(1), server_id(1), at_ms(end)).is_none());
    assert!(memory.recent(vm_id(1), server_id(2), now()).is_none());
    assert!(memory.recent(vm_id(2), server_id(1), now()).is_none());
    memory.forgive(vm_id(1), server_id(1));
    assert!(memory.recent(vm_id(1), server_id(1), now()).is_none());
}

proptest! {
    #[test]
    fn forgetting_what_no_longer_counts_changes_no_answer(memory in any_failures(), ms in 0i64..1_800_000) {
        let later = at_ms(ms);
        let mut swept = memory.clone();
        swept.expire(later);
        for vm in (0..4).map(vm_id) {
            for server in (0..7).map(server_id) {
                prop_assert_eq!(memory.recent(vm, server, later), swept.recent(vm, server, later));
            }
            prop_assert_eq!(memory.any_of(vm), memory.iter().any(|failure| failure.vm == vm));
        }
    }

    #[test]
    fn memory_survives_json(memory in any_failures()) {
        let text = serde_json::to_string(&memory).expect("JSON");
        prop_assert_eq!(serde_json::from_str::<FailureMemory>(&text).expect("the same"), memory);
    }
}

//! Who may become a proxy and stay one: tokens, authorities, certificates, revocation, versions.

use crate::fake::Fake;
use crate::harness::{Place, Server, clock_at, problem};
use crate::remote::{Machine, join_with, one_remote, proxy_address, seen, token, try_join};
use lull_api::infrastructure::{JoinToken, NewJoinToken, Proxy};
use lull_proxy::join::{self, Name};
use lull_proxy::membership::{Membership, NewKey, save};
use lull_server::CatalogPace;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn server() -> (Place, Server) {
    let place = Place::new();
    let server = Server::start(&place.state, &[Fake::embedded()]).await;
    (place, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_for_one_machine() {
    let (_place, server) = server().await;
    let made = token(&server, NewJoinToken::default()).await;
    let key = NewKey::make().unwrap();
    let first = join_with(&server, &made, "p1", &key).await.unwrap();
    // The answer may have been lost: the same machine is answered again, and is the same proxy.
    let again = join_with(&server, &made, "p1", &key).await.unwrap();
    assert_eq!(first.server_id, again.server_id);
    let why = try_join(&server, &made, "p2").await.unwrap_err();
    assert!(why.contains("the token was used already") && why.contains("is now the proxy p1"), "{why}");
    assert!(why.contains("lull proxy token") && why.contains("lull proxy revoke p1"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_expires_and_its_secret_must_be_right() {
    let (_place, server) = server().await;
    let made = token(&server, NewJoinToken { valid_for_s: Some(60), ..NewJoinToken::default() }).await;
    let mut guessed = made.clone();
    let at = "lull1-".len() + 17;
    let other = if &made[at..=at] == "0" { "1" } else { "0" };
    guessed.replace_range(at..=at, other);
    let why = try_join(&server, &guessed, "p1").await.unwrap_err();
    assert!(why.contains("not known here"), "{why}");
    let hour = jiff::SignedDuration::from_hours(1);
    server.clock.set(server.clock.now().saturating_add(hour).unwrap());
    let why = try_join(&server, &made, "p1").await.unwrap_err();
    assert!(why.contains("the token expired at") && why.contains("lull proxy token"), "{why}");
    let wrong = NewJoinToken { valid_for_s: Some(30 * 86_400), ..NewJoinToken::default() };
    let refused = problem(server.client.post::<JoinToken>("/proxies/tokens", &wrong).await);
    assert!(refused.what.contains("valid_for_s"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_server_is_shown_to_nobody() {
    let ((_place, server), (_other_place, other)) = (self::server().await, self::server().await);
    let foreign = token(&other, NewJoinToken::default()).await;
    let why = try_join(&server, &foreign, "p1").await.unwrap_err();
    assert!(why.contains("is not the backup server that is meant"), "{why}");
    // The token was not used up.
    try_join(&other, &foreign, "p1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_proxies_do_not_have_one_name() {
    let (_place, server) = server().await;
    try_join(&server, &token(&server, NewJoinToken::default()).await, "p1").await.unwrap();
    let second = token(&server, NewJoinToken::default()).await;
    let why = try_join(&server, &second, "p1").await.unwrap_err();
    assert!(why.contains("a managed server named p1 already") && why.contains("--name"), "{why}");
    // The token is still good under another name.
    try_join(&server, &second, "p2").await.unwrap();
    let taken = NewJoinToken { name: Some("p2".into()), ..NewJoinToken::default() };
    let refused = problem(server.client.post::<JoinToken>("/proxies/tokens", &taken).await);
    assert!(refused.remedy.unwrap().contains("lull proxy token --again p2"));
    for odd in [" p3", "p/3", "load", "tokens", ""] {
        let why = try_join(&server, &token(&server, NewJoinToken::default()).await, odd).await.unwrap_err();
        assert!(why.contains("no slash"), "{odd}: {why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_contradicts_the_token_s_is_refused_and_the_advice_works() {
    let (_place, server) = server().await;
    let named = |name: &str| NewJoinToken { name: Some(name.into()), ..NewJoinToken::default() };
    // Two tokens for one name, both made before anybody came.
    let (first, second) = (token(&server, named("dup")).await, token(&server, named("dup")).await);
    let given = async |token: &str, name: &str| {
        let (address, token, key) = (proxy_address(&server), token.parse().unwrap(), NewKey::make().unwrap());
        let joined = join::join(&address, &token, &Name::Given(name.into()), &key).await;
        joined.map_err(|error| error.to_string())
    };
    let why = given(&first, "zzz").await.unwrap_err();
    assert!(why.contains("made for the name dup, not for zzz") && why.contains("without --name"), "{why}");
    assert_eq!(given(&first, "dup").await.unwrap().name, "dup");
    let why = try_join(&server, &second, "zzz").await.unwrap_err();
    assert!(why.contains("a managed server named dup already") && !why.contains("(--name)"), "{why}");
    assert!(why.contains("lull proxy token --name OTHER") && why.contains("lull proxy token --again dup"), "{why}");
    let again = token(&server, NewJoinToken { again: Some("dup".into()), ..NewJoinToken::default() }).await;
    assert_eq!(try_join(&server, &again, "zzz").await.unwrap().name, "dup", "a machine's own name does not count");
}

#[tokio::test(flavor = "multi_thread")]
async fn advice_about_a_taken_name_fits_the_backup_server_s_own_too() {
    let (_place, server) = server().await;
    let own = NewJoinToken { name: Some("backup-server".into()), ..NewJoinToken::default() };
    let refused = problem(server.client.post::<JoinToken>("/proxies/tokens", &own).await);
    let remedy = refused.remedy.unwrap();
    assert!(
        refused.code == "name-taken" && remedy.contains("choose another") && !remedy.contains("--again"),
        "{remedy}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_answers_what_the_list_then_says() {
    let (_place, server, _own, _machine) = one_remote().await;
    let _: Proxy = server.client.patch("/proxies/near", &serde_json::json!({"slots": 5})).await.unwrap();
    let revoked: Proxy = server.client.post("/proxies/near/revoke", &()).await.unwrap();
    assert_eq!((revoked.slots, revoked.slots_set, revoked.state.as_str()), (5, Some(5), "revoked"));
    let listed: Vec<Proxy> = server.client.get("/proxies").await.unwrap();
    let listed = listed.iter().find(|proxy| proxy.name == "near").unwrap();
    assert_eq!((listed.slots, listed.slots_set), (revoked.slots, revoked.slots_set));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_joins_again_keeps_its_place_and_its_old_identity_ends() {
    let (_place, server, _own, machine) = one_remote().await;
    let again = NewJoinToken { again: Some("near".into()), ..NewJoinToken::default() };
    let made = token(&server, again).await;
    let identity = try_join(&server, &made, "whatever").await.unwrap();
    assert_eq!(identity.name, "near");
    let dismissed = machine.dismissed().await;
    assert!(dismissed.for_good && dismissed.why.contains("join again"), "{dismissed:?}");
    let state = tempfile::tempdir().unwrap();
    save(state.path(), &identity, false).unwrap();
    let _machine = Machine::with(state, &Fake::named("near", false));
    seen(&server, "near", "online").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_renew_themselves_and_an_old_one_admits_for_renewing() {
    let (_place, server, _own, machine) = one_remote().await;
    let first = Membership::open(machine.state.path()).unwrap().identity();
    let later = |hours| server.clock.now().saturating_add(jiff::SignedDuration::from_hours(hours)).unwrap();
    server.clock.set(later(13));
    renewed(&machine.fake, 1).await;
    let second = Membership::open(machine.state.path()).unwrap().identity();
    assert_ne!(first, second);

    // Away for three days: it ran out, and is renewed on arrival.
    let (fake, state) = (machine.fake.clone(), machine.off().await);
    seen(&server, "near", "offline").await;
    server.clock.set(later(72));
    let machine = Machine::with(state, &fake);
    renewed(&fake, 2).await;
    seen(&server, "near", "online").await;

    // The key of before counts no more, as a thief would find.
    let stolen = tempfile::tempdir().unwrap();
    save(stolen.path(), &first, false).unwrap();
    let thief = Machine::with(stolen, &Fake::named("near", false)).dismissed().await;
    assert!(thief.why.contains("another machine has renewed this proxy's identity"), "{thief:?}");

    // Away for too long.
    let state = machine.off().await;
    server.clock.set(later(24 * 40));
    let dismissed = Machine::with(state, &fake).dismissed().await;
    assert!(
        dismissed.why.contains("too long ago to be renewed") && dismissed.why.contains("lull proxy join"),
        "{dismissed:?}"
    );
}

async fn renewed(fake: &Fake, times: u32) {
    for _ in 0..1_500 {
        if fake.renewals.load(Ordering::SeqCst) >= times {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it was not renewed {times} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_clock_is_off_by_a_day_is_joined_and_worked_for() {
    for hours in [-24, 24] {
        let place = Place::new();
        let off = jiff::Timestamp::now().saturating_add(jiff::SignedDuration::from_hours(hours)).unwrap();
        let clock = clock_at(&off.to_string());
        let server =
            Server::start_with(&place.state, &[Fake::embedded()], clock, CatalogPace::default()).await.unwrap();
        let _machine = Machine::joined(&server, &Fake::named("p1", false)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_machine_is_turned_away_while_the_first_one_answers() {
    let (_place, server, _own, machine) = one_remote().await;
    let copy = tempfile::tempdir().unwrap();
    save(copy.path(), &Membership::open(machine.state.path()).unwrap().identity(), false).unwrap();
    let second = Fake::named("near", false);
    let copied = Machine::with(copy, &second);
    for _ in 0..1_500 {
        if !second.dismissals.lock().unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let told = second.dismissals.lock().unwrap().clone();
    assert!(told[0].contains("another process with the identity of near is connected"), "{told:?}");
    seen(&server, "near", "online").await;
    assert!(machine.fake.dismissals.lock().unwrap().is_empty());
    copied.off().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_one_generation_apart_work_and_others_are_named() {
    let (_place, server) = server().await;
    let fake = Fake::named("p1", false);
    fake.generation.store(lull_proxy_wire::GENERATION + 1, Ordering::SeqCst);
    let machine = Machine::joined(&server, &fake).await;
    fake.generation.store(lull_proxy_wire::GENERATION + 2, Ordering::SeqCst);
    let listed = seen(&server, "p1", "incompatible").await;
    let why = listed.problem.unwrap();
    assert!(why.contains("it runs Lull 0.1.0 (protocol 3)") && why.contains("upgrade the backup server"), "{why}");
    drop(machine);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_proxy_is_gone_and_says_so() {
    let (_place, server, _own, machine) = one_remote().await;
    server.client.delete("/proxies/near").await.unwrap();
    let proxies: Vec<Proxy> = server.client.get("/proxies").await.unwrap();
    assert_eq!(proxies.iter().map(|proxy| proxy.name.as_str()).collect::<Vec<_>>(), ["backup-server"]);
    let dismissed = machine.dismissed().await;
    assert!(dismissed.why.contains("not in the backup infrastructure any more"), "{dismissed:?}");
    let own = problem(server.client.delete("/proxies/backup-server").await);
    assert_eq!(own.code, "own-proxy");
}

/// Whoever reaches the port and speaks something else holds nothing and is not answered.
#[tokio::test(flavor = "multi_thread")]
async fn noise_on_the_port_harms_nobody() {
    let (_place, server) = server().await;
    let mut noise = tokio::net::TcpStream::connect(proxy_address(&server)).await.unwrap();
    noise.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), noise.read_to_end(&mut answer)).await.unwrap().unwrap_or_default();
    assert!(!answer.starts_with(b"HTTP"));
    let _silent = tokio::net::TcpStream::connect(proxy_address(&server)).await.unwrap();
    let _machine = Machine::joined(&server, &Fake::named("p1", false)).await;
}

//! Addresses of guests: by hand, from DNS, from the guest agent.

use crate::fake::Fake;
use crate::harness::{Place, Server, furnish, problem};
use lull_api::infrastructure::{Host, ProxyExplanation, Vm};
use lull_api::job::GuestSettings;
use serde_json::json;

async fn set(server: &Server, addresses: &[&str]) -> Vm {
    server.client.patch("/vms/db", &json!({ "addresses": addresses })).await.unwrap()
}

fn known(vm: &Vm) -> Vec<(&str, &str)> {
    vm.known_addresses.iter().map(|known| (known.address.as_str(), known.from.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guests_addresses_come_from_its_agent_from_dns_and_by_hand_which_wins() {
    let (place, mut site) = (Place::new(), Fake::named("site-a", false));
    site.networks = vec!["198.51.100.0/24".into()];
    let own = Fake::embedded();
    own.agents.lock().unwrap().insert("db".into(), vec!["198.51.100.7".into()]);
    let server = Server::start(&place.state, &[own.clone(), site]).await;
    furnish(&server, &place, &["db"], GuestSettings::default()).await;
    let tier = async || {
        let why: ProxyExplanation = server.client.get("/vms/db/proxy-explain").await.unwrap();
        (why.chosen, why.tier)
    };
    // By hand: 192.0.2.10, in nobody's network.
    let vm: Vm = server.client.get("/vms/db").await.unwrap();
    assert_eq!(known(&vm), [("192.0.2.10", "by hand")]);
    assert_eq!(tier().await, (Some("site-a".into()), Some(3)));

    let vm = set(&server, &[]).await;
    assert_eq!(known(&vm), [("198.51.100.7", "guest agent")]);
    assert_eq!(tier().await, (Some("site-a".into()), Some(1)));
    server.finished(server.run("j").await.summary.id).await;
    // An agent that does not answer takes nothing back; one that says something else does.
    own.agents.lock().unwrap().clear();
    let _: Host = server.client.post("/hosts/h/rescan", &()).await.unwrap();
    assert_eq!(known(&server.client.get::<Vm>("/vms/db").await.unwrap()), [("198.51.100.7", "guest agent")]);
    own.agents.lock().unwrap().insert("db".into(), vec!["203.0.113.5".into()]);
    let _: Host = server.client.post("/hosts/h/rescan", &()).await.unwrap();
    assert_eq!(known(&server.client.get::<Vm>("/vms/db").await.unwrap()), [("203.0.113.5", "guest agent")]);

    let vm = set(&server, &["LocalHost.", "192.0.2.11"]).await;
    assert_eq!(vm.addresses, ["localhost", "192.0.2.11"]);
    assert!(known(&vm).contains(&("127.0.0.1", "DNS localhost")), "{vm:?}");
    assert!(known(&vm).contains(&("192.0.2.11", "by hand")), "{vm:?}");
    assert_eq!(vm.address_problem, None);
    for wrong in ["a b", "10.0.0.256", "-x", "x/y"] {
        let refused = problem(server.client.patch::<Vm>("/vms/db", &json!({ "addresses": [wrong] })).await);
        assert!(refused.what.contains("nor a DNS name"), "{wrong}: {}", refused.what);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_nowhere_is_told() {
    let (place, own) = (Place::new(), Fake::embedded());
    let server = Server::start(&place.state, std::slice::from_ref(&own)).await;
    furnish(&server, &place, &["db"], GuestSettings::default()).await;
    let vm = set(&server, &["no-such-guest.invalid"]).await;
    assert!(known(&vm).is_empty(), "{vm:?}");
    assert!(vm.address_problem.unwrap().starts_with("no-such-guest.invalid cannot be resolved"));
    let why: ProxyExplanation = server.client.get("/vms/db/proxy-explain").await.unwrap();
    assert!(why.candidates[0].reason.contains("no known address"), "{why:?}");
    assert!(why.summary.contains("no-such-guest.invalid cannot be resolved"), "{why:?}");
}

//! The proxy's calls over an in-memory stream, as the embedded proxy gets one.

#[path = "support/embedded.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod embedded;

use embedded::{embedded, on_line};
use lull_proxy::desk::{Desk, ProxyConfig};
use lull_proxy_wire::v1;
use std::time::Duration;

#[tokio::test]
async fn a_proxy_says_who_it_is_and_ends_with_its_connection() {
    let (mut client, proxy) = embedded(ProxyConfig { slots: 3, ..ProxyConfig::default() }).await;
    let description = client.describe(v1::DescribeRequest::default()).await.unwrap().into_inner();
    assert_eq!((description.platform.as_str(), description.slots), ("linux", 3));
    assert_eq!(description.channels, ["ssh"]);
    assert!(description.networks.iter().all(|n| !n.starts_with("127.")), "{:?}", description.networks);
    drop(client);
    tokio::time::timeout(std::time::Duration::from_secs(5), proxy).await.expect("ends").unwrap();
}

/// A remote proxy dials again at once: the tasks at its desk wait for that, whatever a recovery still does.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_ends_waits_for_nobody_and_the_desk_knows_who_works() {
    let folder = tempfile::tempdir().unwrap();
    // A monitor that never greets.
    let _monitor = tokio::net::UnixListener::bind(folder.path().join("db.qmp")).unwrap();
    let desk = Desk::new(ProxyConfig::default());
    let (mut client, line) = on_line(&desk).await;
    let target =
        v1::QemuTarget { sockets_dir: folder.path().display().to_string(), vm: "db".into(), ..Default::default() };
    let recover = v1::RecoverOrder {
        vm_name: "db".into(),
        hypervisor: Some(v1::HypervisorTarget { kind: Some(v1::hypervisor_target::Kind::Qemu(target)) }),
        repository_dir: folder.path().display().to_string(),
        ..Default::default()
    };
    let mut told = client.recover(recover).await.unwrap().into_inner();
    told.message().await.unwrap().expect("it begins");
    drop((told, client));
    tokio::time::timeout(Duration::from_secs(5), line).await.expect("the line ended").unwrap();
    assert_eq!(desk.running(), 1);
    tokio::time::timeout(Duration::from_secs(120), desk.calls_undone()).await.expect("it came to its end");
    assert_eq!(desk.running(), 0);
}

#[tokio::test]
async fn an_order_that_makes_no_sense_is_refused_before_anything_is_done() {
    let (mut client, _proxy) = embedded(ProxyConfig::default()).await;
    let order = v1::TaskOrder { vm_name: "db1".into(), ..Default::default() };
    let message = v1::ToTask { message: Some(v1::to_task::Message::Order(order)) };
    let status = client.run_task(tokio_stream::once(message)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(status.message().contains("does not say what to do"), "{status:?}");
    let renewal = v1::ToTask { message: Some(v1::to_task::Message::Renew(v1::HoldRenewal {})) };
    let status = client.run_task(tokio_stream::once(renewal)).await.unwrap_err();
    assert!(status.message().contains("the first message of a task is its order"), "{status:?}");
}

#[tokio::test]
async fn a_folder_without_vms_is_an_empty_list_and_a_missing_one_is_named() {
    let (mut client, _proxy) = embedded(ProxyConfig::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let target = |dir: String| v1::HypervisorTarget {
        kind: Some(v1::hypervisor_target::Kind::Qemu(v1::QemuTarget { sockets_dir: dir, ..Default::default() })),
    };
    let list = client.list_vms(target(folder.path().display().to_string())).await.unwrap().into_inner();
    assert!(list.vms.is_empty());
    std::fs::write(folder.path().join("dead.qmp"), "").unwrap();
    let list = client.list_vms(target(folder.path().display().to_string())).await.unwrap().into_inner();
    assert_eq!(list.vms[0].name, "dead");
    assert!(!list.vms[0].error.is_empty(), "a VM that does not answer is listed with its reason");
    let status = client.list_vms(target("/no/such/folder".into())).await.unwrap_err();
    assert!(status.message().contains("/no/such/folder"), "{status:?}");
}

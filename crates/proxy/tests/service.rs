//! The proxy's calls over an in-memory stream, as the embedded proxy gets one.

use hyper_util::rt::TokioIo;
use lull_proxy::service::{ProxyConfig, serve};
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::proxy_client::ProxyClient;
use tonic::transport::{Channel, Endpoint};

/// A client on one end of an in-memory stream, and the proxy that serves the other.
async fn embedded(config: ProxyConfig) -> (ProxyClient<Channel>, tokio::task::JoinHandle<()>) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let proxy = tokio::spawn(async move { serve(theirs, config).await.unwrap() });
    let mut ours = Some(ours);
    let channel = Endpoint::from_static("http://proxy")
        .connect_with_connector(tower::service_fn(move |_| {
            let io = ours.take().ok_or_else(|| std::io::Error::other("one connection only"));
            async move { io.map(TokioIo::new) }
        }))
        .await
        .unwrap();
    (ProxyClient::new(channel), proxy)
}

#[tokio::test]
async fn a_proxy_says_who_it_is_and_ends_with_its_connection() {
    let (mut client, proxy) = embedded(ProxyConfig { slots: 3 }).await;
    let description = client.describe(v1::DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!((description.platform.as_str(), description.slots), ("linux", 3));
    assert_eq!(description.channels, ["ssh"]);
    assert!(description.networks.iter().all(|n| !n.starts_with("127.")), "{:?}", description.networks);
    drop(client);
    tokio::time::timeout(std::time::Duration::from_secs(5), proxy).await.expect("ends").unwrap();
}

//! A webhook over TLS: a receiver whose certificate the system knows is told, any other is not.

use crate::harness::one_vm;
use axum::Router;
use axum::http::StatusCode;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use lull_api::job::SavedJob;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls").join(name)
}

/// A receiver with the certificate of `receiver.pem`: its address, and how many posts came through.
async fn receiver() -> (String, Arc<AtomicU32>) {
    let chain = CertificateDer::pem_file_iter(file("receiver.pem")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(file("receiver.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
    let tls = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let posts = Arc::new(AtomicU32::new(0));
    let count = posts.clone();
    let app = Router::new().fallback(move || {
        count.fetch_add(1, Ordering::SeqCst);
        std::future::ready(StatusCode::NO_CONTENT)
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Who does not trust us hangs up.
            let Ok(stream) = tls.accept(stream).await else { continue };
            let service = TowerToHyperService::new(app.clone());
            let http = hyper::server::conn::http1::Builder::new();
            tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
        }
    });
    (url, posts)
}

#[test]
fn a_report_goes_only_to_whom_the_systems_certificates_know() {
    let trusted = tempfile::NamedTempFile::new().unwrap();
    std::fs::copy(file("other-ca.pem"), trusted.path()).unwrap();
    // SAFETY: no other thread of this test runs yet; where others share the process, none of them speaks TLS.
    unsafe { std::env::set_var("SSL_CERT_FILE", trusted.path()) };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (_place, _fake, server) = one_vm().await;
        let (url, posts) = receiver().await;
        let notify = serde_json::json!({"notify": {"url": url}});
        let _: SavedJob = server.client.patch("/jobs/j", &notify).await.unwrap();
        let told = async |what: &str| {
            let id = server.finished(server.run("j").await.summary.id).await.summary.id;
            server.until(id, what, |session| session.notes.iter().any(|note| note.contains(what))).await
        };
        let session = told("could not be told of this session: ").await;
        assert!(session.notes[0].contains("invalid peer certificate"), "{:?}", session.notes);
        assert_eq!((posts.load(Ordering::SeqCst), session.summary.result.as_deref()), (0, Some("success")));

        std::fs::copy(file("ca.pem"), trusted.path()).unwrap();
        told("was told of this session: it answered 204").await;
        assert_eq!(posts.load(Ordering::SeqCst), 1);
    });
}

//! Whom it trusts, and to whom it tells a token.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::server::{Reply, Server};
use super::{Place, Ran, artifact, finish};

/// A private authority, and a server's certificate by it, for 127.0.0.1 and localhost.
struct Authority {
    pem: String,
    acceptor: TlsAcceptor,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let leaf = CertificateParams::new(names).expect("names").signed_by(&key, &ca).expect("a certificate");
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], private)
            .expect("a certificate with its key");
        Self { pem: ca.pem(), acceptor: TlsAcceptor::from(Arc::new(config)) }
    }

    fn file(&self, place: &Place) -> PathBuf {
        let path = place.path("ca.pem");
        std::fs::write(&path, &self.pem).expect("it is ours");
        path
    }
}

async fn trusting(authority: &Authority, place: &Place, url: &str, args: &[&str]) -> Ran {
    let ca = Place::of(b"");
    finish(place.command(url, args).env("SSL_CERT_FILE", authority.file(&ca))).await
}

#[tokio::test]
async fn a_private_authority_is_trusted_if_ssl_cert_file_names_it_and_not_without() {
    let model = artifact(100_000, 40);
    let (place, body, authority) = (Place::of(&model), model.clone(), Authority::new());
    let server =
        Server::with(Some(authority.acceptor.clone()), move |_, asked| Reply::ranged(asked, &body, "\"v1\"")).await;
    let url = format!("https://{}/m", server.address);
    place.fetch(&url, &["--retries", "0"]).await.is(6).says("UnknownIssuer");
    assert!(server.asked().is_empty(), "nothing is asked of a server that is not trusted");
    let other = Authority::new();
    trusting(&other, &place, &url, &["--retries", "0"]).await.is(6).says("certificate");
    trusting(&authority, &place, &url, &[]).await.is(0);
    place.has(&model);
}

#[tokio::test]
async fn a_token_goes_to_the_source_over_https_and_to_no_other_host() {
    let model = artifact(1000, 41);
    let (place, body, authority) = (Place::of(&model), model.clone(), Authority::new());
    let elsewhere = {
        let body = body.clone();
        Server::with(Some(authority.acceptor.clone()), move |_, asked| Reply::ranged(asked, &body, "\"v1\"")).await
    };
    let target = format!("https://localhost:{}/blob", elsewhere.address.port());
    let server = Server::with(Some(authority.acceptor.clone()), move |_, asked| match asked.path.as_str() {
        "/far" => Reply::status(307).with("location", target.clone()),
        "/near" => Reply::status(307).with("location", "/blob"),
        _ => Reply::ranged(asked, &body, "\"v1\""),
    })
    .await;
    let token = Place::of(b"");
    std::fs::write(token.path("token"), "s3cr3t\n").expect("it is ours");
    let file = token.path("token").display().to_string();
    let args = ["--bearer-token-file", &file];
    trusting(&authority, &place, &format!("https://{}/near", server.address), &args).await.is(0);
    let sent = |server: &Server| -> Vec<_> {
        server.asked().iter().map(|asked| asked.headers.get("authorization").cloned()).collect()
    };
    let bearer = Some("Bearer s3cr3t".to_owned());
    assert_eq!(sent(&server), [bearer.clone(), bearer.clone()]);
    std::fs::remove_file(place.path("model")).expect("it was there");
    trusting(&authority, &place, &format!("https://{}/far", server.address), &args).await.is(0);
    assert_eq!(sent(&elsewhere), [None], "another host is told nothing");
    std::fs::write(token.path("token"), "two words").expect("it is ours");
    std::fs::remove_file(place.path("model")).expect("it was there");
    let ran = trusting(&authority, &place, &format!("https://{}/near", server.address), &args).await;
    ran.is(2).says("holds no token");
    assert!(!ran.err.contains("two words"), "{ran:?}");
}

#[tokio::test]
async fn nobody_is_sent_from_https_to_http() {
    let model = artifact(1000, 42);
    let (place, body, authority) = (Place::of(&model), model.clone(), Authority::new());
    let open = Server::start(move |_, asked| Reply::ranged(asked, &body, "\"v1\"")).await;
    let target = open.url("/m");
    let server =
        Server::with(Some(authority.acceptor.clone()), move |_, _| Reply::status(302).with("location", target.clone()))
            .await;
    let ran = trusting(&authority, &place, &format!("https://{}/m", server.address), &[]).await;
    ran.is(3).says("from https to http");
    assert!(open.asked().is_empty());
}

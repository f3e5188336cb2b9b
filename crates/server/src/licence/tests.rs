//! Licences that are genuine, and all the ways in which one is not. The keys are made here.

use super::*;
use lull_api::licence::Terms;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

struct TestIssuer {
    pair: Ed25519KeyPair,
    state: TempDir,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl TestIssuer {
    fn new() -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let issuer = TestIssuer {
            pair: Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap(),
            state: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(issuer.state.path().join(ISSUERS_DIR)).unwrap();
        issuer.publish(0o644);
        issuer
    }

    fn path(&self) -> PathBuf {
        self.state.path().join(ISSUERS_DIR).join("test.pub")
    }

    fn public(&self) -> String {
        hex(self.pair.public_key().as_ref())
    }

    fn publish(&self, mode: u32) {
        std::fs::write(self.path(), self.public() + "\n").unwrap();
        std::fs::set_permissions(self.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn terms(&self) -> Terms {
        Terms {
            id: "T-1".into(),
            licensee: "Example".into(),
            kind: "socket".into(),
            edition: Some("standard".into()),
            sockets: Some(4),
            valid_from: "2026-01-01".into(),
            valid_until: "2026-12-31".into(),
            issuer: self.public(),
        }
    }

    fn signed(&self, licence: Terms) -> LicenceFile {
        let mut file = LicenceFile { lull_licence: FORMAT, licence, signature: String::new() };
        file.signature = hex(self.pair.sign(&file.signed_bytes()).as_ref());
        file
    }

    fn examine(&self, file: &LicenceFile) -> Result<Genuine, LicenceError> {
        examine(file, self.state.path())
    }

    fn read(&self, bytes: &[u8]) -> Result<Genuine, LicenceError> {
        parsed(bytes).and_then(|file| self.examine(&file))
    }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn the_built_in_issuer_is_a_key() {
    assert_eq!(from_hex(OWN_ISSUER.trim()).unwrap().len(), 32);
}

#[test]
fn a_genuine_licence_gives_its_rule() {
    let issuer = TestIssuer::new();
    let genuine = issuer.examine(&issuer.signed(issuer.terms())).unwrap();
    assert_eq!(genuine.rule, Licence::Socket { edition: Edition::Standard });
    assert_eq!(genuine.issuer, "test");
    let universal = Terms { kind: "universal".into(), edition: None, sockets: None, ..issuer.terms() };
    assert_eq!(issuer.examine(&issuer.signed(universal)).unwrap().rule, Licence::Universal);
}

#[test]
fn whatever_is_changed_after_signing_is_noticed() {
    let issuer = TestIssuer::new();
    let genuine = issuer.signed(issuer.terms());
    let text = serde_json::to_string(&genuine).unwrap();
    let changed = [
        ("\"standard\"", "\"enterprise\""),
        ("\"sockets\":4", "\"sockets\":400"),
        ("2026-12-31", "2036-12-31"),
        ("2026-01-01", "2020-01-01"),
        ("Example", "Somebody"),
        ("T-1", "T-2"),
    ];
    for (was, is) in changed {
        let error = issuer.read(text.replace(was, is).as_bytes()).unwrap_err();
        assert_eq!(error, LicenceError::Signature, "{was}");
    }
    let mut file = genuine.clone();
    file.signature = "0".repeat(128);
    assert_eq!(issuer.examine(&file).unwrap_err(), LicenceError::Signature);
    // White space is no change.
    let tidy = serde_json::to_vec_pretty(&genuine).unwrap();
    assert!(issuer.read(&tidy).is_ok());
}

#[test]
fn what_is_no_licence_says_what_is_wrong_with_it() {
    let issuer = TestIssuer::new();
    let genuine = serde_json::to_string(&issuer.signed(issuer.terms())).unwrap();
    let says = |bytes: &[u8], what: &str| {
        let error = issuer.read(bytes).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
    };
    says(b"", "damaged");
    says(&genuine.as_bytes()[..genuine.len() / 2], "damaged");
    says(b"\xff\xfe{}", "damaged");
    says(genuine.replace("\"lull_licence\":1", "\"lull_licence\":2").as_bytes(), "format 2");
    says(genuine.replace("\"signature\":\"", "\"signature\":\"zz").as_bytes(), "128 hexadecimal digits");
    let signed = |terms: Terms| serde_json::to_vec(&issuer.signed(terms)).unwrap();
    says(&signed(Terms { licensee: "a\u{1b}[2J".into(), ..issuer.terms() }), "control characters");
    says(&signed(Terms { valid_until: "soon".into(), ..issuer.terms() }), "2026-12-31");
    says(&signed(Terms { valid_until: "2025-12-31".into(), ..issuer.terms() }), "ends before it begins");
    says(&signed(Terms { edition: Some("platinum".into()), ..issuer.terms() }), "do not go together");
    says(&signed(Terms { kind: "universal".into(), ..issuer.terms() }), "do not go together");
    says(&signed(Terms { sockets: Some(0), ..issuer.terms() }), "do not go together");
}

#[test]
fn only_keys_that_nobody_else_can_have_put_there_count() {
    let issuer = TestIssuer::new();
    let file = issuer.signed(issuer.terms());
    issuer.publish(0o666);
    let error = issuer.examine(&file).unwrap_err().to_string();
    assert!(error.contains("does not know who issued") && error.contains("chmod 644"), "{error}");
    std::fs::remove_file(issuer.path()).unwrap();
    let elsewhere = issuer.state.path().join("elsewhere");
    std::fs::write(&elsewhere, issuer.public()).unwrap();
    std::os::unix::fs::symlink(&elsewhere, issuer.path()).unwrap();
    assert!(matches!(issuer.examine(&file), Err(LicenceError::UnknownIssuer { .. })), "a link is no file");
    std::fs::remove_file(issuer.path()).unwrap();
    assert!(matches!(issuer.examine(&file), Err(LicenceError::UnknownIssuer { .. })));
    issuer.publish(0o644);
    assert!(issuer.examine(&file).is_ok());
}

#[test]
fn a_licence_holds_from_its_first_day_to_the_end_of_its_last() {
    let issuer = TestIssuer::new();
    let genuine = issuer.examine(&issuer.signed(issuer.terms())).unwrap();
    let holds = |now: &str| holding(genuine.clone(), at(now)).map(drop);
    assert_eq!(holds("2025-12-31T23:59:59Z"), Err(LicenceError::NotYet { from: "2026-01-01".into() }));
    assert_eq!(holds("2026-01-01T00:00:00Z"), Ok(()));
    assert_eq!(holds("2026-12-31T23:59:59Z"), Ok(()));
    assert_eq!(holds("2027-01-01T00:00:00Z"), Err(LicenceError::Expired { until: "2026-12-31".into() }));

    let state = |now: &str| standing(&genuine, at(now));
    assert_eq!(state("2026-06-01T00:00:00Z"), ("valid".into(), None));
    let (soon, warning) = state("2026-12-11T12:00:00Z");
    assert_eq!(soon, "expires-soon");
    assert!(warning.unwrap().contains("in 20 days"));
    let (expired, warning) = state("2027-01-01T00:00:00Z");
    assert_eq!(expired, "expired");
    assert!(warning.unwrap().contains("backups go on"));
}

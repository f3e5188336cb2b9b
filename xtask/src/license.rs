//! Issuers' key pairs, and licences signed with one. For tests and for whoever issues licences; Lull's own private key is not in this
//! repository, and never on a machine that this runs on by chance.

use anyhow::{Context, Result, bail, ensure};
use lull_api::licence::{FORMAT, LicenceFile, Terms};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What the two chores take.
pub const USAGE: &str = "  cargo xtask license key NAME          makes NAME.key (private, PKCS #8) and NAME.pub (for a server's licence-issuers/)
  cargo xtask license make --key NAME.key --id ID --licensee WHO --kind universal|socket
      [--edition standard|enterprise|enterprise-plus --sockets N] --from DAY --until DAY --out FILE";

/// Makes a key pair or a licence.
pub fn run(words: &[&str]) -> Result<()> {
    match words {
        ["key", name] => key(Path::new(name)),
        ["make", options @ ..] => make(options),
        _ => bail!("usage:\n{USAGE}"),
    }
}

fn key(name: &Path) -> Result<()> {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).ok().context("no randomness")?;
    let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).ok().context("the new key cannot be read back")?;
    let private = name.with_extension("key");
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&private);
    let file = file.as_mut().map_err(|error| anyhow::anyhow!("{}: {error}", private.display()))?;
    file.write_all(document.as_ref()).with_context(|| format!("writing {}", private.display()))?;
    let public = name.with_extension("pub");
    std::fs::write(&public, hex(pair.public_key().as_ref()) + "\n")
        .with_context(|| format!("writing {}", public.display()))?;
    println!("{} stays private; {} goes to the servers", private.display(), public.display());
    Ok(())
}

fn make(options: &[&str]) -> Result<()> {
    let known = ["--key", "--id", "--licensee", "--kind", "--edition", "--sockets", "--from", "--until", "--out"];
    ensure!(options.len().is_multiple_of(2), "an option has no value\nusage:\n{USAGE}");
    for option in options.chunks(2) {
        ensure!(known.contains(&option[0]), "unknown option {}\nusage:\n{USAGE}", option[0]);
    }
    let given = |name: &str| options.chunks(2).find(|option| option[0] == name).map(|option| option[1].to_string());
    let wanted = |name: &str| given(name).with_context(|| format!("{name} is missing\nusage:\n{USAGE}"));
    let key = wanted("--key")?;
    let document = std::fs::read(&key).with_context(|| format!("reading {key}"))?;
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&document);
    let pair = pair.map_err(|error| anyhow::anyhow!("{key} is no Ed25519 key in PKCS #8: {error}"))?;
    let day = |name: &str| -> Result<String> {
        let text = wanted(name)?;
        text.parse::<jiff::civil::Date>().with_context(|| format!("{name} {text}"))?;
        Ok(text)
    };
    let licence = Terms {
        id: wanted("--id")?,
        licensee: wanted("--licensee")?,
        kind: wanted("--kind")?,
        edition: given("--edition"),
        sockets: given("--sockets").map(|number| number.parse()).transpose().context("--sockets")?,
        valid_from: day("--from")?,
        valid_until: day("--until")?,
        issuer: hex(pair.public_key().as_ref()),
    };
    let out = wanted("--out")?;
    let text = serde_json::to_string_pretty(&signed(licence, &pair))? + "\n";
    std::fs::write(&out, text).with_context(|| format!("writing {out}"))
}

fn signed(licence: Terms, pair: &Ed25519KeyPair) -> LicenceFile {
    let mut file = LicenceFile { lull_licence: FORMAT, licence, signature: String::new() };
    file.signature = hex(pair.sign(&file.signed_bytes()).as_ref());
    file
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{ED25519, UnparsedPublicKey};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_licence_is_signed_by_the_key_that_was_made_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        run(&["key", &path("test")]).unwrap();
        assert!(run(&["key", &path("test")]).is_err(), "a key is never overwritten");
        let mode = std::fs::metadata(path("test.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (key, out) = (path("test.key"), path("example.lic"));
        let make = |more: &[&str]| {
            let common = ["make", "--key", &key, "--id", "T-1", "--licensee", "Example", "--out", &out];
            run(&[&common[..], more].concat())
        };
        let dates = ["--from", "2026-01-01", "--until", "2026-12-31"];
        make(&[&["--kind", "socket", "--edition", "standard", "--sockets", "4"][..], &dates].concat()).unwrap();
        let file: LicenceFile = serde_json::from_str(&std::fs::read_to_string(&out).unwrap()).unwrap();
        let public = std::fs::read_to_string(path("test.pub")).unwrap();
        assert_eq!(file.licence.issuer, public.trim());
        let bytes = |hex: &str| -> Vec<u8> {
            (0..hex.len() / 2).map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap()).collect()
        };
        UnparsedPublicKey::new(&ED25519, bytes(public.trim()))
            .verify(&file.signed_bytes(), &bytes(&file.signature))
            .unwrap();
        assert!(make(&["--kind", "universal", "--from", "2026-01-01", "--until", "never"]).is_err());
        assert!(make(&["--kind", "universal"]).is_err());
        assert!(make(&["--surprise", "1"]).is_err());
    }
}

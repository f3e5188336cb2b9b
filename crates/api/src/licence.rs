//! Licence files, and what the server says of the one in force. Knows the document and which of its bytes are signed; verifies nothing.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The format of licence files that this version writes and reads.
pub const FORMAT: u32 = 1;

/// A licence file: one JSON document. White space and the order of members do not matter, since what is signed is put together anew:
/// see [`LicenceFile::signed_bytes`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LicenceFile {
    /// Its format: 1.
    pub lull_licence: u32,
    /// What is licensed.
    pub licence: Terms,
    /// Ed25519 signature of the issuer, 128 hexadecimal digits.
    pub signature: String,
}

/// What is licensed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// The licence's number, to talk about it.
    pub id: String,
    /// To whom it was given.
    pub licensee: String,
    /// `universal` or `socket`.
    pub kind: String,
    /// Of a socket licence: `standard`, `enterprise` or `enterprise-plus`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edition: Option<String>,
    /// Of a socket licence: for how many CPU sockets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<u32>,
    /// First day on which it holds, `2026-01-31`, in UTC.
    pub valid_from: String,
    /// Last day on which it holds, in UTC.
    pub valid_until: String,
    /// Public key of who issued it, 64 hexadecimal digits.
    pub issuer: String,
}

impl LicenceFile {
    /// What the signature is over: a line that says what it is, then format and terms as JSON without white space, members in the order of
    /// [`Terms`], absent ones left out.
    pub fn signed_bytes(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Signed<'a> {
            lull_licence: u32,
            licence: &'a Terms,
        }
        let mut bytes = b"lull licence\n".to_vec();
        let signed = Signed { lull_licence: self.lull_licence, licence: &self.licence };
        // Strings and numbers only: this cannot fail.
        bytes.extend(serde_json::to_vec(&signed).unwrap_or_default());
        bytes
    }
}

/// The licence in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LicenceStatus {
    /// `built-in`, `valid`, `expires-soon`, `expired`, or `unusable` where the installed one cannot be verified any more.
    pub state: String,
    /// `universal` or `socket`.
    pub kind: String,
    /// Of a socket licence.
    pub edition: Option<String>,
    /// Of a socket licence.
    pub sockets: Option<u32>,
    /// Its number.
    pub id: Option<String>,
    /// To whom it was given.
    pub licensee: Option<String>,
    /// Who issued it: `Lull`, or a further issuer that this server was told to accept.
    pub issuer: Option<String>,
    /// First day on which it holds.
    pub valid_from: Option<String>,
    /// Last day on which it holds.
    pub valid_until: Option<String>,
    /// Whether servers other than the backup server may act as guest interaction proxies.
    pub admits_proxies: bool,
    /// What follows from it, one sentence each.
    pub meaning: Vec<String>,
    /// What should be looked at.
    pub warning: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_does_not_depend_on_how_the_file_is_written() {
        let tidy = r#"{
  "lull_licence": 1,
  "licence": {
    "id": "T-1", "licensee": "Example", "kind": "socket", "edition": "standard", "sockets": 4,
    "valid_from": "2026-01-01", "valid_until": "2026-12-31", "issuer": "00"
  },
  "signature": "ff"
}"#;
        let other = r#"{"signature":"ff","licence":{"issuer":"00","valid_until":"2026-12-31","valid_from":"2026-01-01",
            "sockets":4,"edition":"standard","kind":"socket","licensee":"Example","id":"T-1"},"lull_licence":1}"#;
        let read = |text: &str| serde_json::from_str::<LicenceFile>(text).unwrap().signed_bytes();
        assert_eq!(read(tidy), read(other));
        // This text is what licences that were given out are signed over: it may never change.
        let signed = "lull licence\n{\"lull_licence\":1,\"licence\":{\"id\":\"T-1\",\"licensee\":\"Example\",\"kind\":\"socket\",\
                      \"edition\":\"standard\",\"sockets\":4,\"valid_from\":\"2026-01-01\",\"valid_until\":\"2026-12-31\",\
                      \"issuer\":\"00\"}}";
        assert_eq!(String::from_utf8(read(tidy)).unwrap(), signed);
        assert!(serde_json::from_str::<LicenceFile>(&tidy.replace("\"id\"", "\"surprise\": 1, \"id\"")).is_err());
    }
}

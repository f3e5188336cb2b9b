//! A join token: what an administrator carries from the backup server to a machine that is to become a proxy. Its text form and
//! nothing else; which tokens are good, the server knows.
//!
//! `lull1-ID-SECRET-AUTHORITY`, hexadecimal: 8 bytes, 16 bytes, 32 bytes. The last is the SHA-256 of the server's certificate
//! authority (DER), so that the secret is never shown to anybody else.

use std::fmt;
use std::str::FromStr;

const PREFIX: &str = "lull1";

/// A join token. `Debug` hides the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Which one.
    pub id: [u8; 8],
    /// Known to whoever made it and to whoever may use it.
    pub secret: [u8; 16],
    /// SHA-256 of the certificate authority, DER.
    pub authority: [u8; 32],
}

/// Why a text is no join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoToken;

impl fmt::Display for NoToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this is not a join token, or not a whole one: copy the line that `lull proxy token` printed on the backup server")
    }
}

impl std::error::Error for NoToken {}

impl JoinToken {
    /// The secret in text form, as it goes over the wire.
    pub fn secret_text(&self) -> String {
        hex(&self.secret)
    }

    /// The id in text form.
    pub fn id_text(&self) -> String {
        hex(&self.id)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id_text()).finish_non_exhaustive()
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{}-{}-{}", hex(&self.id), hex(&self.secret), hex(&self.authority))
    }
}

impl FromStr for JoinToken {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let mut parts = text.trim().split('-');
        if parts.next() != Some(PREFIX) {
            return Err(NoToken);
        }
        let (id, secret, authority) = (bytes(parts.next())?, bytes(parts.next())?, bytes(parts.next())?);
        if parts.next().is_some() { Err(NoToken) } else { Ok(JoinToken { id, secret, authority }) }
    }
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What [`hex`] wrote; `None` where it is something else.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

fn bytes<const N: usize>(text: Option<&str>) -> Result<[u8; N], NoToken> {
    text.and_then(unhex).and_then(|bytes| bytes.try_into().ok()).ok_or(NoToken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_as_it_was_written_and_hides_its_secret() {
        let token = JoinToken { id: [1; 8], secret: [0xab; 16], authority: [3; 32] };
        let text = token.to_string();
        assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("abab"), "{token:?}");
        for wrong in [&text[1..], &text[..text.len() - 1], &text.replace("ab", "xy"), "", &format!("{text}-00")] {
            assert_eq!(wrong.parse::<JoinToken>(), Err(NoToken), "{wrong}");
        }
    }
}

//! Certificates without the clock: neither side lets its own decide whether it may speak to the other. How old a certificate may be is the
//! server's question, asked elsewhere.

use x509_parser::prelude::{FromDer, X509Certificate};

/// The second nearest to `now_s` at which this certificate (DER) is good, both since 1970; `None` where it is none.
pub fn within_its_time(certificate: &[u8], now_s: u64) -> Option<u64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let from_s = u64::try_from(parsed.validity().not_before.timestamp()).ok()?;
    let until_s = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    Some(now_s.min(until_s).max(from_s))
}

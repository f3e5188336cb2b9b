//! The name of a user id, read from the text of /etc/passwd: a static program has no name service. Pure.

/// Longest /etc/passwd that is read, bytes.
pub(super) const PASSWD_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The name of `uid`; the first entry counts, as in the C library. `None` when there is none or its name is not UTF-8.
pub(super) fn name_of(passwd: &[u8], uid: u32) -> Option<String> {
    passwd.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty() && !matches!(name[0], b'#' | b'+' | b'-'))?;
        let found: u32 = std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()?;
        (found == uid).then(|| std::str::from_utf8(name).ok().map(str::to_owned)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/bash\n#old:x:105:1::/:/bin/sh\n\nbad line\n+nis:x:105:1\n\xff:x:105:1\n\
        postgres:x:105:112:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash\nalias:x:105:112:::\n";

    #[test]
    fn the_first_entry_with_the_id_counts() {
        assert_eq!(name_of(PASSWD, 105).as_deref(), Some("postgres"));
        assert_eq!(name_of(PASSWD, 0).as_deref(), Some("root"));
    }

    #[test]
    fn an_unknown_id_has_no_name() {
        assert_eq!(name_of(PASSWD, 112), None);
        assert_eq!(name_of(b"", 0), None);
    }
}

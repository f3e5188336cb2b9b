//! Parses `postmaster.pid`, which a running server keeps in its data directory. Pure; knows no files and no processes.
//!
//! Lines (PostgreSQL 10 to 18): pid, data directory, start time, port, first socket directory, first listen address, shared memory
//! key, state. While the server starts the last ones are missing; a stand-alone backend writes its pid negated.

use super::PostmasterState;

/// Longest `postmaster.pid` that is read, bytes.
pub(super) const BYTES_MAX: u64 = 16 * 1024;

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PostmasterPid {
    /// Process id in the server's own pid namespace.
    pub(super) pid: u32,
    pub(super) started_unix_s: i64,
    pub(super) port: u16,
    /// As written: may be empty (no Unix socket), relative to the data directory, or `@name`.
    pub(super) socket_dir: String,
    pub(super) state: PostmasterState,
}

/// Why a `postmaster.pid` does not describe a server that can be spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NotAPostmaster {
    /// A stand-alone backend (`postgres --single`, `initdb`) with this pid.
    StandAlone(u32),
    /// The server has not yet written all lines.
    StillStarting,
    /// This line (counted from 1) makes no sense.
    BadLine(u8),
}

/// Parses the file's content.
pub(super) fn parse(content: &[u8]) -> Result<PostmasterPid, NotAPostmaster> {
    let text = std::str::from_utf8(content).map_err(|_| NotAPostmaster::BadLine(1))?;
    let mut lines = text.lines();
    let pid: i64 = number(lines.next(), 1)?;
    if pid < 0 {
        let pid = u32::try_from(-pid).map_err(|_| NotAPostmaster::BadLine(1))?;
        return Err(NotAPostmaster::StandAlone(pid));
    }
    let pid = u32::try_from(pid).ok().filter(|pid| *pid > 0).ok_or(NotAPostmaster::BadLine(1))?;
    lines.next().ok_or(NotAPostmaster::StillStarting)?;
    let started_unix_s = number(lines.next(), 3)?;
    let port = number(lines.next(), 4)?;
    let socket_dir = lines.next().ok_or(NotAPostmaster::StillStarting)?;
    lines.next().ok_or(NotAPostmaster::StillStarting)?;
    lines.next().ok_or(NotAPostmaster::StillStarting)?;
    let state = match lines.next().map(str::trim) {
        None | Some("") => return Err(NotAPostmaster::StillStarting),
        Some("starting") => PostmasterState::Starting,
        Some("stopping") => PostmasterState::Stopping,
        Some("ready") => PostmasterState::Ready,
        Some("standby") => PostmasterState::Standby,
        Some(_) => return Err(NotAPostmaster::BadLine(8)),
    };
    Ok(PostmasterPid { pid, started_unix_s, port, socket_dir: socket_dir.to_owned(), state })
}

fn number<N: std::str::FromStr>(line: Option<&str>, at: u8) -> Result<N, NotAPostmaster> {
    let line = line.ok_or(NotAPostmaster::StillStarting)?;
    line.trim().parse().map_err(|_| NotAPostmaster::BadLine(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const READY: &str = "4711\n/var/lib/postgresql/15/main\n1763810000\n5432\n/var/run/postgresql\nlocalhost\n  5432001  32768\nready   \n";

    #[test]
    fn a_ready_server() {
        let expect = PostmasterPid {
            pid: 4711,
            started_unix_s: 1_763_810_000,
            port: 5432,
            socket_dir: "/var/run/postgresql".into(),
            state: PostmasterState::Ready,
        };
        assert_eq!(parse(READY.as_bytes()), Ok(expect));
    }

    #[test]
    fn no_unix_socket_and_no_tcp_leave_empty_lines() {
        let parsed = parse(b"9\n/d\n1\n5433\n\n\n  1 2\nstandby \n").unwrap();
        assert_eq!((parsed.socket_dir.as_str(), parsed.state), ("", PostmasterState::Standby));
    }

    #[test]
    fn a_stand_alone_backend_is_told_apart() {
        assert_eq!(parse(b"-88\n/d\n1\n5432\n\n"), Err(NotAPostmaster::StandAlone(88)));
    }

    #[test]
    fn a_file_cut_anywhere_is_never_taken_for_a_ready_server() {
        let whole = READY.trim_end();
        for cut in 0..whole.len() {
            assert!(parse(&whole.as_bytes()[..cut]).is_err(), "cut at {cut}: {:?}", &whole[..cut]);
        }
    }

    #[test]
    fn a_port_that_is_none_is_refused() {
        let bad = READY.replace("\n5432\n", "\n70000\n");
        assert_eq!(parse(bad.as_bytes()), Err(NotAPostmaster::BadLine(4)));
    }

    proptest! {
        #[test]
        fn anything_is_parsed_or_refused_but_never_panics(content in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&content);
        }

        #[test]
        fn what_a_server_writes_comes_back(pid in 1_u32..4_194_304, port in 1_u16.., start in 0_i64..4_000_000_000) {
            let text = format!("{pid}\n/some dir\n{start}\n{port}\n/run/x y\n*\n  1 2\nstarting\n");
            let parsed = parse(text.as_bytes()).unwrap();
            prop_assert_eq!((parsed.pid, parsed.port, parsed.started_unix_s), (pid, port, start));
            prop_assert_eq!(parsed.socket_dir.as_str(), "/run/x y");
        }
    }
}

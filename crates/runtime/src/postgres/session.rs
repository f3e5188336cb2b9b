//! One session with a server over an open Unix socket: log in without a password, run statements, cancel, close.
//!
//! Knows the protocol and its bounds, no cluster and no file. Every wait has a deadline; a message, a result and a session have a largest
//! size, since the answers come from a program that is not ours.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, ErrorFields, Message};
use postgres_protocol::message::frontend;
use thiserror::Error;

/// Longest single message from a server, bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Most that is read from a server in one login or statement, bytes.
pub const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Most characters of a server's message that are kept.
const SERVER_WORDS_MAX: usize = 500;

/// A logged-in session. Dropping it closes the socket, after which the server ends its backend.
pub struct Session {
    wire: Wire,
    cancel_key: Option<(i32, i32)>,
}

/// Rows of text values, `None` for NULL.
pub type Rows = Vec<Vec<Option<String>>>;

/// What went wrong in a session.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SessionError {
    /// The deadline passed.
    #[error("no answer in time")]
    Timeout,
    /// The connection ended or failed.
    #[error("{0}")]
    Lost(String),
    /// The server broke the protocol or a bound.
    #[error("{0}")]
    Bad(String),
    /// The server wants a password or another proof; none was sent.
    #[error("it asks for {0}")]
    ProofAsked(&'static str),
    /// The server said no.
    #[error("{message} ({sqlstate})")]
    Server {
        /// Five characters, see the server's appendix on error codes.
        sqlstate: String,
        /// In the server's language.
        message: String,
    },
}

impl Session {
    /// Logs in as `user` into `database` and waits until the server is ready.
    ///
    /// `settings` are server settings for this session; they win over those of the role and the database.
    /// Errors: `ProofAsked` when the server wants more than the socket's peer; nothing is sent then.
    pub fn login(
        stream: UnixStream,
        user: &str,
        database: &str,
        settings: &[(&str, &str)],
        deadline: Instant,
    ) -> Result<Self, SessionError> {
        let mut session =
            Self { wire: Wire { stream, unread: BytesMut::new(), budget: ANSWER_BYTES_MAX }, cancel_key: None };
        let parameters = [("user", user), ("database", database)].into_iter().chain(settings.iter().copied());
        let mut packet = BytesMut::new();
        frontend::startup_message(parameters, &mut packet).map_err(|error| SessionError::Bad(error.to_string()))?;
        session.wire.send(&packet, deadline)?;
        loop {
            match session.wire.receive(deadline)? {
                Message::AuthenticationOk | Message::ParameterStatus(_) | Message::NoticeResponse(_) => {}
                Message::BackendKeyData(body) => session.cancel_key = Some((body.process_id(), body.secret_key())),
                Message::ReadyForQuery(_) => return Ok(session),
                Message::ErrorResponse(body) => return Err(server_error(body.fields())),
                other => return Err(proof_asked(&other)),
            }
        }
    }

    /// Runs one statement (or several, separated by semicolons) and returns all rows. After an error of the kind `Server` the session can be used
    /// on; after any other it cannot.
    pub fn query(&mut self, sql: &str, deadline: Instant) -> Result<Rows, SessionError> {
        let mut packet = BytesMut::new();
        frontend::query(sql, &mut packet).map_err(|error| SessionError::Bad(error.to_string()))?;
        self.wire.budget = ANSWER_BYTES_MAX;
        self.wire.send(&packet, deadline)?;
        self.finish(deadline)
    }

    /// Waits for the end of a statement's answer. After a query that timed out this waits on, but rows that came before are lost.
    pub fn finish(&mut self, deadline: Instant) -> Result<Rows, SessionError> {
        let mut rows = Rows::new();
        let mut failed = None;
        loop {
            match self.wire.receive(deadline)? {
                Message::DataRow(body) => rows.push(text_values(&body)?),
                Message::ErrorResponse(body) => failed = Some(server_error(body.fields())),
                Message::ReadyForQuery(_) => return failed.map_or(Ok(rows), Err),
                Message::RowDescription(_)
                | Message::CommandComplete(_)
                | Message::EmptyQueryResponse
                | Message::NoticeResponse(_)
                | Message::NotificationResponse(_)
                | Message::ParameterStatus(_) => {}
                _ => {
                    return Err(SessionError::Bad("a message that no statement of ours leads to".to_owned()));
                }
            }
        }
    }

    /// The packet that cancels this session's statement, to be sent over a second connection. `None` when the server gave no key.
    pub fn cancel_packet(&self) -> Option<Vec<u8>> {
        let (process_id, secret_key) = self.cancel_key?;
        let mut packet = BytesMut::new();
        frontend::cancel_request(process_id, secret_key, &mut packet);
        Some(packet.to_vec())
    }

    /// Says goodbye, so that the server logs no broken connection. That it may fail does not matter: the socket closes anyway.
    pub fn close(mut self) {
        let mut packet = BytesMut::new();
        frontend::terminate(&mut packet);
        let _ = self.wire.send(&packet, Instant::now() + Duration::from_millis(100));
    }
}

/// Without the cancel key.
impl std::fmt::Debug for Session {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Session").field("stream", &self.wire.stream).finish_non_exhaustive()
    }
}

struct Wire {
    stream: UnixStream,
    unread: BytesMut,
    /// Bytes that may still be read for the present answer.
    budget: usize,
}

impl Wire {
    fn send(&mut self, packet: &[u8], deadline: Instant) -> Result<(), SessionError> {
        self.stream.set_write_timeout(Some(time_left(deadline)?)).map_err(lost)?;
        self.stream.write_all(packet).map_err(lost)
    }

    fn receive(&mut self, deadline: Instant) -> Result<Message, SessionError> {
        loop {
            check_length(&self.unread)?;
            let parsed = Message::parse(&mut self.unread).map_err(|error| SessionError::Bad(error.to_string()))?;
            if let Some(message) = parsed {
                return Ok(message);
            }
            self.stream.set_read_timeout(Some(time_left(deadline)?)).map_err(lost)?;
            let mut chunk = [0; 4096];
            let read = match self.stream.read(&mut chunk) {
                Ok(0) => {
                    return Err(SessionError::Lost("the server closed the connection".to_owned()));
                }
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(lost(error)),
            };
            self.budget = self
                .budget
                .checked_sub(read)
                .ok_or_else(|| SessionError::Bad(format!("an answer of more than {ANSWER_BYTES_MAX} bytes")))?;
            self.unread.extend_from_slice(&chunk[..read]);
        }
    }
}

/// The parser would reserve whatever length a message announces.
fn check_length(unread: &[u8]) -> Result<(), SessionError> {
    let [_, a, b, c, d, ..] = *unread else {
        return Ok(());
    };
    let length = u32::from_be_bytes([a, b, c, d]);
    if length as usize > MESSAGE_BYTES_MAX {
        return Err(SessionError::Bad(format!("a message of {length} bytes (at most {MESSAGE_BYTES_MAX} are taken)")));
    }
    Ok(())
}

fn time_left(deadline: Instant) -> Result<Duration, SessionError> {
    let left = deadline.saturating_duration_since(Instant::now());
    // A zero timeout would mean for ever.
    if left.is_zero() { Err(SessionError::Timeout) } else { Ok(left.max(Duration::from_millis(1))) }
}

fn lost(error: io::Error) -> SessionError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => SessionError::Timeout,
        _ => SessionError::Lost(error.to_string()),
    }
}

fn proof_asked(message: &Message) -> SessionError {
    SessionError::ProofAsked(match message {
        Message::AuthenticationCleartextPassword => "a password (method password, ldap, pam or radius)",
        Message::AuthenticationMd5Password(_) => "a password (method md5)",
        Message::AuthenticationSasl(_) => "a password (method scram-sha-256) or a token",
        Message::AuthenticationGss | Message::AuthenticationKerberosV5 => "a Kerberos ticket (method gss)",
        _ => return SessionError::Bad("a message that does not belong to a login".to_owned()),
    })
}

fn text_values(row: &DataRowBody) -> Result<Vec<Option<String>>, SessionError> {
    let bad = |error: io::Error| SessionError::Bad(error.to_string());
    let mut values = Vec::new();
    let mut ranges = row.ranges();
    while let Some(range) = ranges.next().map_err(bad)? {
        let value = range.map(|range| {
            let bytes =
                row.buffer().get(range).ok_or_else(|| SessionError::Bad("a value outside its row".to_owned()))?;
            Ok(String::from_utf8_lossy(bytes).into_owned())
        });
        values.push(value.transpose()?);
    }
    Ok(values)
}

/// The server's words go to people's terminals and over the wire: no control characters, no novels.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().take(SERVER_WORDS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn server_error(mut fields: ErrorFields<'_>) -> SessionError {
    let (mut sqlstate, mut message) = (String::new(), String::new());
    loop {
        match fields.next() {
            Ok(Some(field)) if field.type_() == b'C' => sqlstate = printable(field.value_bytes()),
            Ok(Some(field)) if field.type_() == b'M' => message = printable(field.value_bytes()),
            Ok(Some(_)) => {}
            Ok(None) => return SessionError::Server { sqlstate, message },
            Err(error) => return SessionError::Bad(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Logs in at a peer that says `answer` and then closes, or stays silent when `stay` is set.
    fn login_at(answer: Vec<u8>, stay: bool) -> (Result<Session, SessionError>, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let writer = theirs.try_clone().unwrap();
        let said = std::thread::spawn(move || {
            let mut writer = writer;
            // A peer that was refused closes early; the rest of the answer is then nobody's.
            let _ = writer.write_all(&answer);
            if !stay {
                let _ = writer.shutdown(std::net::Shutdown::Write);
            }
        });
        let deadline = Instant::now() + Duration::from_millis(if stay { 50 } else { 5_000 });
        let result = Session::login(ours, "postgres", "postgres", &[("client_encoding", "UTF8")], deadline);
        let mut greeting = [0; 8];
        theirs.read_exact(&mut greeting).unwrap();
        assert_eq!(greeting[4..], 196_608_u32.to_be_bytes());
        if result.is_err() {
            said.join().unwrap();
        }
        (result, theirs)
    }

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[tag][..], &length.to_be_bytes(), body].concat()
    }

    fn welcome() -> Vec<u8> {
        [message(b'R', &[0; 4]), message(b'K', &[0, 0, 0, 7, 0, 0, 0, 9]), message(b'Z', b"I")].concat()
    }

    #[test]
    fn a_friendly_server() {
        let row = [&1_u16.to_be_bytes()[..], &2_u32.to_be_bytes(), b"42"].concat();
        let answer = [welcome(), message(b'D', &row), message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat();
        let (session, _peer) = login_at(answer, false);
        let mut session = session.unwrap();
        let rows = session.query("SELECT 42", Instant::now() + Duration::from_secs(5)).unwrap();
        assert_eq!(rows, vec![vec![Some("42".to_owned())]]);
        assert_eq!(session.cancel_packet().unwrap()[8..], [0, 0, 0, 7, 0, 0, 0, 9]);
    }

    #[test]
    fn whatever_asks_for_a_proof_gets_nothing() {
        let asks: [(&[u8], &str); 4] = [
            (&[0, 0, 0, 3], "a password (method password, ldap, pam or radius)"),
            (&[0, 0, 0, 5, 1, 2, 3, 4], "a password (method md5)"),
            (b"\0\0\0\x0aSCRAM-SHA-256\0\0", "a password (method scram-sha-256) or a token"),
            (&[0, 0, 0, 7], "a Kerberos ticket (method gss)"),
        ];
        for (ask, expect) in asks {
            let (result, mut peer) = login_at(message(b'R', ask), false);
            assert_eq!(result.err(), Some(SessionError::ProofAsked(expect)));
            let mut rest = Vec::new();
            peer.read_to_end(&mut rest).unwrap();
            // The greeting's first 8 bytes were read before; nothing but its parameters may follow.
            assert_eq!(rest, b"user\0postgres\0database\0postgres\0client_encoding\0UTF8\0\0");
        }
    }

    #[test]
    fn a_refusal_keeps_code_and_words_without_control_characters() {
        let refusal = message(b'E', b"SFATAL\0C28000\0Mno \x1b[31mentry\0\0");
        let expect = SessionError::Server { sqlstate: "28000".into(), message: "no  [31mentry".into() };
        assert_eq!(login_at(refusal, false).0.err(), Some(expect));
    }

    #[test]
    fn a_message_that_announces_gigabytes_is_refused_before_it_is_read() {
        let (result, _) = login_at(b"R\x7f\xff\xff\xff".to_vec(), false);
        assert!(matches!(result.err(), Some(SessionError::Bad(why)) if why.contains("2147483647 bytes")));
    }

    #[test]
    fn an_endless_answer_is_cut_off() {
        let setting = [b"name\0".as_slice(), &[b'x'; 60_000], b"\0"].concat();
        let notices = message(b'S', &setting).repeat(20);
        let (result, _) = login_at(notices, false);
        assert_eq!(result.err(), Some(SessionError::Bad("an answer of more than 1048576 bytes".into())));
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        assert_eq!(login_at(Vec::new(), true).0.err(), Some(SessionError::Timeout));
        assert_eq!(login_at(b"R\0\0".to_vec(), true).0.err(), Some(SessionError::Timeout));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn no_answer_makes_it_panic(noise in proptest::collection::vec(any::<u8>(), 0..200), tag in proptest::sample::select(b"RSKZTDCEN1vA".to_vec())) {
            prop_assert!(login_at(noise.clone(), false).0.is_err() || noise.starts_with(b"Z"));
            let _ = login_at(message(tag, &noise), false);
            let (session, _peer) = login_at([welcome(), message(tag, &noise)].concat(), false);
            if let Ok(mut session) = session {
                let _ = session.query("SELECT 1", Instant::now() + Duration::from_secs(5));
            }
        }
    }
}

//! What a command says when it cannot do its work: what failed, why, what to do; and the exit code that goes with it.
//!
//! Knows the client's errors; knows nothing of single commands.

use crate::exit::Exit;
use crate::render::text::printable;
use lull_api::Problem;
use lull_api::client::ClientError;
use std::io;

/// Result of a command.
pub type Result<T> = std::result::Result<T, Trouble>;

/// Why a command ends early. Without a problem everything was already said (or nobody listens any more).
#[derive(Debug)]
pub struct Trouble {
    /// Exit code.
    pub exit: Exit,
    /// What to say on stderr.
    pub problem: Option<Box<Problem>>,
}

impl Trouble {
    /// A problem found on this side; its `status` is 0, since no server answered.
    pub fn local(exit: Exit, code: &str, what: impl Into<String>) -> Self {
        Trouble { exit, problem: Some(Box::new(Problem::new(0, code, what))) }
    }

    /// A wrong command line that the parser could not see.
    pub fn usage(what: impl Into<String>) -> Self {
        Trouble::local(Exit::Usage, "usage", what)
    }

    /// Says why.
    pub fn why(mut self, why: impl Into<String>) -> Self {
        self.problem = self.problem.map(|p| Box::new(p.why(why)));
        self
    }

    /// Says what to do.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.problem = self.problem.map(|p| Box::new(p.remedy(remedy)));
        self
    }
}

impl From<ClientError> for Trouble {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Problem(problem) => Trouble { exit: exit_of(&problem), problem: Some(Box::new(problem)) },
            ClientError::Unreachable { server, source } => Trouble::local(
                Exit::Unreachable,
                "server-unreachable",
                format!("no answer from the backup server at {server}"),
            )
            .why(innermost(&source))
            .remedy("start it with `lull server`, or name another one with --server or LULL_SERVER"),
            ClientError::Ended { ref server } => Trouble::local(Exit::Unreachable, "stream-ended", error.to_string())
                .why(format!("{server} closed the stream again and again before the session was over"))
                .remedy("`lull session list` shows whether the session goes on"),
            ClientError::Malformed { server, why } => Trouble::local(
                Exit::ServerError,
                "answer-not-understood",
                format!("the answer of {server} was not understood"),
            )
            .why(why)
            .remedy("see whether it is a Lull server of this version: `lull doctor`"),
        }
    }
}

impl From<io::Error> for Trouble {
    /// An error while writing the output.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Trouble { exit: Exit::BrokenPipe, problem: None },
            _ => {
                Trouble::local(Exit::Failed, "output-failed", "the output could not be written").why(error.to_string())
            }
        }
    }
}

/// What the parser of the command line says: its first paragraph is what is wrong, its tips are the reason, and its usage
/// is what to do.
pub fn of_command_line(error: &clap::Error) -> Trouble {
    let text = error.render().to_string();
    let one_line = |paragraph: &str| paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let paragraphs: Vec<String> = text.split("\n\n").map(one_line).filter(|paragraph| !paragraph.is_empty()).collect();
    let what = paragraphs.first().map(|first| first.trim_start_matches("error: ").to_string()).unwrap_or_default();
    let tips: Vec<&str> = paragraphs.iter().filter_map(|paragraph| paragraph.strip_prefix("tip: ")).collect();
    let usage = paragraphs.iter().find_map(|paragraph| paragraph.strip_prefix("Usage: "));
    let help = "`lull help COMMAND` tells more";
    let trouble = Trouble::usage(what).remedy(match usage {
        Some(usage) => format!("write `{usage}`; {help}"),
        None => help.to_string(),
    });
    if tips.is_empty() { trouble } else { trouble.why(tips.join("; ")) }
}

fn exit_of(problem: &Problem) -> Exit {
    match problem.status {
        401 | 403 => Exit::NotAuthenticated,
        500.. => Exit::ServerError,
        _ => Exit::Refused,
    }
}

/// The root cause: what the operating system said, without the layers around it.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Three lines for people: what failed; why; what to do.
pub fn text(problem: &Problem) -> String {
    let mut text = format!("lull: {}\n", printable(&problem.what));
    if let Some(why) = &problem.why {
        text.push_str(&format!("   why: {}\n", printable(why)));
    }
    if let Some(remedy) = &problem.remedy {
        text.push_str(&format!("    do: {}\n", printable(remedy)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_three_lines() {
        let problem = Problem::new(404, "unknown-vm", "there is no VM \"pg\"")
            .why("the hosts have pg-demo and web-1")
            .remedy("`lull vm list` shows them all");
        assert_eq!(
            text(&problem),
            "lull: there is no VM \"pg\"\n   why: the hosts have pg-demo and web-1\n    do: `lull vm list` shows them all\n"
        );
    }

    #[test]
    fn the_status_decides_the_exit_code() {
        for (status, exit) in [
            (400, Exit::Refused),
            (401, Exit::NotAuthenticated),
            (403, Exit::NotAuthenticated),
            (404, Exit::Refused),
            (409, Exit::Refused),
            (422, Exit::Refused),
            (500, Exit::ServerError),
            (503, Exit::ServerError),
        ] {
            assert_eq!(Trouble::from(ClientError::Problem(Problem::new(status, "x", "y"))).exit, exit, "{status}");
        }
    }

    #[test]
    fn a_closed_pipe_says_nothing() {
        let trouble = Trouble::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(trouble.exit, Exit::BrokenPipe);
        assert!(trouble.problem.is_none());
    }
}

//! Typed ids, so that a VM's id cannot be handed over as a host's. Knows nothing of what they name.
//!
//! All but [`SessionId`] are version 7 UUIDs: they sort by creation time. Sessions are counted, because people say
//! "session 42". In JSON a UUID is its hyphenated string, a session id a number.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// A text that is not an id of the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a {kind} id")]
pub struct ParseIdError {
    /// What kind of id was expected, for example `vm`.
    pub kind: &'static str,
    /// The text that was given.
    pub text: String,
}

// A macro, since seven identical newtypes by hand would hide the one that differs.
macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new version 7 id. It reads the clock and the system's randomness, so only the edges call it;
            /// nothing in this crate does.
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.parse()
                    .map(Self)
                    .map_err(|_| ParseIdError { kind: $kind, text: text.to_owned() })
            }
        }
    };
}

uuid_id!(
    /// A virtual machine.
    VmId,
    "vm"
);
uuid_id!(
    /// A hypervisor host.
    HostId,
    "host"
);
uuid_id!(
    /// A backup job.
    JobId,
    "job"
);
uuid_id!(
    /// The work on one VM in one session.
    TaskId,
    "task"
);
uuid_id!(
    /// A stored guest credential.
    CredentialId,
    "credential"
);
uuid_id!(
    /// A folder to which the hypervisor writes backups.
    RepositoryId,
    "repository"
);
uuid_id!(
    /// What a task leaves: a snapshot or a backup.
    RestorePointId,
    "restore point"
);
uuid_id!(
    /// A managed server, the backup server included.
    ServerId,
    "server"
);

/// One run of a job, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub i64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SessionId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        match text.parse() {
            Ok(number) if number > 0 => Ok(Self(number)),
            _ => Err(ParseIdError { kind: "session", text: text.to_owned() }),
        }
    }
}

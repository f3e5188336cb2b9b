//! What a licence admits. Knows the rule only: no files, no signatures.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The edition of a socket licence, lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Edition {
    /// Without guest interaction proxies.
    Standard,
    /// With guest interaction proxies.
    Enterprise,
    /// With guest interaction proxies.
    EnterprisePlus,
}

impl fmt::Display for Edition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Standard => "standard",
            Self::Enterprise => "enterprise",
            Self::EnterprisePlus => "enterprise-plus",
        })
    }
}

/// The licence in force. Without a licence file it is [`Licence::Universal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Licence {
    /// Everything, on any number of servers; built in.
    #[default]
    Universal,
    /// Licensed by CPU socket.
    Socket {
        /// Its edition.
        edition: Edition,
    },
}

impl Licence {
    /// Whether servers other than the backup server may act as guest interaction proxies.
    pub fn admits_proxies(self) -> bool {
        match self {
            Self::Universal => true,
            Self::Socket { edition } => edition >= Edition::Enterprise,
        }
    }

    /// Why the *Choose* button is disabled, or `None` where it is enabled.
    pub fn choose_disabled_because(self) -> Option<String> {
        (!self.admits_proxies()).then(|| {
            format!(
                "guest interaction proxies need a universal licence or a socket licence of edition enterprise or \
                 higher; under the {self} licence the backup server does all guest interaction itself"
            )
        })
    }
}

impl fmt::Display for Licence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Universal => f.write_str("universal"),
            Self::Socket { edition } => write!(f, "socket/{edition}"),
        }
    }
}

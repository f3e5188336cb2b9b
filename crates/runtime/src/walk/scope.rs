//! What a walk leaves out: the *usual noise*. Pure.
//!
//! A folder that is noise is listed in its parent and not entered. docs/guest-protocol.md names the same folders; a test compares.

use lull_guest_wire::IndexScope;

/// Folders that hold what is made anew by itself: caches, temporary files, and files that came with the system's packages.
pub const NOISY_PATHS: [&str; 18] = [
    // Virtual, also where something lies below the mount point.
    "/dev",
    "/proc",
    "/run",
    "/sys",
    // Temporary.
    "/tmp",
    "/var/tmp",
    // Caches.
    "/var/cache",
    "/var/lib/apt/lists",
    "/var/lib/dnf",
    // The system's own.
    "/lib/modules",
    "/snap",
    "/usr/lib/modules",
    "/usr/share/doc",
    "/usr/share/locale",
    "/usr/share/man",
    "/usr/src",
    "/var/lib/dpkg/info",
    "/var/lib/snapd",
];

/// Folders that are noise wherever they lie.
pub const NOISY_NAMES: [&str; 3] = [".cache", "__pycache__", "lost+found"];

/// What one walk leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noise {
    left_out: bool,
}

impl Noise {
    /// As the scope says.
    pub fn of(scope: &IndexScope) -> Noise {
        Noise { left_out: *scope == IndexScope::ExceptNoise }
    }

    /// Whether the folder `name` in `parent` is left out.
    pub fn is_noise(self, parent: &[u8], name: &[u8]) -> bool {
        self.left_out && (NOISY_NAMES.iter().any(|noisy| noisy.as_bytes() == name) || is_noisy_path(parent, name))
    }

    /// Whether this folder, or one above it, is left out.
    pub fn covers(self, path: &[u8]) -> bool {
        let mut parent = 0;
        let ends = path.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.chain([path.len()]) {
            if self.is_noise(&path[..parent.max(1)], &path[parent + 1..end]) {
                return true;
            }
            parent = end;
        }
        false
    }
}

fn is_noisy_path(parent: &[u8], name: &[u8]) -> bool {
    NOISY_PATHS.iter().any(|noisy| match noisy.as_bytes().strip_suffix(name) {
        Some(b"/") => parent == b"/",
        Some([above @ .., b'/']) => above == parent,
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_left_out_where_it_lies_and_nothing_else() {
        let noise = Noise::of(&IndexScope::ExceptNoise);
        for (parent, name) in [("/", "tmp"), ("/var", "cache"), ("/home/a", ".cache"), ("/srv", "lost+found")] {
            assert!(noise.is_noise(parent.as_bytes(), name.as_bytes()), "{parent} {name}");
            assert!(!Noise::of(&IndexScope::Everything).is_noise(parent.as_bytes(), name.as_bytes()));
        }
        for (parent, name) in [("/", "var"), ("/srv", "tmp"), ("/", "mp"), ("/va", "cache"), ("/", "cache"), ("/", "")]
        {
            assert!(!noise.is_noise(parent.as_bytes(), name.as_bytes()), "{parent} {name}");
        }
    }

    #[test]
    fn what_lies_below_noise_is_noise() {
        let noise = Noise::of(&IndexScope::ExceptNoise);
        for (path, expect) in [
            ("/", false),
            ("/srv", false),
            ("/tmp", true),
            ("/tmp/x", true),
            ("/var/lib", false),
            ("/var/lib/snapd/x/y", true),
            ("/home/a/.cache/b", true),
        ] {
            assert_eq!(noise.covers(path.as_bytes()), expect, "{path}");
        }
    }

    #[test]
    fn the_documented_noise_is_the_noise() {
        let text = std::fs::read_to_string("../../docs/guest-protocol.md").unwrap();
        let line =
            text.lines().find_map(|line| line.strip_prefix("Noise: ")).expect("a line that begins with \"Noise: \"");
        let documented: Vec<&str> = line.split('`').skip(1).step_by(2).collect();
        let all: Vec<&str> = NOISY_PATHS.iter().chain(&NOISY_NAMES).copied().collect();
        assert_eq!(documented, all);
    }
}

//! Documents name only files that exist.
//!
//! Two kinds of names count: the targets of relative links, and words that begin with a folder of the project. Pure: whether a path
//! exists is asked of the caller.

use std::path::{Component, Path, PathBuf};

/// Words that begin with one of these name a path in the checkout.
const FOLDERS: &[&str] = &["crates/", "docs/", "testbed/", "xtask/", ".ci/", ".cargo/"];

/// One sentence for each path that `document` (relative to the checkout) names and that does not exist.
pub fn missing_paths(document: &Path, text: &str, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut named: Vec<(String, PathBuf)> = Vec::new();
        named.extend(link_targets(line).map(|target| (target.to_string(), beside(document, target))));
        named.extend(path_words(line).map(|word| (word.to_string(), PathBuf::from(word))));
        for (name, path) in named {
            if !exists(&path) {
                found.push(format!("{}:{}: names {name}, which does not exist", document.display(), index + 1));
            }
        }
    }
    found.dedup();
    found
}

/// Targets of `[text](target)` that point into the checkout, without their anchor.
fn link_targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| {
        let target = rest.split(')').next()?.split('#').next()?.trim();
        (!target.is_empty() && !target.contains("://") && !target.starts_with("mailto:")).then_some(target)
    })
}

/// Words that begin with a folder of the project, without a line number, an anchor or closing punctuation. A word with a
/// placeholder (`testbed/<name>`, `crates/*`) names no single path.
fn path_words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| c.is_whitespace() || "`\"'()[],;|".contains(c)).filter_map(|word| {
        let word = word.strip_prefix("./").unwrap_or(word);
        let word = word.split('#').next()?.split(':').next()?.trim_end_matches(['.', '!', '?']);
        let plain = !word.contains(['*', '<', '>', '{', '}', '$', '…']);
        (plain && FOLDERS.iter().any(|folder| word.starts_with(folder))).then_some(word)
    })
}

/// `target` as seen from `document`, relative to the checkout.
fn beside(document: &Path, target: &str) -> PathBuf {
    let mut path = document.parent().unwrap_or(Path::new("")).to_path_buf();
    for component in Path::new(target).components() {
        match component {
            Component::ParentDir => {
                path.pop();
            }
            Component::CurDir => {}
            other => path.push(other),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    const THERE: &[&str] = &["docs/a.md", "crates/proxy/src/task.rs", "README.md", "testbed/guest", "docs/howto/b.md"];

    fn check(document: &str, text: &str, expected: &[&str]) {
        let exists = |path: &Path| THERE.iter().any(|there| path == Path::new(there));
        assert_eq!(missing_paths(Path::new(document), text, exists), expected);
    }

    #[test]
    fn what_exists_passes() {
        check("README.md", "See `crates/proxy/src/task.rs:12`, [the other](docs/a.md#part), (docs/howto/b.md).", &[]);
        check("docs/howto/b.md", "[up](../a.md) [home](../../README.md) ./testbed/guest", &[]);
    }

    #[test]
    fn a_gone_file_is_named_with_its_line() {
        check("docs/a.md", "one\n`crates/gone.rs` here", &["docs/a.md:2: names crates/gone.rs, which does not exist"]);
        check("docs/a.md", "[x](howto/gone.md)", &["docs/a.md:1: names howto/gone.md, which does not exist"]);
    }

    #[test]
    fn placeholders_and_the_world_outside_are_not_paths() {
        check(
            "README.md",
            "crates/* testbed/<name> [web](https://example.org/docs/x) /usr/share/docs/x [here](#top)",
            &[],
        );
    }
}

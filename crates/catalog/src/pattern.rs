//! What a name or path has to look like: substring, glob or regex, over bytes. Pure.

use crate::error::CatalogError;
use memchr::memmem::Finder;
use regex::bytes::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

/// Longest pattern, in bytes.
pub const PATTERN_BYTES_MAX: usize = 4_096;
/// What a compiled pattern may take, in bytes.
const COMPILED_BYTES_MAX: usize = 4 << 20;

/// A pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pattern {
    /// How it is meant.
    pub how: How,
    /// What it is held against.
    pub what: What,
    /// The pattern itself, at most [`PATTERN_BYTES_MAX`]; a regex is UTF-8.
    pub text: Vec<u8>,
    /// `a` is `A`.
    pub ignore_case: bool,
}

/// How a pattern is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// Occurs somewhere.
    Substring,
    /// Fits as a whole. `*` is any run of bytes without `/`, `**` any run, `?` one character (or one byte of what is no UTF-8) that is not
    /// `/`, `[a-z]` and `[!a-z]` one of a class, `\` takes the next character as it is.
    Glob,
    /// Fits somewhere, in the syntax of Rust's `regex` crate. `.` also fits a newline; what is no UTF-8 fits `(?-u:.)`.
    Regex,
}

/// What a pattern is held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// What comes after the last `/`.
    Name,
    /// The whole path.
    Path,
}

/// A pattern, ready to be held against many paths.
pub(crate) struct Matcher {
    what: What,
    how: Compiled,
}

enum Compiled {
    Everything,
    Substring(Box<Finder<'static>>),
    Regex(Box<Regex>),
}

impl Matcher {
    /// Everything fits where there is no pattern.
    pub(crate) fn new(pattern: Option<&Pattern>) -> Result<Matcher, CatalogError> {
        let Some(pattern) = pattern else { return Ok(Matcher { what: What::Path, how: Compiled::Everything }) };
        let text = &pattern.text;
        if text.len() > PATTERN_BYTES_MAX {
            let message = format!("it has {} bytes, at most {PATTERN_BYTES_MAX} are allowed", text.len());
            return Err(CatalogError::Pattern(message));
        }
        let how = match pattern.how {
            How::Substring if !pattern.ignore_case => Compiled::Substring(Box::new(Finder::new(text).into_owned())),
            How::Substring => regex(&literal(text), true)?,
            How::Glob => regex(&glob(text)?, pattern.ignore_case)?,
            How::Regex => {
                let text = std::str::from_utf8(text)
                    .map_err(|_| CatalogError::Pattern("a regex has to be UTF-8; a byte is \\xNN in it".to_string()))?;
                regex(text, pattern.ignore_case)?
            }
        };
        Ok(Matcher { what: pattern.what, how })
    }

    /// Whether `path` fits.
    pub(crate) fn fits(&self, path: &[u8]) -> bool {
        let text = match self.what {
            What::Path => path,
            What::Name => &path[memchr::memrchr(b'/', path).map_or(0, |slash| slash + 1)..],
        };
        match &self.how {
            Compiled::Everything => true,
            Compiled::Substring(finder) => finder.find(text).is_some(),
            Compiled::Regex(regex) => regex.is_match(text),
        }
    }
}

fn regex(text: &str, ignore_case: bool) -> Result<Compiled, CatalogError> {
    let built = RegexBuilder::new(text)
        .case_insensitive(ignore_case)
        .dot_matches_new_line(true)
        .size_limit(COMPILED_BYTES_MAX)
        .dfa_size_limit(COMPILED_BYTES_MAX)
        .nest_limit(100)
        .build();
    built.map(|regex| Compiled::Regex(Box::new(regex))).map_err(|error| CatalogError::Pattern(error.to_string()))
}

/// A regex that fits exactly these bytes.
fn literal(text: &[u8]) -> String {
    let mut made = String::new();
    for chunk in text.utf8_chunks() {
        made += &regex::escape(chunk.valid());
        for byte in chunk.invalid() {
            made += &format!("(?-u:\\x{byte:02x})");
        }
    }
    made
}

/// A regex that fits what the glob fits.
fn glob(text: &[u8]) -> Result<String, CatalogError> {
    let mut made = String::from(r"\A");
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'*' => {
                let is_any = rest.first() == Some(&b'*');
                while rest.first() == Some(&b'*') {
                    rest = &rest[1..];
                }
                made += if is_any { "(?-u:.)*" } else { "(?-u:[^/])*" };
            }
            b'?' => made += r"(?:[^/]|(?-u:[\x80-\xff]))",
            b'[' => made += &class(&mut rest)?,
            b'\\' if rest.is_empty() => {
                return Err(CatalogError::Pattern("a glob ends with \\, which takes the next character".to_string()));
            }
            b'\\' => {
                let bytes = character_bytes(rest);
                made += &literal(&rest[..bytes]);
                rest = &rest[bytes..];
            }
            _ => {
                let bytes = character_bytes(&text[text.len() - rest.len() - 1..]);
                made += &literal(&text[text.len() - rest.len() - 1..][..bytes]);
                rest = &rest[bytes - 1..];
            }
        }
    }
    made += r"\z";
    Ok(made)
}

/// Bytes of the first character, or 1 where there is none. `text` is not empty.
fn character_bytes(text: &[u8]) -> usize {
    let begin = &text[..text.len().min(4)];
    begin.utf8_chunks().next().and_then(|chunk| chunk.valid().chars().next()).map_or(1, char::len_utf8)
}

/// The rest of a class, after its `[`.
fn class(rest: &mut &[u8]) -> Result<String, CatalogError> {
    let trouble = |why: &str| CatalogError::Pattern(format!("a class of the glob, [...], {why}"));
    // A `]` right at the beginning belongs to the class.
    let begin = match rest.first() {
        Some(b'!' | b'^') => 2,
        _ => 1,
    };
    let end = rest.iter().skip(begin).position(|byte| *byte == b']').map(|at| at + begin);
    let end = end.ok_or_else(|| trouble("has no end; a [ of its own is \\["))?;
    let inside = std::str::from_utf8(&rest[..end]).map_err(|_| trouble("is no UTF-8"))?;
    *rest = &rest[end + 1..];
    let (is_not, members) = match inside.strip_prefix(['!', '^']) {
        Some(members) => (true, members),
        None => (false, inside),
    };
    let members: Vec<char> = members.chars().collect();
    let mut made = String::from(if is_not { "[^/" } else { "[" });
    let mut at = 0;
    while at < members.len() {
        let (from, mut to) = (members[at], members[at]);
        at += 1;
        if members.get(at) == Some(&'-') && at + 1 < members.len() {
            to = members[at + 1];
            at += 2;
        }
        if from > to {
            return Err(trouble("has a range that runs backwards"));
        }
        made += &format!("\\x{{{:x}}}-\\x{{{:x}}}", u32::from(from), u32::from(to));
    }
    made.push(']');
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(how: How, what: What, text: &[u8], ignore_case: bool) -> Pattern {
        Pattern { how, what, text: text.to_vec(), ignore_case }
    }

    fn fits(pattern: &Pattern, path: &[u8]) -> bool {
        Matcher::new(Some(pattern)).unwrap().fits(path)
    }

    fn check(how: How, what: What, text: &[u8], yes: &[&[u8]], no: &[&[u8]]) {
        let pattern = pattern(how, what, text, false);
        for path in yes {
            assert!(fits(&pattern, path), "{pattern:?} should fit {}", path.escape_ascii());
        }
        for path in no {
            assert!(!fits(&pattern, path), "{pattern:?} should not fit {}", path.escape_ascii());
        }
    }

    #[test]
    fn a_substring_is_bytes() {
        check(How::Substring, What::Name, b"a\xff", &[b"/x/ba\xffc"], &[b"/a\xff/b", b"/x/a"]);
        check(How::Substring, What::Path, b"b/c", &[b"/ab/cd"], &[b"/b", b"/bc"]);
        check(How::Substring, What::Name, b"", &[b"/", b"/a"], &[]);
    }

    #[test]
    fn a_glob_fits_as_a_whole() {
        check(
            How::Glob,
            What::Name,
            b"*.conf",
            &[b"/etc/a.conf", b"/.conf", b"/\xff\n.conf"],
            &[b"/a.conf.d", b"/aconf"],
        );
        check(How::Glob, What::Path, b"/etc/*.conf", &[b"/etc/a.conf"], &[b"/etc/x/a.conf", b"/x/etc/a.conf"]);
        check(How::Glob, What::Path, b"/**/*.conf", &[b"/etc/x/a.conf", b"/etc/a.conf"], &[b"/etc/a.config"]);
        check(
            How::Glob,
            What::Name,
            "?\u{e4}?".as_bytes(),
            &["/\u{fc}\u{e4}\u{fc}".as_bytes(), b"/a\xc3\xa4\xff"],
            &[b"/a"],
        );
        check(How::Glob, What::Name, b"[a-c][!0-9]", &[b"/ax", b"/c-"], &[b"/dx", b"/a1", b"/a"]);
        check(How::Glob, What::Name, b"[]a]", &[b"/]", b"/a"], &[b"/b"]);
        check(How::Glob, What::Name, b"\\*a.b", &[b"/*a.b"], &[b"/xa.b", b"/*axb"]);
        check(How::Glob, What::Name, b"a\xff*", &[b"/a\xffb"], &[b"/a\xfe"]);
    }

    #[test]
    fn a_regex_fits_somewhere_and_takes_newlines() {
        check(How::Regex, What::Name, b"^a.c$", &[b"/a\nc", b"/abc"], &[b"/abcd", b"/a\xffc"]);
        check(How::Regex, What::Path, b"(?-u:\\xff)", &[b"/\xff/x"], &[b"/x"]);
    }

    #[test]
    fn case_counts_unless_told() {
        for (how, text) in [(How::Substring, "\u{e4}B"), (How::Glob, "\u{e4}b*"), (How::Regex, "^\u{e4}b")] {
            let mut pattern = pattern(how, What::Name, text.as_bytes(), true);
            assert!(fits(&pattern, "/\u{c4}Bc".as_bytes()), "{pattern:?}");
            pattern.ignore_case = false;
            assert!(!fits(&pattern, "/\u{c4}bC".as_bytes()), "{pattern:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_pattern_is_said() {
        for (how, text, why) in [
            (How::Regex, &b"a("[..], "unclosed group"),
            (How::Regex, b"\xff", "UTF-8"),
            (How::Regex, b"(((a{100}){100}){100})", "size limit"),
            (How::Glob, b"[a", "has no end"),
            (How::Glob, b"[z-a]", "backwards"),
            (How::Glob, b"a\\", "takes the next character"),
            (How::Substring, &[b'a'; PATTERN_BYTES_MAX + 1], "at most 4096"),
        ] {
            let error = Matcher::new(Some(&pattern(how, What::Name, text, false))).err().unwrap().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_name_without_wildcards_is_a_glob_for_itself_alone(name in "[^\\x00/\\[\\]*?\\\\]{1,8}", other in "[^\\x00/]{1,8}") {
            let glob = pattern(How::Glob, What::Name, name.as_bytes(), false);
            let fits = |name: &str| fits(&glob, format!("/a/{name}").as_bytes());
            prop_assert!(fits(&name));
            prop_assert_eq!(fits(&other), name == other);
        }

        #[test]
        fn no_pattern_makes_a_matcher_panic(text in proptest::collection::vec(any::<u8>(), 0..20), ignore_case in any::<bool>()) {
            for how in [How::Substring, How::Glob, How::Regex] {
                if let Ok(matcher) = Matcher::new(Some(&pattern(how, What::Path, &text, ignore_case))) {
                    matcher.fits(&text);
                }
            }
        }
    }
}

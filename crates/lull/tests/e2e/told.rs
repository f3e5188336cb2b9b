//! What a user is told, looked at as a user would: words, not structure.

/// Which of `words` are not in `text`, whatever their case.
pub fn missing<'a>(text: &str, words: &[&'a str]) -> Vec<&'a str> {
    let lower = text.to_lowercase();
    words.iter().copied().filter(|word| !lower.contains(&word.to_lowercase())).collect()
}

/// Asserts that `text` holds each of `words`, whatever their case.
pub fn assert_says(text: &str, words: &[&str]) {
    let missing = missing(text, words);
    assert!(missing.is_empty(), "it does not say {missing:?}: {text}");
}

//! What a user is told, looked at as a user would: words, not structure.

/// Asserts that `text` holds each of `words`, whatever their case.
pub fn assert_says(text: &str, words: &[&str]) {
    let lower = text.to_lowercase();
    let missing: Vec<&&str> = words.iter().filter(|word| !lower.contains(&word.to_lowercase())).collect();
    assert!(missing.is_empty(), "it does not say {missing:?}: {text}");
}

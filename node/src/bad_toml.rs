//! Errors in files that people write.

/// What is wrong in a text and where, in one line.
#[must_use]
pub fn tell(text: &str, error: &toml::de::Error) -> String {
    let problem = error.message().lines().collect::<Vec<_>>().join(", ");
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => {
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
            format!("{problem} at line {line} column {column}")
        }
        None => problem,
    }
}

//! Small texts: what others said, fit to be shown, and base64 for a header.

use base64::Engine;

/// The most of somebody's answer that is shown.
const SHOWN_MAX: usize = 300;

/// What another program said, without anything that a terminal or a log would obey.
pub(crate) fn printable(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(&said[..said.len().min(4 * SHOWN_MAX)]);
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    said.trim().chars().map(shown).take(SHOWN_MAX).collect()
}

/// What others have said some of, as one line.
pub(crate) fn on_one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Base64 with padding.
pub(crate) fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_said_is_obeyed_or_endless() {
        assert_eq!(printable(b" no\x1b[2Jthing\r\n"), "no [2Jthing");
        assert_eq!(printable(&[b'x'; 10_000]).len(), SHOWN_MAX);
        assert_eq!(printable(b"\xff"), "\u{fffd}");
    }
}

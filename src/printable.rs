//! Text from elsewhere, as people are shown it: nothing in it moves a cursor, hides, or turns the direction of what
//! stands beside it.

use std::fmt::{self, Write as _};
use std::io;

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};

/// Whether a character shows as itself wherever it stands. Not so control characters, marks that turn the direction of
/// writing, others of no width, line ends of every kind, spaces other than the ordinary one, and what Unicode does not
/// assign.
#[must_use]
pub fn is_printable(c: char) -> bool {
    if matches!(c, ' '..='~') {
        return true;
    }
    // What the standard library escapes, by its own tables. A mark that combines with a letter is escaped at the
    // beginning alone, so there is a letter.
    let mut text = [b'a', 0, 0, 0, 0];
    let len = c.encode_utf8(&mut text[1..]).len();
    let text = std::str::from_utf8(&text[..=len]).unwrap_or_default();
    text.escape_debug().nth(1) == Some(c)
}

/// Shows a text with everything that is not printable by its number: `\u{202e}`.
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match is_printable(c) {
            true => f.write_char(c),
            false => write!(f, "\\u{{{:x}}}", u32::from(c)),
        })
    }
}

/// JSON on one line, in which whatever is not printable is escaped, so that it may be shown as it is.
///
/// # Errors
/// Those of the value, and of the writer.
pub fn write_json(out: impl io::Write, value: &impl Serialize) -> serde_json::Result<()> {
    value.serialize(&mut Serializer::with_formatter(out, Escaping(CompactFormatter)))
}

/// [`write_json`] into a string.
///
/// # Errors
/// Those of the value.
pub fn json(value: &impl Serialize) -> serde_json::Result<String> {
    let mut out = Vec::new();
    write_json(&mut out, value)?;
    // JSON of strings is a string.
    Ok(String::from_utf8(out).unwrap_or_default())
}

/// Compact JSON, except for what is in strings.
struct Escaping(CompactFormatter);

impl Formatter for Escaping {
    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(|c| !is_printable(c)) {
            let (before, from) = rest.split_at(at);
            self.0.write_string_fragment(out, before)?;
            let mut chars = from.chars();
            for unit in chars.next().unwrap_or_default().encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}")?;
            }
            rest = chars.as_str();
        }
        self.0.write_string_fragment(out, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\u{1b}[2J\u{9b}\r\n\u{61c}\u{200b}\u{200d}\u{200e}\u{202a}\u{202e}\u{2028}\u{2060}\u{2066}\u{2069}\u{feff}\u{e0041}z";
    const HARMLESS: &str = "21.5 °C \"ok\" C:\\temp 'é' 温度 ते \u{1f321}\u{fe0f} e\u{301}";

    #[test]
    fn what_turns_hides_or_moves_is_shown_by_its_number() {
        let shown = Printable(HOSTILE).to_string();
        assert!(shown.is_ascii() && !shown.contains(|c: char| c.is_control()), "{shown:?}");
        assert!(shown.starts_with("a\\u{1b}[2J\\u{9b}\\u{d}\\u{a}\\u{61c}\\u{200b}"), "{shown}");
        assert!(shown.ends_with("\\u{feff}\\u{e0041}z"), "{shown}");
        assert_eq!(Printable(HARMLESS).to_string(), HARMLESS);
    }

    #[test]
    fn json_is_the_same_to_a_program_and_harmless_to_a_terminal() {
        for text in [HOSTILE, HARMLESS] {
            let shown = json(&[text]).unwrap();
            assert!(shown.chars().all(is_printable), "{shown:?}");
            assert_eq!(serde_json::from_str::<[String; 1]>(&shown).unwrap(), [text]);
        }
        assert!(json(&HARMLESS).unwrap().contains("温度"));
    }
}

//! The name of a spool. Owns its making and its text; where it is kept is others' business.

use std::fmt;
use std::io;

/// Names a spool for ever: random, made with its first segment, and in the header of each. With a reading's
/// index it names that reading's place in all spools that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpoolId(pub [u8; 16]);

impl SpoolId {
    /// A new one.
    pub(super) fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// From its text: 32 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        crate::hex::decode_array(text).map(Self)
    }
}

impl fmt::Display for SpoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", crate::hex::Hex(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_text_comes_back_and_nothing_else_does() {
        let id = SpoolId::random().unwrap();
        assert_ne!(id, SpoolId::random().unwrap());
        let text = id.to_string();
        assert_eq!(SpoolId::parse(&text), Some(id));
        assert_eq!(SpoolId::parse(&text[2..]), None);
        assert_eq!(SpoolId::parse(&format!("{text}00")), None);
    }
}

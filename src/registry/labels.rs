//! What people say of a device, beside what it proves itself by: tags, a group, and when its registration ends.
//!
//! Words are of a kind that is safe wherever they are shown: in tables, files of comma-separated values, web pages,
//! logs and metrics.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The most tags of one device.
pub const MAX_TAGS: usize = 16;
/// The longest word.
const MAX_WORD: usize = 32;

/// A tag or a group: 1 to 32 of the characters `A–Z a–z 0–9 . _ -`, the first a letter or a digit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Word(Arc<str>);

/// Tags in their order, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Word>", into = "Vec<Word>")]
pub struct Tags(Vec<Word>);

/// What cannot be a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadLabel {
    /// Not a tag or a group.
    #[error(
        "a tag or a group is 1 to 32 of the characters A-Z a-z 0-9 . _ -, the first a letter or a digit"
    )]
    Word,
    /// More than there is room for.
    #[error("a device has at most {MAX_TAGS} tags")]
    TooMany,
}

/// What is said of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Labels {
    /// What it is looked for by.
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
    /// What it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Word>,
    /// The first second in which it is not registered any more, Unix time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_s: Option<i64>,
}

/// What is to become of a device's labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relabel {
    /// All its tags from now on; without it, those that it has.
    pub tags: Option<Tags>,
    /// Tags that it is to have besides.
    pub add: Tags,
    /// Tags that it is not to have any more.
    pub remove: Tags,
    /// Another group, or none.
    pub group: Option<Option<Word>>,
    /// Another end, or none.
    pub expires_s: Option<Option<i64>>,
}

impl Word {
    /// The word as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Word {
    type Err = BadLabel;

    fn from_str(text: &str) -> Result<Self, BadLabel> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if first && text.len() <= MAX_WORD && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(BadLabel::Word)
        }
    }
}

impl TryFrom<String> for Word {
    type Error = BadLabel;

    fn try_from(text: String) -> Result<Self, BadLabel> {
        text.parse()
    }
}

impl From<Word> for String {
    fn from(word: Word) -> Self {
        word.0.as_ref().to_owned()
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Tags {
    /// These tags, each once.
    ///
    /// # Errors
    /// [`BadLabel::TooMany`].
    pub fn of(words: impl IntoIterator<Item = Word>) -> Result<Self, BadLabel> {
        let mut words: Vec<_> = words.into_iter().collect();
        words.sort();
        words.dedup();
        if words.len() > MAX_TAGS { Err(BadLabel::TooMany) } else { Ok(Self(words)) }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Word> {
        self.0.iter()
    }
}

impl TryFrom<Vec<Word>> for Tags {
    type Error = BadLabel;

    fn try_from(words: Vec<Word>) -> Result<Self, BadLabel> {
        Self::of(words)
    }
}

impl From<Tags> for Vec<Word> {
    fn from(tags: Tags) -> Self {
        tags.0
    }
}

/// Takes tags separated by commas; nothing is no tag.
impl FromStr for Tags {
    type Err = BadLabel;

    fn from_str(text: &str) -> Result<Self, BadLabel> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let words = text.split(',').map(|word| word.trim().parse());
        Self::of(words.collect::<Result<Vec<_>, _>>()?)
    }
}

impl fmt::Display for Tags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.iter().map(Word::as_str).collect();
        f.pad(&words.join(","))
    }
}

impl Labels {
    /// Whether nothing is said.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What they become.
    pub(super) fn changed(self, change: &Relabel) -> Result<Self, BadLabel> {
        let Relabel { tags, add, remove, group, expires_s } = change;
        let kept = tags.clone().unwrap_or(self.tags);
        let all = kept.0.into_iter().chain(add.0.iter().cloned());
        Ok(Self {
            tags: Tags::of(all.filter(|tag| !remove.0.contains(tag)))?,
            group: group.clone().unwrap_or(self.group),
            expires_s: expires_s.unwrap_or(self.expires_s),
        })
    }

    /// The bytes on disk.
    pub(super) fn encode(&self) -> Vec<u8> {
        // Strings and numbers always make JSON.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` for anything else.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

/// Whether a name is what a pattern says, in which `*` stands for anything.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let mut parts: Vec<_> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_plain_and_tags_few() {
        for good in ["a", "north.wing_2", &"x".repeat(32)] {
            assert_eq!(good.parse::<Word>().unwrap().as_str(), good);
        }
        for bad in ["", "-1", ".a", "=1+1", "a b", "a\u{202e}", "<b>", "@x", &"x".repeat(33)] {
            assert_eq!(bad.parse::<Word>(), Err(BadLabel::Word), "{bad:?}");
        }
        assert_eq!("b, a,b".parse::<Tags>().unwrap().to_string(), "a,b");
        assert_eq!("a,,b".parse::<Tags>(), Err(BadLabel::Word));
        assert!(" ".parse::<Tags>().unwrap().is_empty());
        let many = (0..=MAX_TAGS).map(|n| format!("t{n}")).collect::<Vec<_>>().join(",");
        assert_eq!(many.parse::<Tags>(), Err(BadLabel::TooMany));
    }

    #[test]
    fn labels_change_read_back_and_nothing_odd_does() {
        let word = |text: &str| text.parse::<Word>().unwrap();
        let tags = |text: &str| text.parse::<Tags>().unwrap();
        let change = Relabel {
            add: tags("a,b"),
            group: Some(Some(word("g"))),
            expires_s: Some(Some(7)),
            ..Relabel::default()
        };
        let labels = Labels::default().changed(&change).unwrap();
        assert_eq!(Labels::decode(&labels.encode()), Some(labels.clone()));
        let change = Relabel { remove: tags("a"), add: tags("c"), ..Relabel::default() };
        let labels = labels.changed(&change).unwrap();
        assert_eq!(
            (labels.tags.to_string(), labels.group.clone()),
            ("b,c".into(), Some(word("g")))
        );
        let none = Relabel {
            tags: Some(Tags::default()),
            group: Some(None),
            expires_s: Some(None),
            ..Relabel::default()
        };
        assert!(labels.changed(&none).unwrap().is_empty());
        for bad in ["", r#"{"tags":["a b"]}"#, r#"{"owner":1}"#] {
            assert_eq!(Labels::decode(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn patterns_mean_what_they_say() {
        for (pattern, name) in [
            ("a", "a"),
            ("*", ""),
            ("m-*", "m-1"),
            ("*-1", "m-1"),
            ("m*t*r", "meter"),
            ("a*a", "aa"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("a", "ab"), ("", "a"), ("m-*", "n-1"), ("*-1", "m-12"), ("a*a", "a"), ("*x*y", "yx")]
        {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}

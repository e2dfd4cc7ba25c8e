//! Subjects and topics with `{device}` and `{channel}` in them.
//!
//! A batch of many devices becomes one message for each address then. A device's name is a
//! stranger's text: what would mean something to a broker stands as an underscore.

/// A subject or a topic, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    text: String,
    device: bool,
    channel: bool,
}

impl Template {
    /// A NATS subject.
    pub(crate) fn subject(text: &str) -> Option<Self> {
        let word = |word: &str| {
            !word.is_empty()
                && !word.contains(['*', '>'])
                && !word.bytes().any(|byte| byte <= b' ' || byte == 0x7f)
        };
        let known = text.len() <= 512 && !text.starts_with('$') && text.split('.').all(word);
        known.then(|| Self::new(text)).flatten()
    }

    /// An MQTT topic.
    pub(crate) fn topic(text: &str) -> Option<Self> {
        let known = (1..=512).contains(&text.len())
            && !text.starts_with('$')
            && !text.contains(['+', '#'])
            && !text.chars().any(char::is_control);
        known.then(|| Self::new(text)).flatten()
    }

    fn new(text: &str) -> Option<Self> {
        let (device, channel) = (text.contains("{device}"), text.contains("{channel}"));
        let rest = text.replace("{device}", "").replace("{channel}", "");
        (!rest.contains(['{', '}'])).then(|| Self { text: text.to_owned(), device, channel })
    }

    /// Whether addresses differ at all.
    pub(crate) fn varies(&self) -> bool {
        self.device || self.channel
    }

    /// The text as it was given.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The address for a reading of this device and channel.
    pub(crate) fn fill(&self, device: &str, channel: u16) -> String {
        let mut text = self.text.clone();
        if self.channel {
            text = text.replace("{channel}", &channel.to_string());
        }
        // Last, since a device may be called "{channel}".
        if self.device {
            let means = |c: char| c.is_control() || c.is_whitespace() || "*>+#./$".contains(c);
            let name = device.chars().map(|c| if means(c) { '_' } else { c });
            text = text.replace("{device}", &name.collect::<String>());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_reach_beyond_their_place() {
        let subject = Template::subject("duet.{device}.{channel}").unwrap();
        assert!(subject.varies());
        assert_eq!(subject.fill("pump-7", 3), "duet.pump-7.3");
        assert_eq!(subject.fill("a.b.> *", 3), "duet.a_b____.3");
        assert_eq!(subject.fill("{channel}", 3), "duet.{channel}.3");
        let topic = Template::topic("site/{device}").unwrap();
        assert_eq!(topic.fill("$SYS/+/#", 0), "site/_SYS____");
        assert!(!Template::topic("site").unwrap().varies());
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in ["", ".", "a..b", "a.", "a b", "a.*", "a.>", "$JS.x", "a.{host}", "a.\n"] {
            assert!(Template::subject(bad).is_none(), "{bad:?}");
        }
        for bad in ["", "a/+", "#", "$SYS/a", "a/{", "a\0"] {
            assert!(Template::topic(bad).is_none(), "{bad:?}");
        }
    }
}

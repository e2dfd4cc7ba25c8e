//! Rules that a test can switch off, one at a time and for its own thread, to see that each is needed. Outside of tests all are
//! in force, and asking costs nothing.

/// A rule of `docs/protocol.md`, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// R42: a counter that is not above the mark is met with a challenge.
    Freshness,
    /// R46: a session that answered a challenge is not replaced by a greater counter.
    AnswerStands,
    /// R97: a gateway that has not met a device stores no reading of its first HELLO.
    FirstContact,
    /// R97: nothing is stored whose counter would not move the mark, though it answers a challenge.
    WithinReach,
    /// R98: a device has one reading on its way to storage at a time.
    OneOnItsWay,
    /// R99: a reading that is stored is known by its name when it comes again inside a HELLO.
    KnownInHello,
    /// The same when it comes in a record (R100).
    KnownInRecord,
    /// R100: nothing is taken again in a session that is older than the mark.
    OlderSession,
    /// R101: a stored reading moves the mark.
    MarkMoves,
    /// R102: whoever has proved himself is not met with silence.
    NoSilence,
    /// R71: a path that moves is unproven.
    MoveEndsProof,
    /// R109: the question is bound to the address that it goes to.
    AskedThere,
    /// R109: the question ages.
    AskedLately,
    /// R110: a copy of the newest answer proves an address, too.
    CopyProves,
    /// R111: a repetition is answered where it came from.
    AnsweredThere,
    /// R111: a repetition is answered from its own bytes.
    OwnBytes,
    /// R113: a command that went out and has no result still waits.
    SentStillWaits,
}

#[cfg(any(test, feature = "testing"))]
thread_local! {
    static OFF: std::cell::Cell<Option<Rule>> = const { std::cell::Cell::new(None) };
}

/// Whether this rule holds.
#[inline]
pub(crate) fn in_force(rule: Rule) -> bool {
    #[cfg(any(test, feature = "testing"))]
    let off = OFF.get() == Some(rule);
    #[cfg(not(any(test, feature = "testing")))]
    let off = {
        let _ = rule;
        false
    };
    !off
}

/// Does something on this thread without one of the rules.
#[cfg(any(test, feature = "testing"))]
pub fn without<T>(rule: Option<Rule>, act: impl FnOnce() -> T) -> T {
    struct Again(Option<Rule>);
    impl Drop for Again {
        fn drop(&mut self) {
            OFF.set(self.0);
        }
    }
    let _again = Again(OFF.replace(rule));
    act()
}

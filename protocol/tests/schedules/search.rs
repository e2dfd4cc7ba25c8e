//! Breadth first over states that are told apart by a hash of 128 bits.

use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasher as _, Hash, RandomState},
};

/// What is wrong in a state, or in how it came about.
pub(crate) type Fault = String;

/// A system whose states are explored.
pub(crate) trait System {
    type State: Clone + Hash;
    fn start(&self) -> Self::State;
    /// Each step from this state: what happened, and what came of it.
    fn steps(
        &self,
        state: &Self::State,
        to: &mut Vec<(&'static str, Self::State)>,
    ) -> Result<(), Fault>;
    /// What must hold in every state.
    fn check(&self, state: &Self::State) -> Result<(), Fault>;
}

/// What an exploration came to.
pub(crate) struct Outcome {
    pub(crate) states: usize,
    /// Whether no state is left over.
    pub(crate) complete: bool,
    /// The first fault, with the steps that lead to it.
    pub(crate) fault: Option<(Fault, Vec<&'static str>)>,
}

/// Explores until there is nothing new, a fault, or this many states.
pub(crate) fn explore<S: System>(system: &S, limit: usize) -> Outcome {
    let hashers = (RandomState::new(), RandomState::new());
    let name = |state: &S::State| (hashers.0.hash_one(state), hashers.1.hash_one(state));
    let start = system.start();
    let mut seen = HashSet::from([name(&start)]);
    // For each state where it came from, and by what.
    let mut origin: Vec<(usize, &'static str)> = vec![(0, "")];
    let mut queue = VecDeque::from([(0, start)]);
    let path = |origin: &[(usize, &'static str)], mut at: usize| {
        let mut path = Vec::new();
        while at != 0 {
            path.push(origin[at].1);
            at = origin[at].0;
        }
        path.reverse();
        path
    };
    let mut steps = Vec::new();
    while let Some((at, state)) = queue.pop_front() {
        let found = |fault| {
            let fault = Some((fault, path(&origin, at)));
            Outcome { states: origin.len(), complete: false, fault }
        };
        if let Err(fault) = system.check(&state) {
            return found(fault);
        }
        steps.clear();
        if let Err(fault) = system.steps(&state, &mut steps) {
            return found(fault);
        }
        if origin.len() >= limit {
            return Outcome { states: origin.len(), complete: false, fault: None };
        }
        for (what, next) in steps.drain(..) {
            if seen.insert(name(&next)) {
                queue.push_back((origin.len(), next));
                origin.push((at, what));
            }
        }
    }
    Outcome { states: origin.len(), complete: true, fault: None }
}

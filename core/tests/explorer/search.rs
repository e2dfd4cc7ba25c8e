//! Breadth first over schedules, and at random along long ones.

use std::collections::{HashSet, VecDeque};
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How many times as far as in every run of all tests: as the environment variable says.
fn effort() -> usize {
    std::env::var("DUET_EXPLORER_EFFORT").map_or(1, |text| text.parse().unwrap())
}

/// What is wrong in a state, or in how it came about.
pub(crate) type Fault = String;

/// Something that steps are done with.
pub(crate) trait System {
    type Step: Copy + Debug;

    /// What can happen now.
    fn steps(&self) -> Vec<Self::Step>;

    /// Does it, and looks at what came of it.
    fn take(&mut self, step: Self::Step) -> Result<(), Fault>;

    /// A name that states share which behave alike.
    fn name(&self) -> u64;

    /// What must be possible from here on.
    fn end(self) -> Result<(), Fault>;
}

/// What an exploration came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) states: usize,
    /// How many steps the longest schedules have; all up to there were looked at.
    pub(crate) depth: usize,
    /// Whether no state is left over.
    pub(crate) complete: bool,
    /// The first fault, with the steps that lead to it.
    pub(crate) fault: Option<(Fault, Vec<String>)>,
}

/// What production code asserts by itself is a fault like any other.
fn guarded(act: impl FnOnce() -> Result<(), Fault>) -> Result<(), Fault> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(said.unwrap_or_else(|| "a panic".to_owned()))
    })
}

fn told(path: &[impl Debug]) -> Vec<String> {
    path.iter().map(|step| format!("{step:?}")).collect()
}

/// Explores until there is nothing new, a fault, or so many steps have been done.
pub(crate) fn explore<S: System>(start: impl Fn() -> S, most: usize) -> Outcome {
    let most = most * effort();
    let mut seen = HashSet::from([start().name()]);
    let mut queue = VecDeque::from([Vec::new()]);
    let (mut done, mut depth) = (0, 0);
    while let Some(path) = queue.pop_front() {
        depth = path.len();
        if done > most {
            return Outcome { states: seen.len(), depth, complete: false, fault: None };
        }
        let again = || {
            let mut system = start();
            path.iter().for_each(|step| system.take(*step).unwrap());
            system
        };
        let here = again();
        let steps = here.steps();
        let mut here = Some(here);
        for (place, step) in steps.iter().enumerate().rev() {
            let mut next = here.take().unwrap_or_else(|| {
                done += path.len();
                again()
            });
            done += 1;
            let mut fault = guarded(|| next.take(*step)).err();
            if fault.is_none() && seen.insert(next.name()) {
                fault = guarded(|| next.end()).err();
                queue.push_back([&path[..], &[*step]].concat());
            }
            if let Some(fault) = fault {
                let fault = Some((fault, told(&[&path[..], &steps[place..=place]].concat())));
                return Outcome { states: seen.len(), depth, complete: false, fault };
            }
        }
    }
    Outcome { states: seen.len(), depth, complete: true, fault: None }
}

/// Walks so many times so far at random; each kind of step is as likely as any other.
pub(crate) fn walk<S: System>(
    start: impl Fn() -> S,
    times: usize,
    length: usize,
) -> Result<usize, (Fault, Vec<String>)> {
    let mut done = 0;
    for time in 0..times * effort() {
        let mut dice = Dice(u64::try_from(time).unwrap());
        let (mut system, mut path) = (start(), Vec::new());
        for _ in 0..length {
            let steps = system.steps();
            let kind = |step: &S::Step| {
                let text = format!("{step:?}");
                text.split([' ', '(']).next().unwrap_or_default().to_owned()
            };
            let kinds: Vec<_> = steps.iter().map(kind).collect();
            let mut different = kinds.clone();
            different.sort_unstable();
            different.dedup();
            let Some(chosen) = dice.of(&different) else { break };
            let of_kind: Vec<_> =
                steps.iter().zip(&kinds).filter(|(_, kind)| *kind == chosen).collect();
            let Some((step, _)) = dice.of(&of_kind) else { break };
            path.push(**step);
            done += 1;
            guarded(|| system.take(**step)).map_err(|fault| (fault, told(&path)))?;
        }
        guarded(|| system.end()).map_err(|fault| (fault, told(&path)))?;
    }
    Ok(done)
}

/// A small deterministic generator (SplitMix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        let len = u64::try_from(all.len()).unwrap();
        if len == 0 { None } else { all.get(usize::try_from(self.draw() % len).unwrap()) }
    }
}

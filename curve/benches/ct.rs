//! Does the time of a secret operation depend on its secret?
//!
//! Two classes of inputs, one fixed secret (a small scalar) and random ones, are timed in random order
//! and compared with Welch's t-test, as dudect does: |t| above 4.5 says that they differ. Each class
//! has inputs of the same memory footprint, and times above a percentile are cropped: an interrupt is
//! no leak. Two controls frame the result: a null (both classes random), which must stay below the
//! threshold, and a planted leak (one loop turn for each set bit of a secret), which must be caught.
//!
//! `cargo bench -p duet-curve --bench ct -- [samples] [core]`
#![allow(unsafe_code, clippy::cast_possible_truncation, clippy::cast_precision_loss)]

use duet_curve::{
    Backend, EcdhItem, Engine, PublicKey, SecretScalar, SharedSecret, SignItem, TableArena,
    TableSlot, TableWidth,
};
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

/// Inputs a class.
const POOL: usize = 256;
const THRESHOLD: f64 = 4.5;
/// What the machine does can look like a leak once. A leak is found each time.
const ATTEMPTS: usize = 3;
/// Times above these percentiles are cropped.
const CROPS: [usize; 2] = [90, 60];

fn main() -> ExitCode {
    let mut numbers = std::env::args().filter_map(|a| a.parse().ok());
    let samples = numbers.next().unwrap_or(1_000_000);
    pin(numbers.next().unwrap_or(0));
    let mut sound = true;
    for backend in Backend::all() {
        let world = World::new(backend);
        let runs = Operation::ALL
            .map(|operation| (operation, Classes::FixedOrRandom))
            .into_iter()
            .chain([(Operation::KeyPairs, Classes::Null), (Operation::KeyPairs, Classes::Planted)]);
        for (operation, classes) in runs {
            sound &= (0..ATTEMPTS).any(|_| {
                let t = world.test(operation, classes, samples);
                report(backend, operation, classes, t, samples)
            });
        }
    }
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints one line, and says whether it is as it should be.
fn report(
    backend: Backend,
    operation: Operation,
    classes: Classes,
    t: [f64; 2],
    samples: usize,
) -> bool {
    let largest = t[0].abs().max(t[1].abs());
    let found = largest > THRESHOLD;
    println!(
        "{:9} {:12} {:16} |t| = {:7.2} (crop {}%), {:7.2} (crop {}%), {samples} samples: {}",
        backend.name(),
        format!("{operation:?}"),
        classes.name(),
        t[0].abs(),
        CROPS[0],
        t[1].abs(),
        CROPS[1],
        if found { "DIFFERENT" } else { "no difference" },
    );
    found == (classes == Classes::Planted)
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Ecdh,
    EcdhPreset,
    KeyPairs,
    Sign,
}

impl Operation {
    const ALL: [Self; 4] = [Self::Ecdh, Self::EcdhPreset, Self::KeyPairs, Self::Sign];
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Classes {
    FixedOrRandom,
    Null,
    Planted,
}

impl Classes {
    const fn name(self) -> &'static str {
        match self {
            Self::FixedOrRandom => "fixed or random",
            Self::Null => "null control",
            Self::Planted => "planted leak",
        }
    }
}

/// Secrets for all lanes, and what signing needs.
#[derive(Clone)]
struct Input {
    bytes: Vec<[u8; 32]>,
    randomness: [u8; 32],
    digest: [u8; 32],
}

struct World {
    engine: Engine,
    arena: TableArena,
    points: Vec<[u8; 64]>,
}

impl World {
    fn new(backend: Backend) -> Self {
        let engine = Engine::new(backend, &random());
        let secrets: Vec<_> = (0..backend.lanes()).map(|_| secret(&scalar())).collect();
        let mut keys: Vec<PublicKey> = vec![];
        engine.key_pairs(&secrets, &mut keys);
        let points =
            keys.iter().map(|k| k.to_sec1_bytes()[1..].try_into().expect("64 bytes")).collect();
        let mut arena = TableArena::new(&engine, TableWidth::KiB4, keys.len());
        let slots: Vec<_> = (0..).map(TableSlot).zip(keys).collect();
        arena.insert(&engine, &slots);
        Self { engine, arena, points }
    }

    /// Inputs of both classes side by side: `fixed` or random, and random.
    fn pool(&self, fixed: bool) -> Vec<[Input; 2]> {
        let mut small = [0; 32];
        small[31] = 2;
        let make = |fixed| {
            let lanes = self.points.len();
            let all: Vec<_> = (0..lanes).map(|_| if fixed { small } else { scalar() }).collect();
            let (r, d) = (random(), random());
            Input {
                bytes: all,
                randomness: if fixed { [3; 32] } else { r },
                digest: if fixed { [4; 32] } else { d },
            }
        };
        (0..POOL).map(|_| [fixed, false].map(make)).collect()
    }

    /// Welch's t between two classes, for each crop.
    fn test(&self, operation: Operation, classes: Classes, samples: usize) -> [f64; 2] {
        let pool = self.pool(classes != Classes::Null);
        let mut times: [Vec<u32>; 2] = [Vec::with_capacity(samples), Vec::with_capacity(samples)];
        let mut out = Outputs::default();
        let mut order = random();
        // Both classes are copied to the same place, so that addresses tell nothing.
        let mut input = pool[0][0].clone();
        let mut secrets = Vec::with_capacity(input.bytes.len());
        for i in 0..samples + 1000 {
            if i % 128 == 0 {
                order = random();
            }
            // Two bytes a sample would be random enough; one bit for the class is drawn apart.
            let bits = order[i % 128 / 4] >> (i % 4 * 2);
            let class = usize::from(bits & 1);
            input.clone_from(&pool[(i * 7 + usize::from(bits >> 1)) % POOL][class]);
            secrets.clear();
            secrets.extend(input.bytes.iter().map(secret));
            fence(Ordering::SeqCst);
            let start = Instant::now();
            self.run(operation, black_box(&secrets), black_box(&input), &mut out);
            if classes == Classes::Planted {
                planted(&input.bytes[0]);
            }
            let time = start.elapsed().as_nanos() as u32;
            if i >= 1000 {
                times[class].push(time);
            }
            out.clear();
        }
        CROPS.map(|percentile| {
            let mut all: Vec<u32> = times.concat();
            let at = (all.len() - 1) * percentile / 100;
            let limit = *all.select_nth_unstable(at).1;
            welch(&times.each_ref().map(|t| t.iter().copied().filter(|x| *x <= limit).collect()))
        })
    }

    fn run(
        &self,
        operation: Operation,
        secrets: &[SecretScalar],
        input: &Input,
        out: &mut Outputs,
    ) {
        let lanes = self.points.len();
        match operation {
            Operation::Ecdh => {
                let items: Vec<_> = (secrets.iter().zip(&self.points))
                    .map(|(secret, point)| EcdhItem { secret, point })
                    .collect();
                self.engine.ecdh(&items, &mut out.shared);
            }
            Operation::EcdhPreset => {
                let items: Vec<_> = (0..)
                    .zip(secrets)
                    .map(|(i, s)| (self.arena.get(TableSlot(i)).expect("a table"), s))
                    .collect();
                self.engine.ecdh_preset(&items, &mut out.preset);
            }
            Operation::KeyPairs => self.engine.key_pairs(secrets, &mut out.keys),
            Operation::Sign => {
                let Input { digest, randomness, .. } = input;
                let items = vec![SignItem { digest, randomness }; lanes];
                self.engine.sign(&secrets[0], &items, &mut out.signatures);
            }
        }
    }
}

#[derive(Default)]
struct Outputs {
    shared: Vec<Option<SharedSecret>>,
    preset: Vec<SharedSecret>,
    keys: Vec<PublicKey>,
    signatures: Vec<[u8; 64]>,
}

impl Outputs {
    fn clear(&mut self) {
        black_box(&*self);
        self.shared.clear();
        self.preset.clear();
        self.keys.clear();
        self.signatures.clear();
    }
}

/// One turn a set bit: about a hundred cycles between a small scalar and a random one.
#[inline(never)]
fn planted(secret: &[u8; 32]) {
    let ones: u32 = secret.iter().map(|b| b.count_ones()).sum();
    for i in 0..ones {
        black_box(i);
    }
}

fn welch(classes: &[Vec<u32>; 2]) -> f64 {
    let [(m0, v0), (m1, v1)] = classes.each_ref().map(|times| {
        let n = times.len() as f64;
        let mean = times.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let variance =
            times.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / (n - 1.0);
        (mean, variance / n)
    });
    (m0 - m1) / (v0 + v1).sqrt()
}

fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("randomness");
    bytes
}

fn scalar() -> [u8; 32] {
    loop {
        let bytes = random();
        if SecretScalar::from_bytes(&bytes).is_some() {
            return bytes;
        }
    }
}

fn secret(bytes: &[u8; 32]) -> SecretScalar {
    SecretScalar::from_bytes(bytes).expect("in range")
}

/// Pins this thread to one core.
fn pin(core: usize) {
    // SAFETY: a zeroed `cpu_set_t` is an empty set, `core` is within it, and the call reads it only.
    unsafe {
        let mut set: libc::cpu_set_t = core::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        if libc::sched_setaffinity(0, size_of_val(&set), &raw const set) != 0 {
            println!("could not pin to core {core}");
        }
    }
}

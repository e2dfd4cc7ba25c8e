//! Doubt (R105 to R107): two minutes in steps of 50 ms, RESETs that cannot be believed at every choice of up to three moments, both
//! ends of the random wait.

/// One step, ms.
const STEP: u64 = 50;
const END: u64 = 120_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    AsWritten,
    /// A handshake at once, without asking first.
    NoPing,
    /// Doubt may follow doubt at once.
    NoPause,
}

struct World<'a> {
    round_trip: u64,
    forged: &'a [u64],
    wait: u64,
    /// When the gateway dies: another one answers from then on.
    dies: Option<u64>,
    /// Whether the attacker drops what comes from the gateway.
    drops: bool,
    rules: Rules,
}

struct Seen {
    handshakes: Vec<u64>,
    pings: usize,
}

/// The device sends a reading every 10 s, from the start.
fn run(world: &World<'_>) -> Seen {
    let slots = usize::try_from(END / STEP).unwrap() + 1;
    let at = |time: u64| usize::try_from(time / STEP).unwrap();
    let (mut answers, mut doubts) = (vec![false; slots], vec![false; slots]);
    world.forged.iter().for_each(|time| doubts[at(*time)] = true);
    let mut seen = Seen { handshakes: Vec::new(), pings: 0 };
    let (mut since, mut calm): (Option<u64>, u64) = (None, 0);
    for now in (0..END).step_by(usize::try_from(STEP).unwrap()) {
        let mut sends = u32::from(now % 10_000 == 0);
        let (answered, doubted) = (answers[at(now)], doubts[at(now)]);
        if answered && since.take().is_some() {
            calm = now + if world.rules == Rules::NoPause { 0 } else { 10_000 };
        }
        if doubted && since.is_none() && now >= calm {
            since = Some(now);
            seen.pings += 1;
            sends += 1;
        }
        let wait = if world.rules == Rules::NoPing { 0 } else { world.wait };
        if since.is_some_and(|since| now >= since + wait) {
            seen.handshakes.push(now);
            since = None;
            calm = now + if world.rules == Rules::NoPause { 0 } else { 60_000 };
            if world.dies.is_some() {
                return seen;
            }
        }
        let arrives = at(now + world.round_trip);
        if sends > 0 && arrives < slots {
            let dead = world.dies.is_some_and(|dies| now >= dies);
            doubts[arrives] |= dead;
            answers[arrives] |= !dead && !world.drops;
        }
    }
    seen
}

const ROUND_TRIPS: [u64; 6] = [50, 100, 150, 200, 300, 1_000];

/// x, once the device has learnt how long answers take (R106).
fn least(round_trip: u64) -> u64 {
    (round_trip * 3 / 2).max(250)
}

/// Every choice of up to three of 25 moments.
fn choices() -> Vec<Vec<u64>> {
    let mut moments: Vec<u64> = (0..3_000).step_by(150).collect();
    moments.extend([20_000, 59_950, 60_100, 61_000, 119_000]);
    let mut out = vec![Vec::new()];
    for (i, a) in moments.iter().enumerate() {
        out.push(vec![*a]);
        for (j, b) in moments.iter().enumerate().skip(i + 1) {
            out.push(vec![*a, *b]);
            out.extend(moments.iter().skip(j + 1).map(|c| vec![*a, *b, *c]));
        }
    }
    out
}

fn most_handshakes(round_trip: u64, rules: Rules) -> (usize, usize) {
    let (mut handshakes, mut pings) = (0, 0);
    for forged in choices() {
        for wait in [least(round_trip), 2 * least(round_trip)] {
            let forged = &forged[..];
            let seen = run(&World { round_trip, forged, wait, dies: None, drops: false, rules });
            handshakes = handshakes.max(seen.handshakes.len());
            pings = pings.max(seen.pings);
        }
    }
    (handshakes, pings)
}

#[test]
fn forged_resets_alone_cause_no_handshake() {
    for round_trip in ROUND_TRIPS {
        let (handshakes, pings) = most_handshakes(round_trip, Rules::AsWritten);
        assert_eq!(handshakes, 0, "round trip {round_trip} ms");
        assert!(pings <= 3, "as many as there were forged ones");
    }
    // However many: six pings a minute.
    let forged: Vec<u64> = (0..END).step_by(100).collect();
    let world = World {
        round_trip: 50,
        forged: &forged,
        wait: 250,
        dies: None,
        drops: false,
        rules: Rules::AsWritten,
    };
    let seen = run(&world);
    assert!(seen.handshakes.is_empty() && seen.pings <= 12, "{} pings", seen.pings);
    let hasty = run(&World { rules: Rules::NoPause, ..world });
    assert!(hasty.pings > 100, "without R107 there is no end of pings");
    let (handshakes, _) = most_handshakes(200, Rules::NoPing);
    assert!(handshakes > 0, "without the ping each forged one is believed");
}

#[test]
fn a_dead_gateway_is_left_within_one_round_trip_and_half_a_second() {
    for round_trip in ROUND_TRIPS {
        for wait in [least(round_trip), 2 * least(round_trip)] {
            let world = World {
                round_trip,
                forged: &[],
                wait,
                dies: Some(1),
                drops: false,
                rules: Rules::AsWritten,
            };
            let after = run(&world).handshakes[0] - 10_000;
            let most = if round_trip <= 166 { round_trip + 500 } else { 4 * round_trip };
            assert!(after <= most, "round trip {round_trip} ms: {after} ms");
            // A forged one just before the death costs ten seconds, and no more.
            let forged = [9_450 - round_trip];
            let hit = run(&World { forged: &forged, dies: Some(9_600), ..world });
            assert!(hit.handshakes[0] - 10_000 <= 10_000 + most);
            // Who also drops gets a handshake a minute.
            let forged: Vec<u64> = (0..END).step_by(1_000).collect();
            let dropped = run(&World { forged: &forged, dies: None, drops: true, ..world });
            assert!((1..=2).contains(&dropped.handshakes.len()));
        }
    }
}

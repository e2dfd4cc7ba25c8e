//! A shard's plain counts on their way to the metrics. Every series of a shard is made when the shard is, so that
//! nothing is missing from a graph before it happens.

use duet_core::{Counts, GatewayKey};
use duet_protocol::reason::DropReason;
use duet_telemetry::{Counter, Family, Gauge, Seconds, Tally, catalogue as metrics};
use rustix::time::{ClockId, clock_gettime};

/// One shard's series.
pub(super) struct Published {
    shard: String,
    sessions: Gauge,
    pending: Gauge,
    cpu: Seconds,
    drops: Vec<Tally>,
    accepts: Accepts,
    confirmed: Tally,
    readings: Tally,
    readings_early: Tally,
    readings_known: Tally,
    challenges: Tally,
    resets: Tally,
    slow_verifications: Tally,
    unsent: Tally,
}

/// What a shard is at this moment.
pub(super) struct Look<'a> {
    pub(super) sessions: u64,
    pub(super) pending: u64,
    pub(super) slow_verifications: u64,
    pub(super) counts: &'a Counts,
}

impl Published {
    pub(super) fn new(shard: usize, keys: &[GatewayKey]) -> Self {
        let shard = shard.to_string();
        let tally = |family: &'static Family<Counter, 1>| Tally::new(family.with([&shard]));
        let drops = DropReason::ALL
            .iter()
            .map(|reason| Tally::new(metrics::DROPS.with([reason.label(), &shard])));
        let mut accepts = Accepts::default();
        accepts.keep(&shard, keys);
        Self {
            sessions: metrics::SESSIONS.with([&shard]),
            pending: metrics::SESSIONS_PENDING.with([&shard]),
            cpu: metrics::SHARD_CPU.with([&shard]),
            drops: drops.collect(),
            accepts,
            confirmed: tally(&metrics::CONFIRMED),
            readings: tally(&metrics::READINGS),
            readings_early: tally(&metrics::READINGS_EARLY),
            readings_known: tally(&metrics::READINGS_KNOWN),
            challenges: tally(&metrics::CHALLENGES),
            resets: tally(&metrics::RESETS),
            slow_verifications: tally(&metrics::SLOW_VERIFICATIONS),
            unsent: tally(&metrics::UNSENT),
            shard,
        }
    }

    /// Shows how the shard is. To be called on its own thread.
    pub(super) fn publish(&mut self, look: &Look<'_>) {
        self.sessions.set_count(look.sessions);
        self.pending.set_count(look.pending);
        let cpu = clock_gettime(ClockId::ThreadCPUTime);
        #[expect(clippy::cast_precision_loss, reason = "seconds, and less than 10^9 nanoseconds")]
        self.cpu.set(cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9);
        let Counts {
            drops,
            proven: _,
            challenges,
            accepts,
            accepts_retiring,
            confirmed,
            readings,
            readings_early,
            readings_known,
            resets,
            unsent,
        } = look.counts;
        self.drops.iter_mut().zip(drops).for_each(|(tally, count)| tally.set(*count));
        self.accepts.count([accepts - accepts_retiring, *accepts_retiring]);
        self.confirmed.set(*confirmed);
        self.readings.set(*readings);
        self.readings_early.set(*readings_early);
        self.readings_known.set(*readings_known);
        self.challenges.set(*challenges);
        self.resets.set(*resets);
        self.slow_verifications.set(look.slow_verifications);
        self.unsent.set(*unsent);
    }

    /// The shard has other keys from now on. What it counted with those before must have been published.
    pub(super) fn renew(&mut self, keys: &[GatewayKey]) {
        self.accepts.keep(&self.shard, keys);
    }
}

/// Accepts by certificate: an operator retires one when no device uses it any more. The shard counts them by place, the
/// current certificate first; the places change hands when the settings do.
#[derive(Default)]
struct Accepts {
    by_key: Vec<(u8, Counter)>,
    seen: [u64; 2],
}

impl Accepts {
    fn keep(&mut self, shard: &str, keys: &[GatewayKey]) {
        let ids: Vec<u8> = keys.iter().map(|key| key.gateway.key_id).collect();
        for (gone, _) in self.by_key.iter().filter(|(id, _)| !ids.contains(id)) {
            metrics::ACCEPTS.remove([&gone.to_string(), shard]);
        }
        let counter = |id: u8| (id, metrics::ACCEPTS.with([&id.to_string(), shard]));
        self.by_key = ids.into_iter().map(counter).collect();
    }

    fn count(&mut self, totals: [u64; 2]) {
        for (place, total) in totals.into_iter().enumerate() {
            if let Some((_, counter)) = self.by_key.get(place) {
                counter.add(total.saturating_sub(self.seen[place]));
            }
        }
        self.seen = totals;
    }
}

#[cfg(test)]
mod tests {
    use duet_protocol::ec::SecretScalar;
    use duet_protocol::identity::{Fingerprint, Gateway};

    use super::*;

    fn key(key_id: u8) -> GatewayKey {
        let secret = SecretScalar::from_bytes(&[1; 32]).unwrap();
        let gateway =
            Gateway { key_id, fingerprint: Fingerprint([0; 32]), key: secret.public_key() };
        GatewayKey::new(gateway, secret)
    }

    fn accepts(key_id: u8) -> Option<String> {
        let begin = format!("duet_accepts_total{{key_id=\"{key_id}\",shard=\"252\"}} ");
        let text = duet_telemetry::render();
        text.lines().find_map(|line| line.strip_prefix(&begin)).map(str::to_owned)
    }

    #[test]
    fn accepts_stay_with_their_certificate_when_it_retires_and_go_when_it_is_removed() {
        let mut published = Published::new(252, &[key(0)]);
        let look =
            |accepts, accepts_retiring| Counts { accepts, accepts_retiring, ..Counts::default() };
        let publish = |published: &mut Published, counts: &Counts| {
            published.publish(&Look { sessions: 0, pending: 0, slow_verifications: 0, counts });
        };
        assert_eq!(accepts(0).as_deref(), Some("0"), "there from the start");
        publish(&mut published, &look(5, 0));
        published.renew(&[key(1), key(0)]);
        publish(&mut published, &look(8, 1));
        assert_eq!([accepts(0), accepts(1)], [Some("6".into()), Some("2".into())]);
        published.renew(&[key(1)]);
        publish(&mut published, &look(9, 1));
        assert_eq!([accepts(0), accepts(1)], [None, Some("3".into())]);
    }
}

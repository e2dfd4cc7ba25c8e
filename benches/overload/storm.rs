//! Devices that return in the same instant, against the rate at which they return a few at a time.

use std::path::Path;
use std::time::Duration;

use duet_protocol::profile::Transport;
use loadgen::local::LocalGateway;
use loadgen::process_clock::process_cpu;

use crate::crowd::{Begin, Crowd, knock};
use crate::{Member, hellos, show_counters, start};

/// As many under way at a time keep the gateway busy, and nobody is sent away.
const WINDOW: usize = 96;
/// As many tell the rate.
const PEAK: usize = 20_000;

/// A gateway and the devices that return to it.
pub(crate) struct Storm {
    gateway: LocalGateway,
    devices: Vec<Member>,
}

impl Storm {
    pub(crate) fn start(dir: &Path, shards: usize, count: usize) -> Self {
        let (gateway, devices) = start(dir, shards, &[(count, Transport::Datagram)]);
        Self { gateway, devices }
    }

    pub(crate) fn stop(self) {
        self.gateway.stop().unwrap();
    }

    /// The first time the gateway has met none of them; what counts is how they return.
    pub(crate) fn first_time(&mut self) -> Crowd {
        let count = self.devices.len();
        self.knock(count, Begin::Window(WINDOW)).0
    }

    /// Devices a second where nobody is sent away.
    pub(crate) fn peak(&mut self) -> f64 {
        let count = self.devices.len().min(PEAK);
        let crowd = self.knock(count, Begin::Window(WINDOW)).0;
        #[expect(clippy::cast_precision_loss, reason = "a count")]
        let count = crowd.took.len() as f64;
        count / crowd.all.as_secs_f64()
    }

    /// How it went, and which part of the time the gateway was at work.
    pub(crate) fn together(&mut self) -> (Crowd, f64) {
        let count = self.devices.len();
        let (crowd, cpu) = self.knock(count, Begin::Together);
        let busy = cpu.as_secs_f64() / crowd.all.as_secs_f64();
        // For whoever is late, and for the counters.
        std::thread::sleep(Duration::from_millis(1_200));
        show_counters(&self.gateway);
        (crowd, busy)
    }

    fn knock(&mut self, count: usize, begin: Begin) -> (Crowd, Duration) {
        let hellos = hellos(&mut self.devices[..count]);
        let before = process_cpu(self.gateway.pid()).unwrap();
        let crowd = knock(self.gateway.address, &hellos, begin);
        (crowd, process_cpu(self.gateway.pid()).unwrap() - before)
    }
}

/// Devices connect and return, a few at a time and then all at once.
#[expect(clippy::cast_precision_loss, reason = "counts")]
pub(crate) fn returning(dir: &Path, shards: usize, count: usize) {
    let mut storm = Storm::start(dir, shards, count);
    println!("\n{count} devices, {shards} shards on the one core");
    let mut peak = 0.0;
    for (what, begin) in [
        ("connect for the first time", Begin::Window(WINDOW)),
        ("return, 96 at a time", Begin::Window(WINDOW)),
        ("return, all at once", Begin::Together),
    ] {
        let (mut crowd, cpu) = storm.knock(count, begin);
        let [p50, p99] = [50, 99].map(|q| crowd.quantile(q).as_secs_f64() * 1e3);
        let (back, seconds) = (crowd.took.len(), crowd.all.as_secs_f64());
        println!(
            "{what:<28} {back} in {seconds:.2} s, p50 {p50:.0} ms, p99 {p99:.0} ms, {} RETRYs, {} repeats, server CPU {:.1} µs each",
            crowd.retries,
            crowd.repeats,
            cpu.as_secs_f64() * 1e6 / back as f64
        );
        match begin {
            Begin::Together => {
                std::thread::sleep(Duration::from_millis(1_200));
                show_counters(&storm.gateway);
                println!(
                    "that is {:.2} times as long as at the rate before",
                    seconds * peak / count as f64
                );
            }
            _ => peak = back as f64 / seconds,
        }
    }
    storm.stop();
}

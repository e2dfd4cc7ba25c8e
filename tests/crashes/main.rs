//! Gateways that are killed, and disks below them whose power goes away, at any moment, while devices send readings inside
//! HELLO and as records, lose their own power, and say again what is in doubt; somebody plays old messages back all the
//! time. What a device was told is stored is found, once under its name.
//!
//! Short here; `scripts/crash-campaign` does the same at length.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

mod campaign;
mod disk;
mod ledger;
mod unit;

use std::path::Path;

use campaign::Campaign;

/// How often: as the environment says, or few enough for every run of all tests.
fn times(variable: &str, few: u32) -> u32 {
    std::env::var(variable).map_or(few, |text| text.parse().unwrap())
}

#[test]
fn what_is_confirmed_is_stored_once_wherever_the_gateway_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut campaign = Campaign::begin(dir.path(), dir.path(), 7);
    for round in 0..times("DUET_KILLS", 10) {
        campaign.work();
        campaign.kill(|| ());
        if round % 10 == 9 {
            campaign.check();
        }
    }
    campaign.end("SIGKILLs");
}

#[test]
fn what_is_confirmed_is_stored_once_whenever_the_power_goes_away() {
    disk::on_a_disk(|place: &Path, disk| {
        let mut campaign = Campaign::begin(place, disk.root(), 11);
        for _ in 0..times("DUET_POWER_CUTS", 3) {
            campaign.work();
            disk.cut_the_power();
            // The gateway lives a moment longer, above a disk that takes nothing any more.
            campaign.linger();
            campaign.kill(|| disk.mount_again());
            campaign.check();
        }
        campaign.end("power cuts");
    });
}

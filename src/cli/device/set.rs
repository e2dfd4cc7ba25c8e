//! `duet device set`: what people say of devices.

use anyhow::Result;
use clap::Args;
use duet::admin::DeviceChange;

use super::super::Place;
use super::super::control::Control;
use super::super::times;
use super::which::Which;
use crate::cli::output;

/// Flags of `duet device set`.
#[derive(Args)]
#[command(
    after_help = "Filters choose devices by what they are before the change. Devices are changed one after the \
    other; sessions that they have go on."
)]
pub(in super::super) struct Set {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    change: Change,
}

#[derive(Args)]
#[group(required = true, multiple = true)]
struct Change {
    /// All their tags from now on, separated by commas; an empty text for none
    #[arg(long, value_name = "TAGS")]
    tags: Option<String>,
    /// Tags that they are to have besides
    #[arg(long, value_name = "TAGS")]
    add_tag: Option<String>,
    /// Tags that they are not to have any more
    #[arg(long, value_name = "TAGS")]
    remove_tag: Option<String>,
    /// The group that they belong to; an empty text for none
    #[arg(long, value_name = "GROUP")]
    set_group: Option<String>,
    /// When their registrations end: 90d, 2031-02-28, or never
    #[arg(long, value_name = "TIME", value_parser = times::end)]
    expires: Option<String>,
}

impl Set {
    pub(super) fn run(self, place: &Place) -> Result<()> {
        let Change { tags, add_tag, remove_tag, set_group, expires } = self.change;
        let change = DeviceChange {
            tags,
            add_tags: add_tag,
            remove_tags: remove_tag,
            group: set_group,
            expires,
        };
        // What is wrong with it is told before anything is changed.
        change.read()?;
        let mut control = Control::open(&place.state()?)?;
        let names = self.which.names(&mut control, "changed", None)?;
        for name in &names {
            control.relabel(name, &change)?;
        }
        match names.as_slice() {
            [name] => output::done(&format!("changed {name}")),
            names => output::done(&format!("changed {} devices", names.len())),
        }
    }
}

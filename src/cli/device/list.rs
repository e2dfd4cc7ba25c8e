//! `duet device list` and `show`.

use std::io::{self, Write};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use duet::admin::{DeviceInfo, DeviceState};
use duet::identity::{Utc, now_s};
use duet::presence::{LastValue, Left, Presence, Refusal};

use super::super::command::shown;
use super::super::control::Control;
use super::super::{Format, Place, output};
use super::which::Filter;

/// Flags of `duet device list`.
#[derive(Args)]
pub(in super::super) struct List {
    /// How to show them
    #[arg(long, value_enum, default_value = "table")]
    format: Form,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people
    Table,
    /// One JSON object a line
    Json,
    /// Names alone, as `revoke` and `remove` take them
    Names,
}

impl List {
    pub(super) fn run(self, place: &Place) -> Result<()> {
        let mut control = Control::open(&place.state()?)?;
        let mut out = io::BufWriter::with_capacity(1 << 16, output::open()?);
        if self.format == Form::Table {
            let (name, mode, id, since, end) = ("NAME", "MODE", "ID", "REGISTERED", "ENDS");
            writeln!(
                out,
                "{name:<24} {mode:<22} {id:<16} {since:<20} {end:<20} {:<13} {:<20} {:<16} TAGS",
                "STATE", "ONLINE SINCE", "GROUP"
            )?;
        }
        let now_s = now_s();
        control.list(&self.filter.query(), |device| {
            match self.format {
                Form::Json => {
                    serde_json::to_writer(&mut out, &device)?;
                    out.write_all(b"\n")?;
                }
                Form::Names => writeln!(out, "{}", device.name)?,
                Form::Table => {
                    let DeviceInfo { name, mode, id, .. } = &device;
                    let (since, state) =
                        (Utc(device.created_s), DeviceState::of(&device, now_s).name());
                    let ends = [device.not_after_s, device.expires_s].into_iter().flatten().min();
                    let end = ends.map_or("-".to_owned(), |end| Utc(end).to_string());
                    let there = device.presence.as_ref().and_then(|presence| presence.since_ms);
                    let there = there.map_or("-".to_owned(), |ms| Utc::of_ms(ms).to_string());
                    let group = device.group.as_deref().unwrap_or("-");
                    let tags = device.tags.join(",");
                    writeln!(
                        out,
                        "{name:<24} {mode:<22} {id:<16} {since} {end:<20} {state:<13} {there:<20} {group:<16} {tags}"
                    )?;
                }
            }
            Ok(())
        })?;
        Ok(out.flush()?)
    }
}

/// Shows one device.
pub(super) fn show(place: &Place, name: &str, format: Format) -> Result<()> {
    let mut out = output::open()?;
    let device = Control::open(&place.state()?)?.show(name)?;
    if format == Format::Json {
        return Ok(writeln!(out, "{}", serde_json::to_string(&device)?)?);
    }
    if device.name != name {
        bail!("unexpected answer from the gateway; does `duet --version` match the one that runs?");
    }
    writeln!(out, "name         {}", device.name)?;
    writeln!(out, "state        {}", DeviceState::of(&device, now_s()).name())?;
    writeln!(out, "mode         {}", device.mode)?;
    writeln!(out, "id           {}", device.id)?;
    writeln!(out, "fingerprint  {}", device.fingerprint)?;
    writeln!(out, "key sources  {}", device.key_sources)?;
    writeln!(out, "registered   {}", Utc(device.created_s))?;
    if let Some(at) = device.revoked_s {
        writeln!(out, "revoked      {}", Utc(at))?;
    }
    if let (Some(start), Some(end)) = (device.not_before_s, device.not_after_s) {
        writeln!(out, "valid        {} to {}", Utc(start), Utc(end))?;
    }
    if let Some(until) = device.renewing_s {
        writeln!(out, "renewing     the credential before this one is good until {}", Utc(until))?;
    }
    if let Some(end) = device.expires_s {
        writeln!(out, "ends         {}", Utc(end))?;
    }
    if let Some(group) = &device.group {
        writeln!(out, "group        {group}")?;
    }
    if !device.tags.is_empty() {
        writeln!(out, "tags         {}", device.tags.join(", "))?;
    }
    writeln!(out, "mark         {}", device.mark)?;
    if let Some(presence) = &device.presence {
        show_presence(presence, &mut out)?;
    }
    Ok(())
}

/// Whether it is there, why it was not let in, and what it said last.
fn show_presence(presence: &Presence, out: &mut impl Write) -> io::Result<()> {
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    match presence.since_ms {
        Some(since_ms) => {
            writeln!(out, "online       since {}", Utc::of_ms(since_ms))?;
            let seen = presence.seen_ms.unwrap_or(since_ms);
            writeln!(out, "last seen    {} from {}", Utc::of_ms(seen), text(&presence.address))?;
            writeln!(
                out,
                "speaks       {} over {}",
                text(&presence.profile),
                text(&presence.carrier)
            )?;
            writeln!(out, "records      {} in this session", presence.records.unwrap_or(0))?;
        }
        None => match &presence.left {
            Some(Left { at_ms, reason }) => {
                writeln!(out, "online       no; {reason} at {}", Utc::of_ms(*at_ms))?
            }
            None => writeln!(out, "online       no, and not since the gateway started")?,
        },
    }
    for Refusal { at_ms, text, address, proven, .. } in &presence.refusals {
        let who = if *proven { "" } else { ", unproven" };
        writeln!(out, "turned away  {} from {address}{who}: {text}", Utc::of_ms(*at_ms))?;
    }
    for value in &presence.values {
        let LastValue { channel, count, received_ms, payload, cut, .. } = value;
        let more = if *cut { "…" } else { "" };
        let shown = shown(payload, false).unwrap_or_default();
        let times = if *count == 1 { "reading" } else { "readings" };
        writeln!(
            out,
            "channel {channel:<4} {shown}{more} at {}, {count} {times}",
            Utc::of_ms(*received_ms)
        )?;
    }
    Ok(())
}

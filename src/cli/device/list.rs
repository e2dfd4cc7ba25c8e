//! `duet device list` and `show`.

use std::io::{self, Write};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use duet::admin::DeviceInfo;
use duet::identity::{Utc, now_s};
use duet::presence::{LastValue, Left, Presence, Refusal};

use super::super::command::shown;
use super::super::control::Control;
use super::super::{Format, Place};

/// Flags of `duet device list`: a device is listed if it meets all of them.
#[derive(Args)]
pub(in super::super) struct List {
    /// How to show them
    #[arg(long, value_enum, default_value = "table")]
    format: Form,
    /// Only devices in this state
    #[arg(long, value_enum)]
    only: Option<State>,
    /// Only devices that prove themselves in this way: certificate, registered-certificate, registered-id
    #[arg(long, value_name = "MODE", value_parser = ["certificate", "registered-certificate", "registered-id"])]
    mode: Option<String>,
    /// Only devices whose names match; * stands for anything
    #[arg(long, value_name = "PATTERN")]
    name: Option<String>,
    /// Only devices whose certificates end within this time, or have ended: 30d, 12h
    #[arg(long, value_name = "TIME", value_parser = time)]
    expiring: Option<i64>,
    /// Only devices that are online
    #[arg(long)]
    online: bool,
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

/// Where in its life a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum State {
    /// It may connect
    Registered,
    /// Refused for ever
    Revoked,
    /// Its certificate has ended
    Expired,
    /// Its certificate is not valid yet
    NotYetValid,
}

impl State {
    fn of(device: &DeviceInfo, now_s: i64) -> Self {
        if device.revoked_s.is_some() {
            Self::Revoked
        } else if device.not_after_s.is_some_and(|end| end < now_s) {
            Self::Expired
        } else if device.not_before_s.is_some_and(|start| start > now_s) {
            Self::NotYetValid
        } else {
            Self::Registered
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::NotYetValid => "not yet valid",
        }
    }
}

impl List {
    pub(super) fn run(self, place: &Place) -> Result<()> {
        let mut control = Control::open(&place.state()?)?;
        let mut out = io::BufWriter::with_capacity(1 << 16, io::stdout().lock());
        if self.format == Form::Table {
            let (name, mode, id, since, end) =
                ("NAME", "MODE", "ID", "REGISTERED", "CERTIFICATE ENDS");
            writeln!(
                out,
                "{name:<24} {mode:<22} {id:<16} {since:<20} {end:<20} {:<13} ONLINE SINCE",
                "STATE"
            )?;
        }
        let now_s = now_s();
        control.list(|device| {
            if !self.wants(&device, now_s) {
                return Ok(());
            }
            match self.format {
                Form::Json => {
                    serde_json::to_writer(&mut out, &device)?;
                    out.write_all(b"\n")?;
                }
                Form::Names => writeln!(out, "{}", device.name)?,
                Form::Table => {
                    let DeviceInfo { name, mode, id, .. } = &device;
                    let (since, state) = (Utc(device.created_s), State::of(&device, now_s).text());
                    let end = device.not_after_s.map_or("-".to_owned(), |end| Utc(end).to_string());
                    let there = device.presence.as_ref().and_then(|presence| presence.since_ms);
                    let there = there.map_or("-".to_owned(), |ms| utc(ms).to_string());
                    writeln!(
                        out,
                        "{name:<24} {mode:<22} {id:<16} {since} {end:<20} {state:<13} {there}"
                    )?;
                }
            }
            Ok(())
        })?;
        Ok(out.flush()?)
    }

    fn wants(&self, device: &DeviceInfo, now_s: i64) -> bool {
        let ends = |within: i64| {
            let end = device.not_after_s.filter(|_| device.revoked_s.is_none());
            end.is_some_and(|end| end <= now_s.saturating_add(within))
        };
        self.only.is_none_or(|state| state == State::of(device, now_s))
            && self.mode.as_ref().is_none_or(|mode| *mode == device.mode)
            && self.name.as_ref().is_none_or(|pattern| matches(pattern, &device.name))
            && self.expiring.is_none_or(ends)
            && (!self.online || device.presence.as_ref().is_some_and(|presence| presence.online))
    }
}

/// Whether a name is what a pattern says, in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let mut parts: Vec<_> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Takes a number of days, hours, minutes or seconds.
pub(in super::super) fn time(text: &str) -> Result<i64, &'static str> {
    let wrong = "expected a number and d, h, m or s, for example 30d";
    let unit = match text.chars().last() {
        Some('d') => 86_400,
        Some('h') => 3_600,
        Some('m') => 60,
        Some('s') => 1,
        _ => return Err(wrong),
    };
    let number = text[..text.len() - 1].parse::<u32>().map_err(|_| wrong)?;
    Ok(i64::from(number) * unit)
}

/// Shows one device.
pub(super) fn show(place: &Place, name: &str, format: Format) -> Result<()> {
    let device = Control::open(&place.state()?)?.show(name)?;
    let mut out = io::stdout().lock();
    if format == Format::Json {
        return Ok(writeln!(out, "{}", serde_json::to_string(&device)?)?);
    }
    if device.name != name {
        bail!("unexpected answer from the gateway; does `duet --version` match the one that runs?");
    }
    writeln!(out, "name         {}", device.name)?;
    writeln!(out, "state        {}", State::of(&device, now_s()).text())?;
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
    writeln!(out, "mark         {}", device.mark)?;
    if let Some(presence) = &device.presence {
        show_presence(presence, &mut out)?;
    }
    Ok(())
}

fn utc(ms: u64) -> Utc {
    Utc(i64::try_from(ms / 1_000).unwrap_or(i64::MAX))
}

/// Whether it is there, why it was not let in, and what it said last.
fn show_presence(presence: &Presence, out: &mut impl Write) -> io::Result<()> {
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    match presence.since_ms {
        Some(since_ms) => {
            writeln!(out, "online       since {}", utc(since_ms))?;
            let seen = presence.seen_ms.unwrap_or(since_ms);
            writeln!(out, "last seen    {} from {}", utc(seen), text(&presence.address))?;
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
                writeln!(out, "online       no; {reason} at {}", utc(*at_ms))?
            }
            None => writeln!(out, "online       no, and not since the gateway started")?,
        },
    }
    for Refusal { at_ms, text, address, proven, .. } in &presence.refusals {
        let who = if *proven { "" } else { ", unproven" };
        writeln!(out, "turned away  {} from {address}{who}: {text}", utc(*at_ms))?;
    }
    for value in &presence.values {
        let LastValue { channel, count, received_ms, payload, cut, .. } = value;
        let more = if *cut { "…" } else { "" };
        let shown = shown(payload, false).unwrap_or_default();
        let times = if *count == 1 { "reading" } else { "readings" };
        writeln!(
            out,
            "channel {channel:<4} {shown}{more} at {}, {count} {times}",
            utc(*received_ms)
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_and_times_mean_what_they_say() {
        for (pattern, name) in [
            ("a", "a"),
            ("*", ""),
            ("m-*", "m-1"),
            ("*-1", "m-1"),
            ("m*t*r", "meter"),
            ("a*a", "aa"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("a", "ab"), ("", "a"), ("m-*", "n-1"), ("*-1", "m-12"), ("a*a", "a"), ("*x*y", "yx")]
        {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        assert_eq!(
            [time("30d"), time("2h"), time("1m"), time("9s")],
            [Ok(2_592_000), Ok(7_200), Ok(60), Ok(9)]
        );
        assert!(
            ["", "d", "30", "-1d", "1.5h", "99999999999d"].iter().all(|text| time(text).is_err())
        );
    }
}

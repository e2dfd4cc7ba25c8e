//! A time as people write it on a command line.

use std::time::{Duration, SystemTime};

const WRONG: &str =
    "not a time: 2026-11-26T08:00:00Z, 2026-11-26, seconds since 1970, or 90s, 15m, 2h, 7d ago";

/// Milliseconds since 1970 UTC.
pub(super) fn parse(text: &str) -> Result<u64, &'static str> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    at(text, now).ok_or(WRONG)
}

fn at(text: &str, now: Duration) -> Option<u64> {
    let ms = |seconds: u64| seconds.checked_mul(1_000);
    if let Ok(seconds) = text.parse::<u64>() {
        return ms(seconds);
    }
    if let Some((number, unit)) = text.split_at_checked(text.len().saturating_sub(1))
        && let Ok(number) = number.parse::<u64>()
    {
        let unit = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return None,
        };
        return ms(now.as_secs().saturating_sub(number.checked_mul(unit)?));
    }
    let (date, time) = match text.split_once(['T', ' ']) {
        Some((date, time)) => (date, time.strip_suffix('Z')?),
        None => (text, "00:00:00"),
    };
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    let known =
        (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !known || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days of the years before, with years that begin in March: the leap day is the last of its year.
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    ms(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

fn numbers(text: &str, between: char) -> Option<[u64; 3]> {
    let mut parts = text.split(between).map(|part| part.parse().ok());
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_other_text_is_not() {
        let now = Duration::from_secs(1_000_000);
        let read = |text| at(text, now).map(|ms| ms / 1_000);
        assert_eq!(read("1800000000"), Some(1_800_000_000));
        assert_eq!(read("90s"), Some(1_000_000 - 90));
        assert_eq!(read("2h"), Some(1_000_000 - 7_200));
        assert_eq!(read("9999d"), Some(0));
        assert_eq!(read("2027-01-15T08:00:00Z"), Some(1_800_000_000));
        assert_eq!(read("2027-01-15 08:00:00Z"), Some(1_800_000_000));
        assert_eq!(read("2024-02-29"), Some(1_709_164_800));
        assert_eq!(read("1970-01-01"), Some(0));
        for wrong in
            ["", "s", "-1s", "2h3m", "2027-01-15T08:00:00", "2027-13-01", "1969-12-31", "yesterday"]
        {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}

//! Times as people write them on a command line: how long something takes, when it ends, since when it counts.

use duet::identity::{Utc, now_s};

/// Takes a number of days, hours, minutes or seconds, `30d`; gives seconds.
pub(super) fn span(text: &str) -> Result<i64, &'static str> {
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

/// Takes an end: a time from now, a date, or `never`; gives the last, or a time as [`Utc`] shows it.
pub(super) fn end(text: &str) -> Result<String, &'static str> {
    if text == "never" {
        return Ok(text.to_owned());
    }
    if let Ok(within) = span(text) {
        return Ok(Utc(now_s().saturating_add(within)).to_string());
    }
    let wrong = "expected a time from now (90d, 12h), a date (2031-02-28, or 2031-02-28T12:00:00Z in UTC) or never";
    text.parse::<Utc>().map(|at| at.to_string()).map_err(|_| wrong)
}

/// Takes a beginning: a time ago, a date, or seconds since 1970; gives milliseconds since 1970.
pub(super) fn since(text: &str) -> Result<u64, &'static str> {
    since_ms(text, now_s()).ok_or(
        "expected 2026-11-26T08:00:00Z, 2026-11-26, seconds since 1970, or 90s, 15m, 2h, 7d ago",
    )
}

fn since_ms(text: &str, now_s: i64) -> Option<u64> {
    let seconds = match (text.parse::<u64>(), span(text)) {
        (Ok(seconds), _) => seconds,
        (_, Ok(ago)) => u64::try_from(now_s.saturating_sub(ago)).unwrap_or(0),
        _ => u64::try_from(text.parse::<Utc>().ok()?.0).ok()?,
    };
    seconds.checked_mul(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_ends_mean_what_they_say() {
        assert_eq!(
            [span("30d"), span("2h"), span("1m"), span("9s")],
            [Ok(2_592_000), Ok(7_200), Ok(60), Ok(9)]
        );
        let bad = ["", "d", "30", "-1d", "1.5h", "99999999999d", "1µ"];
        assert!(bad.iter().all(|text| span(text).is_err()));
        assert_eq!(end("2031-02-28"), Ok("2031-02-28T00:00:00Z".into()));
        assert_eq!(end("never"), Ok("never".into()));
        assert!(end("1s").is_ok() && end("soon").is_err() && end("2031-02-29").is_err());
    }

    #[test]
    fn beginnings_are_read_and_other_text_is_not() {
        let read = |text| since_ms(text, 1_000_000).map(|ms| ms / 1_000);
        assert_eq!(read("1800000000"), Some(1_800_000_000));
        assert_eq!(read("90s"), Some(1_000_000 - 90));
        assert_eq!(read("2h"), Some(1_000_000 - 7_200));
        assert_eq!(read("9999d"), Some(0));
        assert_eq!(read("2027-01-15T08:00:00Z"), Some(1_800_000_000));
        assert_eq!(read("2024-02-29"), Some(1_709_164_800));
        assert_eq!(read("1970-01-01"), Some(0));
        let bad = [
            "",
            "s",
            "-1s",
            "2h3m",
            "2027-01-15T08:00:00",
            "2027-13-01",
            "2027-02-29",
            "1969-12-31",
            "yesterday",
            "99999999999999999999",
        ];
        assert!(bad.iter().all(|text| read(text).is_none()));
    }
}

//! Strings, numbers and times in text, by hand: this is where the time of an encoder goes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A decimal number.
pub(super) fn number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// A JSON string with its quotes.
pub(super) fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    escape(out, text);
    out.push(b'"');
}

/// What stands between the quotes of a JSON string.
pub(super) fn escape(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    let mut begin = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if *byte >= 0x20 && *byte != b'"' && *byte != b'\\' && *byte != 0x7f {
            continue;
        }
        out.extend_from_slice(&bytes[begin..at]);
        begin = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            control => {
                out.extend_from_slice(b"\\u00");
                hex(out, &[*control]);
            }
        }
    }
    out.extend_from_slice(&bytes[begin..]);
}

/// Hexadecimal digits, lower case.
pub(super) fn hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    out.reserve(2 * bytes.len());
    for byte in bytes {
        out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

/// Base64 with padding.
pub(super) fn base64(out: &mut Vec<u8>, bytes: &[u8]) {
    let at = out.len();
    out.resize(at + bytes.len().div_ceil(3) * 4, b'=');
    // The room is exact, so this cannot fail; if it did, the padding would stay.
    let _ = STANDARD.encode_slice(bytes, &mut out[at..]);
}

/// Whether these bytes are one JSON value, and what to write for it: the bytes themselves, but
/// line ends, which JSON only has between its parts, as spaces.
pub(super) fn json(out: &mut Vec<u8>, bytes: &[u8]) -> bool {
    if std::str::from_utf8(bytes).is_err()
        || serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_err()
    {
        return false;
    }
    let at = out.len();
    out.extend_from_slice(bytes);
    out[at..].iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
    true
}

/// `2026-11-26T10:00:00.000Z` (RFC 3339), for times before the year 10000.
pub(super) fn time(out: &mut Vec<u8>, ms: u64) {
    // Days to civil, after Howard Hinnant's `chrono`-compatible algorithms.
    let (days, in_day) = (ms / 86_400_000, ms % 86_400_000);
    let days = days.min(2_932_896) + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let mut digits = |number: u64, width: u32, after: &[u8]| {
        for place in (0..width).rev() {
            let digit = number / 10_u64.pow(place) % 10;
            out.push(b'0' + u8::try_from(digit).unwrap_or(0));
        }
        out.extend_from_slice(after);
    };
    digits(year, 4, b"-");
    digits(month, 2, b"-");
    digits(day, 2, b"T");
    digits(in_day / 3_600_000, 2, b":");
    digits(in_day / 60_000 % 60, 2, b":");
    digits(in_day / 1_000 % 60, 2, b".");
    digits(in_day % 1_000, 3, b"Z");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn strings_come_back_whatever_is_in_them() {
        let all: String = (0..=0x250).filter_map(char::from_u32).collect();
        for sample in ["", "pump-7", "\"\\\n\r\t\u{0}\u{7f}", &all, "𝄞 ü"] {
            let json = text(|out| string(out, sample));
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), sample);
            assert!(!json.bytes().any(|byte| byte < 0x20), "a line stays a line");
        }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (ms, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_687_200_123, "2026-11-26T10:00:00.123Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(text(|out| time(out, ms)), expected);
        }
        assert_eq!(text(|out| time(out, u64::MAX)).len(), 24, "no year of five digits");
    }

    #[test]
    fn base64_and_hexadecimal_are_whole() {
        for length in 0..10 {
            let bytes: Vec<u8> = (0..length).map(|n| n * 31).collect();
            assert_eq!(STANDARD.decode(text(|out| base64(out, &bytes))).unwrap(), bytes);
        }
        assert_eq!(text(|out| hex(out, &[0, 0x9f, 0xff])), "009fff");
    }

    #[test]
    fn json_passes_only_if_it_is_json_on_one_line() {
        assert_eq!(text(|out| assert!(json(out, b"{\n\"t\":1}\r"))), "{ \"t\":1} ");
        for bad in [&b"{\"t\":1}{"[..], b"", b"21.5 C", b"\"\xff\"", b"{\"a\":}", b"\"a\nb\""] {
            assert_eq!(text(|out| assert!(!json(out, bad))), "");
        }
    }
}

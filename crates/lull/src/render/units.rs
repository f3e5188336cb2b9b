//! Durations, sizes and times, as people read and write them.

use super::Look;
use jiff::Timestamp;

/// `412 µs`, `3.4 ms`, `412 ms`, `3.2 s`, `2 min 05 s`, `1 h 02 min`.
pub fn duration(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..9_950 => format!("{:.1} ms", us as f64 / 1e3),
        9_950..999_500 => format!("{} ms", (us + 500) / 1_000),
        999_500..59_950_000 => format!("{:.1} s", us as f64 / 1e6),
        59_950_000..3_599_500_000 => {
            let s = (us + 500_000) / 1_000_000;
            format!("{} min {:02} s", s / 60, s % 60)
        }
        _ => {
            let min = us.saturating_add(30_000_000) / 60_000_000;
            format!("{} h {:02} min", min / 60, min % 60)
        }
    }
}

/// `512 B`, `1.5 KiB`, `12 MiB`, `3.2 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 9.95 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

/// `2026-03-01 12:00:00` in the look's time zone; what is no time is shown as it is.
pub fn time(rfc3339: &str, look: &Look) -> String {
    match rfc3339.parse::<Timestamp>() {
        Ok(at) => at.to_zoned(look.zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => super::text::printable(rfc3339),
    }
}

/// `12:00:00.123` in the look's time zone.
pub fn clock(rfc3339: &str, look: &Look) -> String {
    match rfc3339.parse::<Timestamp>() {
        Ok(at) => at.to_zoned(look.zone.clone()).strftime("%H:%M:%S%.3f").to_string(),
        Err(_) => super::text::printable(rfc3339),
    }
}

/// Microseconds from `start` to `end`, or to now; `None` where one is no time.
pub fn between_us(start: &str, end: Option<&str>, look: &Look) -> Option<u64> {
    match end {
        Some(end) => took_us(start, end),
        None => took_us(start, &look.now.to_string()),
    }
}

/// Microseconds from `start` to `end`; `None` where one is no time.
pub fn took_us(start: &str, end: &str) -> Option<u64> {
    let (start, end): (Timestamp, Timestamp) = (start.parse().ok()?, end.parse().ok()?);
    u64::try_from(end.as_microsecond() - start.as_microsecond()).ok()
}

/// Reads `500ms`, `5s`, `10m` or `10min`, `1h`, `2d`, `1w` as milliseconds; a number without a unit is refused.
pub fn parse_duration_ms(text: &str) -> Result<u64, String> {
    let (number, unit) = split_number(text)?;
    let factor = match unit {
        "ms" => 1,
        "s" | "sec" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 604_800_000,
        "" => return Err(format!("`{text}` has no unit: write {number}s, {number}ms, {number}m or {number}h")),
        _ => return Err(format!("`{unit}` is no unit of time: ms, s, m, h, d and w are")),
    };
    number.checked_mul(factor).ok_or_else(|| format!("`{text}` is too long"))
}

/// Reads a duration as whole seconds.
pub fn parse_duration_s(text: &str) -> Result<u64, String> {
    let ms = parse_duration_ms(text)?;
    if ms % 1_000 == 0 { Ok(ms / 1_000) } else { Err(format!("`{text}`: whole seconds only")) }
}

/// Reads `100MiB`, `50M`, `1G`, `0` as bytes (1 K is 1024).
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split_number(text)?;
    let shift = match unit.trim_end_matches("/s").to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        other => return Err(format!("`{other}` is no unit of size: B, KiB, MiB, GiB and TiB are")),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is too much"))
}

fn split_number(text: &str) -> Result<(u64, &str), String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..end].parse().map_err(|_| format!("`{text}` does not begin with a whole number"))?;
    Ok((number, text[end..].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short_at_every_size() {
        for (us, expect) in [
            (0, "0 µs"),
            (412, "412 µs"),
            (3_400, "3.4 ms"),
            (9_949, "9.9 ms"),
            (9_950, "10 ms"),
            (412_000, "412 ms"),
            (999_499, "999 ms"),
            (999_500, "1.0 s"),
            (3_210_000, "3.2 s"),
            (59_949_999, "59.9 s"),
            (59_950_000, "1 min 00 s"),
            (125_000_000, "2 min 05 s"),
            (3_599_499_999, "59 min 59 s"),
            (3_599_500_000, "1 h 00 min"),
            (3_720_000_000, "1 h 02 min"),
        ] {
            assert_eq!(duration(us), expect, "{us}");
        }
        assert!(duration(u64::MAX).ends_with("min"));
    }

    #[test]
    fn sizes_are_short_at_every_size() {
        for (size, expect) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (12 << 20, "12 MiB"),
            ((1 << 30) - 1, "1.0 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(bytes(size), expect, "{size}");
        }
    }

    #[test]
    fn times_are_local() {
        let mut look = Look::plain(None);
        assert_eq!(time("2026-03-01T11:22:33.5Z", &look), "2026-03-01 11:22:33");
        assert_eq!(clock("2026-03-01T11:22:33.5Z", &look), "11:22:33.500");
        look.zone = jiff::tz::TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(time("2026-03-01T11:22:33Z", &look), "2026-03-01 13:22:33");
        assert_eq!(time("yesterday", &look), "yesterday");
        assert_eq!(between_us("2026-03-01T11:59:59Z", None, &look), Some(1_000_000));
        assert_eq!(between_us("2026-03-01T12:00:01Z", None, &look), None);
    }

    #[test]
    fn durations_are_read_with_their_unit_only() {
        assert_eq!(parse_duration_ms("500ms"), Ok(500));
        assert_eq!(parse_duration_ms("5s"), Ok(5_000));
        assert_eq!(parse_duration_ms("10 min"), Ok(600_000));
        assert_eq!(parse_duration_s("10m"), Ok(600));
        assert_eq!(parse_duration_s("1d"), Ok(86_400));
        assert_eq!(parse_duration_s("2w"), Ok(14 * 86_400));
        assert_eq!(parse_duration_ms("5").unwrap_err(), "`5` has no unit: write 5s, 5ms, 5m or 5h");
        for wrong in ["", "s", "-1s", "5 days", "18446744073709551615h", "1.5s"] {
            assert!(parse_duration_ms(wrong).is_err(), "{wrong}");
        }
        assert!(parse_duration_s("1500ms").is_err());
    }

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        assert_eq!(parse_bytes("0"), Ok(0));
        assert_eq!(parse_bytes("100MiB"), Ok(100 << 20));
        assert_eq!(parse_bytes("50 M/s"), Ok(50 << 20));
        for wrong in ["", "M", "1 parsec", "99999999999999999T"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}

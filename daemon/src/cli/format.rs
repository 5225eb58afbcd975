//! Numbers as people read them.

/// `1,234,567`
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `12 B`, `1.5 MiB`, `120 GiB`
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let (mut value, mut unit) = (number as f64 / 1024.0, 0);
    // From 1023.5 on, rounding would show 1024.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(value < 99.95);
    format!("{value:.digits$} {}", UNITS[unit])
}

/// `0.02 s`, `12.5 s`, `3m 05s`, `2h 00m`, `3d 04h`
pub fn seconds(number: f64) -> String {
    if !number.is_finite() || number < 0.0 {
        return "?".to_owned();
    }
    let whole = number.round() as u64;
    match whole {
        0..10 if number < 9.995 => format!("{number:.2} s"),
        0..60 => format!("{number:.1} s"),
        60..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        3600..86_400 => format!("{}h {:02}m", whole / 3600, whole / 60 % 60),
        _ => format!("{}d {:02}h", whole / 86_400, whole / 3600 % 24),
    }
}

/// Whole percent of `part` in `whole`. 100 only when nothing is left; an estimate may be exceeded.
pub fn percent(part: u64, whole: u64) -> u64 {
    match (part, whole) {
        (_, 0) => 0,
        (part, whole) if part == whole => 100,
        (part, whole) => (u128::from(part) * 100 / u128::from(whole)).min(99) as u64,
    }
}

/// PostgreSQL's `server_version_num` as it is said: `150018` is 15.18.
pub fn server_version(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_separators() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")];
        for (number, text) in cases {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn bytes_have_three_digits() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (102_400, "100 KiB"),
            (1_048_063, "1023 KiB"),
            (1_048_064, "1.0 MiB"),
            (16_777_216, "16.0 MiB"),
            (50 << 30, "50.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (number, text) in cases {
            assert_eq!(bytes(number), text, "{number}");
        }
    }

    #[test]
    fn durations_are_as_fine_as_they_matter() {
        let cases = [
            (0.0, "0.00 s"),
            (0.024, "0.02 s"),
            (9.996, "10.0 s"),
            (12.46, "12.5 s"),
            (59.7, "1m 00s"),
            (185.0, "3m 05s"),
            (7200.0, "2h 00m"),
            (273_600.0, "3d 04h"),
            (-1.0, "?"),
            (f64::NAN, "?"),
            (f64::INFINITY, "?"),
        ];
        for (number, text) in cases {
            assert_eq!(seconds(number), text, "{number}");
        }
    }

    #[test]
    fn a_hundred_percent_is_all_of_it() {
        assert_eq!((percent(0, 0), percent(999_999, 1_000_000), percent(3, 3), percent(5, 3)), (0, 99, 100, 99));
        assert_eq!(percent(u64::MAX / 2, u64::MAX), 49);
        assert_eq!(server_version(150_018), "15.18");
    }
}

//! Sizes as people write them, for every command line.

/// Parses bytes: a number, or a number with a unit. `K M G T` and `KiB MiB GiB TiB` are powers of
/// 1024, as in every storage tool; `KB MB GB TB` are powers of 1000.
///
/// # Errors
/// It is none; the text says what one looks like.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err("not a size like 4096, 256M or 1GiB".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "not a size like 256M or 1GiB".to_owned())?;
    match number.checked_mul(factor) {
        Some(0) => Err("a size is at least 1 byte".to_owned()),
        Some(bytes) => Ok(bytes),
        None => Err("more than 64 bits can count".to_owned()),
    }
}

/// Bytes for people: the largest binary unit that leaves at least 1, with one decimal where there
/// is a fraction.
pub fn show_size(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let Some((unit, shift)) = units.into_iter().find(|(_, shift)| bytes >> shift > 0) else {
        return format!("{bytes} B");
    };
    let whole = bytes >> shift;
    let tenths = ((bytes & ((1 << shift) - 1)) * 10) >> shift;
    if tenths == 0 { format!("{whole} {unit}") } else { format!("{whole}.{tenths} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse() {
        for (text, bytes) in [
            ("512", 512),
            ("4096b", 4096),
            ("256M", 256 << 20),
            ("1G", 1 << 30),
            ("1GiB", 1 << 30),
            ("1 GiB", 1 << 30),
            ("2gb", 2_000_000_000),
            ("1t", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1G", "1.5G", "1X", "0", "0M", "99999999999T", "1e3"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_show() {
        assert_eq!(show_size(0), "0 B");
        assert_eq!(show_size(1023), "1023 B");
        assert_eq!(show_size(1 << 20), "1 MiB");
        assert_eq!(show_size(3 << 29), "1.5 GiB");
        assert_eq!(show_size(u64::MAX), "16777215.9 TiB");
    }
}

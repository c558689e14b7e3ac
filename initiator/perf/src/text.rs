//! Values that are written as text, on the command line as in a file of jobs.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserializer;
use serde::de::{Error, Visitor};

use crate::limits::MAX_SIZES;

/// Reads a value from a string, or from a number, as its text.
pub(crate) fn deserialize<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
    T::Err: fmt::Display,
{
    struct Text<T>(PhantomData<T>);
    impl<T: FromStr> Visitor<'_> for Text<T>
    where
        T::Err: fmt::Display,
    {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string or a number")
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
        fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }
        fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }
    }
    deserializer.deserialize_any(Text(PhantomData)).map(Some)
}

/// A number of bytes: `4096`, `256M`, `1GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        api::parse_size(text).map(Bytes)
    }
}

/// A length of time: `10` or `10s`, `500ms`, `1h 30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Duration);

impl FromStr for Time {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(seconds) = text.parse() {
            return Ok(Time(Duration::from_secs(seconds)));
        }
        let time = humantime::parse_duration(text);
        time.map(Time).map_err(|_| "not a length of time like 10s, 500ms or 1h".to_owned())
    }
}

/// Sizes with their weights: `4k`, or `4k:80,64k:20`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes(pub Vec<(u64, u32)>);

impl FromStr for Sizes {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let one = |part: &str| {
            let (size, weight) = part.split_once(':').unwrap_or((part, "1"));
            let weight = weight.parse().ok().filter(|weight| (1..=10_000).contains(weight));
            let weight = weight.ok_or_else(|| format!("{part}: a weight is 1 to 10000"))?;
            Ok((api::parse_size(size).map_err(|error| format!("{size}: {error}"))?, weight))
        };
        let sizes: Vec<_> = text.split(',').map(one).collect::<Result<_, String>>()?;
        match sizes.len() {
            1..=MAX_SIZES => Ok(Sizes(sizes)),
            count => Err(format!("{count} sizes; at most {MAX_SIZES} are possible")),
        }
    }
}

/// CPUs: `2,3,8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus(pub Vec<usize>);

impl FromStr for Cpus {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let cpus = text.split(',').map(str::parse).collect::<Result<_, _>>();
        cpus.map(Cpus).map_err(|_| "not a list of CPUs like 2,3,8".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_have_units_or_are_seconds() {
        let parsed = |text: &str| text.parse::<Time>().map(|time| time.0.as_millis());
        for (text, millis) in [("10", 10_000), ("10s", 10_000), ("500ms", 500), ("1m 1s", 61_000)] {
            assert_eq!(parsed(text), Ok(millis));
        }
        for text in ["", "x", "-1s", "1.5", "5 parsecs"] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_weights() {
        let parsed = |text: &str| text.parse::<Sizes>().map(|sizes| sizes.0);
        assert_eq!(parsed("4k"), Ok(vec![(4096, 1)]));
        assert_eq!(parsed("4k:80,64k:20"), Ok(vec![(4096, 80), (65536, 20)]));
        for text in ["", "4k:", "4k:0", "4k,", "4k:1:2", "x:1", "4k:99999"] {
            assert!(parsed(text).is_err(), "{text}");
        }
        assert!(parsed(&vec!["4k"; MAX_SIZES + 1].join(",")).is_err());
    }
}

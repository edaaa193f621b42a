//! Configuration values as people write them, with units.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::{Deserialize, Deserializer, Error as _, Visitor};
use stillmirror_daemon::Chmod;
use stillmirror_indexer::Share;

/// A number of bytes: `65536`, `"64KiB"`, `"1.5GiB"`, `"10MB"`. `KiB`, `MiB`, `GiB` and `TiB` are powers of 1024, `kB`,
/// `MB`, `GB` and `TB` powers of 1000, and a bare letter (`64M`) is a power of 1024, as in rsync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

impl Bytes {
    /// Returns zero bytes.
    pub(crate) fn none() -> Self {
        Self(0)
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = number_and_unit(text)?;
        let factor = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "k" | "kib" => 1024.0,
            "m" | "mib" => 1024f64.powi(2),
            "g" | "gib" => 1024f64.powi(3),
            "t" | "tib" => 1024f64.powi(4),
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            _ => return Err(format!("'{text}' is not a size: write 65536, \"64KiB\" or \"10MB\"")),
        };
        Ok(Self((number * factor) as u64))
    }
}

/// A duration: `30`, `"30s"`, `"5m"`, `"12h"`, `"7d"`, `"250ms"`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Seconds(pub(crate) f64);

impl Seconds {
    /// Returns zero seconds.
    pub(crate) fn none() -> Self {
        Self(0.0)
    }

    pub(crate) fn duration(self) -> Duration {
        Duration::try_from_secs_f64(self.0).unwrap_or(Duration::MAX)
    }
}

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = number_and_unit(text)?;
        let factor = match unit {
            "" | "s" => 1.0,
            "ms" => 1e-3,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return Err(format!("'{text}' is not a duration: write 30, \"30s\", \"5m\", \"12h\" or \"7d\"")),
        };
        Ok(Self(number * factor))
    }
}

fn number_and_unit(text: &str) -> Result<(f64, &str), String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().map_err(|_| format!("'{text}' does not begin with a number"))?;
    Ok((number, text[end..].trim()))
}

/// The length of an address prefix, in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefix<const LIMIT: u8>(pub(crate) u8);

impl<const LIMIT: u8> FromStr for Prefix<LIMIT> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bits = text.parse().ok().filter(|bits| *bits <= LIMIT);
        bits.map(Self).ok_or_else(|| format!("'{text}' is not a prefix length: write 0 to {LIMIT}"))
    }
}

/// Where to listen: `ADDR:PORT`, or a port on all addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listen(pub(crate) SocketAddr);

impl Listen {
    /// All addresses of this host, with the default port.
    pub(crate) fn everywhere() -> Self {
        Self(SocketAddr::from(([0; 8], 8730)))
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse::<u16>() {
            return Ok(Self(SocketAddr::from(([0; 8], port))));
        }
        let mut found = text.to_socket_addrs().map_err(|error| format!("'{text}' is not [ADDR:]PORT: {error}"))?;
        found.next().map(Self).ok_or_else(|| format!("'{text}' has no address"))
    }
}

/// An address or a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network(pub(crate) IpNet);

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.parse().map(|address: IpAddr| IpNet::from(address.to_canonical()));
        let network = address.or_else(|_| text.parse());
        network.map(Self).map_err(|_| format!("'{text}' is not an address or a network (10.0.0.0/8, 2001:db8::/32)"))
    }
}

/// Words: an array, or one string with white space or commas between the words, as in rsyncd.conf. A number is a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Words<T = String>(pub(crate) Vec<T>);

impl<T> Default for Words<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T> Deserialize<'de> for Words<T>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordsVisitor<T>(std::marker::PhantomData<T>);

        impl<'de, T> Visitor<'de> for WordsVisitor<T>
        where
            T: FromStr,
            T::Err: fmt::Display,
        {
            type Value = Words<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of words, or one string of words")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Words<T>, E> {
                let words = text.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty());
                words.map(|word| word.parse().map_err(E::custom)).collect::<Result<_, E>>().map(Words)
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Words<T>, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut array: A) -> Result<Words<T>, A::Error> {
                let mut words = Vec::new();
                while let Some(Word(word)) = array.next_element()? {
                    words.push(word.parse().map_err(A::Error::custom)?);
                }
                Ok(Words(words))
            }
        }

        deserializer.deserialize_any(WordsVisitor(std::marker::PhantomData))
    }
}

/// An element of an array of words.
struct Word(String);

impl FromStr for Word {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(text.to_owned()))
    }
}

/// A valid name pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern(pub(crate) String);

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut filter = stillmirror_protocol::filter::Filter::default();
        filter.exclude(text.as_bytes()).map_err(|error| error.to_string())?;
        Ok(Self(text.to_owned()))
    }
}

/// A share of a whole: `"1/30"`, `"2.5%"`. `None` for 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part(pub(crate) Option<Share>);

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("'{text}' is not a share of a whole: write \"1/30\", \"2.5%\" or 0");
        let (parts, of) = match (text.trim().split_once('/'), text.trim().strip_suffix('%')) {
            (Some((parts, of)), _) => (parts.trim().parse().map_err(|_| bad())?, of.trim().parse().map_err(|_| bad())?),
            (None, Some(percent)) => {
                let percent = self::percent(percent).ok_or_else(bad)?;
                let parts = (percent * 1e6).round();
                if parts == 0.0 && percent != 0.0 {
                    return Err(bad());
                }
                (parts as u32, 100_000_000)
            }
            (None, None) => (text.trim().parse().map_err(|_| bad())?, 1),
        };
        if parts == 0 && of > 0 {
            return Ok(Self(None));
        }
        Share::new(parts, of).map(|share| Self(Some(share))).ok_or_else(bad)
    }
}

/// Parses a percentage, from 0 to 100, without its sign.
pub(crate) fn percent(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|percent| (0.0..=100.0).contains(percent))
}

/// Permission changes, in the syntax of rsync's `--chmod`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Permissions(pub(crate) Chmod);

impl FromStr for Permissions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Chmod::parse(text).map(Self).map_err(|error| error.to_string())
    }
}

/// Deserializes a value that may be written as a string or as a bare, non-negative number.
fn text_or_number<'de, T, D>(deserializer: D, expects: &'static str) -> Result<T, D::Error>
where
    T: FromStr<Err = String>,
    D: Deserializer<'de>,
{
    struct TextOrNumber<T>(&'static str, std::marker::PhantomData<T>);

    impl<T: FromStr<Err = String>> Visitor<'_> for TextOrNumber<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }

        fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }

        fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }

        fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }
    }

    deserializer.deserialize_any(TextOrNumber(expects, std::marker::PhantomData))
}

macro_rules! deserialize_from_text {
    ($($type:ty: $expects:literal),*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                text_or_number(deserializer, $expects).map_err(D::Error::custom)
            }
        }
    )*};
}

deserialize_from_text! {
    Bytes: "a size such as 65536, \"64KiB\" or \"10MB\"",
    Seconds: "a duration such as 30, \"30s\" or \"5m\"",
    Prefix<32>: "a prefix length, 0 to 32",
    Prefix<128>: "a prefix length, 0 to 128",
    Word: "a word",
    Part: "a share such as \"1/30\" or \"2.5%\"",
    Permissions: "permission changes such as \"D755,Fgo-w\"",
    Pattern: "a name pattern"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_durations_and_shares_are_parsed_as_people_write_them() {
        for (text, bytes) in [("0", 0), ("64KiB", 65536), ("1.5k", 1536), ("10MB", 10_000_000), ("2 GiB", 2 << 30)] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for (text, seconds) in [("30", 30.0), ("5m", 300.0), ("250ms", 0.25), ("7d", 604_800.0)] {
            assert_eq!(text.parse(), Ok(Seconds(seconds)), "{text}");
        }
        for (text, part) in [("1/30", Share::new(1, 30)), ("2.5%", Share::new(2_500_000, 100_000_000)), ("0", None)] {
            assert_eq!(text.parse(), Ok(Part(part)), "{text}");
        }
        for text in ["1", "100%", " 3 / 3 ", "0%", "0/5"] {
            assert!(text.parse::<Part>().is_ok(), "{text}");
        }
        for text in ["", "x", "2", "101%", "-1%", "0.0000001%", "NaN%", "5/4", "1/0", "0/0", "1/-2", "1/2/3"] {
            assert!(text.parse::<Part>().is_err(), "{text}");
        }
        for text in ["", "x", "-1", "5 parsecs"] {
            assert!(text.parse::<Bytes>().is_err() && text.parse::<Seconds>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_port_alone_listens_on_all_addresses() {
        for (text, address) in
            [("8730", "[::]:8730"), (":873", "[::]:873"), ("127.0.0.1:0", "127.0.0.1:0"), ("[::1]:1", "[::1]:1")]
        {
            assert_eq!(text.parse::<Listen>().map(|Listen(address)| address), Ok(address.parse().unwrap()), "{text}");
        }
        for text in ["", "x", "99999", "127.0.0.1"] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }
}

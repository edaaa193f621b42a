//! Numbers and errors for people.

/// An error with its causes, each said once: some messages have their cause in them already.
pub(crate) fn error(error: &anyhow::Error) -> String {
    // Some libraries end their messages with a line end of their own.
    let mut causes = error.chain().map(|cause| cause.to_string().trim_end().to_owned());
    let first = causes.next().unwrap_or_default();
    causes.fold(first, |text, cause| if text.ends_with(&cause) { text } else { text + ": " + &cause })
}

/// Bytes with a unit: `1.5 GB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} bytes");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A count with its noun: `1 file`, `2,000 files`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    let plural = match noun {
        "directory" => "directories".to_owned(),
        "entry" => "entries".to_owned(),
        noun => format!("{noun}s"),
    };
    format!("{} {}", grouped(number), if number == 1 { noun } else { &plural })
}

/// Digits in threes: `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Prints one line of a command's result. A reader that has gone (`| head`) is no error of ours.
macro_rules! line {
    ($($arguments:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($arguments)*);
    }};
}
pub(crate) use line;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_its_error_has_told_is_not_told_again() {
        use anyhow::Context as _;
        let system = || std::io::Error::from_raw_os_error(28);
        let store = || stillmirror_store::StoreError::Io { action: "write", path: "store".into(), source: system() };
        let text = "cannot write store: No space left on device (os error 28)";
        assert_eq!(error(&store().into()), text);
        assert_eq!(error(&anyhow::Error::from(store()).context("repository 'x'")), format!("repository 'x': {text}"));
        let plain = Err::<(), _>(system()).context("cannot write").unwrap_err();
        assert_eq!(error(&plain), "cannot write: No space left on device (os error 28)");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(bytes(999), "999 bytes");
        assert_eq!(bytes(999_949), "999.9 kB");
        assert_eq!(bytes(999_999), "1.0 MB");
        assert_eq!(bytes(1_234_567_890), "1.2 GB");
        assert_eq!(count(1, "file"), "1 file");
        assert_eq!(count(1_234_567, "directory"), "1,234,567 directories");
    }
}

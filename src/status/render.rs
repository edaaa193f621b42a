//! The status as text.

use stillmirror_daemon::{Budget, MirrorReport, MirrorStatus, Report};

use crate::output::{bytes, count, grouped};

/// The columns of the table of repositories. Numbers are aligned to the right.
const COLUMNS: [(&str, bool); 9] = [
    ("REPOSITORY", false),
    ("STATUS", false),
    ("GENERATION", true),
    ("AGE", true),
    ("DELAY", true),
    ("FILES", true),
    ("SIZE", true),
    ("SESSIONS", true),
    ("SENT", true),
];

/// Returns the status as text, with lines for people.
pub(super) fn text(report: &Report) -> String {
    let state = match (report.draining, report.ready) {
        (true, _) => "shutting down",
        (false, true) => "ready",
        (false, false) => "nothing to serve",
    };
    let up = duration(report.time_ts - report.started_ts);
    let mut out = format!("stillmirror {}, up {up}: {state}\n\n", report.version);
    out += &table(&report.mirrors);
    for mirror in &report.mirrors {
        for trouble in troubles(mirror) {
            out += &format!("{}: {trouble}\n", mirror.name);
        }
    }
    let sessions = report.sessions;
    out += &format!(
        "\nsessions   {} native, {} rsync, {} waiting; {}\nclients    {} from {}\n",
        grouped(sessions.native),
        grouped(sessions.rsync),
        grouped(report.waiting),
        count(report.followers, "follower"),
        count(report.connections, "connection"),
        count(report.addresses, "address")
    );
    out +=
        &format!("sent       {} native, {} rsync\n", bytes(report.sent_bytes.native), bytes(report.sent_bytes.rsync));
    out += &format!("contents   {}\n", contents(report));
    let budgets: Vec<_> = report.budgets.iter().filter(|budget| budget.used > 0).map(budget).collect();
    if !budgets.is_empty() {
        out += &format!("used       {}\n", budgets.join(", "));
    }
    out
}

fn table(mirrors: &[MirrorReport]) -> String {
    let mut rows = vec![COLUMNS.map(|(title, _)| title.to_owned())];
    rows.extend(mirrors.iter().map(row));
    let widths: Vec<usize> = (0..COLUMNS.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).zip(COLUMNS).map(|((cell, &width), (_, is_number))| {
            if is_number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        out += cells.collect::<Vec<_>>().join("  ").trim_end();
        out.push('\n');
    }
    out
}

fn row(mirror: &MirrorReport) -> [String; COLUMNS.len()] {
    let status = match mirror.status {
        MirrorStatus::Success => "success",
        MirrorStatus::Failed => "failed",
        MirrorStatus::None => "not indexed",
    };
    let known = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    [
        mirror.name.clone(),
        status.to_owned(),
        known(mirror.generation.map(grouped)),
        known(mirror.age.map(duration)),
        known(mirror.delay.map(duration)),
        grouped(mirror.files),
        bytes(mirror.bytes),
        grouped(mirror.sessions.native + mirror.sessions.rsync),
        bytes(mirror.sent_bytes.native + mirror.sent_bytes.rsync),
    ]
}

/// Returns what the operator should look at.
fn troubles(mirror: &MirrorReport) -> Vec<String> {
    let mut troubles: Vec<String> = mirror.error.iter().cloned().collect();
    if mirror.rotten_files > 0 {
        troubles
            .push(format!("{} in the tree whose content is not the indexed one", count(mirror.rotten_files, "file")));
    }
    let damaged = mirror.damage.iter().filter(|(_, number)| **number > 0);
    troubles.extend(damaged.map(|(part, number)| format!("damage in the store: {part}, {number} times")));
    if let Some(lag) = mirror.lag.filter(|lag| *lag > 0) {
        troubles.push(format!("{} behind its sender", duration(lag)));
    }
    troubles
}

/// Returns the shares of the sources of file contents.
fn contents(report: &Report) -> String {
    let total: u64 = report.content_bytes.values().sum();
    if total == 0 {
        return "none yet".to_owned();
    }
    let share = |(source, &bytes): (&String, &u64)| {
        (bytes > 0).then(|| format!("{:.0} % {}", bytes as f64 * 100.0 / total as f64, source.replace('_', " ")))
    };
    report.content_bytes.iter().filter_map(share).collect::<Vec<_>>().join(", ")
}

fn budget(budget: &Budget) -> String {
    let is_bytes = ["cache", "buffers", "list_memory", "cached_lists"].contains(&budget.name.as_str());
    let number = if is_bytes { bytes } else { grouped };
    format!("{} {} of {}", budget.name.replace('_', " "), number(budget.used), number(budget.limit))
}

/// Formats a number of seconds with its two largest units: `3 d 4 h`, `12 min`, `8 s`.
fn duration(seconds: i64) -> String {
    let seconds = seconds.max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{"version":"0.1.0","time_ts":1000090000,"started_ts":1000000000,"ready":true,"draining":false,
        "ports":{"native":8730,"rsync":null},"mirrors":[
        {"name":"debian","status":"success","last_update":"2001-09-10 02:46:40 +0000","last_update_ts":1000086400,
         "size":"1.4T","comment":"","generation":412,"created_ts":1000086370,"age":3630,"delay":30,"expires_ts":null,
         "slice":null,"bytes":1500000000000,"files":1204882,"directories":1,"symlinks":0,"specials":0,"native":true,
         "rsync":true,"login":false,"sessions":{"native":2,"rsync":15},"sent_bytes":{"native":1000,"rsync":9900000000000},
         "rotten_files":1,"damage":{"contents":0,"list":2}},
        {"name":"new","status":"failed","last_update":null,"last_update_ts":null,"size":"0","comment":"","error":"gone",
         "generation":null,"created_ts":null,"age":null,"delay":null,"expires_ts":null,"slice":null,"bytes":0,"files":0,
         "directories":0,"symlinks":0,"specials":0,"native":true,"rsync":true,"login":false,
         "sessions":{"native":0,"rsync":0},"sent_bytes":{"native":0,"rsync":0},"rotten_files":0,"damage":{}}],
        "sessions":{"native":2,"rsync":15},"followers":1,"connections":20,"addresses":9,"waiting":0,"sent_bytes":{"native":1000,"rsync":9900000000000},
        "content_bytes":{"cache":25,"direct":75,"pack":0},
        "budgets":[{"name":"sessions","used":17,"limit":1000},{"name":"cache","used":1048576,"limit":67108864},
         {"name":"queue","used":0,"limit":1000}],
        "traffic":{"interval":300,"first_ts":0,"native":[],"rsync":[]}}"#;

    #[test]
    fn the_status_is_a_table_with_what_is_wrong_below_it() {
        let expected = "\
stillmirror 0.1.0, up 1 d 1 h: ready

REPOSITORY  STATUS   GENERATION        AGE  DELAY      FILES     SIZE  SESSIONS     SENT
debian      success         412  1 h 0 min   30 s  1,204,882   1.5 TB        17   9.9 TB
new         failed            -          -      -          0  0 bytes         0  0 bytes
debian: 1 file in the tree whose content is not the indexed one
debian: damage in the store: list, 2 times
new: gone

sessions   2 native, 15 rsync, 0 waiting; 1 follower
clients    20 connections from 9 addresses
sent       1.0 kB native, 9.9 TB rsync
contents   25 % cache, 75 % direct
used       sessions 17 of 1,000, cache 1.0 MB of 67.1 MB
";
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(lines(&text(&serde_json::from_str(REPORT).unwrap())), lines(expected));
    }

    #[test]
    fn durations_have_their_two_largest_units() {
        assert_eq!([-5, 59, 3599, 86_399, 90_000].map(duration), ["0 s", "59 s", "59 min", "23 h 59 min", "1 d 1 h"]);
    }
}

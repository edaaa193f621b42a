//! Metrics in the text formats of Prometheus.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::process::Process;
use super::report::{MirrorReport, Report};
use crate::metrics::Metrics;

/// The text formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus's own, version 0.0.4, which every scraper reads.
    Prometheus,
}

impl Format {
    /// Returns the format for a scraper that sends this `Accept` header.
    pub(super) fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Returns the content type.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Returns all metrics.
pub(super) fn metrics(metrics: &Metrics, report: &Report, format: Format) -> String {
    let mut registry = Registry::default();
    let own = registry.sub_registry_with_prefix("stillmirror");
    metrics.register(own);
    own.register_collector(Box::new(Values(values(report))));
    if let Some(process) = Process::now() {
        registry.register_collector(Box::new(Values(process_values(&process, report))));
    }
    let mut out = String::new();
    // Writing to a string never fails.
    let _ = text::encode(&mut out, &registry);
    match format {
        Format::OpenMetrics => out,
        Format::Prometheus => prometheus(&out),
    }
}

/// Metrics that are computed at a scrape.
#[derive(Debug)]
struct Values(Vec<Family>);

/// A metric with its values.
#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    is_counter: bool,
    values: Vec<(Vec<(&'static str, String)>, f64)>,
}

impl Family {
    /// A gauge with labels.
    fn gauges(
        name: &'static str,
        help: &'static str,
        values: impl Iterator<Item = (Vec<(&'static str, String)>, f64)>,
    ) -> Self {
        Self { name, help, is_counter: false, values: values.collect() }
    }

    /// A gauge without labels.
    fn gauge(name: &'static str, help: &'static str, value: f64) -> Self {
        Self::gauges(name, help, std::iter::once((Vec::new(), value)))
    }
}

impl Collector for Values {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Family { name, help, is_counter, values } in &self.0 {
            let kind = if *is_counter { MetricType::Counter } else { MetricType::Gauge };
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (labels, value) in values {
                match (labels.is_empty(), is_counter) {
                    (true, false) => family.encode_gauge(value)?,
                    (true, true) => family.encode_counter::<NoLabelSet, f64, f64>(value, None)?,
                    (false, false) => family.encode_family(labels)?.encode_gauge(value)?,
                    (false, true) => {
                        family.encode_family(labels)?.encode_counter::<NoLabelSet, f64, f64>(value, None)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn values(report: &Report) -> Vec<Family> {
    let version = vec![("version", report.version.clone())];
    let help = "The version of the daemon, as a label";
    let mut all = vec![
        Family::gauges("build_info", help, std::iter::once((version, 1.0))),
        Family::gauge(
            "start_time_seconds",
            "When the daemon was started, in seconds since 1970",
            float(report.started_ts),
        ),
        Family::gauge("ready", "Whether new sessions are taken and something can be served", flag(report.ready)),
        Family::gauge("draining", "Whether the daemon shuts down", flag(report.draining)),
        Family::gauge("open_connections", "Open connections of clients, in any state", report.connections as f64),
        Family::gauge("client_addresses", "Addresses with open connections", report.addresses as f64),
        Family::gauge("queue_length", "Clients that wait for a session", report.waiting as f64),
    ];
    all.extend(repository_values(&report.mirrors));
    let budget = |value: fn(&super::Budget) -> u64| {
        report.budgets.iter().map(move |budget| (vec![("budget", budget.name.clone())], value(budget) as f64))
    };
    let help = "How much of a limited resource is in use; bytes for cache, buffers, list_memory and cached_lists";
    all.push(Family::gauges("budget_used", help, budget(|budget| budget.used)));
    let help = "How much there is of a limited resource";
    all.push(Family::gauges("budget_limit", help, budget(|budget| budget.limit)));
    all
}

fn repository_values(mirrors: &[MirrorReport]) -> Vec<Family> {
    let each = |value: fn(&MirrorReport) -> Option<f64>| {
        let one = move |mirror: &MirrorReport| Some((labels(mirror), value(mirror)?));
        mirrors.iter().filter_map(one)
    };
    let of_type = |mirror: &MirrorReport, kind: &str, number: u64| {
        let mut labels = labels(mirror);
        labels.push(("type", kind.to_owned()));
        (labels, number as f64)
    };
    let entries = mirrors.iter().flat_map(|mirror| {
        [
            of_type(mirror, "file", mirror.files),
            of_type(mirror, "directory", mirror.directories),
            of_type(mirror, "symlink", mirror.symlinks),
            of_type(mirror, "special", mirror.specials),
        ]
    });
    let damage = mirrors.iter().flat_map(|mirror| {
        mirror.damage.iter().map(|(part, &count)| {
            let mut labels = labels(mirror);
            labels.push(("part", part.clone()));
            (labels, count as f64)
        })
    });
    vec![
        Family::gauges(
            "repository_up",
            "Whether a generation of the repository is served",
            each(|mirror| Some(flag(mirror.generation.is_some()))),
        ),
        Family::gauges(
            "repository_failed",
            "Whether the newest generation of the repository, or its tree, cannot be opened",
            each(|mirror| Some(flag(mirror.status == super::MirrorStatus::Failed))),
        ),
        Family::gauges(
            "repository_generation",
            "The number of the served generation at its origin",
            each(|mirror| mirror.generation.map(|number| number as f64)),
        ),
        Family::gauges(
            "repository_created_timestamp_seconds",
            "When the served generation was indexed at its origin, in seconds since 1970",
            each(|mirror| mirror.created_ts.map(float)),
        ),
        Family::gauges(
            "repository_published_timestamp_seconds",
            "When the served generation was published in the store of this host, in seconds since 1970",
            each(|mirror| mirror.last_update_ts.map(float)),
        ),
        Family::gauges(
            "repository_age_seconds",
            "Seconds since the served generation was indexed at its origin",
            each(|mirror| mirror.age.map(float)),
        ),
        Family::gauges(
            "repository_delay_seconds",
            "Seconds from the indexing at the origin to the publication on this host",
            each(|mirror| mirror.delay.map(float)),
        ),
        Family::gauges(
            "repository_lag_seconds",
            "How much newer the generation is that the sender had when it was asked last",
            each(|mirror| mirror.lag.map(float)),
        ),
        Family::gauges(
            "repository_asked_timestamp_seconds",
            "When the sender was asked last by a pull, in seconds since 1970",
            each(|mirror| mirror.sender.map(|sender| float(sender.asked_ts))),
        ),
        Family::gauges(
            "repository_expires_timestamp_seconds",
            "Until when receivers accept the signature of the served generation, in seconds since 1970",
            each(|mirror| mirror.expires_ts.map(float)),
        ),
        Family::gauges("repository_entries", "Entries of the served generation", entries),
        Family::gauges(
            "repository_size_bytes",
            "The total size of the files of the served generation",
            each(|mirror| Some(mirror.bytes as f64)),
        ),
        Family::gauges(
            "repository_rotten_files",
            "Files of the served generation whose content was found to differ although their state does not",
            each(|mirror| Some(mirror.rotten_files as f64)),
        ),
        Family::gauges("repository_damage", "How often damage was found in the store of the served generation", damage),
    ]
}

fn process_values(process: &Process, report: &Report) -> Vec<Family> {
    vec![
        Family {
            is_counter: true,
            ..Family::gauge("process_cpu_seconds", "User and system CPU time", process.cpu_seconds)
        },
        Family::gauge("process_resident_memory_bytes", "Resident memory", process.resident_bytes as f64),
        Family::gauge("process_open_fds", "Open file descriptors", process.open_fds as f64),
        Family::gauge("process_max_fds", "The limit on open file descriptors", process.max_fds as f64),
        Family::gauge("process_threads", "Threads", process.threads as f64),
        Family::gauge("process_start_time_seconds", "When the process began to serve", float(report.started_ts)),
    ]
}

fn labels(mirror: &MirrorReport) -> Vec<(&'static str, String)> {
    vec![("repository", mirror.name.clone())]
}

fn flag(is_set: bool) -> f64 {
    f64::from(u8::from(is_set))
}

fn float(seconds: i64) -> f64 {
    seconds as f64
}

/// Converts OpenMetrics text to Prometheus's own format, in which the name of a counter ends with `_total` in its
/// description, too, and there are neither units nor an end.
fn prometheus(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, text)) = help.take() {
                out.push_str(&format!("# HELP {name}{suffix} {text}\n"));
            }
            out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_their_whole_name_in_the_format_of_prometheus() {
        let open_metrics = "# HELP a_b Some help.\n# TYPE a_b counter\na_b_total{c=\"d\"} 1\n# HELP e Other.\n# TYPE e \
                            gauge\n# UNIT e bytes\ne 2.0\n# EOF\n";
        let expected = "# HELP a_b_total Some help.\n# TYPE a_b_total counter\na_b_total{c=\"d\"} 1\n# HELP e Other.\n# TYPE e \
             gauge\ne 2.0\n";
        assert_eq!(prometheus(open_metrics), expected);
    }

    #[test]
    fn a_scraper_gets_open_metrics_only_if_it_accepts_them() {
        assert_eq!(Format::accepted("application/openmetrics-text;version=1.0.0,text/plain"), Format::OpenMetrics);
        assert_eq!(Format::accepted("*/*"), Format::Prometheus);
    }
}

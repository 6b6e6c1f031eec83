//! Statuses and verdicts in words.

use std::path::Path;

use indicatif::{HumanBytes, HumanCount};

use crate::entry::escape;
use crate::monitor::{PROBLEMS_SHOWN, Phase, Problem, Sending, Severity, Status, Verdict};

/// What is said of an archive without entries, or of a delivery.
pub(super) const NOTHING: &str = "; nothing was left to be sent (see --exclude, --exclude-caches)";

/// How many entries, in words.
pub(super) fn entries(count: u64) -> String {
    format!("{} {}", HumanCount(count), if count == 1 { "entry" } else { "entries" })
}

/// A number, in groups of three digits.
pub(super) fn count(count: u64) -> String {
    HumanCount(count).to_string()
}

/// How many files, in words.
pub(super) fn files(count: u64) -> String {
    format!("{} {}", HumanCount(count), if count == 1 { "file" } else { "files" })
}

/// How much time it took, and the mean rate, as far as that tells anything.
pub(super) fn pace(mean: f64, seconds: f64) -> String {
    let rate = rate(mean, seconds).map_or(String::new(), |rate| format!(" ({rate})"));
    format!("{}{rate}", took(seconds))
}

/// How much time it took, where that is not next to none.
pub(super) fn took(seconds: f64) -> String {
    if seconds < 0.1 { String::new() } else { format!(" in {seconds:.1} s") }
}

/// A rate, where it was measured for long enough.
pub(super) fn rate(rate: f64, seconds: f64) -> Option<String> {
    (seconds >= 1.0).then(|| format!("{}/s", HumanBytes(rate as u64)))
}

/// One line when the stream is over.
pub(super) fn summary(status: &Status) -> String {
    let what =
        format!("{}, {}{}", entries(status.entries), HumanBytes(status.bytes), pace(status.rate, status.seconds));
    let cut = match cut(status) {
        ([], _) => String::new(),
        ([path], 0) => format!("; '{path}' was cut"),
        ([paths @ .., last], 0) => format!("; '{}' and '{last}' were cut", paths.join("', '")),
        (paths, more) => format!("; '{}' and {} more were cut", paths.join("', '"), HumanCount(more)),
    };
    let stays = |before: &str| if status.entries > 0 { format!(". {before}: {what}") } else { String::new() };
    let mut line = match &status.end {
        Some(Verdict::Complete) => format!("complete: {what}"),
        Some(Verdict::NoArchive { cause } | Verdict::Corrupt { cause, .. }) if status.is_nothing() => {
            format!("cannot mount {}: {cause}", source(status))
        }
        Some(Verdict::Incomplete { cause, .. }) if status.is_nothing() => {
            let what = if status.bytes == 0 { "nothing" } else { "not even one header" };
            format!("{what} was received from {}: {cause}", source(status))
        }
        Some(Verdict::Incomplete { cause, .. }) => {
            format!("incomplete: {cause}{cut}{}", stays("What arrived is whole"))
        }
        Some(Verdict::Corrupt { cause, .. }) => {
            format!("cannot go on: {cause}{cut}{}", stays("What came before stays"))
        }
        Some(Verdict::NoArchive { cause }) => format!("no archive: {cause}"),
        Some(Verdict::Failed { cause }) => format!("failed: {cause}{cut}{}", stays("What arrived before stays")),
        None => format!("receiving: {what}"),
    };
    if status.refused > 0 {
        line.push_str(&format!(
            "; {} left out ('restorefs status{}' names {})",
            HumanCount(status.refused),
            if status.refused.saturating_add(status.warnings) > PROBLEMS_SHOWN as u64 { " --problems" } else { "" },
            them(status.refused)
        ));
    }
    line
}

/// The files that were cut, and how many more there are.
fn cut(status: &Status) -> (&[String], u64) {
    match (&status.sender, &status.end) {
        (Some(sender), Some(_)) => (&sender.cut, sender.cut_files.saturating_sub(sender.cut.len() as u64)),
        (_, Some(Verdict::Incomplete { cut, .. } | Verdict::Corrupt { cut, .. })) => (cut.as_slice(), 0),
        _ => (&[], 0),
    }
}

fn them(count: u64) -> &'static str {
    if count == 1 { "it" } else { "them" }
}

/// The source: in quotes where it is a path.
pub(super) fn source(status: &Status) -> String {
    let name = escape(status.source.as_bytes());
    if name.starts_with("sender to ") {
        format!("a {name}")
    } else if name == "standard input" || name.starts_with("tcp ") {
        name
    } else {
        format!("'{name}'")
    }
}

/// All of it, for `status`.
pub(super) fn status(mountpoint: &Path, status: &Status) -> Vec<String> {
    let mut lines = vec![path(mountpoint)];
    let mut field = |name: &str, value: String| lines.push(format!("  {name:<11}{value}"));
    let phase = match (&status.phase, &status.end) {
        (_, Some(Verdict::Complete)) if status.refused == 0 => "complete".into(),
        (_, Some(Verdict::Complete)) => "complete, with problems".into(),
        (_, Some(Verdict::Incomplete { cause, .. })) => format!("incomplete: {cause}"),
        (_, Some(Verdict::Corrupt { cause, .. })) => format!("corrupt: {cause}"),
        (_, Some(Verdict::NoArchive { cause })) => format!("no archive: {cause}"),
        (_, Some(Verdict::Failed { cause })) => format!("failed: {cause}"),
        (Phase::Waiting, None) if status.sender.is_some() => "waiting for the sender".into(),
        (Phase::Waiting, None) => "waiting for the first byte".into(),
        (Phase::Receiving | Phase::Over, None) => "receiving".into(),
        (Phase::NoSpace, None) => "waiting for room".into(),
        (Phase::Settling, None) => "the stream is over; the spool is being synced to disk".into(),
    };
    field("state", phase);
    let (paths, more) = cut(status);
    for cut in paths {
        field("cut", cut.clone());
    }
    if more > 0 {
        field("cut", format!("… and {} more", HumanCount(more)));
    }
    field(
        "source",
        match &status.compression {
            Some(compression) => format!("{} ({compression})", status.source),
            None => status.source.clone(),
        },
    );
    if let Some(label) = &status.label {
        field("label", label.clone());
    }
    field("entries", HumanCount(status.entries).to_string());
    let of = status.source_size.filter(|_| status.end.is_none());
    let of =
        of.map_or(String::new(), |size| format!(" ({} of {} read)", HumanBytes(status.source_bytes), HumanBytes(size)));
    field("bytes", format!("{}{of}", HumanBytes(status.bytes)));
    if let Some(rate) = rate(status.rate, status.seconds) {
        field("rate", format!("{rate} over {:.1} s", status.seconds));
    }
    if let Some(file) = &status.receiving {
        field("receiving", format!("{} ({} of {})", file.path, HumanBytes(file.received), HumanBytes(file.size)));
    }
    if let Some(sender) = &status.sender {
        let there = if sender.connected { "" } else { ", not connected" };
        let pid = if sender.pid == 0 { String::new() } else { format!(", PID {}", sender.pid) };
        field("sender", format!("{}{pid} ({}{there})", sender.host, sender.address));
        let sends = match sender.sending {
            Sending::Catalogue => "the names of everything".into(),
            Sending::InOrder => "contents, in order".into(),
            Sending::Wanted => format!("contents that are waited for: {}", files(sender.wanted)),
        };
        if status.end.is_none() {
            field("sends", sends);
        }
        if sender.missing_files > 0 {
            let (missing, bytes) = (HumanCount(sender.missing_files), HumanBytes(sender.missing_bytes));
            field("to come", format!("{missing} of {}, {bytes}", files(sender.files)));
        }
        if sender.outages > 0 {
            field("outages", HumanCount(sender.outages).to_string());
        }
    }
    if let Some(reason) = &status.paused {
        field("paused", reason.clone());
    }
    if let Some(spool) = &status.spool {
        let limit = spool.limit.map_or(String::new(), |limit| format!(" of {}", HumanBytes(limit)));
        field("spool", format!("{} ({}{limit})", spool.directory, HumanBytes(spool.bytes)));
    }
    if status.refused > 0 {
        field("left out", HumanCount(status.refused).to_string());
    }
    if status.warnings > 0 {
        field("warnings", HumanCount(status.warnings).to_string());
    }
    lines.extend(status.problems.iter().map(|told| format!("  {}", problem(told))));
    let told = status.problems.len() as u64;
    let more = status.refused.saturating_add(status.warnings).saturating_sub(told);
    if more > 0 {
        let (more, path) = (HumanCount(more), path(mountpoint));
        lines.push(format!("  and {more} more: 'restorefs status --problems {path}'"));
    }
    lines
}

/// A problem, in a line.
pub(super) fn problem(problem: &Problem) -> String {
    let word = if problem.severity == Severity::Refused { "left out" } else { "warning" };
    let whose = if problem.path.is_empty() { String::new() } else { format!(" '{}'", problem.path) };
    format!("{word}{whose}: {}", problem.reason)
}

/// Problems that were too many to be kept.
pub(super) fn unkept(count: u64) -> String {
    format!("and {} more, which were too many to be kept", HumanCount(count))
}

/// A path of this machine, safe to print.
pub(super) fn path(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    escape(path.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::{MAX_CUT_NAMED, Monitor, SenderStatus};

    /// The summary and the `cut` lines for `count` files that were cut.
    fn told(count: usize) -> (String, Vec<String>) {
        let monitor = Monitor::new();
        monitor.add_entries(1);
        let paths = (0..count.min(MAX_CUT_NAMED)).map(|n| format!("file{n}")).collect();
        monitor.sender(SenderStatus { cut: paths, cut_files: count as u64, ..SenderStatus::default() });
        monitor.end(Verdict::Incomplete { cause: "stopped".into(), cut: None });
        let status = monitor.status();
        let lines = super::status(Path::new("/mnt"), &status);
        (summary(&status), lines.into_iter().filter(|line| line.starts_with("  cut ")).collect())
    }

    #[test]
    fn files_that_were_cut_are_named_up_to_a_bound() {
        let (line, lines) = told(0);
        assert!(line.contains("incomplete: stopped. What") && lines.is_empty(), "{line}");
        assert!(told(1).0.contains("; 'file0' was cut. What"));
        assert!(told(2).0.contains("; 'file0' and 'file1' were cut."));
        assert!(told(3).0.contains("; 'file0', 'file1' and 'file2' were cut."));
        let (line, lines) = told(1000);
        assert!(line.contains(", 'file15' and 984 more were cut."), "{line}");
        assert_eq!((lines.len(), &lines[16][..]), (17, "  cut        … and 984 more"));
    }

    fn ended(end: Verdict, entries: u64, seconds: f64) -> Status {
        let mut status = Monitor::new().status();
        status.source = "x.tar".into();
        (status.end, status.entries, status.seconds) = (Some(end), entries, seconds);
        (status.bytes, status.rate) = (3 << 20, (3 << 20) as f64 / seconds);
        status
    }

    #[test]
    fn a_daemon_may_claim_any_number() {
        let mut claimed = ended(Verdict::Complete, u64::MAX, f64::NAN);
        (claimed.refused, claimed.warnings, claimed.bytes, claimed.rate) =
            (u64::MAX, u64::MAX, u64::MAX, f64::INFINITY);
        let lines = status(Path::new("/mnt"), &claimed);
        assert_eq!(lines.last().unwrap(), "  and 18,446,744,073,709,551,615 more: 'restorefs status --problems /mnt'");
        summary(&claimed);
    }

    #[test]
    fn no_rate_is_told_of_a_moment_and_nothing_of_nothing() {
        let corrupt = || Verdict::Corrupt { cause: "it is broken".into(), cut: None };
        let of = |end, entries, seconds| summary(&ended(end, entries, seconds));
        assert_eq!(of(Verdict::Complete, 1, 0.001), "complete: 1 entry, 3.00 MiB");
        assert_eq!(of(Verdict::Complete, 2, 0.5), "complete: 2 entries, 3.00 MiB in 0.5 s");
        assert_eq!(of(Verdict::Complete, 2, 3.0), "complete: 2 entries, 3.00 MiB in 3.0 s (1.00 MiB/s)");
        assert_eq!(of(corrupt(), 2, 0.0), "cannot go on: it is broken. What came before stays: 2 entries, 3.00 MiB");
        assert_eq!(of(corrupt(), 0, 0.0), "cannot mount 'x.tar': it is broken");
        let mut refused = ended(corrupt(), 0, 0.0);
        refused.refused = 1;
        assert_eq!(summary(&refused), "cannot go on: it is broken; 1 left out ('restorefs status' names it)");
        let lines = status(Path::new("/mnt"), &ended(Verdict::Complete, 1, 0.001));
        assert!(!lines.iter().any(|line| line.contains("/s")), "{lines:?}");
    }
}

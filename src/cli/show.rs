//! Statuses and verdicts in words.

use std::path::Path;

use indicatif::{HumanBytes, HumanCount};

use crate::entry::escape;
use crate::monitor::{Phase, Sending, Severity, Status, Verdict};

/// How many entries, in words.
pub(super) fn entries(count: u64) -> String {
    format!("{} {}", HumanCount(count), if count == 1 { "entry" } else { "entries" })
}

/// One line when the stream is over.
pub(super) fn summary(status: &Status) -> String {
    let what = format!(
        "{}, {} in {:.1} s ({}/s)",
        entries(status.entries),
        HumanBytes(status.bytes),
        status.seconds,
        HumanBytes(status.rate as u64)
    );
    let cut = match cut(status) {
        ([], _) => String::new(),
        ([path], 0) => format!("; '{path}' was cut"),
        ([paths @ .., last], 0) => format!("; '{}' and '{last}' were cut", paths.join("', '")),
        (paths, more) => format!("; '{}' and {} more were cut", paths.join("', '"), HumanCount(more)),
    };
    let mut line = match &status.end {
        Some(Verdict::Complete) => format!("complete: {what}"),
        Some(Verdict::Incomplete { cause, .. }) => {
            format!("incomplete: {cause}{cut}. What arrived is whole: {what}")
        }
        Some(Verdict::Corrupt { cause, .. }) => {
            format!("cannot go on: {cause}{cut}. What came before stays: {what}")
        }
        Some(Verdict::Denied { cause }) => format!("nobody was let in: {cause}"),
        Some(Verdict::Failed { cause }) => format!("failed: {cause}{cut}. What arrived before is whole: {what}"),
        None => format!("receiving: {what}"),
    };
    if status.refused > 0 {
        line.push_str(&format!("; {} left out ('restorefs status' names them)", HumanCount(status.refused)));
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

/// All of it, for `status`.
pub(super) fn status(mountpoint: &Path, status: &Status) -> Vec<String> {
    let mut lines = vec![path(mountpoint)];
    let mut field = |name: &str, value: String| lines.push(format!("  {name:<11}{value}"));
    let phase = match (&status.phase, &status.end) {
        (_, Some(Verdict::Complete)) if status.refused == 0 => "complete".into(),
        (_, Some(Verdict::Complete)) => "complete, with problems".into(),
        (_, Some(Verdict::Incomplete { cause, .. })) => format!("incomplete: {cause}"),
        (_, Some(Verdict::Corrupt { cause, .. })) => format!("corrupt: {cause}"),
        (_, Some(Verdict::Denied { cause })) => format!("nobody was let in: {cause}"),
        (_, Some(Verdict::Failed { cause })) => format!("failed: {cause}"),
        (Phase::Waiting, None) if status.sender.is_some() => "waiting for the sender".into(),
        (Phase::Waiting, None) => "waiting for the first byte".into(),
        (Phase::Receiving | Phase::Over, None) => "receiving".into(),
        (Phase::NoSpace, None) => "waiting for room".into(),
        (Phase::Settling, None) => "everything has arrived; the spool is being synced to disk".into(),
    };
    field("state", phase);
    let (paths, more) = cut(status);
    for path in paths {
        field("cut", path.clone());
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
    field("rate", format!("{}/s over {:.1} s", HumanBytes(status.rate as u64), status.seconds));
    if let Some(file) = &status.receiving {
        field("receiving", format!("{} ({} of {})", file.path, HumanBytes(file.received), HumanBytes(file.size)));
    }
    if let Some(sender) = &status.sender {
        let there = if sender.connected { "" } else { ", not connected" };
        field("sender", format!("{} ({}{there})", sender.host, sender.address));
        let sends = match sender.sending {
            Sending::Catalogue => "the names of everything".into(),
            Sending::InOrder => "contents, in order".into(),
            Sending::Wanted => format!("contents that are waited for: {} files", HumanCount(sender.wanted)),
        };
        if status.end.is_none() {
            field("sends", sends);
        }
        if sender.missing_files > 0 {
            let (files, bytes) = (HumanCount(sender.missing_files), HumanBytes(sender.missing_bytes));
            field("to come", format!("{files} of {} files, {bytes}", HumanCount(sender.files)));
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
    for problem in &status.problems {
        let word = if problem.severity == Severity::Refused { "left out" } else { "warning" };
        let whose = if problem.path.is_empty() { String::new() } else { format!(" '{}'", problem.path) };
        lines.push(format!("  {word}{whose}: {}", problem.reason));
    }
    let told = status.problems.len() as u64;
    if status.refused + status.warnings > told {
        lines.push(format!("  … and {} more", HumanCount(status.refused + status.warnings - told)));
    }
    lines
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

    /// What is told of so many files that were cut.
    fn told(count: usize) -> (String, Vec<String>) {
        let monitor = Monitor::new();
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
}

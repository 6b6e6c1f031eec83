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
    let cut = |cut: &Option<String>| cut.as_ref().map_or(String::new(), |path| format!("; '{path}' was cut"));
    let mut line = match &status.end {
        Some(Verdict::Complete) => format!("complete: {what}"),
        Some(Verdict::Incomplete { cause, cut: path }) => {
            format!("incomplete: {cause}{}. What arrived is whole: {what}", cut(path))
        }
        Some(Verdict::Corrupt { cause, cut: path }) => {
            format!("cannot go on: {cause}{}. What came before stays: {what}", cut(path))
        }
        Some(Verdict::Denied { cause }) => format!("nobody was let in: {cause}"),
        Some(Verdict::Failed { cause }) => format!("failed: {cause}. What arrived before is whole: {what}"),
        None => format!("receiving: {what}"),
    };
    if status.refused > 0 {
        line.push_str(&format!("; {} left out ('restorefs status' names them)", HumanCount(status.refused)));
    }
    line
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
    if let Some(Verdict::Incomplete { cut: Some(cut), .. } | Verdict::Corrupt { cut: Some(cut), .. }) = &status.end {
        field("cut", cut.clone());
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

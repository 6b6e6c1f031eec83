//! `restorefs materialize`.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::args::{MaterializeArgs, OverwriteArg, RestoreArgs};
use super::ask::find;
use super::exit::Exit;
use super::line::Line;
use super::print::{fail, say, tell};
use super::problems::LongLine;
use super::progress::{Estimate, Progress};
use super::{names, show};
use crate::control::Mounted;
use crate::entry::{EntryPath, Timestamp};
use crate::materialize::{self, Action, Options, Overwrite, Report, Selection, Stage, Summary};
use crate::monitor::PROBLEMS_SHOWN;
use crate::mount::{path_below, raise_open_files};
use crate::replay::Contents;
use crate::tarball;

const TICK: Duration = Duration::from_millis(200);

pub(super) fn run(args: &MaterializeArgs) -> Exit {
    let mounted = match find(&args.mountpoint) {
        Ok(mounted) => mounted,
        Err(message) => return fail(message),
    };
    let mut paths: Vec<Vec<u8>> = args.paths.iter().map(|path| path_below(&mounted, path)).collect();
    let above = above(&mounted);
    if paths.is_empty() && above > 0 {
        paths.push(path_below(&mounted, std::path::Path::new("")));
    }
    let options = match options(&args.how, &paths, &args.dest) {
        Ok(options) => Options { strip: options.strip.saturating_add(above), ..options },
        Err(message) => {
            tell(message);
            return Exit::Usage;
        }
    };
    if let Err(e) = stop_on_signals() {
        return fail(format_args!("cannot wait for signals: {e}"));
    }
    let begun = Instant::now();
    let Done { exit, mut summary, line, finished } = work(&mounted, &options, &AtomicBool::new(!args.how.dry_run));
    let exit = match line {
        Some(line) if exit != Exit::Failed => exit.worse(line.end(args.how.no_wait, finished)),
        _ => exit,
    };
    if args.how.dry_run {
        tell_problems(&summary, None);
    } else {
        tell_summary(&summary, exit, begun, args.how.json);
    }
    if args.how.json {
        let problems = std::mem::take(&mut summary.problems);
        let mut object = serde_json::json!(summary);
        object["exit"] = serde_json::json!(exit as u8);
        object["seconds"] = serde_json::json!(begun.elapsed().as_secs_f64());
        if let Some(fields) = object.as_object_mut() {
            fields.remove("problems");
        }
        let mut line = LongLine::begin(&object, "problems");
        line.add(&problems);
        line.end();
    }
    exit
}

/// How many components of a path are above what a mount shows: those of the directory that a bind mount is of, and for one
/// file those of the directory that it is in.
fn above(mounted: &Mounted) -> usize {
    let components = mounted.root.components().count().saturating_sub(1);
    if mounted.mountpoint.is_dir() { components } else { components.saturating_sub(1) }
}

/// Restoring beside something else, in a thread of its own.
pub(super) struct Beside {
    thread: JoinHandle<Exit>,
    shown: Arc<AtomicBool>,
}

impl Beside {
    /// Waits for it, and shows how far it is.
    pub(super) fn join(self) -> Exit {
        self.shown.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or(Exit::Failed)
    }
}

/// Restores a whole mount while it receives: for `mount --materialize`. Begins when `has_begun` returns true, and never
/// where it returns false.
pub(super) fn beside(
    mountpoint: PathBuf,
    dest: PathBuf,
    has_begun: impl FnOnce() -> bool + Send + 'static,
) -> io::Result<Beside> {
    let shown = Arc::new(AtomicBool::new(false));
    let show = shown.clone();
    let thread = std::thread::Builder::new().name("materialize".into()).spawn(move || {
        if !has_begun() {
            return Exit::Complete;
        }
        let begun = Instant::now();
        let mounted = match find(&mountpoint) {
            Ok(mounted) => mounted,
            Err(message) => return fail(message),
        };
        let Done { exit, summary, line, finished } = match options(&RestoreArgs::default(), &[], &dest) {
            Ok(options) => work(&mounted, &options, &show),
            Err(message) => return fail(message),
        };
        // The mount tells how the stream ended, as long as its daemon does.
        let exit = match line.filter(Line::is_lost) {
            Some(line) if exit != Exit::Failed => exit.worse(line.end(false, finished)),
            _ => exit,
        };
        tell_summary(&summary, exit, begun, false);
        exit
    })?;
    Ok(Beside { thread, shown })
}

/// What restoring came to.
struct Done {
    /// The code of restoring alone, not that of the stream.
    exit: Exit,
    summary: Summary,
    /// The daemon, if it has handed over anything.
    line: Option<Line>,
    /// Whether the stream is over as it should be, where what was read of it tells.
    finished: Option<bool>,
}

/// Restores. Progress is shown as soon as `shown` says so.
fn work(mounted: &Mounted, options: &Options, shown: &AtomicBool) -> Done {
    let (line, origin) = match Line::open(mounted) {
        Ok(opened) => opened,
        Err(e) => return Done { exit: fail(e), summary: Summary::default(), line: None, finished: None },
    };
    raise_open_files();
    // What is made has the mode that it is made with.
    rustix::process::umask(rustix::fs::Mode::empty());
    let archive = match &origin.contents {
        Contents::Archive(archive) => Some(archive.size()),
        Contents::Spool { .. } => None,
    };
    let report = Arc::new(Report::default());
    let (send, ends) = channel();
    let ended = std::thread::scope(|scope| {
        let report = &report;
        scope.spawn(move || send.send(materialize::run(options, origin, report)));
        let mut progress = None;
        let mut estimate = Estimate::new();
        let begun = Instant::now();
        let ended = loop {
            match ends.recv_timeout(TICK) {
                Err(RecvTimeoutError::Timeout) if shown.load(Ordering::Relaxed) => {
                    let part = || part(&line, archive, report);
                    let doing = progress.get_or_insert_with(Progress::new);
                    doing.show(|| progress_line(report, part(), &mut estimate, begun));
                }
                Err(RecvTimeoutError::Timeout) => {}
                ended => break ended,
            }
        };
        if let Some(progress) = progress {
            progress.clear();
        }
        ended
    });
    let summary = report.summary();
    let exit = match ended {
        Ok(Ok(())) if summary.left_out == 0 && summary.attributes.is_empty() && summary.unmatched.is_empty() => {
            Exit::Complete
        }
        Ok(Ok(())) => Exit::Problems,
        Ok(Err(e)) => fail(e),
        Err(_) => fail("restoring ended with a panic"),
    };
    Done { exit, summary, line: Some(line), finished: report.finished() }
}

/// Which part of all that is to come has been restored, where it is known how much that is.
fn part(line: &Line, archive: Option<u64>, report: &Report) -> Option<f64> {
    if let Some(size) = archive {
        return Some(report.part(size));
    }
    line.arrived().map(|(arrived, spooled)| arrived * report.part(spooled))
}

fn options(args: &RestoreArgs, paths: &[Vec<u8>], dest: &std::path::Path) -> Result<Options, String> {
    let newer_than = args.newer_than.as_deref().map(time).transpose()?;
    let selection = Selection::new(paths, &args.include, &args.exclude, newer_than).map_err(|e| e.to_string())?;
    Ok(Options {
        target: dest.into(),
        selection,
        overwrite: match args.overwrite {
            OverwriteArg::Never => Overwrite::Never,
            OverwriteArg::IfNewer => Overwrite::IfNewer,
            OverwriteArg::IfChanged => Overwrite::IfChanged,
            OverwriteArg::Always => Overwrite::Always,
        },
        strip: args.strip_components,
        by_name: args.map_owner,
        sync: !args.no_sync,
        follow: !args.no_wait,
        dry_run: args.dry_run.then_some(tell_action as fn(&_, _)),
        verify: args.verify,
        tar: tarball::Options { concatenated: false, resolve_user: names::user, resolve_group: names::group },
    })
}

fn tell_action(path: &EntryPath, action: Action) {
    let word = match action {
        Action::Make => "make",
        Action::Replace => "replace",
        Action::Leave => "right",
        Action::Keep => "keep",
    };
    if !say(format_args!("{word:<8} {path}")) {
        std::process::exit(i32::from(Exit::Complete as u8));
    }
}

/// `@1700000000`, or the time of a file.
fn time(text: &str) -> Result<Timestamp, String> {
    if let Some(seconds) = text.strip_prefix('@') {
        let seconds = seconds.parse().map_err(|_| format!("'{text}' is no time: give @SECONDS since 1970"))?;
        return Ok(Timestamp::new(seconds, 0));
    }
    let metadata = std::fs::metadata(text).map_err(|e| format!("cannot look at '{text}': {e}"))?;
    Ok(Timestamp::new(metadata.mtime(), metadata.mtime_nsec() as u32))
}

/// What is half made is under a name of its own, or has not its time yet: another run makes it whole.
fn stop_on_signals() -> io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            tell("stopped; what is restored stays, and the same command goes on from there");
            std::process::exit(i32::from(Exit::Incomplete as u8));
        }
    })?;
    Ok(())
}

fn progress_line(report: &Report, part: Option<f64>, estimate: &mut Estimate, begun: Instant) -> String {
    let summary = report.counts();
    let seconds = begun.elapsed().as_secs_f64();
    let rate = show::rate(summary.bytes as f64 / seconds, seconds).map_or(String::new(), |rate| format!("  {rate}"));
    let (part, doing) = match report.stage() {
        Stage::Making => {
            (part.map_or(String::new(), |part| estimate.tell(part, Instant::now())), report.current_path())
        }
        Stage::Syncing => (String::new(), "waiting for the disk (--no-sync leaves that out)".into()),
        Stage::Verifying => (String::new(), "reading it back".into()),
    };
    format!(
        "{part}{}  {}{rate}  {doing}",
        show::entries(summary.entries + summary.unchanged + summary.kept),
        HumanBytes(summary.bytes),
    )
}

/// `in_json`: a report follows on standard output.
fn tell_summary(summary: &Summary, exit: Exit, begun: Instant, in_json: bool) {
    // Where nothing was begun, the error has said it all.
    if exit == Exit::Failed && *summary == Summary::default() {
        return;
    }
    tell_problems(summary, Some(if in_json { "all are in the JSON report" } else { "--json reports all" }));
    if summary.owners > 0 {
        let count = show::entries(summary.owners);
        let (are, them, their) =
            if summary.owners == 1 { ("is", "it", "its owner") } else { ("are", "them", "their owners") };
        tell(format_args!("{count} {are} yours now, since only root can give {them} to {their}"));
    }
    let mut line = format!(
        "restored {}, {}{}",
        show::entries(summary.entries),
        HumanBytes(summary.bytes),
        show::took(begun.elapsed().as_secs_f64())
    );
    for (count, what) in [
        (summary.unchanged, "right already"),
        (
            summary.kept,
            if summary.kept == 1 { "kept as it is (--overwrite)" } else { "kept as they are (--overwrite)" },
        ),
        (summary.left_out, "could not be restored"),
    ] {
        if count > 0 {
            line.push_str(&format!("; {} {what}", HumanCount(count)));
        }
    }
    tell(line);
}

/// `all`: where the others are.
fn tell_problems(summary: &Summary, all: Option<&str>) {
    for problem in summary.problems.iter().take(PROBLEMS_SHOWN) {
        tell(format_args!("'{}': {}", problem.path, problem.reason));
    }
    let more = summary.left_out.saturating_sub(summary.problems.len().min(PROBLEMS_SHOWN) as u64);
    if more > 0 {
        let all = all.map_or(String::new(), |all| format!(": {all}"));
        tell(format_args!("and {} more{all}", HumanCount(more)));
    }
    for sentence in summary.attributes.iter().chain(&summary.notes).chain(&summary.unmatched) {
        tell(sentence);
    }
}

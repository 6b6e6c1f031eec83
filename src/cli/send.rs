//! `restorefs send`.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount};
use rustix::fs::{FileType, fstat};

use super::args::{SendArgs, WalkArgs};
use super::exit::Exit;
use super::print::{fail, tell};
use super::progress::Progress;
use super::{deliver, names, show, signals};
use crate::send::{self, Note, Report, Summary};
use crate::tree::{Options, Walk};

const TICK: Duration = Duration::from_millis(200);

/// So many problems are printed.
const PRINTED: usize = 20;

/// Where it goes.
enum Destination {
    /// An archive, on standard output.
    Archive(File),
    /// A receiver, at this address.
    Receiver(String),
}

pub(super) fn run(args: SendArgs) -> Exit {
    let (paths, destination) = match destination(&args) {
        Ok(found) => found,
        Err(message) => {
            tell(message);
            return Exit::Usage;
        }
    };
    let options = match options(args.walk, &destination) {
        Ok(options) => options,
        Err(message) => return fail(message),
    };
    let again = move || Walk::new(&paths, options.clone());
    let walk = match again() {
        Ok(walk) => walk,
        Err(e) => return fail(e),
    };
    for note in walk.notes() {
        tell(note);
    }
    let out = match destination {
        Destination::Archive(out) => out,
        Destination::Receiver(to) => {
            return deliver::run(walk, again, &to, &args.deliver, args.rate_limit, args.json);
        }
    };
    if let Err(e) = stop_on_signals() {
        return fail(format_args!("cannot wait for signals: {e}"));
    }
    let begun = Instant::now();
    let report = Report::default();
    let options = send::Options { rate_limit: args.rate_limit, user_name: names::of_user, group_name: names::of_group };
    let ended = with_progress(&report, begun, || send::tar(walk, out, options, &report));
    let summary = report.summary();
    tell_summary(&summary, begun);
    match ended {
        Some(Ok(())) if summary.left_out == 0 => Exit::Complete,
        Some(Ok(())) => Exit::Problems,
        Some(Err(e)) if e.kind() == io::ErrorKind::BrokenPipe => {
            tell("whoever reads the archive has ended before it was complete");
            Exit::Incomplete
        }
        Some(Err(e)) => fail(format_args!("cannot write the archive{}: {e}", to_file())),
        None => fail("sending ended with a panic: please report it"),
    }
}

/// Where standard output goes, if that is a file.
fn to_file() -> String {
    match std::fs::read_link("/proc/self/fd/1") {
        Ok(path) if path.is_file() => format!(" to '{}'", show::path(&path)),
        _ => String::new(),
    }
}

/// Takes the destination from the paths.
fn destination(args: &SendArgs) -> Result<(Vec<PathBuf>, Destination), String> {
    if args.paths.iter().any(|path| deliver::is_token(path)) {
        return Err(format!(
            "a token does not belong on the command line, where everybody on this machine can read it: make a new \
             one, and set {}, or use --token-file",
            super::token::VARIABLE
        ));
    }
    if let Some(to) = &args.deliver.to {
        if to.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
            return Err(format!("'{to}' is no HOST:PORT to send to"));
        }
        if args.paths.iter().any(|path| path.as_os_str() == "-") {
            return Err("'-' is an archive on standard output: with --to, name only what is to be sent".into());
        }
        return Ok((args.paths.clone(), Destination::Receiver(to.clone())));
    }
    let (last, paths) = args.paths.split_last().ok_or("say what is to be sent")?;
    if last.as_os_str() != "-" {
        return Err("say where it goes: --to HOST:PORT, or '-' at the end for an archive on standard output".into());
    }
    if paths.is_empty() {
        return Err("say what is to be sent before '-'; a file of this name is './-'".into());
    }
    let out = io::stdout();
    if out.is_terminal() {
        return Err("an archive is nothing for a terminal: send it into a file or a pipe".into());
    }
    let out = out.as_fd().try_clone_to_owned().map_err(|e| format!("cannot use standard output: {e}"))?;
    Ok((paths.to_vec(), Destination::Archive(into_pipe(out))))
}

fn into_pipe(out: OwnedFd) -> File {
    crate::source::widen(&out);
    out.into()
}

fn options(args: WalkArgs, destination: &Destination) -> Result<Options, String> {
    let mut exclude = args.exclude;
    for path in args.exclude_from {
        let text = std::fs::read_to_string(&path)
            .map_err(|e| format!("cannot read patterns from '{}': {e}", show::path(&path)))?;
        exclude.extend(text.lines().filter(|line| !line.is_empty()).map(str::to_owned));
    }
    let archive = match destination {
        Destination::Archive(out) => {
            let out = fstat(out).map_err(|e| format!("cannot look at standard output: {}", io::Error::from(e)))?;
            let is_file = FileType::from_raw_mode(out.st_mode) == FileType::RegularFile;
            is_file.then_some((out.st_dev, out.st_ino))
        }
        Destination::Receiver(_) => None,
    };
    Ok(Options {
        directory: args.directory,
        one_file_system: args.one_file_system,
        exclude,
        exclude_caches: args.exclude_caches,
        archive,
        user_name: names::of_user,
        group_name: names::of_group,
    })
}

/// Does the work in a thread of its own, and shows how far it is. None where that panics.
fn with_progress<T: Send>(report: &Report, begun: Instant, work: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let (send, ends) = channel();
        scope.spawn(move || send.send(work()));
        let mut progress = Progress::new();
        let ended = loop {
            match ends.recv_timeout(TICK) {
                Err(RecvTimeoutError::Timeout) => progress.show(|| line(report, begun)),
                Err(RecvTimeoutError::Disconnected) => break None,
                Ok(ended) => break Some(ended),
            }
        };
        progress.clear();
        ended
    })
}

fn stop_on_signals() -> io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new(signals::that_end_us())?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            tell("stopped; the archive has no end marker, and what was sent of it is right");
            std::process::exit(i32::from(Exit::Incomplete as u8));
        }
    })?;
    Ok(())
}

fn line(report: &Report, begun: Instant) -> String {
    let counts = report.counts();
    let seconds = begun.elapsed().as_secs_f64();
    let rate = show::rate(counts.bytes as f64 / seconds, seconds).map_or(String::new(), |rate| format!("{rate}  "));
    format!("{}  {}  {rate}{}", show::entries(counts.entries), HumanBytes(counts.bytes), report.current_path())
}

fn tell_summary(summary: &Summary, begun: Instant) {
    let tell_each = |list: &[Note], count: u64| {
        for Note { path, reason } in list.iter().take(PRINTED) {
            tell(format_args!("'{path}': {reason}"));
        }
        let more = count.saturating_sub(list.len().min(PRINTED) as u64);
        if more > 0 {
            tell(format_args!("… and {} more", HumanCount(more)));
        }
    };
    tell_each(&summary.notes, summary.notes.len() as u64);
    tell_each(&summary.problems, summary.left_out);
    let seconds = begun.elapsed().as_secs_f64();
    let pace = show::pace(summary.bytes as f64 / seconds, seconds);
    let mut line = format!("sent {}, {}{pace}", show::entries(summary.entries), HumanBytes(summary.bytes));
    if summary.entries == 0 {
        line.push_str(show::NOTHING);
    }
    if summary.left_out > 0 {
        let they_are = if summary.left_out == 1 { "it is" } else { "they are" };
        line.push_str(&format!("; {} could not be sent as {they_are}", HumanCount(summary.left_out)));
    }
    tell(line);
}

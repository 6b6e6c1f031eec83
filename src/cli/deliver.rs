//! `restorefs send … --to HOST:PORT`.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use signal_hook::consts::SIGHUP;

use super::args::DeliverArgs;
use super::exit::Exit;
use super::print::{fail, say_json, tell};
use super::progress::Progress;
use super::{show, signals, token};
use crate::monitor::{Monitor, Problem, Severity, Status};
use crate::send::{self, Delivered, Failure};
use crate::stop::Stop;
use crate::tree::{self, Walk};
use crate::wire::{Token, TokenError};
use indicatif::{HumanBytes, HumanCount};

const TICK: Duration = Duration::from_millis(200);

/// So many problems are printed.
const PRINTED: usize = 20;

pub(super) fn run(
    walk: Walk,
    again: impl FnMut() -> Result<Walk, tree::Error> + Send + 'static,
    to: &str,
    args: &DeliverArgs,
    rate: Option<u64>,
    json: bool,
) -> Exit {
    let token = match token::of_sender(args.token_file.as_deref()) {
        Ok(token) => token,
        Err(message) => return fail(message),
    };
    let stop = match Stop::new().and_then(|stop| stop_on_signals(&stop).map(|()| stop)) {
        Ok(stop) => stop,
        Err(e) => return fail(format_args!("cannot wait for signals: {e}")),
    };
    let begun = Instant::now();
    let monitor = Monitor::new();
    monitor.source(to.into(), None);
    let job = send::Job {
        walk,
        again: Box::new(again),
        to: to.into(),
        token,
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        pid: std::process::id(),
        take_over: args.take_over,
        silence: args.timeout.into(),
        retry: Duration::from_secs(args.retry),
        rate,
        compress: !args.no_compress,
        monitor: monitor.clone(),
        stop,
    };
    let ended = show_while(&monitor, move || send::deliver(job));
    let seconds = begun.elapsed().as_secs_f64();
    let status = monitor.status();
    let exit = match &ended {
        Ok(delivered) if delivered.cut > 0 => Exit::Incomplete,
        Ok(delivered) if delivered.refused == 0 && status.refused == 0 => Exit::Complete,
        Ok(_) => Exit::Problems,
        Err(Failure::Denied(_)) => Exit::Denied,
        Err(Failure::Incomplete { .. }) => Exit::Incomplete,
        Err(Failure::Protocol(_)) => Exit::Corrupt,
        Err(
            Failure::Connect(_)
            | Failure::Refused { .. }
            | Failure::TakenOver { .. }
            | Failure::Tree(_)
            | Failure::Other(_),
        ) => Exit::Failed,
    };
    tell_problems(&monitor, status.refused);
    match &ended {
        Ok(delivered) => tell(summary(to, delivered, &status, seconds)),
        Err(failure) => tell(failure),
    }
    if json {
        say_json(&report(&ended, &monitor, seconds, exit));
    }
    exit
}

/// Does it, and shows how far it is.
fn show_while<T: Send>(monitor: &Arc<Monitor>, work: impl FnOnce() -> T + Send) -> T {
    let (send, ends) = channel();
    let mut progress = Progress::new();
    let mut paused = None;
    std::thread::scope(|scope| {
        scope.spawn(move || send.send(work()));
        loop {
            match ends.recv_timeout(TICK) {
                Ok(ended) => {
                    progress.clear();
                    return ended;
                }
                Err(RecvTimeoutError::Timeout) => {
                    let status = monitor.status();
                    if status.paused != paused {
                        paused.clone_from(&status.paused);
                        progress.tell(paused.as_deref().unwrap_or("sending goes on"));
                    }
                    progress.update(&status);
                }
                Err(RecvTimeoutError::Disconnected) => {
                    progress.clear();
                    tell("sending ended with a panic: please report it");
                    std::process::exit(i32::from(Exit::Failed as u8));
                }
            }
        }
    })
}

fn summary(to: &str, delivered: &Delivered, status: &Status, seconds: f64) -> String {
    let (what, all) = match delivered.cut {
        0 => ("delivered", "all of it".into()),
        1 => ("incomplete", "all but 1 file that is cut ('restorefs status' there names it)".into()),
        n => (
            "incomplete",
            format!("all but {} files that are cut ('restorefs status' there names them)", HumanCount(n)),
        ),
    };
    let mut line = format!(
        "{what}: {}, {}{}; {to} has confirmed number, bytes and hashes, and has {all} on its disk",
        show::entries(delivered.totals.entries),
        HumanBytes(delivered.bytes),
        show::took(seconds),
    );
    if delivered.totals.entries == 0 {
        line.push_str(show::NOTHING);
    }
    for (count, what) in [
        (delivered.there_already, "of the files there from an earlier try"),
        (
            delivered.outages,
            if delivered.outages == 1 { "outage of the connection" } else { "outages of the connection" },
        ),
        (
            status.refused,
            if status.refused == 1 {
                "could not be sent as it is (named above)"
            } else {
                "could not be sent as they are (named above)"
            },
        ),
        (
            delivered.refused.saturating_sub(status.refused),
            "left out by the receiver (its 'restorefs status' names them)",
        ),
    ] {
        if count > 0 {
            line.push_str(&format!("; {} {what}", HumanCount(count)));
        }
    }
    line
}

fn report(ended: &Result<Delivered, Failure>, monitor: &Monitor, seconds: f64, exit: Exit) -> serde_json::Value {
    let status = monitor.status();
    let mut object = serde_json::json!({
        "exit": exit as u8,
        "entries": status.entries,
        "bytes": status.bytes,
        "seconds": seconds,
        "problems": refused(monitor).collect::<Vec<_>>(),
    });
    match ended {
        Ok(delivered) => {
            object["confirmed"] = serde_json::json!({
                "entries": delivered.totals.entries,
                "files": delivered.totals.files,
                "bytes": delivered.bytes,
                "left_out": delivered.refused,
                "cut": delivered.cut,
            });
            object["outages"] = serde_json::json!(delivered.outages);
            object["there_already"] = serde_json::json!(delivered.there_already);
        }
        Err(failure) => object["failure"] = serde_json::json!(failure.to_string()),
    }
    object
}

/// What could not be sent as it is.
fn refused(monitor: &Monitor) -> impl Iterator<Item = Problem> {
    monitor.problems().filter(|problem| problem.severity == Severity::Refused)
}

fn tell_problems(monitor: &Monitor, count: u64) {
    for problem in refused(monitor).take(PRINTED) {
        tell(format_args!("'{}': {}", problem.path, problem.reason));
    }
    let more = count.saturating_sub(PRINTED as u64);
    if more > 0 {
        tell(format_args!("… and {} more", HumanCount(more)));
    }
}

/// The first one ends it, and the receiver is told; with the next this process goes at once.
fn stop_on_signals(stop: &Stop) -> std::io::Result<()> {
    let stop = stop.clone();
    let mut signals = signal_hook::iterator::Signals::new(signals::that_end_us())?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for (n, signal) in signals.forever().enumerate() {
            // A terminal that hangs up may say so more than once.
            if n > 0 && signal != SIGHUP {
                std::process::exit(i32::from(Exit::Incomplete as u8));
            }
            stop.stop();
        }
    })?;
    Ok(())
}

/// Whether a path is a token, or is meant to be one with a digit mistyped; it must not be repeated in a message then.
pub(super) fn is_token(path: &Path) -> bool {
    let looks_so = |text: &str| !matches!(Token::parse(text), Err(TokenError::Prefix));
    path.to_str().is_some_and(looks_so) && path.symlink_metadata().is_err()
}

//! The process in front of a daemon: shows progress until the stream is over, and passes Ctrl-C on.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use signal_hook::consts::{SIGINT, SIGTERM};

use super::daemon::{Note, STOP};
use super::exit::Exit;
use super::print::{fail, tell};
use super::progress::Progress;
use super::{materialize, problems, show};

/// `restore`: a mount point, and where what comes to it is restored.
pub(super) fn run(daemon: UnixStream, detach: bool, verbose: bool, restore: Option<(PathBuf, PathBuf)>) -> Exit {
    if let Err(e) = pass_signals_on(&daemon) {
        tell(format_args!("Ctrl-C will not stop receiving, only this display: {e}"));
    }
    let mut progress = Progress::new();
    let mut mountpoint = String::new();
    let mut restore = restore;
    let mut restoring = None;
    for line in BufReader::new(daemon).lines() {
        let Ok(Ok(note)) = line.map(|line| serde_json::from_str::<Note>(&line)) else { break };
        match note {
            Note::Failed(message) => return fail(message),
            Note::Ready(path) => {
                mountpoint = path;
                if detach {
                    return Exit::Complete;
                }
                progress.tell(format_args!("mounted on '{mountpoint}'"));
            }
            Note::Status(status) => {
                if status.entries > 0
                    && let Some((from, to)) = restore.take()
                {
                    restoring = Some(materialize::beside(from, to, || true));
                }
                progress.update(&status);
            }
            Note::Log(line) => progress.tell(line.strip_prefix("restorefs: ").unwrap_or(&line)),
            Note::End { status, mounted } => {
                if let Some((from, to)) = restore.take_if(|_| mounted) {
                    restoring = Some(materialize::beside(from, to, || true));
                }
                progress.clear();
                if !verbose {
                    problems::tell_more(&status, mounted.then_some(&mountpoint[..]));
                }
                tell(show::summary(&status));
                let exit = match restoring {
                    None => Exit::Complete,
                    Some(Ok(restoring)) => restoring.join(),
                    Some(Err(e)) => fail(format_args!("cannot start a thread: {e}")),
                };
                let exit = exit.worse(Exit::of(&status));
                if !mounted {
                    if !mountpoint.is_empty() {
                        tell(format_args!("'{mountpoint}' is unmounted"));
                    }
                    return exit;
                }
                tell(format_args!("it stays mounted on '{mountpoint}' ('restorefs umount {mountpoint}')"));
                return exit;
            }
        }
    }
    progress.clear();
    let exit = fail("the daemon is gone: it was killed");
    // It goes on with what is there.
    match restoring {
        Some(Ok(restoring)) => restoring.join(),
        _ => exit,
    }
}

/// The first SIGINT makes the daemon stop receiving; the second, or SIGTERM, ends this process alone. The mount stays in all
/// cases.
fn pass_signals_on(daemon: &UnixStream) -> std::io::Result<()> {
    let mut daemon = daemon.try_clone()?;
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for (n, signal) in signals.forever().enumerate() {
            if signal == SIGTERM || n > 0 || daemon.write_all(STOP).is_err() {
                // The bar stands in the line.
                if std::io::stderr().is_terminal() {
                    let _ = writeln!(std::io::stderr());
                }
                tell(match n {
                    0 => "the display ends; the mount goes on ('restorefs status' tells more)",
                    _ => "the display ends; what arrived stays mounted ('restorefs status' tells more)",
                });
                std::process::exit(i32::from(Exit::Incomplete as u8));
            }
        }
    })?;
    Ok(())
}

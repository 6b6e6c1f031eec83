//! `mount --foreground`: one process, until it is unmounted.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::daemon::{Service, Settled, logger, retire, signals, stdin_to_null};
use super::exit::Exit;
use super::print::{fail, tell};
use super::progress::Progress;
use super::{materialize, problems, show};
use crate::monitor::{Monitor, Phase};
use crate::mount::{Handle, Helper, Options};

const TICK: Duration = Duration::from_millis(200);

/// `restore`: where what comes is restored.
pub(super) fn run(mut options: Options, verbose: bool, restore: Option<PathBuf>) -> Exit {
    // Before there are threads. Without it directories are listed when somebody asks.
    options.helper = Helper::start().ok();
    logger(verbose).init();
    if let Err(e) = stdin_to_null() {
        tell(format_args!("cannot let go of standard input: {e}"));
    }
    let is_file = options.feed.is_file();
    let monitor = Monitor::new();
    let signals = signals();
    let service = match Service::start(options, &monitor) {
        Ok(service) => service,
        Err(message) => return fail(message),
    };
    let handle = service.handle();
    if let Err(e) = signals.and_then(|signals| on_signals(handle.clone(), signals)) {
        tell(format_args!("Ctrl-C will not unmount: {e}"));
    }
    if is_file {
        // A file shows at once whether it is an archive.
        monitor.wait_begin();
    }
    let is_mounted = !monitor.status().is_nothing();
    if is_mounted {
        tell(format_args!("mounted on '{}'", show::path(handle.mountpoint())));
        // Without systemd there is nobody to notify, and that is fine.
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    }
    let shown = std::thread::Builder::new().name("progress".into()).spawn({
        let (monitor, settled) = (monitor.clone(), service.settled());
        let mountpoint = is_mounted.then(|| show::path(handle.mountpoint()));
        move || show_until_over(&monitor, &settled, mountpoint, verbose)
    });
    let shown = shown.map_err(|e| tell(format_args!("no progress is shown: {e}")));
    let restoring = restore.map(|dest| {
        let monitor = monitor.clone();
        let has_begun = move || {
            monitor.wait_begin();
            !monitor.status().is_nothing()
        };
        materialize::beside(handle.mountpoint().into(), dest, has_begun)
    });
    service.serve();
    if let Ok(shown) = shown {
        let _ = shown.join();
    }
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    let exit = match restoring {
        None => Exit::Complete,
        Some(Ok(restoring)) => restoring.join(),
        Some(Err(e)) => fail(format_args!("cannot start a thread: {e}")),
    };
    exit.worse(Exit::of(&monitor.status()))
}

/// `mountpoint`: where it is said to be mounted.
fn show_until_over(monitor: &Monitor, settled: &Settled, mountpoint: Option<String>, verbose: bool) {
    let mut progress = Progress::new();
    while !settled.wait(TICK) {
        progress.update(&monitor.status());
    }
    progress.clear();
    let status = monitor.status();
    if !verbose {
        problems::tell_more(&status, mountpoint.as_deref().filter(|_| !status.is_nothing()));
    }
    let summary = show::summary(&status);
    tell(&summary);
    if let Some(mountpoint) = mountpoint.filter(|_| status.is_nothing()) {
        tell(format_args!("'{mountpoint}' is unmounted"));
    }
    let _ = sd_notify::notify(&[NotifyState::Status(&summary)]);
}

/// The first SIGINT stops receiving, where that is not over; the second unmounts. The first SIGTERM unmounts too, and keeps the
/// spool. When the terminal hangs up, the mount stays.
fn on_signals(handle: Arc<Handle>, mut signals: Signals) -> std::io::Result<()> {
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let (mut interrupted, mut retired) = (false, false);
        for signal in signals.forever().filter(|&signal| signal != SIGHUP) {
            if signal == SIGTERM && !std::mem::replace(&mut retired, true) {
                retire(&handle);
                continue;
            }
            let first = signal == SIGINT && !std::mem::replace(&mut interrupted, true);
            if first && handle.monitor().verdict().is_none() {
                handle.stop_receiving();
                let status = handle.monitor().status();
                tell(match (status.phase, status.entries) {
                    (Phase::Settling, _) => {
                        "the stream is over, and the spool is being synced to disk (Ctrl-C again unmounts)"
                    }
                    (_, 0) => "receiving is stopped",
                    _ => "receiving is stopped; what arrived stays mounted (Ctrl-C again unmounts)",
                });
            } else if let Err(e) = handle.unmount() {
                let path = show::path(handle.mountpoint());
                tell(format_args!("cannot unmount '{path}': {e} (the signal once more ends it all the same)"));
            }
        }
    })?;
    Ok(())
}

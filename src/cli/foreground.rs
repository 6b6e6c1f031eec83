//! `mount --foreground`: one process, until it is unmounted.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT};
use signal_hook::iterator::Signals;

use super::daemon::{Service, logger, signals, stdin_to_null};
use super::progress::Progress;
use super::{Exit, fail, materialize, show, tell};
use crate::monitor::Monitor;
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
    tell(format_args!("mounted on '{}'", show::path(handle.mountpoint())));
    // Without systemd there is nobody to notify, and that is fine.
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    let shown = std::thread::Builder::new().name("progress".into()).spawn({
        let monitor = monitor.clone();
        move || show_until_over(&monitor)
    });
    if let Err(e) = shown {
        tell(format_args!("no progress is shown: {e}"));
    }
    let restoring = restore.map(|dest| materialize::beside(handle.mountpoint().into(), dest));
    service.serve();
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    let exit = match restoring {
        None => Exit::Complete,
        Some(Ok(restoring)) => restoring.join(),
        Some(Err(e)) => fail(format_args!("cannot start a thread: {e}")),
    };
    exit.worse(Exit::of(&monitor.status()))
}

fn show_until_over(monitor: &Monitor) {
    let mut progress = Progress::new();
    while monitor.wait_end(TICK).is_none() {
        progress.update(&monitor.status());
    }
    progress.clear();
    let summary = show::summary(&monitor.status());
    tell(&summary);
    let _ = sd_notify::notify(&[NotifyState::Status(&summary)]);
}

/// SIGINT stops receiving, and unmounts when that is over; SIGTERM unmounts. When the terminal hangs up, the mount
/// stays.
fn on_signals(handle: Arc<Handle>, mut signals: Signals) -> std::io::Result<()> {
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever().filter(|&signal| signal != SIGHUP) {
            if signal == SIGINT && handle.monitor().verdict().is_none() {
                handle.stop_receiving();
                tell("receiving is stopped; what arrived stays mounted (Ctrl-C again unmounts)");
            } else if let Err(e) = handle.unmount() {
                tell(format_args!("cannot unmount '{}': {e}", show::path(handle.mountpoint())));
            }
        }
    })?;
    Ok(())
}

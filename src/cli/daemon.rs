//! The process behind a mount: it serves until it is unmounted, whatever becomes of the one in front.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use super::exit::Exit;
use super::show;
use crate::control::Server;
use crate::monitor::{Monitor, Status};
use crate::mount::{Handle, Helper, Options, Running};

/// So often the front is told how it stands.
const TELL: Duration = Duration::from_millis(200);

/// So long a front that does not read what it is told keeps a daemon that has nothing more to do.
const HEARD: Duration = Duration::from_secs(1);

/// So many log lines may wait for the front; a front that does not read must not hold up receiving.
const WAITING: usize = 1024;

/// What the daemon tells the front, a line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Note {
    /// The mount answers, and where its source is a file, that is an archive. Its mount point, escaped: not every path
    /// is text.
    Ready(String),
    /// It could not be made.
    Failed(String),
    /// How it stands.
    Status(Box<Status>),
    /// A line of the log.
    Log(String),
    /// The stream is over.
    End {
        /// How it ended.
        status: Box<Status>,
        /// Whether the mount stays.
        mounted: bool,
    },
}

/// What the front says to the daemon: receive no more.
pub(super) const STOP: &[u8] = b"stop\n";

/// A mount with all that belongs to it.
pub(super) struct Service {
    running: Running,
    settled: Settled,
    _server: Option<Server>,
}

/// Whether the stream is over, and the mount taken away where nothing came.
#[derive(Clone, Default)]
pub(super) struct Settled(Arc<(Mutex<bool>, Condvar)>);

impl Settled {
    pub(super) fn get(&self) -> bool {
        *self.0.0.lock()
    }

    /// Waits for it, or for `timeout`.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let (settled, changed) = &*self.0;
        let deadline = Instant::now() + timeout;
        let mut settled = settled.lock();
        while !*settled && !changed.wait_until(&mut settled, deadline).timed_out() {}
        *settled
    }

    /// Settles it at the end of the stream, in a thread of its own.
    fn begin(handle: Arc<Handle>) -> io::Result<Self> {
        let settled = Settled::default();
        let word = settled.clone();
        std::thread::Builder::new().name("end".into()).spawn(move || {
            while handle.monitor().wait_end(Duration::from_secs(3600)).is_none() {}
            if handle.monitor().status().is_nothing()
                && !handle.is_unmounted()
                && let Err(e) = handle.unmount()
            {
                log::error!("cannot unmount '{}': {e}", show::path(handle.mountpoint()));
            }
            *word.0.0.lock() = true;
            word.0.1.notify_all();
        })?;
        Ok(settled)
    }
}

impl Service {
    /// Mounts, and makes sure that the mount answers.
    pub(super) fn start(options: Options, monitor: &Arc<Monitor>) -> Result<Self, String> {
        let mut running = Running::start(options, monitor).map_err(|e| e.to_string())?;
        let handle = running.handle();
        if let Err(e) = running.ask() {
            let _ = handle.give_up();
            let cause = running.join().err().unwrap_or(e);
            return Err(format!("the mount '{}' does not answer: {cause}", show::path(handle.mountpoint())));
        }
        let server = Server::start(handle)
            .map_err(|e| log::warn!("status, wait and umount will not reach this mount: {e}"))
            .ok();
        let settled = Settled::begin(running.handle()).map_err(|e| {
            let _ = running.handle().give_up();
            format!("cannot start a thread: {e}")
        })?;
        Ok(Service { running, settled, _server: server })
    }

    /// Whether all is over but serving.
    pub(super) fn settled(&self) -> Settled {
        self.settled.clone()
    }

    pub(super) fn handle(&self) -> Arc<Handle> {
        self.running.handle()
    }

    /// Serves until it is unmounted.
    pub(super) fn serve(self) {
        let mountpoint = show::path(self.running.handle().mountpoint());
        if let Err(e) = self.running.join() {
            log::error!("the mount '{mountpoint}' ended: {e}");
        }
    }
}

/// The whole life of the daemon, in the child.
pub(super) fn run(mut options: Options, front: UnixStream, verbose: bool) -> Exit {
    // Before there are threads. Without it directories are listed when somebody asks.
    options.helper = Helper::start().ok();
    let (log, logs) = sync_channel(WAITING);
    init_log(verbose, log.clone());
    let is_file = options.feed.is_file();
    let begun = become_daemon().and_then(|()| signals()).map_err(|e| format!("cannot become a daemon: {e}"));
    let begun = begun.and_then(|signals| {
        let monitor = Monitor::new();
        Service::start(options, &monitor).map(|service| (service, monitor, signals))
    });
    let (service, monitor, signals) = match begun {
        Ok(begun) => begun,
        Err(message) => {
            let _ = send(&front, &Note::Failed(message));
            return Exit::Failed;
        }
    };
    let handle = service.handle();
    let settled = service.settled();
    let listening = front.try_clone();
    let (telling, told) = sync_channel::<()>(0);
    let teller = std::thread::Builder::new().name("teller".into()).spawn({
        let handle = handle.clone();
        move || {
            wake_at_end(settled.clone(), log);
            if is_file {
                // A file shows at once whether it is an archive.
                handle.monitor().wait_begin();
            }
            let is_nothing = handle.monitor().status().is_nothing();
            if is_nothing || send(&front, &Note::Ready(show::path(handle.mountpoint()))).is_ok() {
                tell(&front, &handle, &settled, &logs);
            }
            drop(telling);
        }
    });
    let listener = std::thread::Builder::new().name("listener".into()).spawn({
        let handle = handle.clone();
        move || {
            // The front may go at any time: that stops nothing.
            for line in BufReader::new(listening?).lines() {
                if line?.as_bytes() == STOP.trim_ascii_end() {
                    handle.stop_receiving();
                }
            }
            io::Result::Ok(())
        }
    });
    if let Err(e) = teller.map(drop).and(listener.map(drop)).and_then(|()| unmount_on_signal(handle, signals)) {
        log::error!("cannot start a thread: {e}");
    }
    service.serve();
    // Whoever unmounts at once must not keep the front from hearing how it ended.
    let _ = told.recv_timeout(HEARD);
    Exit::of(&monitor.status())
}

/// Takes the signals that would end the process and leave a dead mount behind. To be called before mounting.
pub(super) fn signals() -> io::Result<Signals> {
    Signals::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP])
}

/// Unmounts because the machine goes down: what arrived is brought to the disk, and its spool stays.
pub(super) fn retire(handle: &Arc<Handle>) {
    if !handle.is_unmounted()
        && let Some(spool) = handle.keep_spool()
    {
        let spool = show::path(&spool);
        log::warn!("what arrived stays in '{spool}': 'restorefs mount {spool} MOUNTPOINT' brings it back");
    }
    handle.stop_receiving();
    let waiting = std::thread::Builder::new().name("retire".into()).spawn({
        let handle = handle.clone();
        move || {
            while !handle.is_unmounted() && handle.monitor().wait_end(TELL).is_none() {}
            unmount(&handle);
        }
    });
    if waiting.is_err() {
        unmount(handle);
    }
}

fn unmount(handle: &Handle) {
    if let Err(e) = handle.unmount() {
        log::error!("cannot unmount '{}': {e}", show::path(handle.mountpoint()));
    }
}

/// SIGTERM and SIGINT to the daemon itself unmount; the first SIGTERM, as a shutdown sends it, keeps the spool. A terminal
/// that hangs up takes nothing with it.
fn unmount_on_signal(handle: Arc<Handle>, mut signals: Signals) -> io::Result<()> {
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut retired = false;
        for signal in signals.forever() {
            if signal == SIGTERM && !std::mem::replace(&mut retired, true) {
                retire(&handle);
            } else if signal != SIGHUP
                && let Err(e) = handle.unmount()
            {
                log::error!("cannot unmount '{}': {e}", show::path(handle.mountpoint()));
            }
        }
    })?;
    Ok(())
}

/// Tells the front of everything, until the stream is over or the front is gone.
fn tell(front: &UnixStream, handle: &Handle, settled: &Settled, logs: &Receiver<String>) {
    let monitor = handle.monitor();
    loop {
        let note = match logs.recv_timeout(TELL) {
            Ok(line) if !line.is_empty() => Note::Log(line),
            Err(RecvTimeoutError::Disconnected) => return,
            Ok(_) | Err(RecvTimeoutError::Timeout) => Note::Status(Box::new(brief(handle.status()))),
        };
        if send(front, &note).is_err() {
            return;
        }
        if settled.get() {
            break;
        }
    }
    for line in logs.try_iter().filter(|line| !line.is_empty()) {
        if send(front, &Note::Log(line)).is_err() {
            return;
        }
    }
    let status = Box::new(brief(monitor.status()));
    let _ = send(front, &Note::End { status, mounted: !handle.is_unmounted() });
}

/// Wakes the teller when the stream is over, with a line that says nothing: the front need not wait for the next tick.
fn wake_at_end(settled: Settled, log: SyncSender<String>) {
    let wake = move || {
        while !settled.wait(Duration::from_secs(3600)) {}
        // Where the channel is full the teller is awake.
        let _ = log.try_send(String::new());
    };
    // Without it the end is told a little later.
    let _ = std::thread::Builder::new().name("wake".into()).spawn(wake);
}

/// Without the list of problems, which the log has.
fn brief(mut status: Status) -> Status {
    status.problems.clear();
    status
}

fn send(mut front: &UnixStream, note: &Note) -> io::Result<()> {
    let mut line = serde_json::to_vec(note)?;
    line.push(b'\n');
    front.write_all(&line)
}

fn become_daemon() -> io::Result<()> {
    rustix::process::setsid()?;
    std::env::set_current_dir("/")?;
    stdin_to_null()?;
    let null = std::fs::File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// Lets go of standard input, and keeps its number taken.
pub(super) fn stdin_to_null() -> io::Result<()> {
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(())
}

/// What is logged goes to `log`, as long as that has room.
fn init_log(verbose: bool, log: SyncSender<String>) {
    struct Lines(SyncSender<String>);
    impl Write for Lines {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.0.try_send(String::from_utf8_lossy(line).trim_end().to_owned());
            Ok(line.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    logger(verbose).target(env_logger::Target::Pipe(Box::new(Lines(log)))).init();
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
}

/// One line for each thing, as messages of the command itself are.
pub(super) fn logger(verbose: bool) -> env_logger::Builder {
    let mut builder = env_logger::Builder::new();
    builder.filter_module("restorefs", if verbose { log::LevelFilter::Info } else { log::LevelFilter::Warn });
    // What matters of it comes back as an error. The rest is replies to whoever was killed, or to a mount that was
    // taken away, before the answer came: both are usual.
    builder.filter_module("fuser", log::LevelFilter::Off);
    if let Ok(filters) = std::env::var("RUST_LOG") {
        builder.parse_filters(&filters);
    }
    builder.format(|out, record| writeln!(out, "restorefs: {}", record.args()));
    builder
}

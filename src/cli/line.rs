//! The one connection over which a client restores: the daemon keeps the spool for as long as it is open, and the kernel
//! closes it when the daemon ends, whatever becomes of the mount and its device number.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::ask::{end, other, unexpected};
use super::exit::Exit;
use super::print::{fail, tell};
use super::show;
use crate::control::{Connection, Error, Mounted, Request, Response};
use crate::materialize::{Origin, Progress};
use crate::monitor::{Status, Verdict};
use crate::replay::{self, Contents};

/// So long a mount that is being taken away may take to go.
const GOING: Duration = Duration::from_millis(500);

/// A connection that stays.
#[derive(Clone)]
pub(super) struct Line(Arc<Inner>);

struct Inner {
    mounted: Mounted,
    connection: Mutex<Connection>,
    /// The process of the daemon: another may get the number of its mount.
    pid: Option<rustix::process::Pid>,
    /// The journal, where there is one.
    journal: OnceLock<Arc<File>>,
    /// Entries and attributes that were left out, when it was told last.
    refused: AtomicU64,
    lost: AtomicBool,
}

impl Line {
    /// Has the daemon hand over what the contents are in.
    pub(super) fn open(mounted: &Mounted) -> Result<(Line, Origin), Error> {
        let mut connection = Connection::open(mounted)?;
        let (response, files) = connection.ask_for_files(&Request::Contents)?;
        let pid = connection.pid();
        let line = Line(Arc::new(Inner {
            mounted: mounted.clone(),
            connection: Mutex::new(connection),
            pid,
            journal: OnceLock::new(),
            refused: AtomicU64::new(0),
            lost: AtomicBool::new(false),
        }));
        let origin = line.origin(response, files)?;
        Ok((line, origin))
    }

    fn origin(&self, response: Response, files: Vec<OwnedFd>) -> Result<Origin, Error> {
        let mounted = &self.0.mounted;
        let distrusted = |cause: replay::Error| other(mounted, cause.into());
        let mut files = files.into_iter();
        let (contents, concatenated, made) = match (response, files.next(), files.next()) {
            (Response::Contents { spool: true, made, .. }, Some(journal), Some(blobs)) => {
                (Contents::spool(journal, blobs, mounted.uid).map_err(distrusted)?, false, made)
            }
            (Response::Contents { spool: false, concatenated, made }, Some(file), None) => {
                (Contents::archive(file).map_err(distrusted)?, concatenated, made)
            }
            (other, ..) => return Err(unexpected(mounted, &other)),
        };
        if let Contents::Spool { journal, .. } = &contents {
            let _ = self.0.journal.set(journal.clone());
        }
        let line = self.clone();
        let more = move |known, spooled| line.more(known, spooled);
        Ok(Origin { contents, concatenated, made, more: Box::new(more) })
    }

    /// Asks. From the moment that the daemon has ended, it has.
    fn ask(&self, request: &Request) -> Result<Response, Error> {
        if self.0.lost.load(Ordering::Acquire) {
            return Err(Error::Ended(self.0.mounted.mountpoint.clone()));
        }
        let answer = self.0.connection.lock().ask_for_files(request).map(|(response, _)| response);
        if matches!(answer, Err(Error::Ended(_))) {
            self.0.lost.store(true, Ordering::Release);
        }
        answer
    }

    /// How far it is. When the daemon has ended, all that it wrote is all that there is.
    fn more(&self, known: Option<u64>, spooled: Option<u64>) -> std::io::Result<Progress> {
        match self.ask(&Request::More { known, spooled }) {
            Ok(Response::Progress { journal, over, replaced, changed, spooled, refused, .. }) => {
                self.0.refused.store(refused, Ordering::Relaxed);
                Ok(Progress { journal, over, replaced, changed, spooled, broken_off: false })
            }
            Err(Error::Ended(_)) => {
                let journal = self.0.journal.get().map_or(Ok(0), |journal| journal.metadata().map(|m| m.len()))?;
                Ok(Progress { journal, over: true, replaced: true, changed: false, spooled: 0, broken_off: true })
            }
            Ok(other) => Err(std::io::Error::other(unexpected(&self.0.mounted, &other))),
            Err(e) => Err(std::io::Error::other(e)),
        }
    }

    /// The part of the source that has come, and what is in the spool, where the daemon tells.
    pub(super) fn arrived(&self) -> Option<(f64, u64)> {
        if self.is_lost() || self.0.mounted.is_gone() {
            return None;
        }
        // While the other connection waits.
        let connection = Connection::open(&self.0.mounted).ok().filter(|connection| connection.pid() == self.0.pid)?;
        let progress = connection.ask(&Request::More { known: None, spooled: None });
        let Ok(Response::Progress { spooled, over, source: (came, size), .. }) = progress else { return None };
        match size {
            _ if over => Some((1.0, spooled)),
            Some(size) if size > 0 => Some((came.min(size) as f64 / size as f64, spooled)),
            _ => None,
        }
    }

    /// Whether the daemon has ended.
    pub(super) fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }

    /// The code of the stream itself. `finished`: whether it is over as it should be, by what was read of it.
    pub(super) fn end(&self, no_wait: bool, finished: Option<bool>) -> Exit {
        // Of an archive in place we may have come to the end before the daemon has.
        let request = if no_wait { Request::Status } else { Request::Wait { path: None } };
        match self.ask(&request) {
            Ok(Response::Status(status)) if status.end.is_none() && no_wait => Exit::Complete,
            Ok(Response::Status(status)) => self.end_of(&status),
            Err(Error::Ended(_)) => self.end_without_daemon(finished),
            Ok(other) => fail(unexpected(&self.0.mounted, &other)),
            Err(e) => fail(e),
        }
    }

    fn end_of(&self, status: &Status) -> Exit {
        let exit = end(status);
        if exit == Exit::Incomplete && self.goes(status) {
            let path = show::path(&self.0.mounted.mountpoint);
            tell(format_args!("'{path}' was unmounted meanwhile; what had arrived until then was restored"));
        }
        exit
    }

    /// Whether the mount is gone. A daemon that unmounts stops receiving first.
    fn goes(&self, status: &Status) -> bool {
        let is_stopped = matches!(&status.end, Some(Verdict::Incomplete { cause, .. }) if cause.contains("stopped"));
        let deadline = Instant::now() + if is_stopped { GOING } else { Duration::ZERO };
        while !self.0.mounted.is_gone() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(GOING / 50);
        }
        true
    }

    fn end_without_daemon(&self, finished: Option<bool>) -> Exit {
        let path = show::path(&self.0.mounted.mountpoint);
        let ended = format!("the daemon of '{path}' has ended, or was killed");
        if finished == Some(true) {
            tell(format_args!("{ended}; the stream was complete, and all of it was there to be restored"));
            let refused = self.0.refused.load(Ordering::Relaxed);
            return if refused == 0 { Exit::Complete } else { Exit::Problems };
        }
        tell(format_args!("{ended}, before the stream was over; what had arrived until then was restored"));
        // It says where the spool is, which we have not touched.
        if let Err(e @ Error::Gone { .. }) = Connection::open(&self.0.mounted) {
            tell(e);
        }
        Exit::Incomplete
    }
}

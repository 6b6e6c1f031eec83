//! What can be asked of a mount while it runs, from any thread, and how it is taken away.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::clients::Clients;
use crate::entry::{Timestamp, escape_path};
use crate::fs::{Closer, Opens, state};
use crate::fuse::{self, Helper};
use crate::index::Ino;
use crate::monitor::{Monitor, Phase, Piece, Problem, Severity, Status};
use crate::mounts::{self, Others, Table};
use crate::spool::Spool;
use crate::stop::Stop;
use crate::store::Store;
use crate::store::give_back::Following;
use crate::store::settle::Scrubbed;

/// Where the contents of a mount are.
#[derive(Debug)]
pub enum HandOver {
    /// In a spool.
    Spool {
        /// Its journal, to be read.
        journal: OwnedFd,
        /// The directory of its blobs.
        blobs: OwnedFd,
    },
    /// In the archive itself.
    Archive {
        /// It.
        file: OwnedFd,
        /// Whether what is behind an end marker belongs to it.
        concatenated: bool,
    },
}

/// What can be asked of a mount while it runs, from any thread.
pub struct Handle {
    pub(super) stop: Stop,
    pub(super) closer: Closer,
    pub(super) opens: Arc<Opens>,
    pub(super) clients: Clients,
    pub(super) helper: Option<Arc<Helper>>,
    pub(super) store: Arc<Store>,
    pub(super) monitor: Arc<Monitor>,
    pub(super) mountpoint: PathBuf,
    pub(super) device: String,
    pub(super) ender: fuse::Ender,
    pub(super) concatenated: bool,
    /// An earlier daemon has begun to fill its spool.
    pub(super) recovered: bool,
    pub(super) unmounted: AtomicBool,
    /// Whether it receives on as long as somebody uses it.
    pub(super) lazy: AtomicBool,
    /// Whether it was tried before.
    pub(super) tried: AtomicBool,
}

/// How a mount is to be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// Only where nothing is lost by it, and nobody uses it.
    Gently,
    /// From the tree. It is served, and receives, for those who use it.
    Lazily,
    /// In any case; receiving is stopped.
    ByForce,
}

/// What is to be known before a mount is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It is the last one, and clients are at work.
    Busy,
    /// It is the last one, and what has not arrived would be lost.
    Receiving,
    /// It is the last one; everything has arrived, and the spool is being synced.
    Settling,
    /// It is the last one; nothing is received any more.
    Last,
    /// There are others of the same file system, which stay, or of which nothing would be lost.
    Others,
}

impl Handle {
    /// Its spool stays when it ends, if anything is in it: its path then.
    pub fn keep_spool(&self) -> Option<PathBuf> {
        let spool = self.store.spool().filter(|spool| spool.position() > 0)?;
        spool.keep();
        Some(spool.path().to_owned())
    }

    /// Receives no more. What arrived stays.
    pub fn stop_receiving(&self) {
        self.stop.stop();
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Who knows how far it is.
    pub fn monitor(&self) -> &Arc<Monitor> {
        &self.monitor
    }

    /// Its device number, as /proc/self/mountinfo has it.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Takes the mount away at once, wherever it is by now, also while it is in use; open files can be read on. Where
    /// there is nothing to take away, because it is held by open files or by another mount namespace, it ends; so it does
    /// where that fails a second time, because something else is mounted over it. The second time no client is waited for.
    pub fn unmount(&self) -> Result<(), mounts::Error> {
        self.cease();
        let tried = self.tried.swap(true, Ordering::AcqRel);
        if tried {
            self.clients.give_up();
        }
        match mounts::detach_all(&self.device) {
            Ok(true) => {}
            Ok(false) => self.ender.end(),
            Err(_) if tried => self.ender.end(),
            Err(e) => {
                self.unmounted.store(false, Ordering::Release);
                return Err(e);
            }
        }
        Ok(())
    }

    /// Takes the mount away because it does not answer: then it ends by itself, with the cause.
    pub fn give_up(&self) -> Result<bool, mounts::Error> {
        self.cease();
        mounts::detach_all(&self.device)
    }

    /// Ends, also where the mount, or a file in it, is still in use.
    pub fn end(&self) {
        self.cease();
        self.ender.end();
    }

    /// Gets ready for the end of the mount of this number. Nothing is done where others stay; gently also where it still
    /// receives, or clients are at work.
    pub fn leave(&self, id: u64, how: How) -> io::Result<Leave> {
        let others = Table::read()?.others(&self.device, id);
        if others != Others::Stay && how == How::Gently {
            if !self.clients.list().is_empty() {
                return Ok(Leave::Busy);
            }
            if self.monitor.verdict().is_none() {
                let settling = self.monitor.status().phase == Phase::Settling;
                return Ok(if settling { Leave::Settling } else { Leave::Receiving });
            }
        }
        if others == Others::None {
            if how == How::Lazily {
                self.lazy.store(true, Ordering::Release);
                self.unmounted.store(true, Ordering::Release);
                self.end_helper();
            } else {
                self.lazy.store(false, Ordering::Release);
                self.cease();
            }
            return Ok(Leave::Last);
        }
        // Those that do not go with it are served on.
        if others == Others::MayGo {
            self.end_helper();
        }
        Ok(Leave::Others)
    }

    /// It may have a copy of the mount.
    fn end_helper(&self) {
        if let Some(helper) = &self.helper {
            helper.kill();
        }
    }

    /// Those who have asked for something that takes its time.
    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    /// How many files and directories are open, as far as the kernel tells.
    pub fn opens(&self) -> (u64, u64) {
        self.opens.count()
    }

    /// The process that lists directories ahead, which has some of them open meanwhile.
    pub fn helper(&self) -> Option<u32> {
        self.helper.as_ref().map(|helper| helper.pid())
    }

    /// Receives no more, and ends every read that waits.
    fn cease(&self) {
        self.unmounted.store(true, Ordering::Release);
        self.store.abandon();
        self.stop.stop();
        self.closer.close();
        self.end_helper();
    }

    /// Whether it is taken away, or about to be.
    pub fn is_unmounted(&self) -> bool {
        self.unmounted.load(Ordering::Acquire)
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        let mut status = self.monitor.status();
        let own = self.own_problems();
        status.warnings += own.len() as u64;
        status.problems.extend(own);
        if let (None, Some(spool)) = (&status.paused, self.store.spool())
            && let Some(stalled) = spool.stalled()
        {
            status.paused = Some(format!(
                "the disk of the spool '{}' has not taken a write for {} s: it may be frozen, or failing",
                escape_path(spool.path()),
                stalled.as_secs()
            ));
        }
        status
    }

    /// A part of all problems, counted from 0.
    pub fn problems(&self, number: usize) -> Piece {
        let mut piece = self.monitor.problems_piece(number);
        if piece.last {
            piece.problems.extend(self.own_problems());
        }
        piece
    }

    /// What is wrong with the mount, not with what was packed.
    fn own_problems(&self) -> Vec<Problem> {
        let warning = |reason| Problem { severity: Severity::Warning, path: String::new(), reason };
        let mut problems = Vec::new();
        if self.store.is_changed() {
            let reason = "the archive has been changed since it was mounted: its contents cannot be read any more \
                          (unmount it, and mount it again)";
            problems.push(warning(reason.into()));
        }
        let damaged = self.store.damaged();
        if damaged > 0 {
            let files = if damaged == 1 { "one file is" } else { "some files are" };
            problems.push(warning(format!(
                "{files} damaged in the spool, and reading gives an error ('restorefs scrub {}' names all)",
                escape_path(&self.mountpoint)
            )));
        }
        problems
    }

    /// Reads back what is in the spool, as long as `go_on` returns true. None where there is no spool.
    pub fn scrub(&self, go_on: impl Fn() -> bool) -> Option<Scrubbed> {
        self.store.scrub(|_, _| go_on())
    }

    /// The time of directories that no header announces.
    pub fn made(&self) -> Timestamp {
        self.store.index().made()
    }

    /// Somebody is going to read the journal: what it names stays as long.
    pub fn follow(&self) -> Following {
        self.store.follow()
    }

    /// The files that the contents are in, for whoever reads them without the mount.
    pub fn hand_over(&self) -> io::Result<HandOver> {
        match (self.store.spool(), self.store.archive()) {
            (Some(spool), _) => {
                let (journal, blobs) = spool.reopen()?;
                Ok(HandOver::Spool { journal, blobs })
            }
            (None, Some(file)) => {
                Ok(HandOver::Archive { file: file.try_clone()?.into(), concatenated: self.concatenated })
            }
            (None, None) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Whether somebody has written to the archive that is mounted in place.
    pub fn is_changed(&self) -> bool {
        self.store.is_changed()
    }

    /// How much of the journal can be read; 0 where there is none.
    pub fn journal_length(&self) -> u64 {
        self.store.spool().map_or(0, Spool::position)
    }

    /// Bytes that are in the spool.
    pub fn spooled(&self) -> u64 {
        self.store.spool().map_or(0, Spool::bytes)
    }

    /// Whether a name has come more than once.
    pub fn has_replaced(&self) -> bool {
        // What an earlier daemon has given back is not to be looked for while its journal is still replayed.
        self.recovered || self.store.index().has_replaced()
    }

    /// Somebody waits for a path below the root: where it can come sooner, it does.
    pub fn want(&self, path: &[u8]) {
        let ino = self.store.index().resolve(path);
        if let Some(ino) = ino {
            self.store.want(ino);
        }
    }

    /// How far a path below the root has arrived: its state, as the xattr has it; `complete` for what has no
    /// contents. None where there is no such entry (yet).
    pub fn state_of(&self, path: &[u8]) -> Option<String> {
        let index = self.store.index();
        let ino: Ino = index.resolve(path)?;
        Some(state(&self.store, &index, ino).unwrap_or_else(|| "complete".into()))
    }
}

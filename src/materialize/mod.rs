//! The tree to disk, with all that belongs to it, also while it is still arriving.
//!
//! The entries of a mount are [replayed](crate::replay) into an index of our own, so that names mean here what they mean
//! in the mount, and made on disk by several threads (`create`), each by one name in an open directory
//! (`target`). Symbolic links are made at once, with their real target: safety comes from never walking through one.
//!
//! Entries are made in batches: first everything that stands for itself, in any order, then the hard links. What
//! takes the place of something waits until that has been made. Directories get their metadata at the end.

mod batch;
mod bindings;
mod copy;
mod create;
mod dry_run;
mod early;
mod latest;
mod links;
mod metadata;
mod report;
mod restore;
mod select;
mod target;
mod temporary;
mod times;
mod verify;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::entry::{Entry, EntryPath, Timestamp};
use crate::index::{Index, Ino};
use crate::replay::{self, Contents, Item, Replay};
use crate::tarball;
use batch::{Batch, execute};
use bindings::Bindings;
use create::Creator;
use dry_run::DryRun;
use latest::Latest;
use metadata::{Names, Owners};
use restore::Restore;
use target::Target;
use temporary::TemporaryNames;
use verify::Verify;

pub use create::Action;
pub use report::{Problem, Report, Stage, Summary};
pub use select::{Error as SelectError, Selection};

/// What becomes of a name that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// It stays.
    Never,
    /// It is replaced by what was changed later.
    IfNewer,
    /// It is replaced, unless it is the same kind of thing with the same time and size.
    IfChanged,
    /// It is replaced.
    Always,
}

/// What is to be done.
#[derive(Debug)]
pub struct Options {
    /// The directory that everything goes into.
    pub target: PathBuf,
    /// What of it.
    pub selection: Selection,
    /// What becomes of names that are taken.
    pub overwrite: Overwrite,
    /// So many leading components of each path are left away.
    pub strip: usize,
    /// Whether owners are found by name, where this machine has the name.
    pub by_name: bool,
    /// Whether all is on the disk when it ends.
    pub sync: bool,
    /// Whether it goes on until the stream is over.
    pub follow: bool,
    /// Nothing is done: it is only told what would be, for each entry.
    pub dry_run: Option<fn(&EntryPath, Action)>,
    /// Whether everything is read back and compared.
    pub verify: bool,
    /// How an archive is read, and how names of owners are found.
    pub tar: tarball::Options,
}

/// How far a stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the journal.
    pub journal: u64,
    /// Whether it is over.
    pub over: bool,
    /// Whether a name has come more than once.
    pub replaced: bool,
    /// Whether somebody has written to the archive that is mounted in place.
    pub changed: bool,
    /// Bytes that are in the spool.
    pub spooled: u64,
}

/// Returns when there is more than so many bytes of journal, or so many in the spool, or when the stream is over; for
/// None at once.
pub type More = dyn FnMut(Option<u64>, Option<u64>) -> io::Result<Progress> + Send;

/// Where the entries come from.
pub struct Origin {
    /// Their contents, and the journal or archive that names them.
    pub contents: Contents,
    /// Whether what is behind an end marker of the archive belongs to it.
    pub concatenated: bool,
    /// The time of directories that no header announces.
    pub made: Timestamp,
    /// How far it has come.
    pub more: Box<More>,
}

/// Why it could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The target directory.
    #[error("cannot restore into '{path}': {cause}")]
    Target {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Something that concerns everything that would follow.
    #[error("cannot restore '{path}': {cause} (what is restored stays; the same command goes on from there)")]
    Entry {
        /// Where it happened.
        path: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The entries, or their contents, cannot be read.
    #[error("cannot read what is to be restored: {0}")]
    Replay(#[source] replay::Error),
    /// The daemon does not say how far the stream has come.
    #[error("cannot read what is to be restored: {0}")]
    More(#[source] io::Error),
    /// A daemon that says so is not ours, or is broken.
    #[error("cannot read what is to be restored: the daemon says that its journal has become shorter")]
    Shrunk,
    /// The last step failed.
    #[error("cannot bring everything to the disk: {0}")]
    Sync(#[source] io::Error),
}

/// Restores. What could not be restored is in the report; an error is what ended it.
pub fn run(options: &Options, origin: Origin, report: &Arc<Report>) -> Result<(), Error> {
    let Origin { contents, concatenated, made, mut more } = origin;
    let tar = tarball::Options { concatenated, ..options.tar };
    let mut replay = Replay::new(&contents, tar, options.strip).map_err(Error::Replay)?;
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let names = Names { user: options.tar.resolve_user, group: options.tar.resolve_group };
    let owners =
        Owners { own: (uid.as_raw(), gid.as_raw()), root: uid.is_root(), by_name: options.by_name.then_some(names) };
    let creator = Creator {
        contents,
        owners,
        overwrite: options.overwrite,
        report: report.clone(),
        strip: options.strip,
        root: OnceLock::new(),
        looks_only: options.dry_run.is_some(),
        kept: Mutex::default(),
        found: Mutex::default(),
        temporary: TemporaryNames::new(),
    };
    let new_bindings = || Bindings::new(options, || Index::new(uid.as_raw(), gid.as_raw(), made));
    let latest = first_pass(options, &creator, &mut *more, tar, &new_bindings)?;
    let bindings = new_bindings();
    if let Some(tell) = options.dry_run {
        let mut dry = DryRun { options, creator: &creator, report, bindings, latest, tell, firsts: HashMap::new() };
        pump(&mut replay, &mut *more, options.follow, report, |next| match next {
            Next::Item(item) => dry.take(&item),
            Next::Nothing(_) => Ok(()),
        })?;
        options.selection.tell_missed(options.strip, report);
        return Ok(());
    }
    let failed = |cause| Error::Target { path: options.target.clone(), cause };
    let target = Target::open(&options.target, options.strip > 0).map_err(failed)?;
    let _ = creator.root.set(target.root());
    let fatal = Mutex::new(None);
    std::thread::scope(|scope| {
        let (send, batches) = sync_channel(1);
        let (done, finished) = sync_channel(2);
        let creator = &creator;
        let fatal = &fatal;
        scope.spawn(move || execute(&batches, &done, creator, fatal));
        let mut restore = Restore {
            options,
            bindings,
            latest,
            now: 0,
            target,
            creator,
            report,
            fatal,
            batch: Batch::default(),
            send,
            finished,
            handed: 0,
            under_way: 0,
            names: HashMap::new(),
            doubtful: HashSet::new(),
            early: None,
            unmade: HashSet::new(),
            parent: (Vec::new(), Ino::ROOT),
        };
        restore.target.is_root(Ino::ROOT);
        let end = pump(&mut replay, &mut *more, options.follow, report, |next| match next {
            Next::Item(item) => restore.take(item),
            Next::Nothing(arriving) => {
                restore.flush(false)?;
                if options.follow
                    && let Some((entry, blob)) = arriving
                {
                    restore.copy_early(entry, blob);
                }
                Ok(())
            }
        })?;
        restore.flush(true)?;
        restore.finish()?;
        // Of an archive that is another by now, not even the names are to be believed.
        creator.contents.check().map_err(Error::Replay)?;
        options.selection.tell_missed(options.strip, report);
        let Restore { target, .. } = restore;
        if options.sync {
            report.set_stage(Stage::Syncing);
            for disk in target.disks() {
                rustix::fs::syncfs(disk).map_err(|e| Error::Sync(e.into()))?;
            }
        }
        if options.verify {
            report.set_stage(Stage::Verifying);
            let mut bindings = new_bindings();
            let mut replay = Replay::new(&creator.contents, tar, options.strip).map_err(Error::Replay)?;
            take_all(&mut replay, &end, |item| drop(bindings.take(&item))).map_err(Error::Replay)?;
            Verify::new(options, creator, bindings, target.anew()).run()?;
        }
        Ok(())
    })
}

/// Which of the names that are there by now are replaced, where some are.
fn first_pass<'a>(
    options: &Options,
    creator: &Creator,
    more: &mut More,
    tar: tarball::Options,
    new_bindings: &dyn Fn() -> Bindings<'a>,
) -> Result<Option<Latest>, Error> {
    let mut progress = more(None, None).map_err(Error::More)?;
    if progress.changed {
        return Err(Error::Replay(replay::Error::Changed));
    }
    // Of an archive in place all is there. It costs the daemon no more to look than it would cost us.
    if matches!(creator.contents, Contents::Archive(_)) && options.strip == 0 && !progress.over {
        progress = more(Some(u64::MAX), None).map_err(Error::More)?;
    }
    // Of names that are the same only without their first components the daemon knows nothing.
    if !progress.replaced && options.strip == 0 {
        return Ok(None);
    }
    let mut latest = Latest::new(options.strip);
    let mut bindings = new_bindings();
    let so_far = End { journal: progress.journal, over: false };
    let mut replay = Replay::new(&creator.contents, tar, options.strip).map_err(Error::Replay)?;
    take_all(&mut replay, &so_far, |item| {
        for binding in bindings.take(&item) {
            latest.take(&binding);
        }
    })
    .map_err(Error::Replay)?;
    Ok(Some(latest))
}

/// How far a stream has been taken.
struct End {
    /// Bytes of the journal.
    journal: u64,
    /// Whether no more comes: what is not there as a whole has been given too.
    over: bool,
}

/// All entries up to an end.
fn take_all(replay: &mut Replay, end: &End, mut take: impl FnMut(Item)) -> Result<(), replay::Error> {
    replay.set_length(end.journal);
    while let Some(item) = replay.next_item()? {
        take(item);
    }
    while end.over
        && let Some(cut) = replay.rest()
    {
        take(cut);
    }
    Ok(())
}

/// What a stream gives.
enum Next<'a> {
    /// An entry that is there as a whole.
    Item(Item),
    /// None by now; perhaps a file that is arriving, and the number of its blob.
    Nothing(Option<(&'a Entry, u64)>),
}

/// Gives one entry after the other, as they come; nothing when it is going to wait for more.
fn pump(
    replay: &mut Replay,
    more: &mut More,
    follow: bool,
    report: &Report,
    mut take: impl FnMut(Next<'_>) -> Result<(), Error>,
) -> Result<End, Error> {
    let mut end = End { journal: 0, over: matches!(replay, Replay::Archive(_)) };
    // When to look again at what is in the spool of something large that is arriving.
    let mut spooled = None;
    loop {
        if let Replay::Journal(journal) = replay {
            let progress = more(follow.then_some(journal.length()), spooled).map_err(Error::More)?;
            if progress.journal < journal.length() {
                return Err(Error::Shrunk);
            }
            journal.set_length(progress.journal);
            end = End { journal: progress.journal, over: progress.over };
            spooled = Some(progress.spooled.saturating_add(early::STEP));
        }
        while let Some(item) = replay.next_item().map_err(Error::Replay)? {
            report.position.store(replay.position(), Ordering::Relaxed);
            take(Next::Item(item))?;
        }
        report.position.store(replay.position(), Ordering::Relaxed);
        take(Next::Nothing(replay.arriving()))?;
        if end.over {
            while let Some(cut) = replay.rest() {
                take(Next::Item(cut))?;
            }
        }
        if end.over || !follow {
            return Ok(end);
        }
    }
}

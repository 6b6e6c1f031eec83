//! A restore from beginning to end.

use std::collections::HashMap;
use std::sync::Arc;

use rustix::process::{getegid, geteuid};

use super::disk::{Comparer, Creator, Restore, Target, with_workers};
use super::error::Error;
use super::options::Options;
use super::plan::{Bindings, DryRun, Latest, Verify};
use super::report::{Report, Stage};
use super::stream::{End, More, Next, Origin, pump, take_all};
use crate::index::Index;
use crate::replay::{self, Contents, Replay};
use crate::tarball;

/// Restores. What could not be restored is in the report; an error is what ended it.
pub fn run(options: &Options, origin: Origin, report: &Arc<Report>) -> Result<(), Error> {
    let Origin { contents, concatenated, made, mut more } = origin;
    let tar = tarball::Options { concatenated, ..options.tar };
    let mut replay = Replay::new(&contents, tar, options.strip).map_err(Error::Replay)?;
    let creator = Creator::new(options, contents, report.clone());
    let (uid, gid) = (geteuid(), getegid());
    let new_bindings = || {
        Bindings::new(&options.selection, options.strip, options.by_name, || {
            Index::new(uid.as_raw(), gid.as_raw(), made)
        })
    };
    let latest = first_pass(options, &creator, &mut *more, tar, &new_bindings)?;
    let bindings = new_bindings();
    if let Some(tell) = options.dry_run {
        let mut dry = DryRun {
            target: &options.target,
            selection: &options.selection,
            strip: options.strip,
            look: &creator,
            report,
            bindings,
            latest,
            tell,
            firsts: HashMap::new(),
        };
        pump(&mut replay, &mut *more, options.follow, report, |next| match next {
            Next::Item(item) => dry.take(&item),
            Next::Nothing(_) => Ok(()),
        })?;
        options.selection.tell_missed(options.strip, report);
        return Ok(());
    }
    let failed = |cause| Error::Target { path: options.target.clone(), cause };
    let target = Target::open(&options.target, options.strip > 0).map_err(failed)?;
    creator.set_root(target.root());
    with_workers(&creator, |workers| {
        let mut restore = Restore::new(options, bindings, latest, target, &creator, report, workers);
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
        let target = restore.into_target();
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
            let mut disk = Comparer::new(&creator, target.anew());
            Verify::new(&options.target, &options.selection, options.strip, report, bindings, &mut disk).run()?;
            creator.contents.check().map_err(Error::Replay)?;
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
    let so_far = End { journal: progress.journal, over: false, broken_off: progress.broken_off };
    let mut replay = Replay::new(&creator.contents, tar, options.strip).map_err(Error::Replay)?;
    take_all(&mut replay, &so_far, |item| {
        for binding in bindings.take(&item) {
            latest.take(&binding);
        }
    })
    .map_err(Error::Replay)?;
    Ok(Some(latest))
}

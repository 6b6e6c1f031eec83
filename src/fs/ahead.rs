//! Which small files will be read next, by those that were read, and which directories listed: reading ahead from one
//! to the next.
//!
//! Whoever walks a tree (`find`, `tar`, `cp -a`, `grep -r`, `rsync`) goes through its directories and files in the order
//! in which they arrived. Of a small file it is the request that costs most; of a directory, that the kernel makes an
//! inode and a dentry for each entry, while who lists it waits. So after a few in that order the next ones are told, in a
//! window that grows as it proves right. Nothing is heard of what was brought in time; therefore one in the middle of
//! each window is left out, and a request for that asks for the next window.
//!
//! Positions are numbers in the order of arrival: of inodes where files are meant, of directories among each other else.

/// Files that are larger are not brought: for them it is the kernel that reads ahead.
pub(super) const LARGEST: u64 = 128 << 10;

/// The most bytes of a window of files.
pub(super) const BYTES: u64 = 4 << 20;

/// A window of directories ends with the one that brings it to so many entries, and none that has as many is brought. The
/// kernel has about a KiB for each.
pub(super) const ENTRIES: u64 = 32 << 10;

/// The next of a walk is at most so many positions away: between files there are directories and links.
const STEP: u64 = 32;

/// So many in order make a walk.
const WALK: u32 = 3;

/// How many are in the first window, and in the largest.
const WINDOW: (u32, u32) = (16, 256);

/// Between a request and the first that is brought: the thread that brings should not get into the way of the reader,
/// and wait for a page that is being read.
const GAP: u64 = 8;

/// Walks that are followed at once.
const WALKS: usize = 4;

/// Several walks at a time.
#[derive(Debug, Default)]
pub(super) struct Walks {
    walks: [Walk; WALKS],
    clock: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Walk {
    /// Tells it from the one before in its place.
    id: u64,
    /// The last that we were asked for.
    last: u64,
    /// How many were in order so far.
    count: u32,
    /// The size of the next window.
    window: u32,
    /// Where the windows so far end.
    end: u64,
    /// The one that was left out; a request for it, or for one behind it, asks for more.
    mark: u64,
    used: u64,
}

/// What will be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    walk: u64,
    /// The first position to look at.
    from: u64,
    /// How many files, or directories.
    count: u32,
}

impl Walks {
    /// We are asked for what the kernel did not have. What is worth bringing now, if anything.
    pub(super) fn asked(&mut self, at: u64) -> Option<Window> {
        self.clock += 1;
        let follows = |walk: &Walk| walk.used > 0 && at > walk.last && at <= (walk.last + STEP).max(walk.end + STEP);
        if self.walks.iter().any(|walk| walk.used > 0 && walk.last == at) {
            return None;
        }
        let n = self.walks.iter().position(follows).unwrap_or_else(|| {
            let oldest = (0..WALKS).min_by_key(|&n| self.walks[n].used).unwrap_or(0);
            self.walks[oldest] = Walk { id: self.clock, window: WINDOW.0, ..Walk::default() };
            oldest
        });
        let walk = &mut self.walks[n];
        (walk.last, walk.used) = (at, self.clock);
        walk.count += 1;
        if walk.count < WALK || at < walk.mark {
            return None;
        }
        let window = Window { walk: walk.id, from: walk.end.max(at + GAP), count: walk.window };
        walk.window = (walk.window * 2).min(WINDOW.1);
        // Until it is known what the window holds, nothing asks for another.
        walk.mark = u64::MAX;
        Some(window)
    }

    /// Where the walk is, to pass over what it has read by itself in the meantime.
    pub(super) fn position(&self, window: &Window) -> u64 {
        self.walks.iter().find(|walk| walk.id == window.walk).map_or(0, |walk| walk.last)
    }

    /// A window was brought up to `end`, without `mark`.
    pub(super) fn brought(&mut self, window: &Window, mark: u64, end: u64) {
        if let Some(walk) = self.walks.iter_mut().find(|walk| walk.id == window.walk) {
            (walk.mark, walk.end) = (mark, end);
        }
    }

    /// A window was not brought at all.
    pub(super) fn forgone(&mut self, window: &Window) {
        self.brought(window, window.from, window.from);
    }
}

/// What to do with a position of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Bring,
    LeaveOut,
    Done,
}

/// Goes through a window.
#[derive(Debug)]
pub(super) struct Bringing {
    window: Window,
    /// The most that it may come to, in bytes or entries.
    most: u64,
    count: u32,
    sum: u64,
    at: u64,
    mark: Option<u64>,
}

impl Bringing {
    pub(super) fn new(window: Window, most: u64) -> Self {
        Bringing { window, most, count: 0, sum: 0, at: window.from, mark: None }
    }

    /// The position to look at, well behind what the walk has asked for by itself.
    pub(super) fn next(&mut self, position: u64) -> u64 {
        self.at = self.at.max(position + GAP);
        self.at
    }

    /// What is there can be brought and is of this size, or is something else; None behind the last.
    pub(super) fn step(&mut self, size: Option<Option<u64>>) -> Step {
        let far = self.at >= self.window.from + u64::from(self.window.count) * STEP;
        let Some(size) = size.filter(|_| self.count < self.window.count && self.sum < self.most && !far) else {
            return Step::Done;
        };
        let at = self.at;
        self.at += 1;
        let Some(size) = size else { return Step::LeaveOut };
        self.count += 1;
        self.sum += size;
        if self.mark.is_none() && (self.count > self.window.count / 2 || self.sum > self.most / 2) {
            self.mark = Some(at);
            return Step::LeaveOut;
        }
        Step::Bring
    }

    /// The one that was left out, and the end of the window.
    pub(super) fn result(&self) -> (u64, u64) {
        (self.mark.unwrap_or(self.at), self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files in order, read by somebody who has only what is brought: how many of them we were asked for.
    fn asked_for(order: impl IntoIterator<Item = u64>, is_file: impl Fn(u64) -> bool, last: u64) -> usize {
        let mut walks = Walks::default();
        let mut there = std::collections::HashSet::new();
        let mut asked = 0;
        for ino in order {
            if there.contains(&ino) {
                continue;
            }
            asked += 1;
            if let Some(window) = walks.asked(ino) {
                let mut bringing = Bringing::new(window, BYTES);
                loop {
                    let at = bringing.next(walks.position(&window));
                    assert!(at >= ino + GAP, "it comes too near");
                    match bringing.step((at <= last).then(|| is_file(at).then_some(1000))) {
                        Step::Bring => assert!(there.insert(at), "{at} is brought twice"),
                        Step::LeaveOut => {}
                        Step::Done => break,
                    }
                }
                let (mark, end) = bringing.result();
                walks.brought(&window, mark, end);
            }
        }
        asked
    }

    #[test]
    fn a_walk_is_asked_for_a_few_of_its_files() {
        let all = asked_for(2..10_002, |_| true, 10_001);
        assert!((10..150).contains(&all), "{all} of 10000");
        // Every tenth is a link.
        let files = (2..10_002).filter(|n| n % 10 != 0);
        let most = asked_for(files, |n| n % 10 != 0, 10_001);
        assert!((10..150).contains(&most), "{most} of 9000");
    }

    #[test]
    fn two_walks_at_a_time() {
        let both = (2..5_002).flat_map(|n| [n, n + 100_000]);
        let asked = asked_for(both, |_| true, 200_000);
        assert!((10..200).contains(&asked), "{asked} of 10000");
    }

    #[test]
    fn what_is_no_walk_brings_nothing() {
        let mut walks = Walks::default();
        for n in 0..1000u64 {
            assert_eq!(walks.asked(2 + n * 7919 % 1000 * 1000), None);
        }
        for _ in 0..10 {
            assert_eq!(walks.asked(5), None);
        }
    }

    #[test]
    fn a_window_is_bounded_in_bytes_and_by_the_last_inode() {
        let window = Window { walk: 0, from: 10, count: 256 };
        let mut bringing = Bringing::new(window, BYTES);
        let mut brought = 0;
        while {
            bringing.next(0);
            bringing.step(Some(Some(LARGEST)))
        } != Step::Done
        {
            brought += LARGEST;
        }
        assert_eq!(brought, BYTES);
        let mut bringing = Bringing::new(window, BYTES);
        bringing.next(0);
        assert_eq!(bringing.step(None), Step::Done);
        assert_eq!(bringing.result(), (10, 10));
        // The walk has gone on in the meantime.
        assert_eq!(bringing.next(100), 100 + GAP);
    }
}

//! Which small files will be read next, by those that were read, and which directories listed: reading ahead from one
//! to the next.
//!
//! Whoever walks a tree (`find`, `tar`, `cp -a`, `grep -r`, `rsync`) goes through its directories and files in the order
//! in which they arrived. Of a small file it is the request that costs most; of a directory, that the kernel makes an
//! inode and a dentry for each entry, while who lists it waits. So after a few in that order the next ones are told, in a
//! window that grows as it proves right. Nothing is heard of what was brought in time; therefore one in the middle of
//! each window is left out, and a request for that asks for the next window. What is asked for all the same was lost in the
//! meantime, since the kernel has no memory for it: then windows become smaller.
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
    /// The size of the next window, and the most that it may be.
    window: u32,
    most: u32,
    /// From here to the end everything was brought, by the last window so many.
    first: u64,
    held: u32,
    /// So many were asked for all the same, since the last window.
    lost: u32,
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
            self.walks[oldest] = Walk { id: self.clock, window: WINDOW.0, most: WINDOW.1, ..Walk::default() };
            oldest
        });
        let walk = &mut self.walks[n];
        (walk.last, walk.used) = (at, self.clock);
        walk.count += 1;
        walk.lost += u32::from((walk.first..walk.end).contains(&at) && at != walk.mark);
        if walk.count < WALK || at < walk.mark {
            return None;
        }
        if walk.lost > walk.held / 4 {
            walk.most = (walk.held / 4).max(1);
        }
        walk.lost = 0;
        let count = walk.window.min(walk.most);
        let window = Window { walk: walk.id, from: walk.end.max(at + GAP), count };
        walk.window = (walk.window * 2).min(WINDOW.1);
        // Until it is known what the window holds, nothing asks for another.
        walk.mark = u64::MAX;
        Some(window)
    }

    /// Where the walk is, to pass over what it has read by itself in the meantime.
    pub(super) fn position(&self, window: &Window) -> u64 {
        self.walks.iter().find(|walk| walk.id == window.walk).map_or(0, |walk| walk.last)
    }

    /// So much of a window was brought.
    pub(super) fn brought(&mut self, window: &Window, brought: &Brought) {
        if let Some(walk) = self.walks.iter_mut().find(|walk| walk.id == window.walk) {
            let Brought { first, held, mark, end } = *brought;
            let first = if first == walk.end { walk.first } else { first };
            *walk = Walk { first, held, mark, end, ..*walk };
        }
    }

    /// A window was not brought at all.
    pub(super) fn forgone(&mut self, window: &Window) {
        let held = self.walks.iter().find(|walk| walk.id == window.walk).map_or(0, |walk| walk.held);
        self.brought(window, &Brought { first: window.from, held, mark: window.from, end: window.from });
    }
}

/// What to do with a position of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Bring,
    LeaveOut,
    Done,
}

/// What became of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Brought {
    /// The first that was brought, and how many.
    first: u64,
    held: u32,
    /// The one that was left out.
    mark: u64,
    /// Where the next window begins.
    pub(super) end: u64,
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
    first: Option<u64>,
    mark: Option<u64>,
}

impl Bringing {
    pub(super) fn new(window: Window, most: u64) -> Self {
        Bringing { window, most, count: 0, sum: 0, at: window.from, first: None, mark: None }
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
        self.first.get_or_insert(at);
        Step::Bring
    }

    /// What has been brought.
    pub(super) fn result(&self) -> Brought {
        let first = self.first.unwrap_or(self.at);
        let held = self.count - u32::from(self.mark.is_some());
        Brought { first, held, mark: self.mark.unwrap_or(self.at), end: self.at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files in order, read by somebody who has only what is brought: how many of them we were asked for.
    fn asked_for(order: impl IntoIterator<Item = u64>, is_file: impl Fn(u64) -> bool, last: u64) -> usize {
        asked_and_brought(order, is_file, last, usize::MAX).0
    }

    /// The same where only so many are kept; and how many were brought.
    fn asked_and_brought(
        order: impl IntoIterator<Item = u64>,
        is_file: impl Fn(u64) -> bool,
        last: u64,
        room: usize,
    ) -> (usize, usize) {
        let mut walks = Walks::default();
        let mut there = std::collections::BTreeSet::new();
        let (mut asked, mut brought) = (0, 0);
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
                        Step::Bring => {
                            assert!(there.insert(at), "{at} is brought twice");
                            brought += 1;
                            if there.len() > room {
                                there.pop_first();
                            }
                        }
                        Step::LeaveOut => {}
                        Step::Done => break,
                    }
                }
                walks.brought(&window, &bringing.result());
            }
        }
        (asked, brought)
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
    fn what_is_lost_before_it_is_asked_for_is_not_brought_for_long() {
        for room in [0, 8, 100, 300] {
            let (asked, brought) = asked_and_brought(2..10_002, |_| true, 10_001, room);
            let in_vain = asked + brought - 10_000;
            assert!(in_vain < 500, "{room} are kept, {brought} brought, {in_vain} of them in vain");
            assert!(room < 100 || brought > 5_000, "{room} are kept, and only {brought} brought");
        }
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
        assert_eq!(bringing.result(), Brought { first: 10, held: 0, mark: 10, end: 10 });
        // The walk has gone on in the meantime.
        assert_eq!(bringing.next(100), 100 + GAP);
    }
}

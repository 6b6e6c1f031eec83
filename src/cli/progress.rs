//! Progress on a terminal, or as plain lines where there is none.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::print::tell;
use crate::monitor::{Phase, Status};

/// Without a terminal a line comes at most this often.
const LINE: Duration = Duration::from_secs(10);

/// What is left is estimated from so long a time.
const WINDOW: Duration = Duration::from_secs(30);

/// Before that, what is left cannot be told.
const SETTLED: Duration = Duration::from_secs(2);

/// More than this is no estimate but a standstill.
const MOST_LEFT: f64 = 1e6;

pub(super) struct Progress {
    bar: Option<ProgressBar>,
    last: Instant,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = || {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar
        };
        // On a terminal that cannot go back in a line the bar hides itself.
        let bar = std::io::stderr().is_terminal().then(bar).filter(|bar| !bar.is_hidden());
        Progress { bar, last: Instant::now() }
    }

    pub(super) fn update(&mut self, status: &Status) {
        self.show(|| line(status));
    }

    /// A line in the place of the one before.
    pub(super) fn show(&mut self, line: impl FnOnce() -> String) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(line());
                bar.tick();
            }
            None if self.last.elapsed() >= LINE => {
                self.last = Instant::now();
                tell(line());
            }
            None => {}
        }
    }

    /// A line that stays, above the bar.
    pub(super) fn tell(&self, message: impl std::fmt::Display) {
        match &self.bar {
            Some(bar) => bar.suspend(|| tell(message)),
            None => tell(message),
        }
    }

    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How much longer it takes, from how much was done in the last while.
pub(super) struct Estimate {
    samples: VecDeque<(Instant, f64)>,
}

impl Estimate {
    pub(super) fn new() -> Self {
        Estimate { samples: VecDeque::new() }
    }

    /// `part` of it is done now, from 0 to 1: percent, and the time that is left, as soon as that can be told.
    pub(super) fn tell(&mut self, part: f64, now: Instant) -> String {
        let part = part.clamp(0.0, 1.0);
        self.samples.push_back((now, part));
        while self.samples.len() > 2 && self.samples.get(1).is_some_and(|(then, _)| now - *then > WINDOW) {
            self.samples.pop_front();
        }
        let percent = (part * 100.0) as u64;
        let left = self.samples.front().and_then(|(then, before)| {
            let (span, gained) = (now - *then, part - before);
            let left = span.as_secs_f64() * (1.0 - part) / gained;
            // Of the first moment and of a standstill nothing follows.
            (span >= SETTLED && gained > 0.0 && left < MOST_LEFT).then(|| left.round() as u64)
        });
        match left {
            Some(left) => format!("{percent:3} %  {} left  ", clock(left)),
            None => format!("{percent:3} %  "),
        }
    }
}

/// `0:07`, `1:02:03`.
fn clock(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

fn line(status: &Status) -> String {
    if let Some(reason) = &status.paused {
        return format!("waiting: {reason}");
    }
    if status.phase == Phase::Waiting {
        return format!("waiting for the first byte from {}", super::show::source(status));
    }
    if status.phase == Phase::Settling {
        return format!("the stream is over ({}); syncing the spool to disk", HumanBytes(status.bytes));
    }
    let part = match status.source_size {
        Some(size) if size > 0 => format!("{:3} %  ", status.source_bytes.min(size) * 100 / size),
        _ => String::new(),
    };
    let path = status.receiving.as_ref().map_or("", |file| &file.path);
    let rate = super::show::rate(status.rate, status.seconds).map_or(String::new(), |rate| format!("  {rate}"));
    format!("{part}{}  {}{rate}  {path}", super::show::entries(status.entries), HumanBytes(status.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_from_what_was_done_lately() {
        let (begun, mut estimate) = (Instant::now(), Estimate::new());
        let mut at = |seconds: u64, part: f64| estimate.tell(part, begun + Duration::from_secs(seconds));
        assert_eq!(at(0, 0.0), "  0 %  ");
        assert_eq!(at(1, 0.1), " 10 %  ");
        assert_eq!(at(10, 0.1), " 10 %  1:30 left  ");
        // What was long ago does not count.
        assert_eq!(at(100, 0.25), " 25 %  7:30 left  ");
        assert_eq!(at(140, 0.5), " 50 %  1:20 left  ");
        assert_eq!(at(141, 1.0), "100 %  0:00 left  ");
        assert_eq!(clock(3723), "1:02:03");
    }
}

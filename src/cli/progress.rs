//! Progress on a terminal, or as plain lines where there is none.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

use super::tell;
use crate::monitor::{Phase, Status};

/// Without a terminal a line comes at most this often.
const LINE: Duration = Duration::from_secs(10);

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

fn line(status: &Status) -> String {
    if let Some(reason) = &status.paused {
        return format!("waiting: {reason}");
    }
    if status.phase == Phase::Waiting {
        return format!("waiting for the first byte from {}", status.source);
    }
    let part = match status.source_size {
        Some(size) if size > 0 => format!("{:3} %  ", status.source_bytes.min(size) * 100 / size),
        _ => String::new(),
    };
    let path = status.receiving.as_ref().map_or("", |file| &file.path);
    format!(
        "{part}{} entries  {}  {}/s  {path}",
        HumanCount(status.entries),
        HumanBytes(status.bytes),
        HumanBytes(status.rate as u64)
    )
}

//! Signals that end a command that works in front of somebody.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Which of them. Not SIGHUP where whoever started it has it ignored, as nohup(1) does.
pub(super) fn that_end_us() -> impl Iterator<Item = i32> {
    let hangup = (!is_ignored(SIGHUP)).then_some(SIGHUP);
    [SIGINT, SIGTERM].into_iter().chain(hangup)
}

fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    ignored.unwrap_or_default() >> (signal - 1) & 1 == 1
}

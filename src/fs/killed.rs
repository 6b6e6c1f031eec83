//! Whether whoever asked for a read is about to die.

/// SIGKILL in the masks of /proc: one bit per signal, counted from 1.
const KILL: u64 = 1 << (9 - 1);

/// Whether the kernel wants to end this task, and only an answer of ours is missing. Any fatal signal becomes a
/// SIGKILL for every thread (signal(7), `complete_signal`). False when nothing can be told of the task.
pub(super) fn is_being_killed(task: u32) -> bool {
    // In a pid namespace that is not ours, the kernel tells 0.
    task != 0 && std::fs::read_to_string(format!("/proc/{task}/status")).is_ok_and(|status| has_kill(&status))
}

fn has_kill(status: &str) -> bool {
    let masks = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:")));
    masks.filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok()).any(|mask| mask & KILL != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_signals() {
        assert!(has_kill("Name:\tcat\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000004000\n"));
        assert!(has_kill("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n"));
        assert!(!has_kill("SigPnd:\t0000000000000000\nShdPnd:\t0000000000004000\nSigBlk:\t0000000000000100\n"));
        assert!(!is_being_killed(std::process::id()));
        assert!(!is_being_killed(0));
    }
}

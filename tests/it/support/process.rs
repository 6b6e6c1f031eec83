//! Processes that a test starts beside the mount: none outlives the test, and it can be seen when one waits.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::wait_until;

/// A command with whatever it starts, in a process group of its own. All of it is killed with the guard.
pub struct Group(pub Child);

impl Group {
    pub fn start(command: &mut Command) -> Group {
        Group(command.process_group(0).spawn().unwrap_or_else(|e| {
            panic!("{:?} cannot be run ({e}): scripts/test installs what the tests need", command.get_program())
        }))
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    /// Sends a signal to the command itself.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Kills all of it, as a machine that loses power does.
    pub fn kill(&self) {
        kill_process_group(self.pid(), Signal::KILL).unwrap();
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Waits until the command ends.
    pub fn wait(&mut self) -> ExitStatus {
        wait_until("a command ends", || self.0.try_wait().unwrap())
    }

    /// Waits until the command waits for contents.
    pub fn wait_parked(&self) {
        wait_parked(&format!("/proc/{}", self.pid().as_raw_nonzero()));
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = kill_process_group(self.pid(), Signal::KILL);
        // One that cannot be killed must not keep the mount from being taken away: that ends it.
        let deadline = Instant::now() + Duration::from_secs(2);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Waits until a task, by its folder in /proc, sleeps in a read of a mount and does not wake up again.
pub fn wait_parked(task: &str) {
    let read = |name: &str| std::fs::read_to_string(format!("{task}/{name}")).unwrap_or_default();
    let mut before = (String::new(), 0);
    wait_until("a reader waits", || {
        let sleeps = ["folio_wait", "request_wait_answer"].iter().any(|place| read("wchan").contains(place));
        // Each time that it wakes up, the number of its context switches grows.
        let now = read("status").lines().filter(|line| line.contains("ctxt_switches")).collect::<String>();
        before = if sleeps && now == before.0 { (now, before.1 + 1) } else { (now, 0) };
        (before.1 == 10).then_some(())
    });
}

/// A process that has ended, whether or not its parent has looked.
pub fn is_gone(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    // The name, in brackets, may contain anything.
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z') || rest.starts_with('X'))
}

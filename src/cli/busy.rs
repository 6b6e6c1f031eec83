//! Who uses a mount, in words: commands of ours by what they do, other processes by how they use it.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use indicatif::HumanCount;

use super::ask::unexpected;
use crate::control::{Client, Connection, Doing, Error, Mounted, Request, Response, Users};
use crate::entry::escape;
use crate::mounts::{self, Process, Use};

/// What a process that has just ended had open is closed in a moment.
const GRACE: Duration = Duration::from_millis(500);

/// So often it is looked meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// A network disk that is away may hold up who looks at what processes have open. Then they are not known.
const HANGS: Duration = Duration::from_secs(10);

/// So many are named.
const NAMED: usize = 10;

/// Who uses a mount.
#[derive(Debug, Default)]
pub(super) struct InUse {
    clients: Vec<Client>,
    processes: Vec<Process>,
    /// Open files and directories of processes that cannot be looked at.
    unseen: u64,
    /// The stream is over.
    pub(super) over: bool,
}

impl InUse {
    /// Looks once. Where `all` is false, other mounts of the same file system stay: then only who uses this one counts.
    pub(super) fn look(mounted: &Mounted, all: bool) -> Result<InUse, Error> {
        let users = match Connection::open(mounted)?.ask(&Request::Users)? {
            Response::Users(users) => users,
            other => return Err(unexpected(mounted, &other)),
        };
        let Users { clients, files, directories, helper, over } = users;
        let mut processes = processes(mounted, all);
        processes.retain(|process| Some(process.pid) != helper);
        if !all {
            return Ok(InUse { clients: Vec::new(), processes, unseen: 0, over });
        }
        let seen: u64 = processes.iter().filter_map(|process| process.uses.get(&Use::Open)).sum();
        let unseen = files.saturating_add(directories).saturating_sub(seen);
        processes.retain(|process| clients.iter().all(|client| client.pid != Some(process.pid)));
        Ok(InUse { clients, processes, unseen, over })
    }

    /// Looks until nobody uses it, as long as it takes the kernel to close what somebody had open who has ended.
    pub(super) fn settle(mounted: &Mounted, all: bool) -> Result<InUse, Error> {
        let begun = Instant::now();
        loop {
            let users = InUse::look(mounted, all)?;
            if users.is_empty() || begun.elapsed() > GRACE {
                return Ok(users);
            }
            std::thread::sleep(LOOK);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.clients.is_empty() && self.processes.is_empty() && self.unseen == 0
    }

    /// Those who need the spool, whatever becomes of the mount.
    pub(super) fn restoring(self) -> InUse {
        let mut clients = self.clients;
        clients.retain(|client| client.doing != Doing::Wait);
        InUse { clients, over: self.over, ..InUse::default() }
    }
}

impl std::fmt::Display for InUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let clients = self.clients.iter().map(client);
        let named: Vec<String> = clients.chain(self.processes.iter().map(process)).collect();
        let shown = named.len().min(NAMED);
        f.write_str(&named[..shown].join(", "))?;
        if named.len() > shown {
            write!(f, " and {} more", HumanCount((named.len() - shown) as u64))?;
        }
        if self.unseen > 0 {
            let and = if named.is_empty() { "" } else { " and " };
            let files = if self.unseen == 1 { "open file" } else { "open files" };
            let whose = match rustix::process::geteuid().is_root() {
                // A loop device, or a descriptor on its way from one process to another.
                true => "that no process shows (a loop device may have them)",
                false => "of processes that only root can see",
            };
            write!(f, "{and}{} {files} {whose}", HumanCount(self.unseen))?;
        }
        Ok(())
    }
}

fn client(client: &Client) -> String {
    let name = match client.doing {
        Doing::Materialize => "materialize",
        Doing::Wait => "wait",
        Doing::Scrub => "scrub",
    };
    match client.pid {
        Some(pid) => format!("{name} (PID {pid})"),
        None => format!("{name} (in another PID namespace)"),
    }
}

fn process(process: &Process) -> String {
    format!("{} (PID {}, {})", escape(process.name.as_bytes()), process.pid, uses(&process.uses))
}

fn uses(uses: &BTreeMap<Use, u64>) -> String {
    let word = |(of, count): (&Use, &u64)| match (of, count) {
        (Use::Open, 1) => "open file".into(),
        (Use::Open, n) => format!("{} open files", HumanCount(*n)),
        (Use::WorkingDirectory, _) => "working directory".into(),
        (Use::Root, _) => "root directory".into(),
        (Use::Program, _) => "program".into(),
        (Use::Mapping, _) => "mapping".into(),
    };
    uses.iter().map(word).collect::<Vec<String>>().join(", ")
}

fn processes(mounted: &Mounted, all: bool) -> Vec<Process> {
    let (send, found) = channel();
    let (device, id) = (mounted.device.clone(), (!all).then_some(mounted.id));
    let look = move || send.send(mounts::users(&device, id));
    let looking = std::thread::Builder::new().name("users".into()).spawn(look);
    if looking.is_err() {
        return Vec::new();
    }
    found.recv_timeout(HANGS).ok().and_then(Result::ok).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_in_words() {
        let pid = Some(1234);
        let mut users = InUse { clients: vec![Client { pid, doing: Doing::Materialize }], ..InUse::default() };
        assert_eq!(users.to_string(), "materialize (PID 1234)");
        let uses = BTreeMap::from([(Use::Open, 2), (Use::WorkingDirectory, 1)]);
        users.processes = vec![Process { pid: 99, name: "a\x1bb".into(), uses }];
        users.clients.push(Client { pid: None, doing: Doing::Wait });
        let both = "materialize (PID 1234), wait (in another PID namespace), \
                    a\\x1bb (PID 99, 2 open files, working directory)";
        assert_eq!(users.to_string(), both);
        users.unseen = 2;
        assert!(users.to_string().starts_with(&format!("{both} and 2 open files ")), "{users}");
        users.processes =
            (0..20).map(|pid| Process { pid, name: "a".into(), uses: BTreeMap::from([(Use::Root, 1)]) }).collect();
        users.unseen = 0;
        assert!(users.to_string().ends_with(", a (PID 7, root directory) and 12 more"), "{users}");
        assert_eq!(users.restoring().to_string(), "materialize (PID 1234)");
    }
}

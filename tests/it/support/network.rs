//! A network of two machines, made of two namespaces and a cable. Whatever becomes of the test, it is gone afterwards.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::run;

/// Where the receiver is.
pub const RECEIVER: &str = "10.11.12.1";

/// Two network namespaces.
pub struct Network {
    pub receiver: String,
    pub sender: String,
}

impl Network {
    /// None where it cannot be made: loudly.
    pub fn new() -> Option<Network> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = |side| format!("restorefs-{}-{n}-{side}", std::process::id());
        // From here on the guard takes care of it.
        let network = Network { receiver: name("r"), sender: name("s") };
        for name in [&network.receiver, &network.sender] {
            let made = Command::new("ip").args(["netns", "add", name]).stdin(Stdio::null()).output();
            let why = match made {
                Ok(output) if output.status.success() => continue,
                Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                Err(e) => e.to_string(),
            };
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            eprintln!("SKIPPED {test}: it needs network namespaces ('ip netns add': {why})");
            return None;
        }
        let (receiver, sender) = (&network.receiver, &network.sender);
        network.ip(receiver, &format!("link add cable type veth peer name cable netns {sender}"));
        network.ip(receiver, &format!("addr add {RECEIVER}/24 dev cable"));
        for name in [receiver, sender] {
            network.ip(name, "link set lo up");
            network.ip(name, "link set cable up");
        }
        Some(network)
    }

    /// `ip` on one of the machines.
    pub fn ip(&self, machine: &str, words: &str) {
        run(Command::new("ip").args(["-n", machine]).args(words.split(' ')));
    }

    /// Gives the sender this address and no other.
    pub fn address_of_sender(&self, address: &str) {
        self.ip(&self.sender, "addr flush dev cable");
        self.ip(&self.sender, &format!("addr add {address}/24 dev cable"));
    }

    /// A command on one of the machines; files and mounts are those of everybody.
    pub fn command(machine: &str, program: impl AsRef<Path>) -> Command {
        // `ip netns exec` would have mounts of its own.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{machine}")).arg(program.as_ref());
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in [&self.receiver, &self.sender] {
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }
}

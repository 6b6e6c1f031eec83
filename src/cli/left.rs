//! What daemons that are gone have left, for `restorefs status`: mounts that nobody serves, and spools.

use std::path::Path;
use std::time::{Duration, SystemTime};

use indicatif::{HumanBytes, HumanDuration};
use serde_json::json;

use super::names::owner;
use super::print::{say, say_json};
use super::show;
use crate::control::{Mounted, Trace};
use crate::entry::printable;
use crate::spool::{Ended, LeftOver};

/// A mount without its daemon. False when nobody reads it any more.
pub(super) fn print_mount(mounted: &Mounted, trace: Option<&Trace>, as_json: bool) -> bool {
    let spool = trace.and_then(|trace| trace.spool.as_deref());
    let umount = format!("restorefs umount {}", quoted(&mounted.mountpoint));
    if as_json {
        return say_json(&json!({
            "mountpoint": mounted.mountpoint.to_string_lossy(),
            "phase": "dead",
            "source": mounted.source,
            "owner": mounted.uid,
            "spool": spool.map(|directory| json!({ "directory": directory })),
            "commands": { "umount": umount },
        }));
    }
    let mut lines = vec![
        show::path(&mounted.mountpoint),
        "  state      dead: its daemon is gone".into(),
        format!("  source     {}", printable(&mounted.source)),
    ];
    lines.extend(spool.map(|spool| format!("  spool      {spool}")));
    lines.push(format!("  unmount    {umount}"));
    lines.into_iter().all(say)
}

/// A spool without a daemon. False when nobody reads it any more.
pub(super) fn print_spool(left: &LeftOver, as_json: bool) -> bool {
    let path = quoted(&left.path);
    let mount = format!("restorefs mount {path} MOUNTPOINT");
    let discard = format!("restorefs discard {path}");
    if as_json {
        let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        return say_json(&json!({
            "phase": "left-over",
            "source": left.source,
            "owner": left.uid,
            "spool": { "directory": left.path.to_string_lossy(), "bytes": left.bytes, "journal": left.journal },
            "ended": match left.ended {
                Ended::Complete => "complete",
                Ended::Early => "incomplete",
                Ended::Killed => "killed",
            },
            "began": seconds(left.began),
            "written": seconds(left.written),
            "age": age(left.began).as_secs(),
            "commands": { "mount": mount, "discard": discard },
        }));
    }
    let state = match left.ended {
        Ended::Complete => "complete",
        Ended::Early => "incomplete: the stream ended early, or was stopped",
        Ended::Killed => "incomplete: the daemon ended before the stream did",
    };
    let (began, written) = (HumanDuration(age(left.began)), HumanDuration(age(left.written)));
    let mut lines = vec![
        show::path(&left.path),
        format!("  state      a spool without a daemon; {state}"),
        format!("  source     {}", printable(&left.source)),
        format!("  size       {} (journal {})", HumanBytes(left.bytes), HumanBytes(left.journal)),
        format!("  age        {began}; last written {written} ago"),
        format!("  mount      {mount}"),
        format!("  remove     {discard}"),
    ];
    if left.uid != rustix::process::geteuid().as_raw() {
        lines.insert(1, format!("  owner      {}", owner(left.uid)));
    }
    lines.into_iter().all(say)
}

fn age(since: SystemTime) -> Duration {
    Duration::from_secs(since.elapsed().unwrap_or_default().as_secs())
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = show::path(path);
    let plain = |c: char| c.is_alphanumeric() || "_@%+=:,./-".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_where_a_shell_wants_it() {
        for (path, typed) in
            [("/var/tmp/restorefs-1-a", "/var/tmp/restorefs-1-a"), ("/a b", "'/a b'"), ("/a'b", r"'/a'\''b'")]
        {
            assert_eq!(quoted(Path::new(path)), typed);
        }
    }
}

//! Where we differ from GNU tar and bsdtar, and why.

use std::collections::{BTreeMap, BTreeSet};

use restorefs::entry::escape;

use super::archive::{Archive, End, Extension, Member};
use super::compare::{Aspect, Difference, NOW};

/// A difference that is meant.
pub struct Allowed {
    pub what: &'static str,
    pub reason: &'static str,
    /// An archive that shows it.
    pub example: fn() -> Archive,
    pub applies: fn(&Archive, &Difference) -> bool,
}

pub const TABLE: &[Allowed] = &[
    Allowed {
        what: "a hard link that comes before its target",
        reason: "both tools fail on it and leave it out; a mount can wait for the target, and loses nothing",
        example: || archive(vec![link("b", "a"), file("a")]),
        applies: |archive, difference| match difference.aspect {
            Aspect::Exit => fails(difference) && links_that_wait(archive).next().is_some(),
            Aspect::Links => links_that_wait(archive).any(|(path, target)| {
                let linked = |group: &Option<String>| {
                    group.iter().flat_map(|group| group.split(" = ")).any(|name| name == escape(&path))
                };
                target == difference.path || linked(&difference.gnu) || linked(&difference.ours)
            }),
            // What is to be below it would have to be in a file.
            _ => links_that_wait(archive)
                .any(|(path, _)| path == difference.path || difference.path.starts_with(&[&*path, b"/"].concat())),
        },
    },
    Allowed {
        what: "a hard link whose target never comes, replaced by a later member",
        reason: "both tools fail on it; of one name the later member counts, so that nothing is missing",
        example: || archive(vec![link("b", "never"), file("b")]),
        applies: |archive, difference| {
            let replaced = |(i, link): (usize, &Member)| {
                let later = &archive.members[i + 1..];
                link.typeflag == b'1' && later.iter().any(|member| member.path() == link.path())
            };
            difference.aspect == Aspect::Exit && fails(difference) && archive.members.iter().enumerate().any(replaced)
        },
    },
    Allowed {
        what: "a hard link to a directory or to itself",
        reason: "it is refused, and what has its name stays; both tools remove that before they fail, but for a link to \
            itself, spelt the same, which GNU tar passes over",
        example: || archive(vec![directory("d"), file("f"), link("f", "d"), file("g"), link("./g", "g")]),
        applies: |archive, difference| {
            let mut links = archive.members.iter().filter(|member| is_refused(archive, member));
            // Further names of what the tools have removed are missing too.
            let named_after = |link: &Member| {
                let mut others = archive.members.iter().filter(|m| m.typeflag == b'1' && m.target() == link.path());
                others.any(|other| other.path() == difference.path)
            };
            match difference.aspect {
                Aspect::Exit => difference.ours.as_deref() == Some("3") && links.next().is_some(),
                Aspect::Kind => {
                    difference.gnu.is_none()
                        && difference.bsd.is_none()
                        && links.any(|link| link.path() == difference.path || named_after(link))
                }
                _ => false,
            }
        },
    },
    Allowed {
        what: "a directory for nothing but what is refused",
        reason: "both tools make the directories on the way before they fail; we make what is asked for",
        example: || archive(vec![link("d/b", "never")]),
        applies: |_, difference| {
            let directory = Some("directory");
            difference.aspect == Aspect::Kind
                && difference.gnu.as_deref() == directory
                && difference.bsd.as_deref() == directory
                && difference.ours.is_none()
        },
    },
    Allowed {
        what: "no end marker",
        reason: "a stream that was cut between two members looks the same: the sender may have died (exit 4)",
        example: || Archive { members: vec![file("a")], end: End(0) },
        applies: |archive, difference| {
            let cut = Some("4");
            archive.end == End(0) && difference.aspect == Aspect::Exit && difference.ours.as_deref() == cut
        },
    },
    Allowed {
        what: "a directory that comes more than once",
        reason: "its last header counts; for bsdtar it is the first. GNU tar takes the last, but for those of incremental \
            archives, and does not keep the time of a directory into which it puts more",
        example: || {
            let again = Member { mtime: 5, ..directory("d") };
            archive(vec![directory("d"), again, file("a"), file("d/f")])
        },
        applies: |archive, difference| {
            let last = archive.members.iter().rfind(|m| m.is_directory() && m.path() == difference.path);
            let mode = last.map(|m| format!("{:o}", m.mode & 0o7777));
            // Of an access ACL GNU tar makes another mode here than it does elsewhere.
            let has_acl = last.is_some_and(|m| m.pax("SCHILY.acl.access").is_some());
            comes_again(archive, &difference.path)
                && match difference.aspect {
                    Aspect::Mode => difference.ours == mode || has_acl,
                    aspect => matches!(aspect, Aspect::Mtime | Aspect::Owner),
                }
        },
    },
    Allowed {
        what: "a directory that comes more than once: its attributes",
        reason: "its last header is all that counts; both tools leave what an earlier one gave it beside that",
        example: || {
            let records = vec![("SCHILY.xattr.user.one".into(), b"1".to_vec())];
            archive(vec![Member { before: vec![Extension::Pax(records)], ..directory("d") }, directory("d")])
        },
        applies: |archive, difference| {
            difference.aspect == Aspect::Attributes && comes_again(archive, &difference.path)
        },
    },
    Allowed {
        what: "a directory into which more is put",
        reason: "GNU tar does not keep its time (unless --delay-directory-restore); what bsdtar makes of the time is \
            another matter: it passes over global headers, takes -1.5 s for -0.5 s, and may have no such directory",
        example: || {
            let records = vec![("mtime".into(), b"1111111111".to_vec())];
            let global = Member { before: vec![Extension::Global(records)], ..directory("d") };
            archive(vec![global, file("a"), file("d/f")])
        },
        applies: |archive, difference| {
            let odd = |e: &Extension| match e {
                Extension::Global(records) => records.iter().any(|(key, _)| key == "mtime"),
                Extension::Pax(records) => records.iter().any(|(key, value)| key == "mtime" && value == b"-1.5"),
                Extension::Long(..) => false,
            };
            difference.aspect == Aspect::Mtime
                && difference.gnu.as_deref() == Some(NOW)
                && (difference.bsd.is_none() || archive.members.iter().any(|m| m.before.iter().any(odd)))
        },
    },
    Allowed {
        what: "a pax time that takes back one before it",
        reason: "POSIX: of one keyword the last record counts, and an empty one leaves it to the header; GNU tar fails on \
            it, bsdtar takes 1970",
        example: || {
            let records = vec![("mtime".into(), b"5".to_vec()), ("mtime".into(), Vec::new())];
            archive(vec![Member { before: vec![Extension::Pax(records)], ..file("a") }])
        },
        applies: |archive, difference| {
            let taken_back = |e: &Extension| match e {
                Extension::Pax(records) => records.iter().any(|(key, value)| key == "mtime" && value.is_empty()),
                _ => false,
            };
            difference.aspect == Aspect::Mtime && archive.members.iter().any(|m| m.before.iter().any(taken_back))
        },
    },
    Allowed {
        what: "several global headers",
        reason: "POSIX: a record counts until another one of the same keyword; GNU tar forgets all earlier ones, bsdtar \
            passes over all",
        example: || {
            let global = |key: &str, name: &str| {
                let records = vec![(key.into(), b"77".to_vec())];
                Member { before: vec![Extension::Global(records)], ..file(name) }
            };
            archive(vec![global("uid", "a"), global("gid", "b")])
        },
        applies: |archive, difference| {
            let global = |member: &&Member| member.before.iter().any(|e| matches!(e, Extension::Global(_)));
            matches!(difference.aspect, Aspect::Owner | Aspect::Mtime)
                && archive.members.iter().filter(global).count() > 1
        },
    },
];

fn archive(members: Vec<Member>) -> Archive {
    Archive { members, end: End(2) }
}

fn file(name: &str) -> Member {
    Member { name: name.into(), ..Member::default() }
}

fn directory(name: &str) -> Member {
    Member { typeflag: b'5', mode: 0o755, ..file(name) }
}

fn link(name: &str, target: &str) -> Member {
    Member { typeflag: b'1', link: target.into(), ..file(name) }
}

/// Whether a directory has several headers.
fn comes_again(archive: &Archive, path: &[u8]) -> bool {
    archive.members.iter().filter(|member| member.is_directory() && member.path() == path).count() > 1
}

/// Whether both tools fail where we do not.
fn fails(difference: &Difference) -> bool {
    let well = |code: &Option<String>| code.as_deref() == Some("0");
    !well(&difference.gnu) && !well(&difference.bsd) && well(&difference.ours)
}

/// Whether it is a hard link to a directory, or to itself.
fn is_refused(archive: &Archive, link: &Member) -> bool {
    let target = link.target();
    let directory = || archive.members.iter().any(|m| m.is_directory() && m.path() == target);
    link.typeflag == b'1' && (target.is_empty() || target == link.path() || directory())
}

/// Hard links whose target comes later, and links to these: their own path, and that of the target.
fn links_that_wait(archive: &Archive) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    let all: BTreeSet<_> = archive.members.iter().map(Member::path).collect();
    let mut late = BTreeSet::new();
    // The root is there from the beginning.
    let mut there = BTreeMap::from([(Vec::new(), true)]);
    archive.members.iter().filter_map(move |member| {
        let (path, target) = (member.path(), member.target());
        if member.typeflag == b'1' {
            if target == path || there.get(&target) == Some(&true) {
                return None;
            }
            if !there.contains_key(&target) || late.contains(&target) {
                let comes = all.contains(&target);
                return comes.then(|| {
                    late.insert(path.clone());
                    (path, target)
                });
            }
        }
        there.insert(path, member.is_directory());
        None
    })
}

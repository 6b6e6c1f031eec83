//! The rules of the house: which part of `src/` may use which, who alone names FUSE, who alone is unsafe, who alone
//! prints. Read from the text of the sources, tests in them included.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each module with those that it may use, in the order in which data flows. A row names only rows above it.
const TABLE: &[(&str, &[&str])] = &[
    // The vocabulary, and what everybody may tell.
    ("sys", &[]),
    ("entry", &[]),
    ("pattern", &["entry"]),
    ("monitor", &["entry"]),
    ("record", &["entry"]),
    ("stop", &[]),
    ("strangers", &[]),
    // From bytes to entries.
    ("source", &["stop", "strangers"]),
    ("filter", &["monitor", "source", "stop"]),
    ("tarball", &["entry"]),
    // From a directory to entries, to an archive, and to a receiver.
    ("tree", &["sys", "entry", "pattern"]),
    ("wire", &["sys", "entry", "record", "strangers"]),
    ("send", &["entry", "monitor", "record", "stop", "tarball", "tree", "wire"]),
    // Where they are kept.
    ("proof", &["entry"]),
    ("spool", &["entry", "monitor", "record", "proof"]),
    ("index", &["entry"]),
    ("replay", &["entry", "record", "tarball", "proof", "index"]),
    ("store", &["entry", "monitor", "record", "stop", "proof", "index", "spool", "replay"]),
    (
        "ingest",
        &[
            "sys", "entry", "monitor", "record", "source", "stop", "filter", "tarball", "spool", "index", "replay",
            "store",
        ],
    ),
    ("receive", &["entry", "monitor", "record", "stop", "spool", "index", "store", "strangers", "wire"]),
    // How they are served.
    ("mounts", &[]),
    ("fs", &["index", "store"]),
    ("fuse", &["sys", "entry", "index", "mounts", "fs"]),
    (
        "mount",
        &[
            "entry", "monitor", "source", "stop", "tarball", "wire", "spool", "index", "store", "ingest", "receive",
            "mounts", "fs", "fuse",
        ],
    ),
    ("control", &["sys", "entry", "monitor", "mounts", "mount"]),
    ("materialize", &["entry", "pattern", "tarball", "proof", "index", "replay"]),
    (
        "cli",
        &[
            "sys",
            "entry",
            "monitor",
            "source",
            "stop",
            "tarball",
            "tree",
            "wire",
            "send",
            "spool",
            "mounts",
            "mount",
            "control",
            "replay",
            "materialize",
        ],
    ),
];

/// Words that belong to one module alone.
const ALONE: &[(&str, &[&str])] = &[
    ("fuse", &["fuser::", "use fuser"]),
    ("sys", &["unsafe "]),
    ("cli", &["println!", "eprintln!", "print!", "eprint!", "stdout()", "stderr()"]),
];

pub(crate) fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file with the top-level module that it belongs to, and its text without comments.
pub(crate) fn sources() -> Vec<(String, PathBuf, String)> {
    let mut found = Vec::new();
    let mut todo = vec![src()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let below = path.strip_prefix(src()).unwrap();
                let first = below.components().next().unwrap().as_os_str().to_str().unwrap();
                let module = first.trim_end_matches(".rs").to_owned();
                let code = fs::read_to_string(&path).unwrap().lines().map(code_of).collect::<Vec<_>>().join("\n");
                found.push((module, path, code));
            }
        }
    }
    assert!(found.len() > 20, "these are not the sources: {found:?}");
    found
}

fn code_of(line: &str) -> &str {
    line.find("//").filter(|&at| !line[..at].contains('"')).map_or(line, |at| &line[..at])
}

pub(crate) fn word(text: &str) -> &str {
    &text[..text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())]
}

/// Whether `code` has `words`, and not as the end of a longer word.
fn names(code: &str, words: &str) -> bool {
    code.match_indices(words).any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// The top-level modules that a file names: `crate::x`, `crate::{x, y::z}`, or `super::x` where that leads out.
fn used(module: &str, code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, start) in code.match_indices("crate::") {
        let rest = &code[at + start.len()..];
        if !rest.starts_with('{') {
            found.insert(word(rest).to_owned());
            continue;
        }
        let mut depth = 0;
        let mut begins = true;
        for (i, c) in rest.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 1 => break,
                '}' => depth -= 1,
                ',' if depth == 1 => begins = true,
                c if c.is_whitespace() => {}
                _ if depth == 1 && begins => {
                    found.insert(word(&rest[i..]).to_owned());
                    begins = false;
                }
                _ => {}
            }
        }
    }
    for (at, start) in code.match_indices("super::") {
        let name = word(&code[at + start.len()..]);
        let inside = src().join(module).join(name);
        let own = inside.is_dir() || inside.with_extension("rs").exists();
        if !own && TABLE.iter().any(|(row, _)| *row == name) {
            found.insert(name.to_owned());
        }
    }
    found.remove(module);
    // Macros and items of the crate root are no modules.
    found.retain(|name| src().join(name).is_dir() || src().join(name).with_extension("rs").exists());
    found
}

#[test]
fn every_module_uses_only_what_its_row_allows() {
    let allowed: BTreeMap<_, _> = TABLE.iter().copied().collect();
    let mut wrong = Vec::new();
    let mut needed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (module, path, code) in sources() {
        let uses = used(&module, &code);
        if module == "lib" || module == "main" {
            continue;
        }
        let Some(row) = allowed.get(module.as_str()) else {
            wrong.push(format!("{module} has no row: say in TABLE, in the order in which data flows, what it may use"));
            continue;
        };
        for name in &uses {
            if !row.contains(&name.as_str()) {
                wrong.push(format!(
                    "{} uses crate::{name}: move what it needs to where both may use it, pass it in, or, where the \
                     design is to change, allow it in the row of {module}",
                    path.display()
                ));
            }
        }
        needed.entry(module).or_default().extend(uses);
    }
    for (module, row) in TABLE {
        let Some(needed) = needed.get(*module) else {
            wrong.push(format!("{module} has a row, and is no module: take the row out"));
            continue;
        };
        for name in row.iter().filter(|name| !needed.contains(**name)) {
            wrong.push(format!("{module} does not use {name} any more: take it out of its row"));
        }
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_has_no_way_back() {
    for (n, (module, row)) in TABLE.iter().enumerate() {
        for name in *row {
            assert!(
                TABLE[..n].iter().any(|(above, _)| above == name),
                "{module} uses {name}, which is not above it: data flows one way; move the row, or part the modules"
            );
        }
    }
}

#[test]
fn the_library_names_each_module_of_the_table() {
    let lib = fs::read_to_string(src().join("lib.rs")).unwrap();
    let named: BTreeSet<_> = lib.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let rows: BTreeSet<_> = TABLE.iter().map(|(module, _)| *module).collect();
    assert_eq!(named, rows, "the modules of lib.rs (left) and the rows of TABLE (right): bring them together");
}

#[test]
fn fuse_unsafe_and_printing_stay_where_they_belong() {
    let mut wrong = Vec::new();
    for (module, path, code) in sources() {
        for (owner, words) in ALONE.iter().filter(|(owner, _)| *owner != module) {
            for (n, line) in code.lines().enumerate() {
                if let Some(found) = words.iter().find(|word| names(line, word)) {
                    wrong.push(format!("{}:{}: '{found}' belongs in src/{owner} only", path.display(), n + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (owner, words) in ALONE {
        let there = |code: &str| words.iter().any(|word| names(code, word));
        assert!(
            sources().iter().any(|(module, _, code)| module == owner && there(code)),
            "src/{owner} has none of {words:?}: this test looks for the wrong words"
        );
    }
}

//! Inside a folder too, data flows one way: no file uses another that uses it, by however many steps. A folder in a folder
//! counts as one, and `mod` is the file that the folder has its name from. Read from the text of the sources, without tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::layering::{sources, src, word};

/// A module, by its names from the crate on.
type Module = Vec<String>;

/// A file, its code, and what the names mean that it imports.
struct File {
    code: String,
    imports: BTreeMap<String, Module>,
}

/// Which files of a folder use which.
type Uses = BTreeMap<String, BTreeSet<String>>;

fn module_of(path: &Path) -> Module {
    let below = path.strip_prefix(src()).unwrap().with_extension("");
    let mut names: Module = below.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
    names.pop_if(|last| last == "mod" || (last == "lib" && below.iter().count() == 1));
    names
}

/// The paths of a tree as it stands behind `use`, or of a path in an expression: `a::{b, c::d}` is `a::b` and `a::c::d`.
/// Each with the name that it gets.
fn paths(tree: &str) -> Vec<(Module, String)> {
    let tree = tree.trim_start();
    let name = word(tree);
    if let Some(group) = tree.strip_prefix('{') {
        let mut found = Vec::new();
        let (mut depth, mut begin) = (0, 0);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                ',' | '}' if depth == 0 => {
                    found.extend(paths(&group[begin..at]));
                    begin = at + 1;
                    if c == '}' {
                        break;
                    }
                }
                '}' => depth -= 1,
                _ => {}
            }
        }
        return found;
    }
    if name.is_empty() {
        return Vec::new();
    }
    let rest = &tree[name.len()..];
    match rest.strip_prefix("::") {
        Some(rest) if rest.starts_with(|c: char| c == '{' || c == '_' || c.is_alphabetic()) => paths(rest)
            .into_iter()
            .map(|(path, called)| match path.as_slice() {
                [only] if only == "self" => (vec![name.to_owned()], name.to_owned()),
                _ => ([vec![name.to_owned()], path].concat(), called),
            })
            .collect(),
        _ => {
            let called = rest.trim_start().strip_prefix("as ").map_or(name, |rest| word(rest.trim_start()));
            vec![(vec![name.to_owned()], called.to_owned())]
        }
    }
}

/// Code before the tests that are in it.
fn without_tests(code: &str) -> &str {
    code.find("#[cfg(test)]\nmod tests {").map_or(code, |at| &code[..at])
}

/// All modules but those of tests.
fn files() -> BTreeMap<Module, File> {
    let sources: Vec<(Module, String)> = sources()
        .into_iter()
        .filter(|(_, path, _)| path.file_name().is_some_and(|name| name != "tests.rs" && name != "main.rs"))
        .map(|(_, path, code)| (module_of(&path), without_tests(&code).to_owned()))
        .collect();
    let modules: BTreeSet<Module> = sources.iter().map(|(module, _)| module.clone()).collect();
    let file = |(module, code): (Module, String)| {
        let mut imports = BTreeMap::new();
        for (at, _) in code.match_indices("use ").filter(|(at, _)| begins(&code, *at)) {
            for (path, called) in paths(&code[at + 4..]) {
                if let Some(path) = absolute(&path, &module, &modules) {
                    imports.insert(called, path);
                }
            }
        }
        (module, File { code, imports })
    };
    sources.into_iter().map(file).collect()
}

/// Whether a word begins at `at`, that is not the rest of a path.
fn begins(code: &str, at: usize) -> bool {
    !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
}

/// A path that begins in `module`, from the crate on; none of another crate.
fn absolute(path: &[String], module: &Module, modules: &BTreeSet<Module>) -> Option<Module> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "crate" => Some(rest.to_vec()),
        "self" => Some([module, rest].concat()),
        "super" => {
            let ups = path.iter().take_while(|name| *name == "super").count();
            Some([&module[..module.len().checked_sub(ups)?], &path[ups..]].concat())
        }
        _ => {
            let own = [module.as_slice(), path].concat();
            modules.contains(&own[..=module.len()]).then_some(own)
        }
    }
}

/// The module in which that stands what a path means, whatever has passed it on.
fn home(path: &Module, files: &BTreeMap<Module, File>) -> Option<Module> {
    let mut path = path.clone();
    for _ in 0..16 {
        let length = (0..=path.len()).rev().find(|&length| files.contains_key(&path[..length]))?;
        let (module, rest) = path.split_at(length);
        match rest.first().and_then(|name| files[module].imports.get(name)) {
            Some(passed_on) => path = [passed_on, &rest[1..]].concat(),
            None => return Some(module.to_vec()),
        }
    }
    None
}

/// By folder, which of its files use which.
fn folders() -> BTreeMap<String, Uses> {
    let files = files();
    let modules: BTreeSet<Module> = files.keys().cloned().collect();
    let mut folders: BTreeMap<String, Uses> = BTreeMap::new();
    for (module, File { code, .. }) in &files {
        let mut used = BTreeSet::new();
        for (at, _) in code.match_indices("::") {
            let first = code[..at].rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |before| before + 1);
            // Who may see something is not what it uses.
            if !begins(code, first) || first == at || code[..first].ends_with("pub(in ") {
                continue;
            }
            for (path, _) in paths(&code[first..]) {
                used.extend(absolute(&path, module, &modules).and_then(|path| home(&path, &files)));
            }
        }
        for other in used.iter().filter(|other| *other != module) {
            let common = module.iter().zip(other.iter()).take_while(|(a, b)| a == b).count();
            if common == 0 {
                // Which top-level modules use which is said by the table of `layering`.
                continue;
            }
            let node = |module: &Module| module.get(common).map_or("mod", String::as_str).to_owned();
            let folder = folders.entry(module[..common].join("/")).or_default();
            folder.entry(node(module)).or_default().insert(node(other));
        }
    }
    folders
}

/// Whether `from` leads to `to`, by however many steps.
fn leads(uses: &Uses, from: &str, to: &str) -> bool {
    let mut seen = BTreeSet::new();
    let mut todo = vec![from];
    while let Some(at) = todo.pop() {
        if at == to {
            return true;
        }
        if seen.insert(at) {
            todo.extend(uses.get(at).into_iter().flatten().map(String::as_str));
        }
    }
    false
}

#[test]
fn no_two_files_of_a_folder_use_each_other() {
    let folders = folders();
    assert!(
        leads(&folders["index"], "mod", "table") && leads(&folders["materialize"], "run", "plan"),
        "these are not the uses: {folders:?}"
    );
    let mut wrong = Vec::new();
    for (folder, uses) in &folders {
        for (from, used) in uses {
            for to in used.iter().filter(|to| leads(uses, to, from)) {
                wrong.push(format!(
                    "src/{folder}: {from} uses {to}, which uses it: move what both need to where both may use it, \
                     or pass it in"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn paths_are_read_as_the_compiler_reads_them() {
    let found = |tree: &str| {
        paths(tree).into_iter().map(|(path, called)| format!("{} {called}", path.join("::"))).collect::<Vec<_>>()
    };
    assert_eq!(
        found("super::a::{self, b::{C, D as E}, F};"),
        ["super::a a", "super::a::b::C C", "super::a::b::D E", "super::a::F F"]
    );
    assert_eq!(found("crate::x::y(1, z::w)"), ["crate::x::y y"]);
    let modules: BTreeSet<Module> = [vec!["a".to_owned()], vec!["a".to_owned(), "b".to_owned()]].into();
    let whole = |path: &str, module: &[&str]| {
        let path: Module = path.split("::").map(str::to_owned).collect();
        let module = module.iter().map(|name| (*name).to_owned()).collect();
        absolute(&path, &module, &modules).map(|path| path.join("::"))
    };
    assert_eq!(whole("super::c::D", &["a", "b"]).as_deref(), Some("a::c::D"));
    assert_eq!(whole("super::super::E", &["a", "b"]).as_deref(), Some("E"));
    assert_eq!(whole("b::F", &["a"]).as_deref(), Some("a::b::F"));
    assert_eq!(whole("std::fs", &["a"]), None);
}

//! `restorefs status --problems`, and what else has all problems of a mount: as many as there are, asked for piece by piece
//! and printed as they come.

use std::io::{self, BufWriter, StdoutLock, Write};

use serde::Serialize;
use serde_json::Value;

use super::ask::{other, unexpected};
use super::exit::Exit;
use super::print::{fail, harmless_json, say_lines, tell};
use super::show;
use crate::control::{Connection, Error, Mounted, Request, Response};
use crate::monitor::{PROBLEMS_SHOWN, Problem, Status};

pub(super) fn run(mounted: &Mounted, as_json: bool) -> Exit {
    let line = |problem: &Problem| if as_json { json_line(problem) } else { show::problem(problem) };
    let unkept = match each(mounted, |problems| say_lines(problems.iter().map(line))) {
        Ok(unkept) => unkept,
        Err(e) => return fail(e),
    };
    if unkept > 0 {
        tell(show::unkept(unkept));
    }
    Exit::Complete
}

fn json_line(problem: &Problem) -> String {
    harmless_json(&serde_json::json!(problem))
}

/// Takes all problems of a mount, as long as `take` returns true. Returns how many more there were that nobody has kept.
pub(super) fn each(mounted: &Mounted, mut take: impl FnMut(&[Problem]) -> bool) -> Result<u64, Error> {
    let mut known = None;
    for piece in 0.. {
        match Connection::open(mounted)?.ask(&Request::Problems { piece })? {
            Response::Problems { list, .. } if known.is_some_and(|known| known != list) => {
                let cause = "its sender began anew, and the list of problems with it: ask again";
                return Err(other(mounted, io::Error::other(cause)));
            }
            Response::Problems { problems, list, last, unkept } => {
                known = Some(list);
                if !take(&problems) {
                    return Ok(0);
                }
                if last || problems.is_empty() {
                    return Ok(unkept);
                }
            }
            other => return Err(unexpected(mounted, &other)),
        }
    }
    Ok(0)
}

/// The line that stands for the problems which are not printed while they are found.
pub(super) fn tell_more(status: &Status, mountpoint: Option<&str>) {
    let all = status.refused.saturating_add(status.warnings);
    let more = all.saturating_sub(PROBLEMS_SHOWN as u64);
    if more > 0 {
        let how = mountpoint.map_or(String::new(), |path| format!(": 'restorefs status --problems {path}'"));
        tell(format_args!("and {} more{how}", show::count(more)));
    }
}

/// A line of JSON: an object whose last field is a list of any length.
pub(super) struct LongLine {
    out: BufWriter<StdoutLock<'static>>,
    is_empty: bool,
    is_read: bool,
}

impl LongLine {
    pub(super) fn begin(object: &Value, list: &str) -> Self {
        let mut line = LongLine { out: BufWriter::new(io::stdout().lock()), is_empty: true, is_read: true };
        let text = harmless_json(object);
        let fields = text.strip_suffix('}').unwrap_or(&text);
        let comma = if fields.ends_with('{') { "" } else { "," };
        line.write(&format!("{fields}{comma}\"{list}\":["));
        line
    }

    /// False when nobody reads it any more.
    pub(super) fn add<T: Serialize>(&mut self, items: &[T]) -> bool {
        for item in items {
            let comma = if std::mem::replace(&mut self.is_empty, false) { "" } else { "," };
            self.write(&format!("{comma}{}", harmless_json(&serde_json::json!(item))));
        }
        self.is_read
    }

    pub(super) fn end(mut self) -> bool {
        self.write("]}\n");
        self.is_read && self.out.flush().is_ok()
    }

    fn write(&mut self, text: &str) {
        self.is_read = self.is_read && self.out.write_all(text.as_bytes()).is_ok();
    }
}

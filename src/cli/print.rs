//! Lines on standard output and standard error, safe to show on a terminal.

use std::io::Write;

use super::exit::Exit;

/// `restorefs: <message>` on standard error.
pub(super) fn fail(message: impl std::fmt::Display) -> Exit {
    tell(message);
    Exit::Failed
}

pub(super) fn tell(message: impl std::fmt::Display) {
    // Nobody may read it; that is no reason to stop.
    let _ = writeln!(std::io::stderr(), "restorefs: {}", harmless(&message.to_string()));
}

/// A line on standard output. False when nobody reads it any more.
pub(super) fn say(line: impl std::fmt::Display) -> bool {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", harmless(&line.to_string())).and_then(|()| out.flush()).is_ok()
}

/// Lines on standard output, written together. False when nobody reads them any more.
pub(super) fn say_lines(lines: impl Iterator<Item = String>) -> bool {
    let text: String = lines.map(|line| harmless(&line) + "\n").collect();
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// What a terminal would obey is shown as text. Names are escaped where they come from; but a status may come from
/// the daemon of another user, and an error may quote anything.
fn harmless(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    for c in line.trim_end().chars() {
        if is_harmful(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// What a terminal would obey, or what changes the order in which the rest of a line is shown.
fn is_harmful(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A line of JSON on standard output, safe to show on a terminal. False when nobody reads it any more.
pub(super) fn say_json(value: &serde_json::Value) -> bool {
    say(harmless_json(value))
}

pub(super) fn harmless_json(value: &serde_json::Value) -> String {
    let mut out = String::new();
    for c in value.to_string().chars() {
        // Such characters stand in strings only, and all are in the first plane.
        if is_harmful(c) { out.push_str(&format!("\\u{:04x}", u32::from(c))) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped_and_json_stays_json() {
        let name = "a\u{1b}[2J\u{7f}\u{9b}\u{202e}\u{2066}é\n";
        let value = serde_json::json!({ "mountpoint": name });
        let line = harmless_json(&value);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), value);
        assert_eq!(harmless(&line), line);
        assert!(!harmless(name).contains(is_harmful));
    }
}

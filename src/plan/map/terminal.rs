//! The map for a terminal: a character a port, in colour. The characters say the same without it.

use std::fmt::Write as _;

use super::{Cell, Map, Mark, Row, names};
use crate::protocol::visible;

/// How many columns of names fit behind a row.
const NAMES: usize = 23;

/// `colour` adds ANSI escapes.
pub(crate) fn render(map: &Map, colour: bool) -> String {
    let mut text = String::new();
    let mut before: Option<&Cell> = None;
    for row in &map.rows {
        let Row::Ports(first, cells) = row else {
            text.push_str("    …\n");
            before = None;
            continue;
        };
        let _ = write!(text, "{first:>5} ");
        for run in cells.chunk_by(|one, next| mark(one) == mark(next)) {
            let drawn = mark(run.first().unwrap_or(&None));
            let characters = character(drawn).to_string().repeat(run.len());
            text.push_str(&painted(&characters, drawn, colour));
        }
        let begin = names(*first, cells, before);
        let begin: Vec<String> = begin
            .iter()
            .map(|(port, name)| format!("{port} {}", visible(name)))
            .collect();
        let line = shortened(&begin.join(", "));
        let _ = writeln!(text, " {line}");
        before = cells.last().and_then(Option::as_ref);
    }
    let marks = map.marks().map(|mark| {
        let sign = painted(&character(Some(mark)).to_string(), Some(mark), colour);
        format!("{sign} {}", mark.words())
    });
    let _ = writeln!(text, "\n{}", marks.collect::<Vec<_>>().join("  "));
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}

fn mark(cell: &Option<Cell>) -> Option<Mark> {
    cell.as_ref().map(|cell| cell.mark)
}

fn character(mark: Option<Mark>) -> char {
    match mark {
        None => ' ',
        Some(Mark::Free) => '.',
        Some(Mark::SetAside) => '-',
        Some(Mark::Proposed) => 'n',
        Some(Mark::Dormant) => 'o',
        Some(Mark::Disabled) => 'd',
        Some(Mark::External) => 'x',
        Some(Mark::Held) => '#',
        Some(Mark::Parked) => 'p',
        Some(Mark::Queueing) => 'q',
        Some(Mark::Leased) => 'L',
        Some(Mark::Restarting) => 'r',
        Some(Mark::Trouble) => '!',
    }
}

/// With its colour: SGR of ECMA-48, the eight that every terminal has.
fn painted(text: &str, mark: Option<Mark>, colour: bool) -> String {
    let code = match mark {
        Some(Mark::Free) => "2",
        Some(Mark::SetAside) => "36",
        Some(Mark::Proposed) => "35",
        Some(Mark::Dormant | Mark::Disabled) => "2;34",
        Some(Mark::External | Mark::Restarting) => "33",
        Some(Mark::Held | Mark::Parked) => "34",
        Some(Mark::Queueing) => "1;36",
        Some(Mark::Leased) => "1;32",
        Some(Mark::Trouble) => "1;31",
        None => return text.to_owned(),
    };
    match colour {
        true => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
        false => text.to_owned(),
    }
}

fn shortened(text: &str) -> String {
    match text.chars().count() > NAMES {
        true => text.chars().take(NAMES - 1).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

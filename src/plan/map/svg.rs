//! The map for documents: an SVG with a rectangle for each run of ports, which says whose they are.

use std::fmt::Write as _;

use super::{Cell, Map, Mark, Row, WIDTH, names};
use crate::plan::document::xml;

/// A port's width and a row's height, in pixels.
const CELL: usize = 10;
const LINE: usize = 14;
/// Where the first port of a row is drawn, and the first row.
const LEFT: usize = 52;
const TOP: usize = 40;
/// The room for names behind a row, in pixels; and how many letters that is.
const NAMES: usize = 330;
const LETTERS: usize = 54;

pub(crate) fn render(map: &Map) -> String {
    let width = LEFT + usize::from(WIDTH) * CELL + NAMES;
    let height = TOP + (map.rows.len() + 3) * LINE;
    let title = xml(&map.title);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"monospace\" font-size=\"10\" role=\"img\">\n\
         <title>{title}: ports</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <g fill=\"#24292f\">\n\
         <text x=\"10\" y=\"22\" font-size=\"14\">{title}: ports</text>\n"
    );
    let mut before: Option<&Cell> = None;
    for (index, row) in map.rows.iter().enumerate() {
        let y = TOP + index * LINE;
        let Row::Ports(first, cells) = row else {
            let _ = writeln!(text, "<text x=\"10\" y=\"{}\">…</text>", y + CELL - 1);
            before = None;
            continue;
        };
        let _ = writeln!(text, "<text x=\"10\" y=\"{}\">{first}</text>", y + CELL - 1);
        runs(&mut text, *first, cells, y);
        let begin = names(*first, cells, before);
        let begin: Vec<String> = begin
            .iter()
            .map(|(port, name)| format!("{port} {name}"))
            .collect();
        let mut line: String = begin.join(", ");
        if line.chars().count() > LETTERS {
            line = line.chars().take(LETTERS - 1).chain(['…']).collect();
        }
        let x = LEFT + usize::from(WIDTH) * CELL + 8;
        let _ = writeln!(
            text,
            "<text x=\"{x}\" y=\"{}\">{}</text>",
            y + CELL - 1,
            xml(&line)
        );
        before = cells.last().and_then(Option::as_ref);
    }
    legend(&mut text, map);
    text.push_str("</g>\n</svg>\n");
    text
}

/// A rectangle for each run of ports that are the same one's.
fn runs(text: &mut String, first: u16, cells: &[Option<Cell>], y: usize) {
    let mut offset = 0;
    for run in cells.chunk_by(|one, next| one == next) {
        let begin = offset;
        offset += run.len();
        let Some(Some(cell)) = run.first() else {
            continue;
        };
        let port = usize::from(first) + begin;
        let last = port + run.len() - 1;
        let ports = match port == last {
            true => port.to_string(),
            false => format!("{port}-{last}"),
        };
        let (x, width) = (LEFT + begin * CELL, run.len() * CELL - 1);
        let what = cell.mark.words();
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{CELL}\" fill=\"{}\"><title>{ports} {} \
             ({what})</title></rect>",
            colour(cell.mark),
            xml(&cell.label)
        );
    }
}

fn legend(text: &mut String, map: &Map) {
    let y = TOP + (map.rows.len() + 1) * LINE;
    let mut x = LEFT;
    for mark in map.marks() {
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"{}\"/><text x=\"{}\" \
             y=\"{}\">{}</text>",
            colour(mark),
            x + CELL + 4,
            y + CELL - 1,
            mark.words()
        );
        // A letter of ten pixels in monospace is about six wide.
        x += CELL + 20 + mark.words().len() * 6;
    }
}

fn colour(mark: Mark) -> &'static str {
    match mark {
        Mark::Free => "#eaeef2",
        Mark::SetAside => "#b6e3ff",
        Mark::Proposed => "#d2a8ff",
        Mark::Dormant => "#c6d3e6",
        Mark::Disabled => "#afb8c1",
        Mark::External => "#e3b341",
        Mark::Held | Mark::Parked => "#0969da",
        Mark::Queueing => "#3192aa",
        Mark::Leased => "#1a7f37",
        Mark::Restarting => "#fb8f44",
        Mark::Trouble => "#cf222e",
    }
}

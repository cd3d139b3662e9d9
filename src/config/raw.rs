//! TOML as it was written, with the place of everything, read key by key.
//!
//! serde would stop at the first mistake and forget where it was. Here every reader reports what it finds and
//! returns `None`, so that one run shows all mistakes, and the caller goes on with the default.

use std::ops::RangeInclusive;
use std::str::FromStr;

use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::Source;
use super::defaults::{Key, Section};
use super::diagnostic::{Diagnostic, Report, Span};
use crate::plan::nearest;

/// A value and where it stands.
#[derive(Clone, Copy)]
pub(super) struct Value<'a> {
    item: &'a DeValue<'a>,
    text: &'a str,
    pub(super) span: Span,
    /// What the table's description says of its key.
    pub(super) key: &'static Key,
}

/// A key with its value.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a str,
    pub(super) span: Span,
    item: &'a Spanned<DeValue<'a>>,
    text: &'a str,
}

/// A table whose keys are all known.
#[derive(Clone)]
pub(super) struct Table<'a> {
    section: &'static Section,
    entries: Vec<Entry<'a>>,
    /// False if there were keys which are not known: then what is missing is probably one of them.
    pub(super) understood: bool,
}

/// The entries of a table, in the order written (the parser sorts them by name).
pub(super) fn entries<'a>(table: &'a DeTable<'a>, text: &'a str, source: usize) -> Vec<Entry<'a>> {
    let entry = |(key, item): (
        &'a Spanned<std::borrow::Cow<'a, str>>,
        &'a Spanned<DeValue<'a>>,
    )| {
        let span = Span {
            source,
            start: key.span().start,
            end: key.span().end,
        };
        Entry {
            name: key.get_ref().as_ref(),
            span,
            item,
            text,
        }
    };
    let mut entries: Vec<_> = table.iter().map(entry).collect();
    entries.sort_by_key(|entry| entry.span);
    entries
}

impl<'a> Entry<'a> {
    /// The value, as one of the key described.
    pub(super) fn value(&self, key: &'static Key) -> Value<'a> {
        let span = Span {
            source: self.span.source,
            start: self.item.span().start,
            end: self.item.span().end,
        };
        Value {
            item: self.item.get_ref(),
            text: self.text,
            span,
            key,
        }
    }

    /// The entries of a table of the top level or below it; `header` is how it is written: `[agent]`.
    pub(super) fn section(&self, header: &str, report: &mut Report) -> Vec<Entry<'a>> {
        if let DeValue::Table(table) = self.item.get_ref() {
            return entries(table, self.text, self.span.source);
        }
        let title = format!(
            "`{}` must be a table, found {}",
            self.name,
            kind(self.item.get_ref())
        );
        report.push(
            Diagnostic::error(title, self.span, "a table is expected")
                .help(format!("write {header}")),
        );
        Vec::new()
    }
}

impl<'a> Table<'a> {
    /// Takes the entries, out of one file or several, that the section knows; reports the others, and keys
    /// which are there twice.
    pub(super) fn new(
        section: &'static Section,
        found: Vec<Entry<'a>>,
        report: &mut Report,
    ) -> Self {
        let mut table = Self {
            section,
            entries: Vec::new(),
            understood: true,
        };
        for entry in found {
            if let Some(first) = table.entry(entry.name) {
                report.push(twice(
                    &format!("`{}` of {}", entry.name, section.title),
                    first.span,
                    entry.span,
                ));
            } else if section.key(entry.name).is_some() {
                table.entries.push(entry);
            } else {
                report.push(unknown_key(section, &entry));
                table.understood = false;
            }
        }
        table
    }

    /// The value of a key that must be there; `whose` and `at` say of what. That it is missing is not said if
    /// another key was not understood: that was probably it.
    pub(super) fn required(
        &self,
        name: &str,
        whose: &str,
        at: Span,
        report: &mut Report,
    ) -> Option<Value<'a>> {
        let value = self.get(name);
        if value.is_none() && self.understood {
            let example = self.section.key(name).map_or("", |key| key.example);
            let title = format!("{whose} has no `{name}`");
            let missing = Diagnostic::error(title, at, format!("`{name}` is missing"));
            report.push(missing.help(format!("for example: {example}")));
        }
        value
    }

    /// What `reader` makes of a key's value, if it is there.
    pub(super) fn read<T>(
        &self,
        name: &str,
        reader: impl FnOnce(Value<'a>, &mut Report) -> Option<T>,
        report: &mut Report,
    ) -> Option<T> {
        reader(self.get(name)?, report)
    }

    fn entry(&self, name: &str) -> Option<&Entry<'a>> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// The value of a key, if it is there.
    pub(super) fn get(&self, name: &str) -> Option<Value<'a>> {
        let key = self.section.key(name);
        debug_assert!(
            key.is_some(),
            "{} does not describe {name}",
            self.section.title
        );
        Some(self.entry(name)?.value(key?))
    }
}

/// Something is said a second time.
pub(super) fn twice(what: &str, first: Span, second: Span) -> Diagnostic {
    Diagnostic::error(
        format!("{what} is defined twice"),
        second,
        "defined again here",
    )
    .also(first, "first defined here")
    .help("remove one of the two: a later file may add, but not redefine")
}

fn unknown_key(section: &Section, entry: &Entry) -> Diagnostic {
    let title = format!("unknown key `{}` in {}", entry.name, section.title);
    let known: Vec<_> = section.keys.iter().map(|key| key.name).collect();
    let help = match nearest(entry.name, known.iter().copied()) {
        Some(key) => format!("did you mean `{key}`?"),
        None if known.len() > 8 => "`portpool check --defaults` lists every key".to_owned(),
        None => format!("{} has {}", section.title, known.join(", ")),
    };
    Diagnostic::error(title, entry.span, "not a key of this table").help(help)
}

fn kind(item: &DeValue) -> &'static str {
    match item {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

impl<'a> Value<'a> {
    /// An error about this value, with the key's example as the way out.
    pub(super) fn error(&self, title: impl Into<String>, label: impl Into<String>) -> Diagnostic {
        self.error_at(self.span, title, label)
    }

    /// The same, about a part of the value.
    pub(super) fn error_at(
        &self,
        at: Span,
        title: impl Into<String>,
        label: impl Into<String>,
    ) -> Diagnostic {
        Diagnostic::error(title, at, label).help(format!("for example: {}", self.key.example))
    }

    /// Where the bytes `at` of a text value stand; the whole value, if it has escapes.
    pub(super) fn part(&self, at: std::ops::Range<usize>) -> Span {
        let start = self.span.start + 1;
        match self.item {
            DeValue::String(text)
                if self
                    .text
                    .get(start..)
                    .is_some_and(|rest| rest.starts_with(text.as_ref())) =>
            {
                Span {
                    start: start + at.start,
                    end: start + at.end,
                    ..self.span
                }
            }
            _ => self.span,
        }
    }

    fn expected<T>(&self, what: &str, report: &mut Report) -> Option<T> {
        let title = format!(
            "`{}` must be {what}, found {}",
            self.key.name,
            kind(self.item)
        );
        report.push(self.error(title, format!("{what} is expected")));
        None
    }

    pub(super) fn as_text(&self) -> Option<&'a str> {
        self.item.as_str()
    }

    pub(super) fn text(self, report: &mut Report) -> Option<&'a str> {
        match self.item {
            DeValue::String(text) if text.trim().is_empty() => {
                report.push(self.error(
                    format!("`{}` is empty", self.key.name),
                    "there is nothing in it",
                ));
                None
            }
            DeValue::String(text) => Some(text),
            _ => self.expected("text", report),
        }
    }

    /// A text of one's own.
    pub(super) fn owned_text(self, report: &mut Report) -> Option<String> {
        self.text(report).map(str::to_owned)
    }

    pub(super) fn boolean(self, report: &mut Report) -> Option<bool> {
        match self.item {
            DeValue::Boolean(value) => Some(*value),
            _ => self.expected("true or false", report),
        }
    }

    /// A whole number within bounds.
    pub(super) fn number(&self, bounds: RangeInclusive<u16>, report: &mut Report) -> Option<u16> {
        let DeValue::Integer(number) = self.item else {
            return self.expected("a number", report);
        };
        let value = u16::from_str_radix(number.as_str(), number.radix()).ok();
        if let Some(value) = value.filter(|value| bounds.contains(value)) {
            return Some(value);
        }
        let (least, most) = bounds.into_inner();
        let title = format!(
            "`{}` is {number}, but must be {least} to {most}",
            self.key.name
        );
        report.push(self.error(title, format!("not within {least} to {most}")));
        None
    }

    /// A text which `T` reads, or which is refused with `T`'s own words after the text: "`x` is …".
    pub(super) fn parsed<T: FromStr>(
        &self,
        refusal: impl Fn(&T::Err) -> String,
        report: &mut Report,
    ) -> Option<T> {
        let text = self.text(report)?;
        text.parse()
            .map_err(|error| {
                let refusal = refusal(&error);
                report.push(self.error(
                    format!("`{text}` of `{}` {refusal}", self.key.name),
                    refusal,
                ));
            })
            .ok()
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)], report: &mut Report) -> Option<T> {
        let text = self.text(report)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let help = match nearest(text, known.iter().copied()) {
            Some(word) => format!("did you mean \"{word}\"?"),
            None => format!("it is one of {}", known.join(", ")),
        };
        let title = format!("`{text}` is not a word of `{}`", self.key.name);
        report.push(self.error(title, "not one of its words").help(help));
        None
    }

    /// The elements of a list, or the value itself as the only one: `"x"` is `["x"]`.
    pub(super) fn elements(&self) -> Vec<Value<'a>> {
        let DeValue::Array(list) = self.item else {
            return vec![*self];
        };
        let element = |item: &'a Spanned<DeValue<'a>>| {
            let span = Span {
                start: item.span().start,
                end: item.span().end,
                ..self.span
            };
            Value {
                item: item.get_ref(),
                span,
                ..*self
            }
        };
        list.iter().map(element).collect()
    }

    /// Texts; one alone stands for a list of one.
    pub(super) fn texts(&self, report: &mut Report) -> Vec<(&'a str, Value<'a>)> {
        let elements = self.elements();
        elements
            .into_iter()
            .filter_map(|value| Some((value.text(report)?, value)))
            .collect()
    }

    /// A table with the keys of `section`.
    pub(super) fn table(
        &self,
        section: &'static Section,
        report: &mut Report,
    ) -> Option<Table<'a>> {
        let entries = self.entries(report)?;
        Some(Table::new(section, entries, report))
    }

    /// The entries of a table with names of its own.
    pub(super) fn entries(&self, report: &mut Report) -> Option<Vec<Entry<'a>>> {
        match self.item {
            DeValue::Table(table) => Some(entries(table, self.text, self.span.source)),
            _ => self.expected("a table", report),
        }
    }

    /// An integer of any size, in decimal, for ports, which may be texts too.
    pub(super) fn integer(&self) -> Option<String> {
        match self.item {
            DeValue::Integer(number) => {
                let value = i128::from_str_radix(number.as_str(), number.radix()).ok();
                Some(value.map_or_else(|| number.to_string(), |value| value.to_string()))
            }
            _ => None,
        }
    }
}

/// Parses one file; what is not TOML is reported.
pub(super) fn document<'a>(
    source: &'a Source,
    index: usize,
    report: &mut Report,
) -> Option<Spanned<DeTable<'a>>> {
    DeTable::parse(&source.text)
        .map_err(|error| {
            let end = source.text.len();
            let at = error.span().unwrap_or(end..end);
            let span = Span {
                source: index,
                start: at.start,
                end: at.end,
            };
            let title = format!("this is not TOML: {}", error.message());
            let help = "see https://toml.io: KEY = VALUE, text in quotes, tables as [pool.NAME]";
            report.push(Diagnostic::error(title, span, "here").help(help));
        })
        .ok()
}

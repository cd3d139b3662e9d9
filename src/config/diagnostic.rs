//! What is wrong with a configuration: where, in which words, and the way out.

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use super::Source;

/// Bytes of one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// Which of the sources, from 0.
    pub source: usize,
    /// The first byte.
    pub start: usize,
    /// The byte after the last one.
    pub end: usize,
}

/// A place and what there is to say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The place.
    pub span: Span,
    /// A few words; may be empty.
    pub text: String,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// It is accepted, but somebody will be surprised.
    Warning,
}

/// One finding in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in one line.
    pub title: String,
    /// The place it is reported at.
    pub primary: Label,
    /// Further places, also in other files.
    pub labels: Vec<Label>,
    /// A way out.
    pub help: Option<String>,
}

impl Diagnostic {
    pub(super) fn error(title: impl Into<String>, at: Span, label: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            title: title.into(),
            primary: Label {
                span: at,
                text: label.into(),
            },
            labels: Vec::new(),
            help: None,
        }
    }

    pub(super) fn warning(title: impl Into<String>, at: Span, label: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(title, at, label)
        }
    }

    /// Adds a further place. The primary one again is left out: two labels there would hide each other.
    pub(super) fn also(mut self, at: Span, label: impl Into<String>) -> Self {
        if at != self.primary.span {
            self.labels.push(Label {
                span: at,
                text: label.into(),
            });
        }
        self
    }

    pub(super) fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    /// The line it is reported at, from 1. `sources` are those the configuration was parsed from.
    pub fn line(&self, sources: &[Source]) -> usize {
        before(sources, self.primary.span).matches('\n').count() + 1
    }

    /// The column it is reported at, in characters from 1.
    pub fn column(&self, sources: &[Source]) -> usize {
        let before = before(sources, self.primary.span);
        before
            .rsplit('\n')
            .next()
            .unwrap_or_default()
            .chars()
            .count()
            + 1
    }

    /// The finding as a person reads it: title, file, line, column, the lines themselves with carets, and the
    /// way out. Several lines, without one at the end. `colour` adds ANSI escapes.
    pub fn render(&self, sources: &[Source], colour: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut report = level
            .primary_title(self.title.as_str())
            .elements(self.snippets(sources));
        if let Some(help) = &self.help {
            report = report.element(Level::HELP.message(help.as_str()));
        }
        let renderer = if colour {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        renderer.render(&[report])
    }

    /// One excerpt a file, that of the primary place first.
    fn snippets<'a>(
        &'a self,
        sources: &'a [Source],
    ) -> Vec<Snippet<'a, annotate_snippets::Annotation<'a>>> {
        let mut files = vec![self.primary.span.source];
        for label in &self.labels {
            if !files.contains(&label.span.source) {
                files.push(label.span.source);
            }
        }
        let excerpt = |file: usize| {
            let source = sources.get(file)?;
            let mark = |kind: AnnotationKind, label: &'a Label| {
                let text = Some(label.text.as_str()).filter(|text| !text.is_empty());
                kind.span(label.span.start..label.span.end).label(text)
            };
            let primary = (self.primary.span.source == file)
                .then(|| mark(AnnotationKind::Primary, &self.primary));
            let others = self.labels.iter().filter(|label| label.span.source == file);
            let snippet = Snippet::source(source.text.as_str())
                .path(source.path.to_string_lossy())
                .annotations(primary)
                .annotations(others.map(|label| mark(AnnotationKind::Context, label)));
            Some(snippet)
        };
        files.into_iter().filter_map(excerpt).collect()
    }
}

/// The text of the file up to the place.
fn before(sources: &[Source], at: Span) -> &str {
    sources
        .get(at.source)
        .and_then(|source| source.text.get(..at.start))
        .unwrap_or_default()
}

/// How many findings are reported at most: nobody reads more, and a hostile file could ask for millions.
pub const MAX_FINDINGS: usize = 100;

/// The findings so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    found: Vec<Diagnostic>,
}

impl Report {
    /// Adds a finding, once: what is wrong in `[defaults]` is met again in every pool.
    pub(super) fn push(&mut self, diagnostic: Diagnostic) {
        if !self.is_full() && !self.found.contains(&diagnostic) {
            self.found.push(diagnostic);
        }
    }

    /// Whether nothing more will be reported, so that there is no use in looking on.
    pub(super) fn is_full(&self) -> bool {
        self.found.len() >= MAX_FINDINGS
    }

    /// The report again, if nothing in it is an error; else everything, in the order of the files.
    pub(super) fn refuse_errors(self) -> Result<Self, Vec<Diagnostic>> {
        let is_error = |found: &Diagnostic| found.severity == Severity::Error;
        match self.found.iter().any(is_error) {
            true => Err(self.into_sorted()),
            false => Ok(self),
        }
    }

    /// Everything, in the order of the files.
    pub(super) fn into_sorted(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|diagnostic| diagnostic.primary.span);
        self.found
    }
}

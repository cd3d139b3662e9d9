//! Texts with places to fill in: `http://{host}:{port}`, `{postgres.inner}`.
//!
//! `${VAR}` belongs to whoever reads the result (a shell, Compose) and passes through untouched;
//! `{{` and `}}` are a single brace.

use std::fmt;
use std::ops::Range;

/// A text with places to fill in, as it came through [`Template::parse`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    source: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Place(Reference, Range<usize>),
}

/// What a place in a template stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// `{port}`: the pool's own port.
    Port,
    /// `{host}`: how the pool's machine is reached; localhost from itself.
    Host,
    /// `{address}`: the address the pool is bound to.
    Address,
    /// `{POOL.port}`: the port of a pool, or of a companion as in `{api-server.metrics.port}`.
    PortOf(String),
    /// `{POOL.inner}`: container name and inner port of a pool, as `name:port`.
    InnerOf(String),
}

/// Why a text is not a template, and which of its bytes are to blame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateError {
    /// What is wrong.
    pub kind: TemplateErrorKind,
    /// The bytes of the text it is about.
    pub at: Range<usize>,
}

/// What can be wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplateErrorKind {
    /// A `{` or `${` which is never closed.
    Unclosed,
    /// A `}` which closes nothing.
    Unopened,
    /// A place which is none of [`Reference`]; its text.
    Unknown(String),
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            TemplateErrorKind::Unclosed => f.write_str("this brace is never closed"),
            TemplateErrorKind::Unopened => f.write_str("this brace closes nothing"),
            TemplateErrorKind::Unknown(text) => write!(f, "`{{{text}}}` stands for nothing"),
        }
    }
}

impl std::error::Error for TemplateError {}

impl Template {
    /// Reads a template. Whether the pools it names exist is for the caller to check, with [`Self::references`].
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut at = 0;
        while let Some(found) = text[at..].find(['$', '{', '}']) {
            literal.push_str(&text[at..at + found]);
            at += found;
            let rest = &text[at..];
            if rest.starts_with("${") {
                let end = closing(text, at, at + 2)?;
                literal.push_str(&text[at..end]);
                at = end;
            } else if rest.starts_with("{{") || rest.starts_with("}}") {
                literal.push_str(&rest[..1]);
                at += 2;
            } else if rest.starts_with('{') {
                let end = closing(text, at, at + 1)?;
                let reference =
                    Reference::parse(&text[at + 1..end - 1]).ok_or_else(|| TemplateError {
                        kind: TemplateErrorKind::Unknown(text[at + 1..end - 1].to_owned()),
                        at: at..end,
                    })?;
                parts.push(Part::Text(std::mem::take(&mut literal)));
                parts.push(Part::Place(reference, at..end));
                at = end;
            } else if rest.starts_with('}') {
                return Err(TemplateError {
                    kind: TemplateErrorKind::Unopened,
                    at: at..at + 1,
                });
            } else {
                literal.push('$');
                at += 1;
            }
        }
        literal.push_str(&text[at..]);
        parts.push(Part::Text(literal));
        Ok(Self {
            source: text.to_owned(),
            parts,
        })
    }

    /// The text as it was written.
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// What it refers to, in order, and which bytes of the text do.
    pub fn references(&self) -> impl Iterator<Item = (&Reference, Range<usize>)> {
        self.parts.iter().filter_map(|part| match part {
            Part::Place(reference, at) => Some((reference, at.clone())),
            Part::Text(_) => None,
        })
    }

    /// The text with every place filled in by `fill`, whose first error ends it.
    pub fn render<E>(
        &self,
        mut fill: impl FnMut(&Reference) -> Result<String, E>,
    ) -> Result<String, E> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(literal) => text.push_str(literal),
                Part::Place(reference, _) => text.push_str(&fill(reference)?),
            }
        }
        Ok(text)
    }
}

impl Reference {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "port" => Some(Self::Port),
            "host" => Some(Self::Host),
            "address" => Some(Self::Address),
            _ => match text.rsplit_once('.')? {
                ("", _) => None,
                (pool, "port") => Some(Self::PortOf(pool.to_owned())),
                (pool, "inner") => Some(Self::InnerOf(pool.to_owned())),
                _ => None,
            },
        }
    }
}

/// Just after the brace that closes the one at `open`; braces between them must match.
fn closing(text: &str, open: usize, from: usize) -> Result<usize, TemplateError> {
    let mut depth = 1;
    for (index, byte) in text.bytes().enumerate().skip(from) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Ok(index + 1);
        }
    }
    Err(TemplateError {
        kind: TemplateErrorKind::Unclosed,
        at: open..from,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    fn filled(text: &str) -> String {
        let fill = |reference: &Reference| Ok::<_, Infallible>(format!("<{reference:?}>"));
        Template::parse(text).unwrap().render(fill).unwrap()
    }

    #[test]
    fn places_are_filled_in() {
        assert_eq!(filled("http://{host}:{port}"), "http://<Host>:<Port>");
        assert_eq!(filled("{iam.metrics.port}"), "<PortOf(\"iam.metrics\")>");
        assert_eq!(filled("{redis.inner}/0"), "<InnerOf(\"redis\")>/0");
    }

    #[test]
    fn what_is_the_shells_stays_the_shells() {
        let text = "postgresql://x:${PASSWORD:-${OTHER}}@$HOST/db$";
        assert_eq!(filled(text), text);
    }

    #[test]
    fn a_doubled_brace_is_a_brace() {
        assert_eq!(filled("{{\"port\": {port}}}"), "{\"port\": <Port>}");
    }

    #[test]
    fn errors_point_at_the_brace() {
        let at = |text: &str| Template::parse(text).unwrap_err().at;
        assert_eq!(at("a{port"), 1..2);
        assert_eq!(at("a}"), 1..2);
        assert_eq!(at("a{prot}b"), 1..7);
        assert_eq!(at("${X"), 0..2);
    }

    proptest! {
        #[test]
        fn text_without_braces_is_itself(text in "[^{}]*") {
            prop_assert_eq!(filled(&text), text);
        }

        #[test]
        fn every_template_reads_again_from_what_was_written(text in "([a-zä$]|\\{port\\}|\\{a\\.inner\\}|\\$\\{V\\}|\\{\\{|\\}\\}){0,12}") {
            if let Ok(template) = Template::parse(&text) {
                prop_assert_eq!(Template::parse(template.as_str()).unwrap(), template);
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "[${}a-c.ä]{0,30}") {
            if let Err(error) = Template::parse(&text) {
                prop_assert!(text.get(error.at).is_some());
            }
        }
    }
}

//! Texts of a configuration, as each kind of reader has to be given them to get them back unchanged.

use std::fmt::Write as _;

use crate::protocol::visible;

/// For a comment of one line, whatever the language.
pub(super) fn comment(text: &str) -> String {
    visible(text)
}

/// A value of a .env file, for dotenv of Node and Python, Compose and a shell. `${VAR}` is the reader's to
/// expand, and no other `$` is. Lines and tabs stay; what a terminal would obey is shown.
pub(super) fn dotenv(text: &str) -> String {
    let lines: Vec<String> = text
        .split('\n')
        .map(|line| line.split('\t').map(visible).collect::<Vec<_>>().join("\t"))
        .collect();
    let text = lines.join("\n");
    if is_bare(&text) {
        return text;
    }
    // Within single quotes nothing is special to any of them, but a doubled backslash is to Python's.
    let has_doubled = text.contains("\\\\") || text.ends_with('\\');
    if !text.contains("${") && !text.contains('\'') && !has_doubled {
        return format!("'{text}'");
    }
    let mut quoted = String::from("\"");
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let escaped = match c {
            '"' | '\\' | '`' => true,
            '$' => rest.peek() != Some(&'{'),
            _ => false,
        };
        if escaped {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted
}

/// Whether a text means the same to everybody without quotes: plain characters and `${NAME}` only.
fn is_bare(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:@%+,=-".contains(c);
    let mut parts = text.split("${");
    let begins = parts.next().is_some_and(|first| first.chars().all(plain));
    let references = parts.all(|part| {
        part.split_once('}').is_some_and(|(name, rest)| {
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            name.chars().all(is_name) && rest.chars().all(plain)
        })
    });
    !text.is_empty() && begins && references
}

/// A word of PowerShell. Its typographic quotes are quotes, too (about_Quoting_Rules).
pub(super) fn powershell(text: &str) -> String {
    let text = visible(text);
    if text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || " _./:-+,()".contains(c))
    {
        return format!("\"{text}\"");
    }
    let mut quoted = String::from("'");
    for c in text.chars() {
        if matches!(c, '\'' | '\u{2018}'..='\u{201b}') {
            quoted.push(c);
        }
        quoted.push(c);
    }
    quoted.push('\'');
    quoted
}

/// A text within a line or a cell of Markdown.
pub(super) fn markdown(text: &str) -> String {
    let mut quoted = String::new();
    for c in visible(text).chars() {
        match c {
            '&' => quoted.push_str("&amp;"),
            '<' => quoted.push_str("&lt;"),
            '>' => quoted.push_str("&gt;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '$' | '#' | '!' => {
                quoted.push('\\');
                quoted.push(c);
            }
            _ => quoted.push(c),
        }
    }
    quoted
}

/// A whole JSON document: what is not seen stands in its strings only, and is given by its number there.
pub(super) fn json(text: &str) -> String {
    let mut quoted = String::new();
    for c in text.chars() {
        let mut units = [0; 2];
        match visible(c.encode_utf8(&mut [0; 4])).chars().eq([c]) || c == '\n' {
            true => quoted.push(c),
            false => c.encode_utf16(&mut units).iter().for_each(|unit| {
                let _ = write!(quoted, "\\u{unit:04x}");
            }),
        }
    }
    quoted
}

/// A scalar of YAML and a basic string of TOML, which have these escapes in common; what is not seen is given
/// by its number.
pub(in crate::plan) fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            ' '..='~' => quoted.push(c),
            _ if c.is_alphanumeric() => quoted.push(c),
            '\0'..='\u{ffff}' => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            _ => {
                let _ = write!(quoted, "\\U{:08x}", u32::from(c));
            }
        }
    }
    quoted.push('"');
    quoted
}

/// The value of a setting in a unit: `%` begins a specifier, a backslash at the end joins lines
/// (systemd.syntax(7)).
pub(super) fn unit(text: &str) -> String {
    let text = visible(text).replace('%', "%%");
    match text.ends_with('\\') {
        true => text + ".",
        false => text,
    }
}

/// Text or an attribute's value of XML.
pub(in crate::plan) fn xml(text: &str) -> String {
    let mut quoted = String::new();
    for c in visible(text).chars() {
        match c {
            '&' => quoted.push_str("&amp;"),
            '<' => quoted.push_str("&lt;"),
            '>' => quoted.push_str("&gt;"),
            '"' => quoted.push_str("&quot;"),
            '\'' => quoted.push_str("&#39;"),
            _ => quoted.push(c),
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_no_quotes_and_everything_else_gets_them() {
        assert_eq!(dotenv("http://localhost:7001"), "http://localhost:7001");
        assert_eq!(dotenv("redis://r:${PW}@h/0"), "redis://r:${PW}@h/0");
        assert_eq!(dotenv("a b"), "'a b'");
        assert_eq!(dotenv(""), "''");
        assert_eq!(dotenv("{\"port\": 1}"), "'{\"port\": 1}'");
        assert_eq!(dotenv("it's $5"), "\"it's \\$5\"");
        assert_eq!(dotenv("${A:-b c}"), "\"${A:-b c}\"");
        assert_eq!(dotenv("$(reboot)"), "'$(reboot)'");
    }

    #[test]
    fn powershell_takes_typographic_quotes_for_quotes() {
        assert_eq!(powershell("D8 Orchestrator"), "\"D8 Orchestrator\"");
        assert_eq!(powershell("$env:x `a"), "'$env:x `a'");
        assert_eq!(powershell("a' \u{2019}b"), "'a'' \u{2019}\u{2019}b'");
    }

    #[test]
    fn no_text_breaks_a_line_or_its_quotes() {
        let hostile = "a\n\u{1b}[2J\"'\\\u{202e}<b>|%n";
        for quoted in [
            comment(hostile),
            powershell(hostile),
            markdown(hostile),
            quoted(hostile),
            unit(hostile),
            xml(hostile),
        ] {
            assert!(!quoted.contains(['\n', '\u{1b}', '\u{202e}']), "{quoted}");
        }
        assert_eq!(markdown("<a|b>"), "&lt;a\\|b&gt;");
        assert_eq!(unit("100%\\"), "100%%\\.");
    }
}

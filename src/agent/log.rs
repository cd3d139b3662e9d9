//! Where the agent's words go: the journal under systemd, standard error elsewhere.

mod journal;

use std::fmt;
use std::io::IsTerminal;

use tracing::field::Field;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use self::journal::Journal;

/// What is said where nothing else is asked for.
const USUAL: &str = "info";

/// The same for the journal: each transition of a slot, too ([`super::transitions`]).
const USUAL_OF_JOURNAL: &str = "info,portpool::slot=debug";

/// Begins to log. `$PORTPOOL_LOG` chooses what, as `RUST_LOG` does elsewhere; default: `info`.
///
/// Does nothing where the process logs already.
pub(super) fn begin() {
    // systemd sets JOURNAL_STREAM where standard error is the journal: systemd.exec(5).
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| Journal::open().ok());
    let filter =
        |usual| EnvFilter::try_from_env("PORTPOOL_LOG").unwrap_or_else(|_| EnvFilter::new(usual));
    let to_stderr = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .fmt_fields(debug_fn(field).delimited(" "))
            .with_filter(filter(USUAL))
    });
    let journal = journal.map(|journal| journal.with_filter(filter(USUAL_OF_JOURNAL)));
    let outcome = tracing_subscriber::registry()
        .with(journal)
        .with(to_stderr)
        .try_init();
    drop(outcome);
}

/// A field as people read it: without what is for programs.
fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    match field.name() {
        "message" => write!(writer, "{value:?}"),
        "message_id" => Ok(()),
        name => write!(writer, "{name}={value:?}"),
    }
}

//! Where the agent's words go: the journal under systemd, standard error elsewhere.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Begins to log. `$PORTPOOL_LOG` chooses what, as `RUST_LOG` does elsewhere; default: `info`.
///
/// Does nothing where the process logs already.
pub(super) fn begin() {
    let filter = EnvFilter::try_from_env("PORTPOOL_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // systemd sets JOURNAL_STREAM where standard error is the journal: systemd.exec(5).
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    let to_stderr = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
    });
    let journal = journal.map(|layer| layer.with_field_prefix(None));
    let outcome = tracing_subscriber::registry()
        .with(filter)
        .with(journal)
        .with(to_stderr)
        .try_init();
    drop(outcome);
}

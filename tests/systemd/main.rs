//! The package on a machine with a real systemd. Run by scripts/test-systemd; without a machine the tests
//! say that they are skipped.
#![expect(clippy::expect_used, reason = "a test says what it expects")]

mod machine;
mod package;
mod surviving;

//! The package on a machine with a real systemd. scripts/test-systemd boots one and runs these; for anybody
//! else they are ignored, each with a word of it, for none may pass that did not run.
#![expect(clippy::expect_used, reason = "a test says what it expects")]

mod inspector;
mod machine;
mod package;
mod qwen_valencia;
mod surviving;

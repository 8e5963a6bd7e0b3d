//! The programs as a user or a script meets them: help, exit codes, JSON, errors.
//!
//! The daemon's side is the real control server with invented answers (`fake`), so nothing here needs privileges.

#![expect(clippy::unwrap_used, reason = "these are tests: a failed step is a failed test")]

mod config;
mod daemon;
mod fake;
mod help;
mod json;
mod key;
mod output;
mod run;
mod text;
mod usage;

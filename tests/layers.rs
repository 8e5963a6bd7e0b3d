//! The walls between modules: ranks, and what the protocol core may use of `std`.
//!
//! Also that the tests which `tests/HOSTILE.md` names exist.
//!
//! A module may name only modules of a strictly lower rank. Reads the sources as text, so it needs no nightly
//! compiler; comments and strings are stripped first.

#![expect(clippy::unwrap_used, reason = "a file that cannot be read is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};

/// Module and rank. A folder of `src/` that is not here fails the test.
const RANKS: &[(&str, u8)] = &[
    ("proto::timer", 0),
    ("proto::limit", 1),
    ("proto::identity", 0),
    ("proto::wire", 1),
    ("proto::session", 2),
    ("proto::path", 2),
    ("proto::relay", 2),
    ("proto::route", 2),
    ("proto::policy", 2),
    ("proto::dht", 2),
    ("proto::datapath", 3),
    ("proto::portmap", 3),
    ("proto::node", 4),
    ("tun", 5),
    ("udp", 5),
    ("host", 5),
    ("store", 5),
    ("engine", 6),
    ("stream", 7),
    ("config", 9),
    ("control", 9),
    ("daemon", 10),
];

/// What the core must not name: it has no machine under it.
const BANNED_IN_PROTO: &[&str] = &[
    "std::fs",
    "std::io",
    "std::os",
    "std::env",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::net::UdpSocket",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::sync::Condvar",
    "std::sync::mpsc",
    "tokio",
    "tun_rs",
    "socket2",
    "nix::",
    "libc::",
    "tracing",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// The module of RANKS that a path below `src/` (`proto/wire/mod.rs`) belongs to.
fn module_of(relative: &str) -> String {
    let mut parts = relative.split('/');
    let first = parts.next().unwrap().trim_end_matches(".rs").to_string();
    match (first.as_str(), parts.next()) {
        ("proto", Some(second)) if second != "mod.rs" => format!("proto::{}", second.trim_end_matches(".rs")),
        _ => first,
    }
}

fn rank(module: &str) -> Option<u8> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

/// Source without comments and string literals, so that prose does not count.
fn code_only(source: &str) -> String {
    let mut out = String::new();
    for line in source.lines() {
        let line = line.split("//").next().unwrap_or("");
        let mut in_string = false;
        let mut escaped = false;
        for c in line.chars() {
            if in_string {
                match c {
                    '\\' if !escaped => escaped = true,
                    '"' if !escaped => in_string = false,
                    _ => escaped = false,
                }
            } else if c == '"' {
                in_string = true;
            } else {
                out.push(c);
            }
        }
        out.push('\n');
    }
    out
}

/// Every module named by `crate::…` or, in a binary, `auramesh::…`, groups in braces included.
fn named_modules(code: &str, prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        for path in expand(&code[at + prefix.len()..]) {
            found.push(path);
        }
    }
    found
}

/// First two segments of each path in a use tree: `proto::{a::X, b}` gives `proto::a`, `proto::b`.
fn expand(rest: &str) -> Vec<String> {
    if let Some(group) = rest.strip_prefix('{') {
        return split_group(group).iter().flat_map(|item| expand(item.trim())).collect();
    }
    let head: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let tail = &rest[head.len()..];
    if head != "proto" {
        return if head.is_empty() { Vec::new() } else { vec![head] };
    }
    match tail.strip_prefix("::") {
        Some(inner) => expand_plain(inner).into_iter().map(|m| format!("proto::{m}")).collect(),
        None => vec!["proto".into()],
    }
}

fn expand_plain(rest: &str) -> Vec<String> {
    if let Some(group) = rest.strip_prefix('{') {
        return split_group(group).iter().flat_map(|item| expand_plain(item.trim())).collect();
    }
    let head: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    if head.is_empty() { Vec::new() } else { vec![head] }
}

fn split_group(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut items) = (0, 0, Vec::new());
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&group[start..i]);
                return items;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&group[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    items
}

/// What a source file of `module` breaks.
fn violations(module: &str, source: &str) -> Vec<String> {
    let code = code_only(source);
    let mut out = Vec::new();
    let own = rank(module);
    for named in named_modules(&code, "crate::") {
        if named == module || named == "proto" {
            continue;
        }
        match (own, rank(&named)) {
            (Some(own), Some(other)) if other < own => {}
            (Some(own), Some(other)) => out.push(format!("rank {own} names {named} of rank {other}")),
            (Some(_), None) => out.push(format!("names {named}, which has no rank")),
            (None, _) => {}
        }
    }
    if module.starts_with("proto") {
        for banned in BANNED_IN_PROTO {
            if code.contains(banned) {
                out.push(format!("the core names {banned}"));
            }
        }
    }
    out
}

#[test]
fn modules_name_only_lower_ranks() {
    let mut files = Vec::new();
    rust_files(&root(), &mut files);
    assert!(files.len() > 20, "found only {} files: the walk is broken", files.len());
    let mut broken = Vec::new();
    for file in files {
        let relative = file.strip_prefix(root()).unwrap().to_str().unwrap().to_string();
        let module = module_of(&relative);
        if matches!(module.as_str(), "lib" | "bin" | "proto") {
            continue;
        }
        if rank(&module).is_none() {
            broken.push(format!("{relative}: module {module} has no rank in tests/layers.rs"));
        }
        let source = fs::read_to_string(&file).unwrap();
        broken.extend(violations(&module, &source).into_iter().map(|v| format!("{relative}: {v}")));
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_map_in_lib_rs_names_every_ranked_module() {
    let lib = fs::read_to_string(root().join("lib.rs")).unwrap();
    for (module, rank) in RANKS {
        let name = module.rsplit("::").next().unwrap();
        let line = lib.lines().find(|l| l.contains(&format!("{name}/")));
        let line = line.unwrap_or_else(|| panic!("{module} is missing from the map in lib.rs"));
        assert!(line.contains(&format!(" {rank} ")), "{module}: the map gives another rank: {line}");
    }
}

#[test]
fn a_breach_is_seen() {
    let check = |module: &str, source: &str| violations(module, source).len();
    assert_eq!(check("proto::wire", "use crate::proto::identity::NodeId;"), 0);
    assert_eq!(check("proto::wire", "use crate::proto::session::Session;"), 1);
    assert_eq!(check("proto::session", "use crate::proto::dht::Dht;"), 1);
    assert_eq!(check("proto::node", "use crate::proto::{dht::Dht, datapath};"), 0);
    assert_eq!(check("proto::dht", "use crate::{proto::{wire::Record, node::Node}, tun};"), 2);
    assert_eq!(check("tun", "fn f() { crate::engine::run() }"), 1);
    assert_eq!(check("proto::dht", "use std::fs::File;"), 1);
    assert_eq!(check("proto::dht", "// std::fs and crate::engine in prose\nlet s = \"std::fs\";"), 0);
    assert_eq!(check("tun", "use crate::attic::X;"), 1);
}

/// Tests that `tests/HOSTILE.md` names, as `file::test` in backquotes.
#[test]
fn tests_that_are_named_exist() {
    let text = fs::read_to_string("tests/HOSTILE.md").unwrap();
    let named: Vec<_> = text.split('`').skip(1).step_by(2).filter_map(|name| name.split_once("::")).collect();
    assert!(named.len() > 80, "{} names", named.len());
    for (file, test) in named {
        let below = if file.starts_with("src/") { "" } else { "tests/" };
        let source = fs::read_to_string(format!("{below}{file}.rs")).unwrap_or_default();
        assert!(source.contains(&format!("fn {test}()")), "tests/HOSTILE.md: {file}::{test} does not exist");
    }
}

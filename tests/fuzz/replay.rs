//! Replays the committed fuzz corpus, so that what fuzzing once found stays found without a nightly compiler.

pub mod checks;

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(name)
}

fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.expect("readable").path()).collect()
}

/// Names in a folder, without extensions.
fn names(folder: &Path) -> BTreeSet<String> {
    files(folder).iter().map(|path| stem(path)).collect()
}

fn stem(path: &Path) -> String {
    path.file_stem().and_then(|stem| stem.to_str()).expect("names are UTF-8").to_string()
}

#[test]
fn every_input_of_the_corpus_passes() {
    let mut inputs = 0;
    for (target, check) in checks::TARGETS {
        let corpus = folder("corpus").join(target);
        for name in names(&corpus) {
            let data = fs::read(corpus.join(&name)).expect("readable");
            let passed = catch_unwind(|| check(&data)).is_ok();
            assert!(
                passed,
                "{target}: {name} fails: cargo +nightly fuzz run --fuzz-dir tests/fuzz {target} ..."
            );
            inputs += 1;
        }
    }
    assert!(inputs > 100, "only {inputs} inputs: the corpus is missing");
}

#[test]
fn every_target_is_complete() {
    let expected: BTreeSet<_> = checks::TARGETS.iter().map(|(name, _)| (*name).to_string()).collect();
    assert_eq!(names(&folder("fuzz_targets")), expected, "files in fuzz_targets/");
    assert_eq!(names(&folder("corpus")), expected, "folders in corpus/");
    let manifest = fs::read_to_string(folder("Cargo.toml")).expect("readable");
    for name in expected {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}: no [[bin]]");
        let target = fs::read_to_string(folder("fuzz_targets").join(format!("{name}.rs"))).expect("readable");
        assert!(target.contains(&format!("check(\"{name}\"")), "{name}.rs runs another target's check");
    }
}

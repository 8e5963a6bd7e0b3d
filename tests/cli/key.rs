//! The identity's life without a daemon.

use std::os::unix::fs::PermissionsExt;

use auramesh::store::StateDir;

use crate::run::{azora, azora_fed};

#[test]
fn generate_show_export_import() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (first, second) = (path("first"), path("second"));
    azora(&["key", "show", "--state-dir", &first]).exits(1).complains(&["azora key generate"]);
    let made = azora(&["key", "generate", "--state-dir", &first]).exits(0).out;
    let shown = azora(&["key", "show", "--state-dir", &first]).exits(0).out;
    assert_eq!(made, shown);
    assert!(shown.ends_with(&format!("\nfile     {first}/identity.key\n")), "{shown}");
    let mode = std::fs::metadata(format!("{first}/identity.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let json = azora(&["key", "show", "--json", "--state-dir", &first]).exits(0).json();
    let id = json["node_id"].as_str().unwrap();
    assert_eq!(azora(&["inspect", id, "--json"]).exits(0).json(), json);

    let again = azora(&["key", "generate", "--state-dir", &first]);
    again.exits(1).complains(&["identity.key exists", "--force"]);
    assert_eq!(azora(&["key", "show", "--state-dir", &first]).exits(0).out, shown, "untouched");

    let secret = azora(&["key", "export", "--state-dir", &first]).exits(0).out;
    assert_eq!(secret.lines().count(), 1);
    assert!(!shown.contains(secret.split(' ').nth(1).unwrap()), "show shows no secret");
    let there = shown.replace(&first, &second);
    assert_eq!(azora_fed(&["key", "import", "--state-dir", &second], &secret).exits(0).out, there);
    let file = path("backup");
    std::fs::write(&file, &secret).unwrap();
    let import = ["key", "import", &file, "--state-dir", &second];
    azora(&import).exits(1).complains(&["exists", "--force"]);
    assert_eq!(azora(&[&import[..], &["--force"]].concat()).exits(0).out, there);

    let replaced = azora(&["key", "generate", "--force", "--state-dir", &first]).exits(0).out;
    assert_ne!(replaced, shown);
}

#[test]
fn a_key_that_a_daemon_uses_is_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let daemon = StateDir::open(&path).unwrap();
    let ran = azora(&["key", "generate", "--force", "--state-dir", path.to_str().unwrap()]).exits(1);
    ran.complains(&["is in use by a running azora-meshing-daemon (process ", "stop that daemon first"]);
    drop(daemon);
}

#[test]
fn a_state_directory_that_cannot_be_made_is_told() {
    let ran = azora(&["key", "generate", "--state-dir", "/proc/azora"]).exits(1);
    ran.complains(&["cannot create /proc/azora", "choose another directory with --state-dir"]);
}

#[test]
fn broken_identities_are_refused_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state").to_str().unwrap().to_owned();
    azora(&["key", "generate", "--state-dir", &state]).exits(0);
    let file = format!("{state}/identity.key");
    std::fs::write(&file, "").unwrap();
    for command in [["key", "show"], ["key", "export"], ["key", "generate"]] {
        let ran = azora(&[&command[..], &["--state-dir", &state]].concat()).exits(1);
        ran.complains(&["identity.key"]);
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    azora(&["key", "show", "--state-dir", &state]).exits(1).complains(&[
        "0644",
        "chmod 600",
        &format!("azora key generate --force --state-dir {state}"),
    ]);
}

#[test]
fn wrong_imports_are_refused_without_repeating_them() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state").to_str().unwrap().to_owned();
    let check = |text: &str| {
        let ran = azora_fed(&["key", "import", "--state-dir", &state], text).exits(1);
        let ran = ran.complains(&["azora key export"]);
        assert!(text.is_empty() || !ran.err.contains(text), "{ran:?}");
    };
    check("");
    check("quite another secret");
    check(&"a".repeat(1 << 20)[..4097]);
    let missing = azora(&["key", "import", "/nonexistent", "--state-dir", &state]);
    missing.exits(1).complains(&["/nonexistent"]);
}

//! Help, man pages and completions come from one definition and name everything of the interface contract.

use crate::run::{azora, daemon};

/// Every command; those that read are marked.
const COMMANDS: &[(&str, bool)] = &[
    ("id", true),
    ("ip", true),
    ("inspect", true),
    ("key generate", false),
    ("key show", true),
    ("key export", false),
    ("key import", false),
    ("up", false),
    ("down", false),
    ("status", true),
    ("peers", true),
    ("peers add", false),
    ("peers remove", false),
    ("ping", true),
    ("dht lookup", true),
    ("dht status", true),
    ("probe", true),
    ("netcheck", true),
    ("trace", true),
    ("firewall list", true),
    ("firewall trace", true),
    ("firewall add", false),
    ("firewall remove", false),
    ("wait", true),
    ("config check", false),
    ("config show", true),
    ("config init", false),
    ("completions", false),
    ("report", true),
    ("man", false),
];

#[test]
fn every_command_has_help() {
    for (command, reads) in COMMANDS {
        let words: Vec<_> = command.split(' ').chain(["--help"]).collect();
        let help = azora(&words).exits(0);
        assert_eq!(help.err, "");
        assert!(help.out.contains(&format!("Usage: azora {command}")), "{command}: {}", help.out);
        assert!(help.out.contains("--socket <PATH>"), "{command}");
        assert_eq!(help.out.contains("--json"), *reads, "{command}: --json for reading commands only");
        let first = help.out.lines().next().unwrap();
        assert!(first.len() > 10, "{command} says what it does: {first:?}");
    }
}

#[test]
fn every_daemon_flag_of_the_contract_is_there() {
    let help = daemon(&["--help"]).exits(0).out;
    let flags = "--config <FILE> --state-dir <DIR> --socket <PATH> --tun <NAME> --listen <IP:PORT> \
        --bootstrap <NODEID@IP:PORT> --no-lan-discovery --dht <MODE> --inbound <POLICY> --log <LEVEL> --test \
        --metrics <IP:PORT> --tun-offload <RUNG> --udp-offload <RUNG> --no-superframes --cipher <CIPHER> \
        --workers <N> --stream-listen <IP:PORT> --secret-file <FILE>";
    for flag in flags.split(" --") {
        assert!(help.contains(flag), "{flag} is missing in {help}");
    }
    for variable in ["AZORA_CONFIG", "AZORA_STATE_DIR", "AZORA_SOCKET", "AZORA_LOG"] {
        assert!(help.contains(variable), "{variable}");
    }
    assert!(!help.contains("JOURNAL_STREAM"));
}

#[test]
fn man_pages_are_written_for_every_command() {
    let directory = tempfile::tempdir().unwrap();
    azora(&["man", directory.path().to_str().unwrap()]).exits(0);
    for (command, _) in COMMANDS {
        let page = directory.path().join(format!("azora-{}.1", command.replace(' ', "-")));
        assert!(std::fs::read_to_string(&page).unwrap().contains(".SH SYNOPSIS"), "{}", page.display());
    }
    assert!(directory.path().join("azora.1").exists());
    assert!(daemon(&["--man"]).exits(0).out.contains("\\-\\-bootstrap"));
    azora(&["man", "/nonexistent"]).exits(1).complains(&["/nonexistent", "existing directory"]);
}

#[test]
fn completions_exist_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        for script in [azora(&["completions", shell]), daemon(&["--completions", shell])] {
            assert!(script.exits(0).out.contains("socket"), "{shell}");
        }
    }
}

#[test]
fn versions_agree() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(azora(&["--version"]).exits(0).out, format!("azora {version}\n"));
    assert_eq!(daemon(&["--version"]).exits(0).out, format!("azora-meshing-daemon {version}\n"));
}

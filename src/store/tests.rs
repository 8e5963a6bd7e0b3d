use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{Uid, mkfifo};
use tempfile::TempDir;

use crate::proto::identity::Identity;
use crate::proto::wire::control::Contact;
use crate::store::directory::check_file;
use crate::store::{CONTACTS_MAX, Error, RULES_MAX, StateDir, export, parse};

const SEED: [u8; 32] = [7; 32];
const KEY: &str = "identity.key";

/// A directory that goes away, and a state directory inside it.
fn state() -> (TempDir, StateDir) {
    let outer = tempfile::tempdir().unwrap();
    let state = StateDir::open(&outer.path().join("azora")).unwrap();
    (outer, state)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names(state: &StateDir) -> Vec<String> {
    let entries = fs::read_dir(state.path()).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The one line that a user reads; it must name the file and hold no seed.
fn line(error: &Error, file: &str) -> String {
    let text = error.to_string();
    assert!(text.contains(file), "{text}");
    assert!(!text.contains('\n'), "{text}");
    assert!(!text.contains(&export(&Identity::from_seed(SEED))[17..40]), "the seed is shown: {text}");
    text
}

#[test]
fn the_directory_is_private_and_taken_once() {
    let (_outer, state) = state();
    assert_eq!(mode(state.path()), 0o700);
    let error = StateDir::open(state.path()).unwrap_err();
    assert!(matches!(error, Error::InUse { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    assert!(line(&error, "azora").contains("--state-dir"));
    let path = state.path().to_path_buf();
    StateDir::open_to_read(&path).unwrap();
    drop(state);
    StateDir::open(&path).unwrap();
}

#[test]
fn a_directory_that_others_can_write_to_is_refused() {
    let (_outer, state) = state();
    let path = state.path().to_path_buf();
    drop(state);
    for loose in [0o770, 0o702, 0o1777] {
        fs::set_permissions(&path, Permissions::from_mode(loose)).unwrap();
        let error = StateDir::open(&path).unwrap_err();
        assert!(line(&error, "azora").contains("chmod 700"), "{error}");
    }
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    StateDir::open(&path).unwrap();
    let file = path.join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(StateDir::open(&file), Err(Error::Io { .. })));
    let missing = StateDir::open_to_read(&path.join("missing")).unwrap_err();
    assert!(line(&missing, "missing").contains("azora key generate"), "{missing}");
}

#[test]
fn an_identity_is_made_once_and_read_back() {
    let (_outer, state) = state();
    assert!(state.load_identity().unwrap().is_none());
    let made = state.load_or_create_identity(|| SEED).unwrap();
    let read = state.load_or_create_identity(|| panic!("there is one")).unwrap();
    assert_eq!(made.node_id(), read.node_id());
    assert_eq!(made.node_id(), Identity::from_seed(SEED).node_id());
    assert_eq!(mode(&state.path().join(KEY)), 0o600);
    assert_eq!(names(&state), [KEY, "lock"], "nothing is left over");
    let error = state.create_identity([8; 32]).unwrap_err();
    assert!(line(&error, KEY).contains("--force"), "{error}");
    assert_ne!(state.replace_identity([8; 32]).unwrap().node_id(), made.node_id());
}

#[test]
fn the_file_is_one_documented_line() {
    let identity = Identity::from_seed([0; 32]);
    let text = export(&identity);
    assert_eq!(text.len(), 123);
    assert_eq!(*text, format!("azora-identity-1 {} {}\n", "a".repeat(52), identity.node_id()));
    assert_eq!(parse(&format!("  {}", text.trim())).unwrap().node_id(), identity.node_id());
}

#[test]
fn a_broken_identity_file_is_refused_and_stays_as_it_is() {
    let whole = export(&Identity::from_seed(SEED)).to_string();
    let other = Identity::from_seed([9; 32]).node_id().to_string();
    let check = |content: &[u8], cause: &str| {
        let (_outer, state) = state();
        let file = state.path().join(KEY);
        fs::write(&file, content).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        let error = state.load_or_create_identity(|| panic!("a new identity")).unwrap_err();
        let text = line(&error, KEY);
        assert!(text.contains(cause) && text.contains("backup"), "{cause}: {text}");
        assert!(matches!(state.create_identity(SEED), Err(Error::Exists { .. })));
        assert_eq!(fs::read(&file).unwrap(), content, "it was touched");
    };
    check(b"", "empty");
    for len in [1, 17, 60, 69, 100, whole.len() - 1] {
        check(&whole.as_bytes()[..len], if len < 17 { "begin" } else { "cut short" });
    }
    check(format!("{whole}\n").as_bytes(), "one line");
    check(whole.replace("-1 ", "-2 ").as_bytes(), "begin");
    check(&[whole.as_bytes(), &[b'a'; 5000]].concat(), "far too long");
    check(whole.to_uppercase().replace("AZORA-IDENTITY", "azora-identity").as_bytes(), "not base32");
    check(format!("{}{other}\n", &whole[..70]).as_bytes(), "does not belong");
    check(&[0; 123], "begin");
    // Any single altered character.
    for at in 0..whole.len() {
        let mut altered = whole.clone().into_bytes();
        altered[at] = if altered[at] == b'b' { b'c' } else { b'b' };
        check(&altered, "damaged");
    }
}

#[test]
fn a_loose_or_strange_identity_file_is_refused() {
    let check = |make: &dyn Fn(&Path), step: &str| {
        let (_outer, state) = state();
        state.create_identity(SEED).unwrap();
        make(&state.path().join(KEY));
        let error = state.load_or_create_identity(|| panic!("a new identity")).unwrap_err();
        assert!(line(&error, KEY).contains(step), "{error}");
        assert!(matches!(state.create_identity(SEED), Err(Error::Exists { .. })));
    };
    for loose in [0o644, 0o640, 0o604, 0o660, 0o601] {
        check(&|file| fs::set_permissions(file, Permissions::from_mode(loose)).unwrap(), "chmod 600");
    }
    check(
        &|file| {
            fs::rename(file, file.with_extension("real")).unwrap();
            symlink(file.with_extension("real"), file).unwrap();
        },
        "symbolic link",
    );
    check(&|file| replace(file, |file| symlink("/nowhere", file).unwrap()), "symbolic link");
    check(&|file| replace(file, |file| fs::create_dir(file).unwrap()), "directory");
    check(&|file| replace(file, |file| mkfifo(file, Mode::S_IRUSR).unwrap()), "no regular file");
}

fn replace(file: &Path, make: impl FnOnce(&Path)) {
    fs::remove_file(file).unwrap();
    make(file);
}

#[test]
fn a_file_of_another_owner_is_refused() {
    let (_outer, state) = state();
    state.create_identity(SEED).unwrap();
    let path = state.path().join(KEY);
    let stat: FileStat = fstat(fs::File::open(&path).unwrap()).unwrap();
    assert_eq!(stat.st_mode & SFlag::S_IFMT.bits(), SFlag::S_IFREG.bits());
    check_file(&path, &stat, Uid::from_raw(stat.st_uid)).unwrap();
    let error = check_file(&path, &stat, Uid::from_raw(stat.st_uid + 1)).unwrap_err();
    assert!(line(&error, KEY).contains(&format!("belongs to uid {}", stat.st_uid)), "{error}");
}

/// Runs one of the ignored tests below in a process of its own, after the commands of `prelude`, in which `$0` is
/// `directory`. Its output, or what went wrong.
fn child(prelude: &[&str], script: &str, directory: &Path, test: &str) -> Result<String, String> {
    let output = Command::new(prelude[0])
        .args(&prelude[1..])
        .args(["sh", "-c", &format!(r#"{script} && cd "$0" && exec "$1" --exact --ignored "$2""#)])
        .arg(directory)
        .arg(std::env::current_exe().unwrap())
        .arg(format!("store::tests::{test}"))
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    if output.status.success() && text.contains("1 passed") { Ok(text) } else { Err(text) }
}

#[test]
fn the_mode_does_not_depend_on_the_umask() {
    for umask in ["umask 0000", "umask 0277"] {
        let (outer, state) = state();
        drop(state);
        child(&["env"], umask, outer.path(), "inside_a_strange_umask").unwrap();
        for file in [KEY, "firewall"] {
            assert_eq!(mode(&outer.path().join("azora").join(file)), 0o600, "{file}, {umask}");
        }
    }
}

#[test]
#[ignore = "run by the_mode_does_not_depend_on_the_umask"]
fn inside_a_strange_umask() {
    let state = StateDir::open(Path::new("azora")).unwrap();
    state.create_identity(SEED).unwrap();
    state.save_rules(&["in allow".into()]).unwrap();
}

#[test]
fn an_identity_moves_by_export_and_import() {
    let (_outer, state) = state();
    let exported = export(&Identity::from_seed(SEED));
    let imported = state.import_identity(&exported, false).unwrap();
    assert_eq!(imported.node_id(), Identity::from_seed(SEED).node_id());
    assert!(matches!(state.import_identity(&exported, false), Err(Error::Exists { .. })));
    state.import_identity(&exported, true).unwrap();
    for text in ["", "x", &exported[..100], &exported.replace('-', "_")] {
        let error = state.import_identity(text, true).unwrap_err();
        assert!(matches!(error, Error::Import { .. }));
        assert!(line(&error, "azora key export").len() < 200);
    }
    assert!(state.load_identity().unwrap().is_some(), "a failed import leaves the old one");
}

#[test]
fn without_the_lock_nothing_is_written() {
    let (_outer, state) = state();
    state.create_identity(SEED).unwrap();
    let reader = StateDir::open_to_read(state.path()).unwrap();
    assert!(reader.load_identity().unwrap().is_some());
    assert!(matches!(reader.replace_identity([1; 32]), Err(Error::ReadOnly { .. })));
    assert!(matches!(reader.save_contacts(&[]), Err(Error::ReadOnly { .. })));
    assert!(matches!(reader.save_rules(&[]), Err(Error::ReadOnly { .. })));
}

#[test]
fn what_a_crash_left_half_written_is_removed() {
    let (_outer, state) = state();
    let path = state.path().to_path_buf();
    state.create_identity(SEED).unwrap();
    drop(state);
    fs::write(path.join("identity.key.tmp"), "azora-identity-1 half").unwrap();
    fs::write(path.join("peers.tmp"), "").unwrap();
    let state = StateDir::open(&path).unwrap();
    assert_eq!(names(&state), [KEY, "lock"]);
    // The lock file of a killed process is there still, and no obstacle.
    assert_eq!(state.load_identity().unwrap().unwrap().node_id(), Identity::from_seed(SEED).node_id());
    // A temporary name that is a link is replaced, not followed.
    let victim = path.join("victim");
    fs::write(&victim, "precious").unwrap();
    symlink(&victim, path.join("peers.tmp")).unwrap();
    state.save_contacts(&[]).unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

fn contact(i: usize) -> Contact {
    let endpoint = if i.is_multiple_of(2) { "192.0.2.1:5747" } else { "[fe80::1%3]:5747" };
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&i.to_be_bytes());
    let node = Identity::from_seed(seed);
    Contact { node_id: node.node_id(), x25519: node.x25519_public(), endpoint: endpoint.parse().unwrap() }
}

#[test]
fn contacts_are_read_back_in_order_and_limited() {
    let (_outer, state) = state();
    assert_eq!(state.load_contacts().unwrap().contacts, []);
    let contacts: Vec<_> = (0..CONTACTS_MAX + 10).map(contact).collect();
    state.save_contacts(&contacts).unwrap();
    let loaded = state.load_contacts().unwrap();
    assert_eq!((loaded.contacts.as_slice(), loaded.skipped), (&contacts[..CONTACTS_MAX], 0));
}

#[test]
fn bad_lines_are_skipped_and_counted() {
    let (_outer, state) = state();
    state.save_contacts(&[contact(3), contact(4)]).unwrap();
    let file = state.path().join("peers");
    let good = fs::read_to_string(&file).unwrap();
    let bad = [
        "",
        " ",
        "AAAA",
        "AAAA x",
        "!!!! 192.0.2.1:1",
        " 192.0.2.1:1",
        "AAAA 192.0.2.1",
        "AAAA 192.0.2.1:99999",
    ];
    let long = format!("{} 192.0.2.1:1", "A".repeat(3000));
    fs::write(&file, format!("{good}{}\n{long}\nAAAA 192.0.2", bad.join("\n"))).unwrap();
    let loaded = state.load_contacts().unwrap();
    assert_eq!(loaded.contacts, [contact(3), contact(4)]);
    assert_eq!(loaded.skipped, bad.len() + 2);
    for content in [b"".as_slice(), b"something else\n", b"\xff\xfe", &vec![b'\n'; 4 << 20]] {
        fs::write(&file, content).unwrap();
        assert!(matches!(state.load_contacts(), Err(Error::Damaged { .. })));
    }
    // It is not precious: saving goes on.
    state.save_contacts(&[contact(5)]).unwrap();
    assert_eq!(state.load_contacts().unwrap().contacts, [contact(5)]);
}

#[test]
fn rules_are_all_or_nothing() {
    let (_outer, state) = state();
    assert_eq!(state.load_rules().unwrap(), Vec::<String>::new());
    let rules: Vec<String> = vec!["in allow -p tcp --port 22".into(), "in allow -p udp --port 53".into()];
    state.save_rules(&rules).unwrap();
    assert_eq!(state.load_rules().unwrap(), rules);
    for bad in ["", "a\nb", "a\rb", "a\0b", &"x".repeat(257)] {
        assert!(matches!(state.save_rules(&[bad.into()]), Err(Error::Rule)), "{bad:?}");
    }
    assert!(matches!(state.save_rules(&vec!["x".into(); RULES_MAX + 1]), Err(Error::Rule)));
    assert_eq!(state.load_rules().unwrap(), rules);
    state.save_rules(&[]).unwrap();
    assert_eq!(state.load_rules().unwrap(), Vec::<String>::new());
    let file = state.path().join("firewall");
    for content in
        ["", "azora-firewall-1", "azora-firewall-2\n", "azora-firewall-1\nin allow -p tc", "in allow\n"]
    {
        fs::write(&file, content).unwrap();
        let error = state.load_rules().unwrap_err();
        assert!(line(&error, "firewall").contains("backup"), "{error}");
    }
}

/// The directory in which [`inside_a_full_disk`] is started: a tmpfs of 64 KiB.
const TMPFS_BYTES_MAX: u64 = 64 << 10;

#[test]
fn a_full_disk_costs_nothing_that_was_saved() {
    let mount = tempfile::tempdir().unwrap();
    let small = r#"mount -t tmpfs -o size=64k,mode=700 none "$0""#;
    match child(&["unshare", "--mount"], small, mount.path(), "inside_a_full_disk") {
        Err(text) if !nix::unistd::geteuid().is_root() => {
            eprintln!("SKIPPED, NOTHING TESTED: a full disk needs root: {text}");
        }
        result => drop(result.unwrap()),
    }
}

#[test]
#[ignore = "run by a_full_disk_costs_nothing_that_was_saved, inside a small tmpfs"]
fn inside_a_full_disk() {
    let here = nix::sys::statvfs::statvfs(".").unwrap();
    let bytes = here.blocks() * here.fragment_size();
    assert!(bytes <= TMPFS_BYTES_MAX, "not the small tmpfs: {bytes} bytes");
    let state = StateDir::open(Path::new("azora")).unwrap();
    state.create_identity(SEED).unwrap();
    state.save_contacts(&[contact(1)]).unwrap();
    state.save_rules(&["in allow".into()]).unwrap();
    let full = fs::write("filler", vec![0; 1 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let many: Vec<_> = (0..CONTACTS_MAX).map(contact).collect();
    for error in [state.save_contacts(&many).unwrap_err(), state.replace_identity([1; 32]).unwrap_err()] {
        assert!(error.to_string().contains("free some space"), "{error}");
    }
    assert_eq!(state.load_contacts().unwrap().contacts, [contact(1)]);
    assert_eq!(state.load_identity().unwrap().unwrap().node_id(), Identity::from_seed(SEED).node_id());
    assert_eq!(state.load_rules().unwrap(), ["in allow"]);
    assert!(!names(&state).iter().any(|name| name.ends_with(".tmp")), "half-written files are left over");
    fs::remove_file("filler").unwrap();
    state.save_contacts(&[contact(2)]).unwrap();
    assert_eq!(state.load_contacts().unwrap().contacts, [contact(2)]);
}

#[test]
fn two_writers_of_a_file_leave_one_whole() {
    let (_directory, state) = state();
    let wholes = [vec![b'a'; 1 << 16], vec![b'b'; 1 << 12]];
    std::thread::scope(|scope| {
        for whole in &wholes {
            let writer = || (0..50).try_for_each(|_| state.write("peers", whole));
            scope.spawn(move || writer().unwrap());
        }
    });
    let left = state.read("peers", 1 << 20).unwrap().unwrap();
    assert!(wholes.contains(&left), "{} bytes", left.len());
}

#[test]
fn every_failure_of_the_system_has_a_next_step() {
    for code in
        [libc::EIO, libc::ENOSPC, libc::EACCES, libc::EROFS, libc::ENOENT, libc::ENOTDIR, libc::EMFILE]
    {
        let source = std::io::Error::from_raw_os_error(code);
        let cause = source.to_string();
        let error = Error::Io { action: "write", path: "/state/peers".into(), source };
        let text = line(&error, "peers");
        assert!(text.split_once(&cause).unwrap().1.starts_with("; "), "{text}");
    }
}

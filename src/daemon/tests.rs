//! What the parts of the daemon promise that need no network.

use std::fs;
use std::sync::Arc;

use crate::config::Config;
use crate::control::message::{FirewallMatch, FirewallProtocol};
use crate::engine::WORKERS_MAX;
use crate::proto::identity::Identity;
use crate::proto::timer::WallTime;
use crate::proto::wire::announce::Announce;
use crate::proto::wire::record::{Content, NodeRecord, RECORD_TTL_MAX};
use crate::store::StateDir;

use super::discovery::is_twin;
use super::firewall::Firewall;
use super::workers::wanted;

fn tcp(port: u16) -> FirewallMatch {
    FirewallMatch { proto: Some(FirewallProtocol::Tcp), port: Some(port), peer: None }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

#[test]
fn a_twin_is_another_machine_with_our_key() {
    let announcement = |seed: u8, sequence: u64| {
        let content = Content {
            sequence,
            issued: WallTime::from_unix_ms(1),
            ttl: RECORD_TTL_MAX,
            capabilities: 0,
            endpoints: Vec::new(),
        };
        let record = NodeRecord::sign(&Identity::from_seed([seed; 32]), content);
        Announce { port: 5747, record: record.bytes() }.emit()
    };
    let us = Identity::from_seed([1; 32]).node_id();
    let (here, there) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
    let (own, last) = ([here].into(), announcement(1, 7));
    let older = announcement(1, 6);
    assert!(is_twin(&older, there, us, &own, &last));
    assert!(!is_twin(&last, there, us, &own, &last), "our own, although the address is gone");
    assert!(!is_twin(&older, here, us, &own, &last), "from this machine");
    assert!(!is_twin(&announcement(2, 6), there, us, &own, &last), "another node");
    let mut forged = older.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert!(!is_twin(&forged, there, us, &own, &last), "not signed with our key");
}

#[test]
fn a_rule_that_cannot_be_saved_is_neither_added_nor_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let state = Arc::new(StateDir::open(&path).unwrap());
    let firewall = Arc::new(Firewall::load(&Config::default(), state.clone()).unwrap());
    let added = run(firewall.clone().add(tcp(22))).unwrap();
    assert_eq!(state.load_rules().unwrap().len(), 1);
    // A directory that is gone refuses every write.
    fs::remove_dir_all(&path).unwrap();
    let (listed, enforced) = (firewall.list(), firewall.rules());
    for failure in [
        run(firewall.clone().remove(added.index)).unwrap_err(),
        run(firewall.clone().add(tcp(80))).map(|_| ()).unwrap_err(),
    ] {
        assert!(failure.message.contains("stay as they were"), "{}", failure.message);
    }
    assert_eq!((firewall.list(), firewall.rules()), (listed, enforced));
    // Adding what is there takes no disk, and tells its number.
    assert_eq!(run(firewall.clone().add(tcp(22))).unwrap(), added);
}

#[test]
fn two_cores_make_a_worker() {
    let check = |configured, cores, expected| assert_eq!(wanted(configured, cores), expected);
    check(0, 1, 1);
    check(0, 2, 1);
    check(0, 3, 1);
    check(0, 4, 2);
    check(0, 7, 3);
    check(0, 64, WORKERS_MAX);
    check(3, 1, 3);
    check(1, 64, 1);
    check(100, 1, WORKERS_MAX);
}

//! What the parts of the daemon promise that need no network.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{AllowRule, Config, Protocol};
use crate::control::message::{FirewallMatch, FirewallProtocol};
use crate::engine::WORKERS_MAX;
use crate::proto::wire::control::Contact;
use crate::store::StateDir;

use super::answers::ready_look;
use super::firewall::Firewall;
use super::saver::is_due;
use super::workers::wanted;

fn tcp(port: u16) -> FirewallMatch {
    FirewallMatch { proto: Some(FirewallProtocol::Tcp), port: Some(port), peer: None }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
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
fn a_rule_of_the_file_that_is_added_too_outlives_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let state = Arc::new(StateDir::open(&directory.path().join("state")).unwrap());
    let (mut config, nothing) = (Config::default(), Config::default());
    let rule = |port| AllowRule::new(None, Some(Protocol::Tcp), Some(port)).unwrap();
    config.policy.allow = vec![rule(22), rule(80)];
    let firewall = Arc::new(Firewall::load(&config, state.clone()).unwrap());
    let listed = firewall.list();
    let added = run(firewall.clone().add(tcp(22))).unwrap();
    assert_eq!(firewall.list(), listed, "one rule is listed once");
    assert_eq!(state.load_rules().unwrap().len(), 1, "and saved");
    run(firewall.configure(&nothing.policy));
    assert_eq!(firewall.list(), [added]);
    run(firewall.configure(&config.policy));
    assert_eq!(firewall.list()[0], added);
    let listed = firewall.list();
    config.policy.allow = vec![rule(443), rule(80), rule(22)];
    run(firewall.configure(&config.policy));
    assert!(listed.iter().all(|rule| firewall.list().contains(rule)), "what stays keeps its number");
    assert_eq!(firewall.list().len(), 3);
}

#[test]
fn a_disk_that_works_again_is_found_out() {
    let check = |known: &[Contact], failed, expected| assert_eq!(is_due(known, &[], failed), expected);
    check(&[], false, false);
    check(&[], true, true);
}

#[test]
fn readiness_is_looked_at_less_often_by_those_who_wait_for_long() {
    let check = |waited_s, ms| {
        assert_eq!(
            ready_look(Duration::from_secs(waited_s)),
            Duration::from_millis(ms),
            "after {waited_s} s"
        );
    };
    check(0, 50);
    check(2, 50);
    check(3, 500);
    check(60, 500);
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

#[test]
fn a_task_that_panics_ends_the_daemon_and_one_that_ends_does_not() {
    let mut tasks = tokio::task::JoinSet::new();
    let error = run(async {
        tasks.spawn(async {});
        tasks.spawn(async {
            tokio::task::yield_now().await;
            panic!("out of order");
        });
        super::panicked(&mut tasks).await
    });
    let told = error.to_string();
    assert!(told.starts_with("a task of the daemon has failed: ") && told.contains("out of order"), "{told}");
}

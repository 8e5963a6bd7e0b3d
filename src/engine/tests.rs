use std::io;

use tokio::sync::oneshot;

use super::cause;
use super::plane::flow;

fn packet(next_header: u8, source: u16, destination: u16) -> Vec<u8> {
    let mut packet = vec![0; 48];
    packet[6] = next_header;
    packet[40..42].copy_from_slice(&source.to_be_bytes());
    packet[42..44].copy_from_slice(&destination.to_be_bytes());
    packet
}

#[tokio::test]
async fn the_threads_tell_the_cause_though_the_control_task_has_ended_too() {
    for _ in 0..64 {
        let (failure, mut failed) = oneshot::channel();
        let mut control = tokio::spawn(async {});
        while !control.is_finished() {
            tokio::task::yield_now().await;
        }
        failure.send(io::Error::other("deleted")).unwrap();
        assert_eq!(cause(&mut failed, &mut control).await.to_string(), "deleted");
    }
}

#[test]
fn a_flow_has_one_number_in_both_directions() {
    for protocol in [6, 17] {
        assert_eq!(flow(&packet(protocol, 40_000, 80)), flow(&packet(protocol, 80, 40_000)));
        assert!(flow(&packet(protocol, 40_000, 80)).is_some());
    }
    assert_eq!(flow(&packet(58, 40_000, 80)), None, "no ports");
    assert_eq!(flow(&packet(44, 40_000, 80)), None, "a fragment");
    assert_eq!(flow(&packet(6, 40_000, 80)[..43]), None);
    assert_eq!(flow(&[]), None);
}

/// Linux gives even ports to `connect` and odd ones to `bind`, in steps of 2.
#[test]
fn ports_in_any_steps_are_spread() {
    for queues in 2..=8 {
        for step in [1, 2, 4, 256] {
            let mut seen = vec![0; queues];
            for n in 0..64 {
                seen[flow(&packet(6, 33_000 + n * step, 443)).unwrap() % queues] += 1;
            }
            let fair = 64 / queues;
            assert!(seen.iter().all(|n| (fair / 3..=fair * 2).contains(n)), "step {step}: {seen:?}");
        }
    }
}

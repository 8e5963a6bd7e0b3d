//! Tells the log what is wrong, once, and when it is over, in the words of `azora status`; and what was not let in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::answers::Answers;
use super::health::GRACE;
use super::status::REFUSED_LIFE;
use crate::config::DEFAULT_SOCKET;
use crate::control::hint::with_socket;
use crate::control::message::{Health, RefusedFlow};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(10);
/// Lines about refused flows that one look may write: peers can try as many ports as they like.
const REFUSED_A_LOOK_MAX: usize = 3;
/// Lines about refused flows in [`REFUSED_LIFE`], in which none is told twice.
const REFUSED_TOLD_MAX: usize = 128;

/// What the log knows already.
struct Watch {
    socket: PathBuf,
    /// What is wrong, by its code, and since when that is known.
    problems: BTreeMap<String, Instant>,
    /// What was not let in, and when that was told.
    refused: BTreeMap<String, Instant>,
}

/// Looks until the node has stopped. `socket` is the daemon's own, for hints.
pub(super) async fn run(answers: Arc<Answers>, socket: PathBuf) {
    let mut watch = Watch { socket, problems: BTreeMap::new(), refused: BTreeMap::new() };
    sleep(GRACE).await;
    while let Ok((health, refused)) = answers.look().await {
        watch.tell_health(&health);
        watch.tell_refused(&refused);
        sleep(LOOK).await;
    }
}

impl Watch {
    /// The text as it can be typed here.
    fn hint(&self, text: &str) -> String {
        if self.socket == Path::new(DEFAULT_SOCKET) { text.into() } else { with_socket(text, &self.socket) }
    }

    fn tell_health(&mut self, health: &[Health]) {
        let now = Instant::now();
        let mut new = None;
        for problem in health {
            if !self.problems.contains_key(&problem.code) {
                self.problems.insert(problem.code.clone(), now);
                tracing::warn!(code = problem.code, fix = self.hint(&problem.fix), "{}", problem.text);
                new.get_or_insert(problem.code.as_str());
            }
        }
        self.problems.retain(|code, since| {
            let stays = health.iter().any(|problem| problem.code == *code);
            if !stays {
                tracing::info!("{}", ended(code, now.saturating_duration_since(*since), new));
            }
            stays
        });
    }

    fn tell_refused(&mut self, refused: &[RefusedFlow]) {
        let now = Instant::now();
        self.refused.retain(|_, told| now.saturating_duration_since(*told) < REFUSED_LIFE);
        let mut peers = BTreeSet::new();
        // One of each peer first: who tries much keeps nobody else out.
        let (first, others): (Vec<_>, Vec<_>) = refused.iter().partition(|flow| peers.insert(flow.peer));
        let mut room = REFUSED_A_LOOK_MAX.min(REFUSED_TOLD_MAX - self.refused.len());
        for flow in first.into_iter().chain(others) {
            let line = flow.to_string();
            if room > 0 && !self.refused.contains_key(&line) {
                tracing::info!(packets = flow.times, fix = self.hint(&flow.fix), "not let in: {flow}");
                self.refused.insert(line, now);
                room -= 1;
            }
        }
    }
}

/// That a problem is not seen any more. With another one, seen since the same look, nothing may be over: the two can have
/// one cause.
fn ended(code: &str, lasted: Duration, new: Option<&str>) -> String {
    let s = lasted.as_secs();
    match new {
        Some(new) => format!("after {s} s another problem instead: {new}, no longer {code}"),
        None => format!("over after {s} s: {code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_over_when_another_problem_takes_its_place() {
        let lasted = Duration::from_millis(40_900);
        assert_eq!(ended("no-answer", lasted, None), "over after 40 s: no-answer");
        let replaced = ended("no-answer", lasted, Some("no-network"));
        assert!(!replaced.contains("over"), "{replaced}");
        assert_eq!(replaced, "after 40 s another problem instead: no-network, no longer no-answer");
    }
}

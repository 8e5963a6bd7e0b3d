//! Tells the log what is wrong, once, and when it is over, in the words of `azora status`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::answers::Answers;
use super::health::GRACE;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(10);

/// Looks until the node has stopped.
pub(super) async fn run(answers: Arc<Answers>) {
    let mut told = BTreeMap::new();
    sleep(GRACE).await;
    while let Ok(health) = answers.health().await {
        for problem in &health {
            if told.insert(problem.code.clone(), problem.text.clone()).is_none() {
                tracing::warn!(code = problem.code, fix = problem.fix, "{}", problem.text);
            }
        }
        told.retain(|code, text| {
            let stays = health.iter().any(|problem| problem.code == *code);
            if !stays {
                tracing::info!(code, "over: {text}");
            }
            stays
        });
        sleep(LOOK).await;
    }
}

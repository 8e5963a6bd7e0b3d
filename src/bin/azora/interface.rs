//! `azora up`, `azora down`, `azora wait`.

use std::path::Path;
use std::time::Duration;

use auramesh::control::WAIT_TIMEOUT_MAX;
use auramesh::control::client::{self, Client};
use auramesh::control::exit::Exit;
use auramesh::control::message::Readiness;

use crate::args::Format;
use crate::output::{Fault, Outcome, joined, print, print_json};
use crate::socket::Socket;

/// Pause before asking again for a daemon that is not there yet.
const RETRY: Duration = Duration::from_millis(200);
/// One request of a wait; short, so that a daemon that goes away is noticed.
const WAIT_STEP: Duration = Duration::from_secs(10);
const _: () = assert!(WAIT_STEP.as_millis() <= WAIT_TIMEOUT_MAX.as_millis());

pub(crate) async fn up(socket: &Socket) -> Outcome {
    socket.connect().await?.up().await?;
    print("the interface is up\n")?;
    Ok(Exit::Ok)
}

pub(crate) async fn down(socket: &Socket) -> Outcome {
    socket.connect().await?.down().await?;
    print(&socket.hint("the interface is down; `azora up` brings it back\n"))?;
    Ok(Exit::Ok)
}

pub(crate) async fn wait(socket: &Socket, limit: Duration, format: Format) -> Outcome {
    let path = socket.path()?;
    let waiting = async {
        loop {
            match ask(path).await {
                Ok(readiness) if readiness.ready => return Ok(readiness),
                Ok(_) => {}
                Err(error @ client::Error::NotPermitted { .. }) => return Err(error),
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    };
    let readiness = match tokio::time::timeout(limit, waiting).await {
        Ok(outcome) => outcome?,
        // Not the last answer: a daemon that came up meanwhile may not have given any.
        Err(_) => current(socket).await?,
    };
    if format.json {
        print_json(&readiness)?;
    }
    if readiness.ready {
        if !format.json {
            print("ready\n")?;
        }
        return Ok(Exit::Ok);
    }
    let missing = joined(&readiness.missing);
    Err(Fault::failed(
        format!("not ready after {} s: {missing}", limit.as_secs_f64()),
        "look at `azora status`, or wait longer with --timeout",
    ))
}

async fn ask(socket: &Path) -> Result<Readiness, client::Error> {
    Client::connect(socket).await?.wait(WAIT_STEP.as_millis() as u64).await
}

/// What is so at this moment.
pub(crate) async fn current(socket: &Socket) -> Result<Readiness, Fault> {
    Ok(socket.connect().await?.wait(0).await?)
}

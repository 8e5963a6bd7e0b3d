//! One stream: datagrams between the node and a WebSocket, until one of both ends or a deadline passes.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::Shell;
use super::counters::add;
use super::loopback::Socket;
use super::places::Place;
use super::queue::Queue;
use crate::proto::wire::envelope::RecipientKey;
use crate::proto::wire::stream::Datagrams;

/// A stream whose first message does not come within this time ends.
pub(super) const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// And one to which the node has not answered: nobody there has authenticated.
pub(super) const FIRST_ANSWER: Duration = Duration::from_secs(15);
/// A stream by which nothing comes for this long ends. Relays are pinged every 20 s.
pub(super) const IDLE: Duration = Duration::from_secs(90);
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// Turns before other streams have theirs.
const TURNS_MAX: usize = 16;
/// Messages in one turn in each direction.
const MESSAGES_MAX: usize = 32;

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// One side wanted it so, or there was no place for it any more.
    Closed,
    /// The connection failed.
    Broken,
    /// Nothing came in time.
    TimedOut,
    /// What came is none of ours.
    Malformed,
}

/// A WebSocket, and the key of the node that takes streams.
pub(super) struct Connection<S> {
    pub(super) socket: WebSocketStream<S>,
    pub(super) key: RecipientKey,
}

pub(super) struct Pump<'a, S> {
    shell: &'a Shell,
    connection: Connection<S>,
    node: &'a Socket,
    /// Of a stream that others opened.
    place: Option<Place>,
    queue: Queue,
    opened: Instant,
    received: Option<Instant>,
    answered: bool,
    deadline: Pin<Box<Sleep>>,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Pump<'a, S> {
    pub(super) fn new(
        shell: &'a Shell,
        connection: Connection<S>,
        node: &'a Socket,
        place: Option<Place>,
    ) -> Self {
        let opened = Instant::now();
        let deadline = Box::pin(sleep_until(opened + FIRST_MESSAGE));
        let (queue, received, answered) = (Queue::default(), None, false);
        Self { shell, connection, node, place, queue, opened, received, answered, deadline }
    }

    /// Runs until the end, or until `hung_up`.
    pub(super) async fn run(mut self, hung_up: oneshot::Receiver<()>) -> End {
        let end = tokio::select! {
            end = poll_fn(|cx| self.poll(cx)) => end,
            _ = hung_up => End::Closed,
        };
        let _ = timeout(GOODBYE, self.connection.socket.close(None)).await;
        end
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        for _ in 0..TURNS_MAX {
            match self.turn(cx) {
                Ok(true) => {}
                Ok(false) => return self.poll_deadline(cx),
                Err(end) => return Poll::Ready(end),
            }
        }
        cx.waker().wake_by_ref();
        self.poll_deadline(cx)
    }

    /// True when something was moved.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let from_node = self.take_from_node(cx)?;
        let sent = self.send(cx)?;
        let received = self.receive(cx)?;
        Ok(from_node | sent | received)
    }

    fn take_from_node(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let (queue, key) = (&mut self.queue, &self.connection.key);
        let (now, mut bytes_sent) = (Instant::now(), 0);
        let taken =
            self.node.poll_receive(&mut self.shell.buffers.borrow_mut(), cx, |datagram_len, bytes| {
                let mut message = Vec::with_capacity(bytes.len() + 2);
                Datagrams { datagram_len, bytes }.emit(key, &mut message);
                if !message.is_empty() {
                    bytes_sent += bytes.len() as u64;
                    queue.push(now, message.into());
                }
            });
        if bytes_sent > 0 {
            add(&self.shell.counters.sent_bytes, bytes_sent);
            if !std::mem::replace(&mut self.answered, true)
                && let Some(place) = &self.place
            {
                place.prove();
            }
        }
        taken.map_err(|_| End::Broken)
    }

    fn send(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut sent = false;
        let socket = &mut self.connection.socket;
        for _ in 0..MESSAGES_MAX {
            match Pin::new(&mut *socket).poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(end_of(&error)),
                Poll::Pending => break,
            }
            let Some(message) = self.queue.pop(Instant::now()) else {
                // Answers to pings, too, wait for this.
                if let Poll::Ready(Err(error)) = Pin::new(&mut *socket).poll_flush(cx) {
                    return Err(end_of(&error));
                }
                break;
            };
            Pin::new(&mut *socket).start_send(Message::Binary(message)).map_err(|error| end_of(&error))?;
            sent = true;
        }
        let dropped = self.queue.take_dropped();
        if dropped > 0 {
            add(&self.shell.counters.dropped, dropped);
        }
        Ok(sent)
    }

    fn receive(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut received = false;
        for _ in 0..MESSAGES_MAX {
            let message = match Pin::new(&mut self.connection.socket).poll_next(cx) {
                Poll::Ready(Some(Ok(message))) => message,
                Poll::Ready(Some(Err(error))) => return Err(end_of(&error)),
                Poll::Ready(None) => return Err(End::Closed),
                Poll::Pending => break,
            };
            received = true;
            match message {
                Message::Binary(message) => {
                    let parsed = Datagrams::parse(&self.connection.key, &message);
                    let Datagrams { datagram_len, bytes } = parsed.map_err(|_| End::Malformed)?;
                    self.received = Some(Instant::now());
                    add(&self.shell.counters.received_bytes, bytes.len() as u64);
                    self.node.send(&mut self.shell.buffers.borrow_mut(), datagram_len, bytes);
                }
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Close(_) => return Err(End::Closed),
                Message::Text(_) | Message::Frame(_) => return Err(End::Malformed),
            }
        }
        Ok(received)
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        while self.deadline.as_mut().poll_is_over(cx) {
            let idle = self.received.map_or(self.opened + FIRST_MESSAGE, |at| at + IDLE);
            let owed = (self.place.is_some() && !self.answered).then_some(self.opened + FIRST_ANSWER);
            let due = owed.map_or(idle, |owed| owed.min(idle));
            if due <= Instant::now() {
                return Poll::Ready(End::TimedOut);
            }
            self.deadline.as_mut().reset(due);
        }
        Poll::Pending
    }
}

trait PollIsOver {
    fn poll_is_over(self, cx: &mut Context<'_>) -> bool;
}

impl PollIsOver for Pin<&mut Sleep> {
    fn poll_is_over(self, cx: &mut Context<'_>) -> bool {
        Future::poll(self, cx).is_ready()
    }
}

fn end_of(error: &Error) -> End {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => End::Closed,
        Error::Capacity(_) | Error::Protocol(_) | Error::Utf8(_) => End::Malformed,
        Error::Io(_)
        | Error::Tls(_)
        | Error::WriteBufferFull(_)
        | Error::AttackAttempt
        | Error::Url(_)
        | Error::Http(_)
        | Error::HttpFormat(_) => End::Broken,
    }
}

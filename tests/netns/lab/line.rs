//! A cable with distance: frames arrive late, out of order or not at all, as a seed says.
//!
//! Each end is a TAP device where a veth's would be. What goes in at one comes out of the other when it is due, on a
//! thread of its own.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::lab::{Random, inside};

/// Frames in the air in one direction; more are dropped.
const FRAMES_MAX: usize = 10_000;
const FRAME_BYTES: usize = 1 << 16;
/// Frames taken at one end before the other has its turn.
const FRAMES_PER_TURN: usize = 64;
/// How soon the thread sees that it is to end.
const TURN_MAX: Duration = Duration::from_millis(20);

/// What a cable does to each direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// Every frame takes at least this long.
    pub(crate) delay: Duration,
    /// Up to this much longer, uniformly; frames stay in order.
    pub(crate) jitter: Duration,
    /// The share of frames held back by `held` more, so that those behind overtake.
    pub(crate) late: f64,
    pub(crate) held: Duration,
    /// The share of frames lost, below 1.
    pub(crate) loss: f64,
    /// How many are lost in a row on average, at least 1 (Gilbert's model). Independent losses have 1 / (1 - loss).
    pub(crate) burst: f64,
}

impl Weather {
    /// Nothing happens to anything.
    pub(crate) const CLEAR: Self = Self {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        late: 0.0,
        held: Duration::ZERO,
        loss: 0.0,
        burst: 1.0,
    };
}

/// Carries frames until it is dropped.
pub(crate) struct Line {
    weather: Arc<Mutex<Weather>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Line {
    /// Makes both ends, each a namespace and a name in it; they are down.
    pub(crate) fn new(ends: [(&str, &str); 2], weather: Weather, seed: u64) -> Self {
        let taps = ends.map(|(netns, name)| {
            inside(netns, || {
                let tap =
                    DeviceBuilder::new().name(name).layer(Layer::L2).enable(false).build_sync().unwrap();
                tap.set_nonblocking(true).unwrap();
                tap
            })
        });
        let weather = Arc::new(Mutex::new(weather));
        let stop = Arc::new(AtomicBool::new(false));
        let (now, ended) = (Arc::clone(&weather), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut ways = [Way::new(seed), Way::new(!seed)];
            while !ended.load(Ordering::Relaxed) {
                let weather = *now.lock().unwrap_or_else(PoisonError::into_inner);
                // A device ends with its namespace.
                if carry(&taps, &mut ways, weather).is_err() {
                    return;
                }
            }
        });
        Self { weather, stop, thread: Some(thread) }
    }

    /// From now on something else happens to frames that come in.
    pub(crate) fn change(&self, weather: Weather) {
        *self.weather.lock().unwrap_or_else(PoisonError::into_inner) = weather;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends what is due, then takes what comes until the next is.
fn carry(taps: &[SyncDevice; 2], ways: &mut [Way; 2], weather: Weather) -> io::Result<()> {
    let mut wait = TURN_MAX;
    for (way, to) in ways.iter_mut().zip([&taps[1], &taps[0]]) {
        wait = wait.min(way.deliver(to));
    }
    let mut ready = taps.each_ref().map(|tap| PollFd::new(tap.as_fd(), PollFlags::POLLIN));
    match ppoll(&mut ready, Some(TimeSpec::from_duration(wait)), None) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    for (way, from) in ways.iter_mut().zip(taps) {
        way.take(from, weather)?;
    }
    Ok(())
}

/// One direction of a line.
struct Way {
    /// When due, which in order, and what.
    air: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    count: u64,
    /// The newest time at which a frame that keeps the order is due.
    last: Instant,
    random: Random,
    /// Frames are being lost.
    bad: bool,
}

impl Way {
    fn new(seed: u64) -> Self {
        Self { air: BinaryHeap::new(), count: 0, last: Instant::now(), random: Random::new(seed), bad: false }
    }

    /// Sends what is due; the time to the next.
    fn deliver(&mut self, to: &SyncDevice) -> Duration {
        while let Some(Reverse((due, ..))) = self.air.peek() {
            let left = due.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return left;
            }
            if let Some(Reverse((.., frame))) = self.air.pop() {
                // An interface that is down takes nothing.
                let _ = to.send(&frame);
            }
        }
        Duration::MAX
    }

    fn take(&mut self, from: &SyncDevice, weather: Weather) -> io::Result<()> {
        let mut buffer = [0; FRAME_BYTES];
        for _ in 0..FRAMES_PER_TURN {
            match from.recv(&mut buffer) {
                Ok(length) => self.schedule(&buffer[..length], weather),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn schedule(&mut self, frame: &[u8], weather: Weather) {
        let now = Instant::now();
        let mut due = now + weather.delay;
        if !finds_neighbours(frame) {
            // Every frame draws as often, so that its fate depends on its number only.
            let [turn, jitter, late] = std::array::from_fn(|_| self.random.share());
            let recovers = 1.0 / weather.burst;
            let turns = if self.bad { recovers } else { recovers * weather.loss / (1.0 - weather.loss) };
            self.bad ^= turn < turns;
            if self.bad || self.air.len() >= FRAMES_MAX {
                return;
            }
            due = self.last.max(due + weather.jitter.mul_f64(jitter));
            if late < weather.late {
                due += weather.held;
            } else {
                self.last = due;
            }
        }
        self.count += 1;
        self.air.push(Reverse((due, self.count, frame.to_vec())));
    }
}

/// ARP and neighbour discovery: without them there would be no link, and the kernel repeats them after a second only.
fn finds_neighbours(frame: &[u8]) -> bool {
    const ICMPV6: u8 = 58;
    match frame.get(12..14) {
        Some([0x08, 0x06]) => true,
        Some([0x86, 0xdd]) => {
            frame.get(20) == Some(&ICMPV6) && frame.get(54).is_some_and(|kind| (133..=137).contains(kind))
        }
        _ => false,
    }
}

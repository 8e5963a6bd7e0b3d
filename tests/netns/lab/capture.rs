//! Frames of one interface, taken by a raw socket.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::lab::inside;

const BUFFER_BYTES: usize = 32 << 20;
const FRAME_BYTES: usize = 1 << 16;

/// One frame from the link layer up; without a link layer (a TUN) from the IP header up.
pub(crate) type Frame = Vec<u8>;

/// A capture that runs until it is stopped or dropped.
pub(crate) struct Capture {
    frames: Arc<Mutex<Vec<Frame>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts on one interface of a namespace.
    pub(crate) fn start(netns: &str, interface: &str) -> Self {
        let frames = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, ended) = (Arc::clone(&frames), Arc::clone(&stop));
        let thread = inside(netns, || {
            let index = nix::net::if_::if_nametoindex(interface).unwrap() as usize;
            let raw =
                socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
                    .unwrap();
            setsockopt(&raw, RcvBufForce, &BUFFER_BYTES).unwrap();
            setsockopt(&raw, ReceiveTimeout, &TimeVal::milliseconds(20)).unwrap();
            std::thread::spawn(move || {
                let mut buffer = vec![0; FRAME_BYTES];
                while !ended.load(Ordering::Relaxed) {
                    match recvfrom::<LinkAddr>(raw.as_raw_fd(), &mut buffer) {
                        Ok((length, Some(from))) if from.ifindex() == index => {
                            seen.lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .push(buffer[..length].to_vec());
                        }
                        Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                        Err(error) => panic!("capture: {error}"),
                    }
                }
            })
        });
        Self { frames, stop, thread: Some(thread) }
    }

    /// Ends the capture, after what is in flight had time to arrive.
    pub(crate) fn stop(mut self) -> Vec<Frame> {
        std::thread::sleep(Duration::from_millis(50));
        self.end();
        std::mem::take(&mut *self.frames.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

/// A UDP datagram out of an Ethernet frame, unless it is a fragment or something else.
pub(crate) struct Datagram<'a> {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) source: &'a [u8],
    pub(crate) payload: &'a [u8],
}

/// Reads Ethernet, IPv4 or IPv6 without options, and UDP.
pub(crate) fn datagram(frame: &[u8]) -> Option<Datagram<'_>> {
    const UDP: u8 = 17;
    let (source, udp) = match frame.get(12..14)? {
        [0x08, 0x00] if *frame.get(23)? == UDP => (frame.get(26..30)?, frame.get(34..)?),
        [0x86, 0xdd] if *frame.get(20)? == UDP => (frame.get(22..38)?, frame.get(54..)?),
        _ => return None,
    };
    let number = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
    let length = usize::from(number(4)?);
    Some(Datagram {
        source_port: number(0)?,
        destination_port: number(2)?,
        source,
        payload: udp.get(8..length.min(udp.len()))?,
    })
}

/// Whether `needle` occurs anywhere in `haystack`.
pub(crate) fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

//! A link between two network namespaces that delays, loses and repeats packets as it is told, and
//! that is also the judge: it sees every IP packet of every protocol, TCP's set-up included.
//!
//! Each namespace has a TUN device; what the one kernel sends through its device, the relay hands to
//! the other kernel, late or never. The conditions are applied by [`Queue`], which does no I/O and has no
//! clock; [`Emulator`] is the thread, the devices and the namespaces around it.
//!
//! # What is counted
//!
//! A *packet* is one IPv4 packet as its sender's kernel hands it to the device; its *IP bytes* are its
//! whole length, IP header included. What is lost on the way has been sent, and counts. Copies that the
//! link makes do not.
//!
//! A packet *informs* when it tells its receiver something new: a SYN or SYN/ACK that was not sent
//! before, TCP bytes beyond all that were sent before, a datagram whose bytes were not sent before. A
//! repetition, a FIN and a pure ACK do not; a repetition belongs to the flight of what it repeats.
//!
//! A *flight* is what one side can send without hearing from the other. Its number is one more than the
//! highest flight of which a packet had been delivered to the sender by then; the first is
//! number 1. So a flight is a step of the longest chain in which each side waits for the other, and
//! nothing that both send at the same time makes the chain longer. The number of flights of an exchange is
//! the number of the flight that carries the confirmation; two flights are a *round trip*.
//!
//! A pure ACK is counted as a packet. It is a flight only when the other side waited for it: when that side
//! goes on with something new after the ACK's delivery, has been silent for a round trip (or 5 ms, whichever is
//! longer) before, and has heard nothing else since.
//!
//! A protocol that numbers its repetitions anew, as Duet's records and DTLS do, seems to say something new
//! with each. That adds no flight, but flights are quoted from exchanges in which nothing was lost.

mod capture;
mod dissect;
mod emulator;
mod judge;
mod namespace;
mod packet;
mod queue;
mod tun;

pub use capture::{Crossing, Totals};
pub use dissect::Speech;
pub use emulator::{Emulator, Lateness};
pub use judge::{Flights, Step, Verdict, judge};
pub use namespace::Namespace;
pub use queue::{Conditions, Delivery, Queue};

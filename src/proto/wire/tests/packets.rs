//! Inner packets made by another implementation than the one that reads them.

use std::net::Ipv6Addr;

use etherparse::{
    Icmpv6Type, IpFragOffset, IpHeaders, IpNumber, Ipv6Extensions, Ipv6FragmentHeader, Ipv6Header,
    Ipv6RawExtHeader, PacketBuilder, PacketBuilderStep,
};

pub(super) const SOURCE: Ipv6Addr = Ipv6Addr::new(0x600, 0, 0, 0, 0, 0, 0, 1);
pub(super) const DESTINATION: Ipv6Addr = Ipv6Addr::new(0x6ab, 0, 0, 0, 0, 0, 0, 2);

/// The extension headers of a packet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chain {
    pub(super) hop_by_hop: bool,
    pub(super) destination_options: bool,
    /// Offset in bytes (a multiple of 8), more fragments, identification.
    pub(super) fragment: Option<(u16, bool, u32)>,
}

impl Chain {
    fn headers(self) -> Ipv6Extensions {
        // PadN (RFC 8200 §4.2): an option of four zeros.
        let options = || Ipv6RawExtHeader::new_raw(IpNumber::TCP, &[1, 4, 0, 0, 0, 0]).unwrap();
        Ipv6Extensions {
            hop_by_hop_options: self.hop_by_hop.then(options),
            destination_options: self.destination_options.then(options),
            routing: None,
            fragment: self.fragment.map(|(offset, more, id)| {
                let offset = IpFragOffset::try_new(offset / 8).unwrap();
                Ipv6FragmentHeader::new(IpNumber::TCP, offset, more, id)
            }),
            auth: None,
        }
    }

    fn builder(self, source: Ipv6Addr, destination: Ipv6Addr) -> PacketBuilderStep<IpHeaders> {
        let header = Ipv6Header {
            source: source.octets(),
            destination: destination.octets(),
            hop_limit: 64,
            ..Ipv6Header::default()
        };
        PacketBuilder::ip(IpHeaders::Ipv6(header, self.headers()))
    }

    pub(super) fn udp(self, source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let builder = self.builder(SOURCE, DESTINATION).udp(source_port, destination_port);
        builder.write(&mut out, payload).unwrap();
        out
    }

    pub(super) fn tcp(self, ports: (u16, u16), syn: bool, ack: bool, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut builder = self.builder(SOURCE, DESTINATION).tcp(ports.0, ports.1, 1, 1024);
        if syn {
            builder = builder.syn();
        }
        if ack {
            builder = builder.ack(9);
        }
        builder.write(&mut out, payload).unwrap();
        out
    }

    pub(super) fn icmp(self, message: Icmpv6Type, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        self.builder(SOURCE, DESTINATION).icmpv6(message).write(&mut out, payload).unwrap();
        out
    }
}

/// A UDP packet between other addresses.
pub(super) fn udp_between(source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let mut out = Vec::new();
    Chain::default().builder(source, destination).udp(1, 2).write(&mut out, &[0; 32]).unwrap();
    out
}

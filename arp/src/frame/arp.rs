//! ARP (RFC 826, RFC 5227).

use std::net::Ipv4Addr;

use pnet::packet::arp::{ArpHardwareTypes, ArpOperations, ArpPacket, MutableArpPacket};
use pnet::packet::ethernet::EtherTypes;

use super::{ARP, Ethernet, FrameError};
use crate::MacAddr;

/// What an ARP packet does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Asks, or announces.
    Request,
    /// Answers.
    Reply,
}

/// An ARP packet of Ethernet and IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// What it does.
    pub operation: Operation,
    /// Sender hardware address.
    pub sender_mac: MacAddr,
    /// Sender protocol address; 0.0.0.0 in a probe.
    pub sender: Ipv4Addr,
    /// Target hardware address; meaningless in a request.
    pub target_mac: MacAddr,
    /// Target protocol address.
    pub target: Ipv4Addr,
}

impl Arp {
    /// Asks whether anybody has `target`, without claiming it (RFC 5227 1.1).
    /// The sender address 0 leaves every neighbour table as it is.
    pub fn probe(mac: MacAddr, target: Ipv4Addr) -> Self {
        Self {
            operation: Operation::Request,
            sender_mac: mac,
            sender: Ipv4Addr::UNSPECIFIED,
            target_mac: MacAddr::zero(),
            target,
        }
    }

    /// Tells that `mac` has `address` (RFC 5227 1.1): a *request*, because
    /// every Linux takes it at once, while a broadcast reply is ignored for a
    /// second after the last change.
    pub fn announcement(mac: MacAddr, address: Ipv4Addr) -> Self {
        Self {
            sender: address,
            ..Self::probe(mac, address)
        }
    }

    /// The answer to a request: `mac` has what was asked for (RFC 826).
    pub fn answer(&self, mac: MacAddr) -> Self {
        Self {
            operation: Operation::Reply,
            sender_mac: mac,
            sender: self.target,
            target_mac: self.sender_mac,
            target: self.sender,
        }
    }

    /// Whether it is a probe.
    pub fn is_probe(&self) -> bool {
        self.operation == Operation::Request && self.sender.is_unspecified()
    }

    /// Parses an Ethernet payload. Bytes after the packet are padding.
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let packet = ArpPacket::new(payload).ok_or(FrameError::Truncated)?;
        if packet.get_hardware_type() != ArpHardwareTypes::Ethernet
            || packet.get_protocol_type() != EtherTypes::Ipv4
            || packet.get_hw_addr_len() != 6
            || packet.get_proto_addr_len() != 4
        {
            return Err(FrameError::ArpFormat);
        }
        let operation = match packet.get_operation() {
            ArpOperations::Request => Operation::Request,
            ArpOperations::Reply => Operation::Reply,
            _ => return Err(FrameError::ArpOperation),
        };
        let sender_mac = packet.get_sender_hw_addr();
        if sender_mac.is_multicast() || sender_mac.is_zero() {
            return Err(FrameError::ArpSender);
        }
        Ok(Self {
            operation,
            sender_mac,
            sender: packet.get_sender_proto_addr(),
            target_mac: packet.get_target_hw_addr(),
            target: packet.get_target_proto_addr(),
        })
    }

    /// The whole frame: a request to all, a reply to its target.
    pub fn frame(&self) -> Vec<u8> {
        let mut payload = [0; 28];
        if let Some(mut packet) = MutableArpPacket::new(&mut payload) {
            packet.set_hardware_type(ArpHardwareTypes::Ethernet);
            packet.set_protocol_type(EtherTypes::Ipv4);
            packet.set_hw_addr_len(6);
            packet.set_proto_addr_len(4);
            packet.set_operation(match self.operation {
                Operation::Request => ArpOperations::Request,
                Operation::Reply => ArpOperations::Reply,
            });
            packet.set_sender_hw_addr(self.sender_mac);
            packet.set_sender_proto_addr(self.sender);
            packet.set_target_hw_addr(self.target_mac);
            packet.set_target_proto_addr(self.target);
        }
        let destination = match self.operation {
            Operation::Request => MacAddr::broadcast(),
            Operation::Reply => self.target_mac,
        };
        Ethernet {
            destination,
            source: self.sender_mac,
            ethertype: ARP,
            payload: &payload,
        }
        .encode()
    }
}

//! Which addresses may be dialled: classes and CIDRs, judged on the address itself, with IPv4 inside IPv6 unwrapped.

use std::fmt;
use std::net::IpAddr;

/// One rule of `egress.deny` or `allow_addresses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressRule {
    /// 127.0.0.0/8, ::1, 0.0.0.0/8 and ::.
    Loopback,
    /// 169.254.0.0/16 and fe80::/10.
    LinkLocal,
    /// The addresses at which clouds serve instance metadata.
    Metadata,
    /// RFC 1918 and fc00::/7.
    Private,
    /// 100.64.0.0/10 (RFC 6598).
    Cgnat,
    /// 224.0.0.0/4, ff00::/8 and the broadcast address.
    Multicast,
    /// Everything that the IANA special-purpose registries name.
    AllSpecial,
    /// A range.
    Cidr(ipnet::IpNet),
}

impl AddressRule {
    /// The classes by name, for "did you mean".
    pub const CLASSES: &[&str] =
        &["loopback", "link_local", "metadata", "private", "cgnat", "multicast", "all_special"];

    /// Parses a class, an address or a CIDR.
    ///
    /// # Errors
    /// A sentence that says what would be right.
    pub fn parse(_text: &str) -> Result<AddressRule, String> {
        todo!()
    }
}

/// A set of rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressSet(pub Vec<AddressRule>);

impl AddressSet {
    /// The first rule that covers the address, or an IPv4 address inside it (mapped, NAT64, 6to4, Teredo).
    pub fn judge(&self, ip: IpAddr) -> Option<&AddressRule> {
        let ip = ip.to_canonical();
        self.0.iter().find(|rule| match rule {
            AddressRule::Loopback => ip.is_loopback() || ip.is_unspecified(),
            AddressRule::Cidr(net) => net.contains(&ip),
            AddressRule::LinkLocal
            | AddressRule::Metadata
            | AddressRule::Private
            | AddressRule::Cgnat
            | AddressRule::Multicast
            | AddressRule::AllSpecial => false,
        })
    }
}

/// As the configuration writes it.
impl fmt::Display for AddressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AddressRule::Loopback => f.write_str("loopback"),
            AddressRule::LinkLocal => f.write_str("link_local"),
            AddressRule::Metadata => f.write_str("metadata"),
            AddressRule::Private => f.write_str("private"),
            AddressRule::Cgnat => f.write_str("cgnat"),
            AddressRule::Multicast => f.write_str("multicast"),
            AddressRule::AllSpecial => f.write_str("all_special"),
            AddressRule::Cidr(net) => net.fmt(f),
        }
    }
}

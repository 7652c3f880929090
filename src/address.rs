//! Which addresses may be dialled: classes and CIDRs, judged on the address itself, with IPv4 inside IPv6 unwrapped.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

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
    Cidr(IpNet),
}

impl AddressRule {
    /// The classes by name, for "did you mean".
    pub const CLASSES: &[&str] =
        &["loopback", "link_local", "metadata", "private", "cgnat", "multicast", "all_special"];

    /// Parses a class, an address or a CIDR.
    ///
    /// # Errors
    /// A sentence that says what would be right.
    pub fn parse(text: &str) -> Result<AddressRule, String> {
        let rule = match text {
            "loopback" => AddressRule::Loopback,
            "link_local" => AddressRule::LinkLocal,
            "metadata" => AddressRule::Metadata,
            "private" => AddressRule::Private,
            "cgnat" => AddressRule::Cgnat,
            "multicast" => AddressRule::Multicast,
            "all_special" => AddressRule::AllSpecial,
            _ => {
                let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
                match (text.parse::<IpNet>(), bare.parse::<IpAddr>()) {
                    (Ok(net), _) => AddressRule::Cidr(unmapped(net.trunc())),
                    (Err(_), Ok(ip)) => AddressRule::Cidr(IpNet::from(ip.to_canonical())),
                    (Err(_), Err(_)) => {
                        let classes = AddressRule::CLASSES.join(", ");
                        return Err(format!(
                            "`{text}` is not an address, a CIDR such as 10.0.0.0/8, or one of {classes}"
                        ));
                    }
                }
            }
        };
        Ok(rule)
    }

    /// Whether the rule covers the address as it stands.
    fn covers(&self, ip: IpAddr) -> bool {
        match (self, ip) {
            (AddressRule::Cidr(net), ip) => net.contains(&ip),
            (AddressRule::Loopback, IpAddr::V4(ip)) => ip.is_loopback() || ip.octets()[0] == 0,
            (AddressRule::Loopback, IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unspecified(),
            (AddressRule::LinkLocal, IpAddr::V4(ip)) => ip.is_link_local(),
            (AddressRule::LinkLocal, IpAddr::V6(ip)) => ip.is_unicast_link_local(),
            (AddressRule::Metadata, IpAddr::V4(ip)) => METADATA_V4.contains(&ip),
            (AddressRule::Metadata, IpAddr::V6(ip)) => METADATA_V6.contains(&ip),
            (AddressRule::Private, IpAddr::V4(ip)) => ip.is_private(),
            (AddressRule::Private, IpAddr::V6(ip)) => ip.is_unique_local(),
            (AddressRule::Cgnat, IpAddr::V4(ip)) => ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64,
            (AddressRule::Cgnat, IpAddr::V6(_)) => false,
            (AddressRule::Multicast, IpAddr::V4(ip)) => ip.is_multicast() || ip.is_broadcast(),
            (AddressRule::Multicast, IpAddr::V6(ip)) => ip.is_multicast(),
            (AddressRule::AllSpecial, IpAddr::V4(ip)) => {
                let ip = u32::from(ip);
                SPECIAL_V4.iter().any(|(net, length)| in_v4(ip, *net, *length))
            }
            (AddressRule::AllSpecial, IpAddr::V6(ip)) => {
                let ip = u128::from(ip);
                // Global unicast is 2000::/3; nothing else is assigned to the public, and parts of it are special too.
                ip >> 125 != 1 || SPECIAL_V6.iter().any(|(net, length)| ip >> (128 - length) == net >> (128 - length))
            }
        }
    }
}

/// Where clouds serve what identifies an instance, mostly its credentials. Most are link-local too; that they are named here
/// keeps `allow_addresses: [link_local]` from opening them.
const METADATA_V4: [Ipv4Addr; 9] = [
    // AWS, Google Cloud, Azure, Oracle, OpenStack and most others.
    Ipv4Addr::new(169, 254, 169, 254),
    // AWS: the credentials of ECS tasks and of EKS pods.
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
    // Azure's wire server, which is no special address at all.
    Ipv4Addr::new(168, 63, 129, 16),
    // Alibaba Cloud.
    Ipv4Addr::new(100, 100, 100, 200),
    // Tencent Cloud, both.
    Ipv4Addr::new(169, 254, 0, 23),
    Ipv4Addr::new(169, 254, 10, 10),
    // Scaleway.
    Ipv4Addr::new(169, 254, 42, 42),
    // Oracle Cloud Classic.
    Ipv4Addr::new(192, 0, 0, 192),
];
/// The same over IPv6.
const METADATA_V6: [Ipv6Addr; 8] = [
    // AWS, and there the credentials of EKS pods.
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    // Google Cloud.
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    // Oracle Cloud.
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    // Alibaba Cloud.
    Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0x100, 0x200),
    // OpenStack.
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    // Akamai (Linode).
    Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1),
    // Scaleway.
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
];

/// The IANA IPv4 special-purpose registry, with multicast and the reserved block. The two addresses of 192.0.0.0/24 and the
/// anycast blocks that are globally reachable are special all the same.
const SPECIAL_V4: [([u8; 4], u32); 16] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 31, 196, 0], 24),
    ([192, 52, 193, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([192, 175, 48, 0], 24),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
];
/// 224.0.0.0/3: multicast, reserved and broadcast.
const FROM_MULTICAST_V4: u32 = 0xe000_0000;

/// The parts of 2000::/3 that the IANA IPv6 special-purpose registry names.
const SPECIAL_V6: [(u128, u32); 5] = [
    (0x2001_0000 << 96, 23),
    (0x2001_0db8 << 96, 32),
    (0x2002_0000 << 96, 16),
    (0x2620_004f_8000 << 80, 48),
    (0x3fff_0000 << 96, 20),
];

fn in_v4(ip: u32, net: [u8; 4], length: u32) -> bool {
    ip >= FROM_MULTICAST_V4 || ip >> (32 - length) == u32::from_be_bytes(net) >> (32 - length)
}

/// The IPv4 addresses that an IPv6 address leads to: mapped and compatible (RFC 4291), translated (RFC 2765), NAT64
/// (RFC 6052, RFC 8215), 6to4 (RFC 3056), ISATAP (RFC 5214), and of Teredo (RFC 4380) both the server and the client, whose
/// address is written inverted.
fn inside(ip: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let bits = u128::from(ip);
    let at = |shift: u32| Some(Ipv4Addr::from((bits >> shift) as u32));
    let found = match ip.segments() {
        // :: and ::1 are addresses of their own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => [None; 4],
        [0, 0, 0, 0, 0, 0 | 0xffff, _, _] | [0, 0, 0, 0, 0xffff, 0, _, _] | [0x64, 0xff9b, 0 | 1, 0, 0, 0, _, _] => {
            [at(0), None, None, None]
        }
        [0x64, 0xff9b, 1, ..] => local_nat64(bits),
        [0x2002, ..] => [at(80), None, None, None],
        [0x2001, 0, ..] => [at(64), Some(Ipv4Addr::from(!(bits as u32))), None, None],
        [_, _, _, _, 0 | 0x200, 0x5efe, _, _] => [at(0), None, None, None],
        _ => [None; 4],
    };
    found.into_iter().flatten()
}

/// Inside 64:ff9b:1::/48 a network may cut its prefix after 48, 56, 64 or 96 bits, and the shorter three leave out the octet
/// in the middle (RFC 6052 section 2.2). Which one it is can't be seen, so all of them count. What reads as 0.0.0.0/8 is the
/// padding of another cut.
fn local_nat64(bits: u128) -> [Option<Ipv4Addr>; 4] {
    let without_middle = bits >> 64 << 56 | bits & ((1 << 56) - 1);
    [bits, without_middle >> 40, without_middle >> 32, without_middle >> 24]
        .map(|bits| Some(Ipv4Addr::from(bits as u32)).filter(|ip| ip.octets()[0] != 0))
}

/// A range of IPv4 that is written in its IPv6 form, as the IPv4 that it is.
fn unmapped(net: IpNet) -> IpNet {
    match (net.addr(), net.addr().to_canonical(), net.prefix_len().checked_sub(96)) {
        (IpAddr::V6(_), ip @ IpAddr::V4(_), Some(length)) => IpNet::new(ip, length).unwrap_or(net),
        (_, IpAddr::V4(_) | IpAddr::V6(_), _) => net,
    }
}

/// Whether connecting to `address` reaches who listens on `listener`, as far as addresses alone tell: the unspecified address
/// is reached by loopback ones, and connecting to the unspecified address is connecting to loopback.
pub(crate) fn reaches(listener: SocketAddr, address: SocketAddr) -> bool {
    if listener.port() != address.port() {
        return false;
    }
    let (listener, ip) = (listener.ip().to_canonical(), address.ip().to_canonical());
    listener == ip
        || (listener.is_unspecified() || listener.is_loopback()) && ip.is_unspecified()
        || listener.is_unspecified() && ip.is_loopback()
}

/// What `localhost` resolves to.
pub(crate) const LOCALHOST: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// The address itself, then those inside it.
fn leads_to(ip: IpAddr) -> impl Iterator<Item = IpAddr> {
    let inner = match ip {
        IpAddr::V4(_) => None,
        IpAddr::V6(ip) => Some(inside(ip)),
    };
    std::iter::once(ip).chain(inner.into_iter().flatten().map(IpAddr::V4))
}

/// A set of rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressSet(pub Vec<AddressRule>);

impl AddressSet {
    /// The first rule that covers the address, or an IPv4 address inside it.
    pub fn judge(&self, ip: IpAddr) -> Option<&AddressRule> {
        leads_to(ip).find_map(|ip| self.0.iter().find(|rule| rule.covers(ip)))
    }

    /// The rule of `self` that forbids the address and that `allow` doesn't lift. Metadata addresses are lifted only by
    /// `metadata` itself or a CIDR, since `link_local` and `private` hold some of them by accident.
    pub fn forbids(&self, ip: IpAddr, allow: &AddressSet) -> Option<&AddressRule> {
        leads_to(ip)
            .flat_map(|candidate| self.0.iter().map(move |rule| (rule, candidate)))
            .filter(|(rule, candidate)| rule.covers(*candidate))
            .find(|(rule, candidate)| !allow.0.iter().any(|allowed| allowed.lifts(rule, *candidate, ip)))
            .map(|(rule, _)| rule)
    }
}

impl AddressRule {
    /// Whether it allows what `forbidding` forbids; `ip` was found in `outer`, or is it. A range of IPv6 allows what is inside
    /// it only where it says so to the bit: who allows all of NAT64 hasn't allowed what a rule forbids behind it.
    fn lifts(&self, forbidding: &AddressRule, ip: IpAddr, outer: IpAddr) -> bool {
        match self {
            AddressRule::Cidr(net) => net.contains(&ip) || net.prefix_len() > 96 && net.contains(&outer),
            AddressRule::Metadata => self.covers(ip),
            AddressRule::Loopback
            | AddressRule::LinkLocal
            | AddressRule::Private
            | AddressRule::Cgnat
            | AddressRule::Multicast
            | AddressRule::AllSpecial => *forbidding != AddressRule::Metadata && self.covers(ip),
        }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(words: &[&str]) -> AddressSet {
        AddressSet(words.iter().map(|word| AddressRule::parse(word).unwrap()).collect())
    }

    fn judged(words: &[&str], ip: &str) -> Option<String> {
        set(words).judge(ip.parse().unwrap()).map(ToString::to_string)
    }

    const BUILT_IN: &[&str] = &["loopback", "link_local", "metadata"];

    #[test]
    fn the_built_in_three_cover_what_they_name() {
        for (ip, rule) in [
            ("127.0.0.1", "loopback"),
            ("127.255.1.2", "loopback"),
            ("0.0.0.0", "loopback"),
            ("0.1.2.3", "loopback"),
            ("::1", "loopback"),
            ("::", "loopback"),
            ("169.254.0.1", "link_local"),
            ("169.254.169.254", "link_local"),
            ("fe80::1", "link_local"),
            ("febf::1", "link_local"),
            ("fd00:ec2::254", "metadata"),
            ("fd00:ec2::23", "metadata"),
            ("fd20:ce::254", "metadata"),
            ("fd00:c1::a9fe:a9fe", "metadata"),
            ("fd00:100::100:200", "metadata"),
            ("fd00:a9fe:a9fe::1", "metadata"),
            ("fd00:42::42", "metadata"),
            ("168.63.129.16", "metadata"),
            ("100.100.100.200", "metadata"),
            ("192.0.0.192", "metadata"),
        ] {
            assert_eq!(judged(BUILT_IN, ip).as_deref(), Some(rule), "{ip}");
        }
        for ip in
            ["8.8.8.8", "10.0.0.1", "128.0.0.1", "1.0.0.0", "2606:4700::1", "fd00::1", "fec0::1", "100.100.100.201"]
        {
            assert_eq!(judged(BUILT_IN, ip), None, "{ip}");
        }
    }

    #[test]
    fn ipv4_inside_ipv6_is_unwrapped() {
        for ip in [
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "::ffff:0:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::127.0.0.1",
            "64:ff9b:1:7f00:0:100::",
            "2002:7f00:1::1",
            "2001:0:7f00:1::",
            "64:ff9b:1:7f:0:0:100:0",
            "64:ff9b:1:0:7f:0:100:0",
            "2001:db8::5efe:127.0.0.1",
            "2001:db8::200:5efe:7f00:1",
            // The client of Teredo: 127.0.0.1 inverted.
            "2001:0:808:808:0:0:80ff:fffe",
        ] {
            assert_eq!(judged(&["loopback"], ip).as_deref(), Some("loopback"), "{ip}");
        }
        assert_eq!(judged(BUILT_IN, "::ffff:169.254.169.254").as_deref(), Some("link_local"));
        assert_eq!(judged(&["metadata"], "64:ff9b::a9fe:a9fe").as_deref(), Some("metadata"));
        assert_eq!(judged(&["10.0.0.0/8"], "2002:a01:203::").as_deref(), Some("10.0.0.0/8"));
        // What is public stays so, in every cut that a network's own NAT64 prefix may have.
        for ip in [
            "64:ff9b::8.8.8.8",
            "64:ff9b:1::8.8.8.8",
            "64:ff9b:1:808:8:800::",
            "64:ff9b:1:8:8:808::",
            "64:ff9b:1:0:8:808:800::",
        ] {
            assert_eq!(judged(BUILT_IN, ip), None, "{ip}");
        }
    }

    #[test]
    fn the_other_classes() {
        for (word, ip, covered) in [
            ("private", "172.31.0.1", true),
            ("private", "172.32.0.1", false),
            ("private", "192.168.9.9", true),
            ("private", "fd12::1", true),
            ("cgnat", "100.64.0.1", true),
            ("cgnat", "100.127.255.255", true),
            ("cgnat", "100.128.0.1", false),
            ("multicast", "239.1.1.1", true),
            ("multicast", "255.255.255.255", true),
            ("multicast", "ff02::1", true),
            ("all_special", "192.0.2.1", true),
            ("all_special", "198.19.255.255", true),
            ("all_special", "240.0.0.1", true),
            ("all_special", "255.255.255.255", true),
            ("all_special", "2001:db8::1", true),
            ("all_special", "3fff::1", true),
            ("all_special", "5f00::1", true),
            ("all_special", "fd00::1", true),
            ("all_special", "100::1", true),
            ("all_special", "8.8.8.8", false),
            ("all_special", "2606:4700::1111", false),
            ("all_special", "2001:4860:4860::8888", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.8", false),
            ("2606:4700::/32", "2606:4700::1111", true),
        ] {
            assert_eq!(judged(&[word], ip).is_some(), covered, "{word} {ip}");
        }
    }

    #[test]
    fn a_range_in_its_ipv6_form_is_the_ipv4_range() {
        assert_eq!(judged(&["::ffff:10.0.0.0/104"], "10.9.9.9").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(judged(&["[::ffff:10.9.9.9]"], "10.9.9.9").as_deref(), Some("10.9.9.9/32"));
        assert_eq!(judged(&["::/0"], "10.9.9.9"), None);
        assert_eq!(judged(&["::/0"], "::ffff:10.9.9.9").as_deref(), Some("::/0"));
    }

    #[test]
    fn a_wide_range_of_ipv6_does_not_allow_the_ipv4_that_is_forbidden_inside_it() {
        let deny = set(&["loopback", "link_local", "metadata", "all_special"]);
        let forbids =
            |ip: &str, allow: &[&str]| deny.forbids(ip.parse().unwrap(), &set(allow)).map(ToString::to_string);
        assert_eq!(forbids("64:ff9b::8.8.8.8", &["64:ff9b::/96"]), None);
        assert_eq!(forbids("64:ff9b::169.254.169.254", &["64:ff9b::/96"]).as_deref(), Some("link_local"));
        assert_eq!(forbids("64:ff9b::127.0.0.1", &["::/0"]).as_deref(), Some("loopback"));
        assert_eq!(forbids("64:ff9b::10.0.0.5", &["64:ff9b::/96", "10.0.0.0/8"]), None);
        assert_eq!(forbids("64:ff9b::10.0.0.5", &["64:ff9b::10.0.0.0/104"]), None);
    }

    #[test]
    fn an_allowed_address_is_not_forbidden() {
        let deny = set(BUILT_IN);
        let ip = "127.0.0.1".parse().unwrap();
        assert!(deny.forbids(ip, &AddressSet::default()).is_some());
        assert!(deny.forbids(ip, &set(&["127.0.0.0/8"])).is_none());
        assert!(deny.forbids(ip, &set(&["private"])).is_some());
        assert!(deny.forbids("::ffff:127.0.0.1".parse().unwrap(), &set(&["loopback"])).is_none());
        // `metadata` is not opened by a class that happens to hold it.
        let metadata = "169.254.169.254".parse().unwrap();
        assert!(deny.forbids(metadata, &set(&["link_local"])).is_some());
        assert!(deny.forbids(metadata, &set(&["link_local", "metadata"])).is_none());
        assert!(deny.forbids(metadata, &set(&["169.254.169.254"])).is_none());
        for ip in METADATA_V4.map(IpAddr::V4).into_iter().chain(METADATA_V6.map(IpAddr::V6)) {
            assert!(deny.forbids(ip, &set(&["link_local", "private", "cgnat", "all_special"])).is_some(), "{ip}");
        }
    }

    #[test]
    fn what_is_no_rule_is_refused_with_the_words_there_are() {
        for bad in ["", "loopbak", "10.0.0.0/33", "10.0.0", "example.com", "::1/129"] {
            assert!(AddressRule::parse(bad).unwrap_err().contains("link_local"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_wrapping_of_a_forbidden_ipv4_address_is_forbidden(bits in any::<u32>()) {
            let v4 = Ipv4Addr::from(bits);
            let deny = set(&["loopback", "link_local", "metadata", "private", "cgnat", "multicast"]);
            if deny.judge(IpAddr::V4(v4)).is_some() {
                let bits = u128::from(bits);
                for wrapped in [
                    0xffff << 32 | bits,
                    0x0064_ff9b << 96 | bits,
                    0x0064_ff9b_0001 << 80 | bits,
                    0x2002 << 112 | bits << 80,
                    0x2001_0000 << 96 | bits << 64,
                    0x2001_0000 << 96 | u128::from(!(bits as u32)),
                    0xffff << 48 | bits,
                    0x2001_0db8 << 96 | 0x5efe << 32 | bits,
                ] {
                    prop_assert!(deny.judge(IpAddr::V6(Ipv6Addr::from(wrapped))).is_some());
                }
            }
        }
    }
}

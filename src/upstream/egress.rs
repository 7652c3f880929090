//! Which addresses may be dialled, judged on the very address that is about to be: the rules of `egress.deny`, and
//! Outrigger's own listeners. There is no second look-up after the judgement, so a name cannot change its mind.

use std::net::{IpAddr, SocketAddr};

use crate::address::{AddressSet, reaches};
use crate::error::{Denial, Error, Result};
use crate::origin::Origin;

/// The rules of the whole process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Egress {
    /// Never dialled, whatever name led there.
    pub(crate) deny: AddressSet,
    /// Where Outrigger itself listens: dialling one is a loop.
    pub(crate) own: Vec<SocketAddr>,
}

impl Egress {
    /// Whether this address may be dialled. `exempt`: the operator wrote it in `to`; `allow`: the upstream's
    /// `allow_addresses`.
    ///
    /// # Errors
    /// [`Error::Loop`] for a listener of ours, [`Error::Denied`] with the rule that covers it.
    fn judge(&self, address: SocketAddr, exempt: bool, allow: &AddressSet) -> Result<()> {
        if self.own.iter().any(|own| reaches(*own, address)) {
            return Err(Error::Loop);
        }
        if exempt {
            return Ok(());
        }
        match self.deny.forbids(address.ip(), allow) {
            Some(rule) => Err(Error::Denied(Denial::Address(address.ip(), rule.clone()))),
            None => Ok(()),
        }
    }

    /// Those of a host's addresses that may be dialled. `exempt` and `allow` as in [`Egress::judge`].
    ///
    /// # Errors
    /// Where it is none, why the first may not.
    pub(crate) fn allowed(
        &self,
        ips: impl IntoIterator<Item = IpAddr>,
        port: u16,
        exempt: bool,
        allow: &AddressSet,
    ) -> Result<Vec<SocketAddr>> {
        let mut refusal = None;
        let mut addresses = Vec::new();
        for ip in ips {
            // A mapped address is dialled as the IPv4 address that it is, so that it is judged as that too.
            let address = SocketAddr::new(ip.to_canonical(), port);
            match self.judge(address, exempt, allow) {
                Ok(()) => addresses.push(address),
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        match refusal {
            Some(error) if addresses.is_empty() => Err(error),
            Some(_) | None => Ok(addresses),
        }
    }

    /// Whether a connection that was made leads back to us. A listener on the unspecified address is reached by every
    /// address of this machine; that it is one shows only when both ends have the same.
    pub(super) fn loops(&self, local: SocketAddr, peer: SocketAddr) -> bool {
        local.ip().to_canonical() == peer.ip().to_canonical()
            && self.own.iter().any(|own| {
                own.port() == peer.port()
                    && (own.ip().is_unspecified() || own.ip().to_canonical() == peer.ip().to_canonical())
            })
    }
}

/// Whether `egress.deny` has no say: the destination is written in `to`, as an address or `localhost`. That is the operator's
/// own word.
pub(crate) fn is_exempt(to: &[Origin], destination: &Origin) -> bool {
    (destination.host.ip().is_some() || destination.host.is_localhost()) && to.contains(destination)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::AddressRule;

    fn egress(own: &[&str]) -> Egress {
        Egress {
            deny: AddressSet(vec![AddressRule::Cidr("169.254.0.0/16".parse().unwrap())]),
            own: own.iter().map(|own| own.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn a_denied_address_needs_an_exemption_or_to_be_allowed() {
        let egress = egress(&[]);
        let address: SocketAddr = "169.254.169.254:80".parse().unwrap();
        let none = AddressSet::default();
        assert!(matches!(egress.judge(address, false, &none), Err(Error::Denied(Denial::Address(..)))));
        assert!(egress.judge(address, true, &none).is_ok());
        let allow = AddressSet(vec![AddressRule::Cidr("169.254.169.254/32".parse().unwrap())]);
        assert!(egress.judge(address, false, &allow).is_ok());
        assert!(egress.judge("192.0.2.1:80".parse().unwrap(), false, &none).is_ok());
    }

    #[test]
    fn our_own_listeners_are_a_loop_even_when_exempt() {
        let none = AddressSet::default();
        let judge = |own: &str, to: &str| egress(&[own]).judge(to.parse().unwrap(), true, &none);
        assert!(matches!(judge("127.0.0.1:7171", "127.0.0.1:7171"), Err(Error::Loop)));
        assert!(matches!(judge("127.0.0.1:7171", "[::ffff:127.0.0.1]:7171"), Err(Error::Loop)));
        assert!(matches!(judge("127.0.0.1:7171", "0.0.0.0:7171"), Err(Error::Loop)));
        assert!(matches!(judge("0.0.0.0:7171", "127.0.0.9:7171"), Err(Error::Loop)));
        assert!(matches!(judge("[::]:7173", "127.0.0.1:7173"), Err(Error::Loop)));
        assert!(judge("127.0.0.1:7171", "127.0.0.1:7172").is_ok());
        assert!(judge("127.0.0.1:7171", "127.0.0.2:7171").is_ok());
    }

    #[test]
    fn a_listener_on_every_address_is_found_once_both_ends_are_equal() {
        let egress = egress(&["[::]:7173"]);
        assert!(egress.loops("10.0.0.5:40000".parse().unwrap(), "10.0.0.5:7173".parse().unwrap()));
        assert!(!egress.loops("10.0.0.5:40000".parse().unwrap(), "10.0.0.6:7173".parse().unwrap()));
        assert!(!egress.loops("10.0.0.5:40000".parse().unwrap(), "10.0.0.5:80".parse().unwrap()));
    }
}

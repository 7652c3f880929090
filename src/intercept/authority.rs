//! The CA that the app trusts: brought from outside, or made here.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;

use crate::config::HostPattern;
use crate::origin::Host;

/// How long a CA that is made here is valid.
const YEAR: Duration = Duration::from_secs(365 * 86400);
/// How long a leaf is valid.
const DAY: Duration = Duration::from_secs(86400);
/// Clocks differ: validity begins so much earlier.
const BACKDATED: Duration = Duration::from_secs(3600);

/// A CA with its key.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The CA's certificate, then what is above it: sent behind each leaf.
    chain: Vec<CertificateDer<'static>>,
    not_after: SystemTime,
}

/// A certificate for one host, and until when it is good.
pub(crate) struct Signed {
    /// The leaf, then the CA.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// When it begins.
    pub(crate) not_before: SystemTime,
    /// When it ends.
    pub(crate) not_after: SystemTime,
}

impl Authority {
    /// A CA brought from outside. `chain` begins with its own certificate.
    ///
    /// # Errors
    /// A sentence: it is no CA, or its key can't be used.
    pub(crate) fn given(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'_>) -> Result<Authority, String> {
        let first = chain.first().ok_or("holds no certificate")?;
        let (_, parsed) = x509_parser::parse_x509_certificate(first).map_err(|_| "can't be parsed".to_owned())?;
        if !parsed.is_ca() {
            return Err("is no CA's certificate (`CA:TRUE` is missing), so apps would refuse what it signs".to_owned());
        }
        let signs = parsed.key_usage().ok().flatten().is_none_or(|usage| usage.value.key_cert_sign());
        if !signs {
            return Err("may not sign certificates (its key usage lacks `keyCertSign`)".to_owned());
        }
        let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(not_after);
        let key = KeyPair::try_from(key).map_err(|error| format!("has a key that can't sign: {error}"))?;
        let issuer = Issuer::from_ca_cert_der(first, key).map_err(|error| format!("can't be used: {error}"))?;
        let subject = parsed.subject().as_raw().to_vec();
        let authority = Authority { issuer, chain, not_after };
        authority.is_named(&subject)?;
        Ok(authority)
    }

    /// Whether what it signs names it as its own certificate does: chains are put together by that.
    fn is_named(&self, subject: &[u8]) -> Result<(), String> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| error.to_string())?;
        let host = Host::parse("localhost").map_err(str::to_owned)?;
        let signed = self.sign(&host, &key, SystemTime::now())?;
        let leaf = signed.chain.first().ok_or("can't sign")?;
        let (_, leaf) = x509_parser::parse_x509_certificate(leaf).map_err(|error| error.to_string())?;
        if leaf.issuer().as_raw() == subject {
            return Ok(());
        }
        Err("has a subject that can't be repeated in what it signs (an attribute stands in it twice, such as `DC` or `OU`): make \
             a CA, or an intermediate one, with a plain subject such as `CN=Outrigger CA`"
            .to_owned())
    }

    /// A new CA, and its key as PEM. With `hosts` it may sign for these alone (RFC 5280 section 4.2.1.10).
    ///
    /// # Errors
    /// What kept it from being made.
    pub(crate) fn generate(
        hosts: Option<&[HostPattern]>,
        now: SystemTime,
    ) -> Result<(Authority, zeroize::Zeroizing<String>), String> {
        let made = || -> Result<_, rcgen::Error> {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let mut params = CertificateParams::default();
            let mut name = DistinguishedName::new();
            name.push(DnType::CommonName, format!("Outrigger CA {:08x}", fastrand::u32(..)));
            params.distinguished_name = name;
            params.not_before = stamp(now - BACKDATED);
            params.not_after = stamp(now + YEAR);
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.name_constraints = hosts.map(constraints);
            let certificate = params.self_signed(&key)?;
            let pem = zeroize::Zeroizing::new(key.serialize_pem());
            Ok((certificate.der().clone(), Issuer::new(params, key), pem))
        };
        let (certificate, issuer, pem) = made().map_err(|error| format!("a CA can't be made: {error}"))?;
        Ok((Authority { issuer, chain: vec![certificate], not_after: now + YEAR }, pem))
    }

    /// Signs a certificate for one host and a key. It is good for a day, but no longer than the CA.
    ///
    /// # Errors
    /// What kept it from being signed.
    pub(crate) fn sign(&self, host: &Host, key: &KeyPair, now: SystemTime) -> Result<Signed, String> {
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        let text = host.to_string();
        // What counts is the alternative name. A common name has at most 64 characters (RFC 5280 appendix A.1), and OpenSSL takes
        // an address in it for a DNS name, which the CA's constraints don't permit.
        if matches!(host, Host::Name(_)) && text.len() <= 64 {
            name.push(DnType::CommonName, text.clone());
        }
        params.distinguished_name = name;
        params.subject_alt_names = vec![match host {
            Host::Ip(ip) => SanType::IpAddress(*ip),
            Host::Name(_) => SanType::DnsName(text.try_into().map_err(|error: rcgen::Error| error.to_string())?),
        }];
        let not_after = (now + DAY).min(self.not_after);
        let not_before = now - BACKDATED;
        params.not_before = stamp(not_before);
        params.not_after = stamp(not_after);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // Python's strict verification wants it.
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(key, &self.issuer).map_err(|error| error.to_string())?;
        let chain = std::iter::once(leaf.der().clone()).chain(self.chain.iter().cloned()).collect();
        Ok(Signed { chain, not_before, not_after })
    }

    /// The CA's own certificate, then what is above it.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// When the CA ends.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

fn stamp(at: SystemTime) -> OffsetDateTime {
    at.into()
}

/// What a CA for these hosts may sign. A name stands for itself and what is below it: there is no narrower way to say it.
fn constraints(hosts: &[HostPattern]) -> NameConstraints {
    let mut permitted = Vec::new();
    let mut named = false;
    let (mut v4, mut v6) = (false, false);
    for pattern in hosts {
        permitted.push(match &pattern.host {
            Host::Name(name) => {
                named = true;
                GeneralSubtree::DnsName(name.to_string())
            }
            Host::Ip(IpAddr::V4(ip)) => {
                v4 = true;
                GeneralSubtree::IpAddress(CidrSubnet::V4(ip.octets(), [255; 4]))
            }
            Host::Ip(IpAddr::V6(ip)) => {
                v6 = true;
                GeneralSubtree::IpAddress(CidrSubnet::V6(ip.octets(), [255; 16]))
            }
        });
    }
    // A kind of name that nothing permits by name is not constrained at all, so it is excluded whole.
    let mut excluded = Vec::new();
    if !named {
        excluded.push(GeneralSubtree::DnsName(String::new()));
    }
    if !v4 && !v6 {
        excluded.push(GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])));
        excluded.push(GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])));
    }
    NameConstraints { permitted_subtrees: permitted, excluded_subtrees: excluded }
}

#[cfg(test)]
mod tests {
    use x509_parser::extensions::GeneralName;
    use x509_parser::prelude::X509Certificate;

    use super::*;

    fn leaf_of(host: &str, look: impl FnOnce(&X509Certificate<'_>)) {
        let host = Host::parse(host).unwrap();
        let now = SystemTime::now();
        let (authority, _) = Authority::generate(None, now).unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let signed = authority.sign(&host, &key, now).unwrap();
        assert_eq!(signed.chain.len(), 2);
        let (_, leaf) = x509_parser::parse_x509_certificate(&signed.chain[0]).unwrap();
        look(&leaf);
    }

    #[test]
    fn a_leaf_has_what_strict_verification_wants() {
        leaf_of("api.x.com", |leaf| {
            let names = leaf.subject_alternative_name().unwrap().unwrap();
            assert_eq!(names.value.general_names, [GeneralName::DNSName("api.x.com")]);
            assert_eq!(leaf.subject().to_string(), "CN=api.x.com");
            assert!(!leaf.is_ca() && leaf.basic_constraints().unwrap().unwrap().critical);
            assert!(leaf.key_usage().unwrap().unwrap().value.digital_signature());
            assert!(leaf.extended_key_usage().unwrap().unwrap().value.server_auth);
            // The authority key identifier.
            assert!(leaf.extensions().iter().any(|one| one.oid.to_id_string() == "2.5.29.35"));
        });
    }

    #[test]
    fn an_address_is_an_alternative_name_alone() {
        leaf_of("192.0.2.7", |leaf| {
            assert_eq!(leaf.subject().to_string(), "");
            let names = leaf.subject_alternative_name().unwrap().unwrap();
            assert_eq!(names.value.general_names, [GeneralName::IPAddress(&[192, 0, 2, 7])]);
            // RFC 5280 section 4.2.1.6: where there is no subject.
            assert!(names.critical);
        });
    }
}

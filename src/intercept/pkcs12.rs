//! A trust store for Java: PKCS #12 (RFC 7292) with certificates alone. Nothing in it is secret, so it is neither encrypted
//! nor authenticated, and opens with any password or none.

use rustls_pki_types::CertificateDer;
use yasna::models::ObjectIdentifier;
use yasna::{DERWriter, Tag};

/// `data` of PKCS #7
const DATA: &[u64] = &[1, 2, 840, 113549, 1, 7, 1];
/// `certBag` (RFC 7292 section 4.2.3)
const CERT_BAG: &[u64] = &[1, 2, 840, 113549, 1, 12, 10, 1, 3];
/// `x509Certificate`
const X509: &[u64] = &[1, 2, 840, 113549, 1, 9, 22, 1];
/// `friendlyName`
const FRIENDLY_NAME: &[u64] = &[1, 2, 840, 113549, 1, 9, 20];
/// Java's mark of a certificate that is trusted, rather than one that belongs to a key.
const TRUSTED_KEY_USAGE: &[u64] = &[2, 16, 840, 1, 113894, 746875, 1, 1];
/// `anyExtendedKeyUsage` (RFC 5280 section 4.2.1.12)
const ANY_USAGE: &[u64] = &[2, 5, 29, 37, 0];

/// The store, each certificate under a name of its own.
pub(super) fn trust_store<'c>(certificates: impl Iterator<Item = (String, &'c CertificateDer<'static>)>) -> Vec<u8> {
    let contents = yasna::construct_der(|writer| {
        writer.write_sequence_of(|writer| {
            for (name, certificate) in certificates {
                bag(writer.next(), &name, certificate);
            }
        });
    });
    let safe = yasna::construct_der(|writer| {
        writer.write_sequence_of(|writer| data(writer.next(), &contents));
    });
    yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_u8(3);
            data(writer.next(), &safe);
        });
    })
}

/// `ContentInfo` of plain data.
fn data(writer: DERWriter<'_>, bytes: &[u8]) {
    writer.write_sequence(|writer| {
        oid(writer.next(), DATA);
        writer.next().write_tagged(Tag::context(0), |writer| writer.write_bytes(bytes));
    });
}

/// `SafeBag` with one certificate.
fn bag(writer: DERWriter<'_>, name: &str, certificate: &CertificateDer<'_>) {
    writer.write_sequence(|writer| {
        oid(writer.next(), CERT_BAG);
        writer.next().write_tagged(Tag::context(0), |writer| {
            writer.write_sequence(|writer| {
                oid(writer.next(), X509);
                writer.next().write_tagged(Tag::context(0), |writer| writer.write_bytes(certificate));
            });
        });
        writer.next().write_set_of(|writer| {
            attribute(writer.next(), FRIENDLY_NAME, |writer| writer.write_bmp_string(name));
            attribute(writer.next(), TRUSTED_KEY_USAGE, |writer| oid(writer, ANY_USAGE));
        });
    });
}

fn attribute(writer: DERWriter<'_>, id: &[u64], value: impl FnOnce(DERWriter<'_>)) {
    writer.write_sequence(|writer| {
        oid(writer.next(), id);
        writer.next().write_set(|writer| value(writer.next()));
    });
}

fn oid(writer: DERWriter<'_>, numbers: &[u64]) {
    writer.write_oid(&ObjectIdentifier::from_slice(numbers));
}

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

#[cfg(test)]
mod tests {
    use yasna::{ASN1Result, BERReader};

    use super::*;

    fn data_in(reader: BERReader<'_, '_>) -> ASN1Result<Vec<u8>> {
        reader.read_sequence(|reader| {
            assert_eq!(reader.next().read_oid()?.components(), DATA);
            reader.next().read_tagged(Tag::context(0), |reader| reader.read_bytes())
        })
    }

    /// A certificate with its name and the marks that its attributes are.
    fn bag_in(reader: BERReader<'_, '_>) -> ASN1Result<(String, Vec<u8>)> {
        reader.read_sequence(|reader| {
            assert_eq!(reader.next().read_oid()?.components(), CERT_BAG);
            let certificate = reader.next().read_tagged(Tag::context(0), |reader| {
                reader.read_sequence(|reader| {
                    assert_eq!(reader.next().read_oid()?.components(), X509);
                    reader.next().read_tagged(Tag::context(0), |reader| reader.read_bytes())
                })
            })?;
            let mut name = String::new();
            let mut marked = false;
            reader.next().read_set_of(|reader| {
                reader.read_sequence(|reader| {
                    let id = reader.next().read_oid()?;
                    reader.next().read_set_of(|reader| {
                        if id.components() == FRIENDLY_NAME {
                            name = reader.read_bmp_string()?;
                        } else {
                            assert_eq!(id.components(), TRUSTED_KEY_USAGE);
                            assert_eq!(reader.read_oid()?.components(), ANY_USAGE);
                            marked = true;
                        }
                        Ok(())
                    })
                })
            })?;
            assert!(marked, "Java takes a certificate without the mark for one of a key, and trusts it for nothing");
            Ok((name, certificate))
        })
    }

    #[test]
    fn a_trust_store_reads_back() {
        let certificates = [CertificateDer::from(vec![1; 300]), CertificateDer::from(vec![2; 40])];
        let names = ["own-0".to_owned(), "system-0".to_owned()];
        let store = trust_store(names.iter().cloned().zip(&certificates));
        let safe = yasna::parse_der(&store, |reader| {
            reader.read_sequence(|reader| {
                assert_eq!(reader.next().read_u8()?, 3);
                data_in(reader.next())
            })
        });
        let contents = yasna::parse_der(&safe.unwrap(), |reader| reader.collect_sequence_of(data_in)).unwrap();
        assert_eq!(contents.len(), 1);
        let bags = yasna::parse_der(&contents[0], |reader| reader.collect_sequence_of(bag_in)).unwrap();
        let expected: Vec<_> = names.into_iter().zip(certificates.iter().map(|one| one.to_vec())).collect();
        assert_eq!(bags, expected);
    }
}

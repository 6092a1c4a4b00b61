//! The webhook's certificate: signed by itself, trusted because it is in the configuration of the
//! webhook, and renewed long before it ends.

use std::sync::Arc;

use anyhow::{Context, Result};
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{Timestamp, ToSpan};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, date_time_ymd};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Days that a certificate is valid.
const LASTS: i64 = 90;

/// Days before its end at which it is renewed.
const RENEWED: i64 = 30;

/// A certificate and its key, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// When it ends.
    pub ends: Timestamp,
}

impl Identity {
    /// A new one for servers of these DNS names or addresses.
    ///
    /// # Errors
    /// When a name is none, or there is no randomness.
    pub fn issue(names: &[String], now: Timestamp) -> Result<Self> {
        let day = |days: i64| -> Result<_> {
            let date = now.to_zoned(TimeZone::UTC).checked_add(days.days())?.date();
            Ok(date)
        };
        // From the day before: clocks differ.
        let (from, to) = (day(-1)?, day(LASTS)?);
        let ymd = |date: k8s_openapi::jiff::civil::Date| -> Result<_> {
            let part = |n: i8| u8::try_from(n).context("date");
            Ok(date_time_ymd(
                date.year().into(),
                part(date.month())?,
                part(date.day())?,
            ))
        };
        let mut params = CertificateParams::new(names.to_vec())?;
        params.not_before = ymd(from)?;
        params.not_after = ymd(to)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "bellrock webhook");
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            ends: to.to_zoned(TimeZone::UTC)?.timestamp(),
        })
    }

    /// Whether a new one is due.
    #[must_use]
    pub fn is_due(&self, now: Timestamp) -> bool {
        let left = now.duration_until(self.ends);
        left.as_secs() < RENEWED * 24 * 3600
    }

    /// What a server needs to be known by it.
    ///
    /// # Errors
    /// When certificate or key do not parse, or do not belong together.
    pub fn server(&self) -> Result<Arc<ServerConfig>> {
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes())
            .context("read the certificate")?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).context("read the key")?;
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .context("certificate and key")?;
        Ok(Arc::new(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_a_month_before_it_ends() {
        let now: Timestamp = "2026-05-01T10:00:00Z".parse().unwrap();
        let names = ["bellrock-webhook.bellrock-system.svc".to_owned()];
        let identity = Identity::issue(&names, now).unwrap();
        identity.server().unwrap();
        let day = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(identity.ends, day("2026-07-30T00:00:00Z"));
        assert!(!identity.is_due(day("2026-06-29T00:00:00Z")));
        assert!(identity.is_due(day("2026-06-30T00:00:01Z")));
        assert!(identity.is_due(day("2027-01-01T00:00:00Z")), "long past");
        // Another key does not go with it.
        let other = Identity::issue(&names, now).unwrap();
        let mixed = Identity {
            key: other.key,
            ..identity
        };
        assert!(mixed.server().is_err());
    }
}

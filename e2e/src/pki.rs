//! The lab's own certificate authority and keys.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// Files that the API server and its clients need.
#[derive(Clone, Debug)]
pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// Makes a new authority in `dir` and a serving certificate for `names`
    /// (host names or addresses).
    pub fn create(dir: &Path, names: &[String]) -> Result<Self> {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        let pki = Self {
            dir: dir.to_owned(),
        };

        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.distinguished_name
            .push(DnType::CommonName, "bellrock lab");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca_certificate = ca.self_signed(&ca_key)?;
        let issuer = Issuer::new(ca, ca_key);

        let key = KeyPair::generate()?;
        let mut serving = CertificateParams::new(names.to_vec())?;
        serving
            .distinguished_name
            .push(DnType::CommonName, "kube-apiserver");
        serving.use_authority_key_identifier_extension = true;
        serving.insert_extended_key_usage(rcgen::ExtendedKeyUsagePurpose::ServerAuth);
        let certificate = serving.signed_by(&key, &issuer)?;

        let accounts = KeyPair::generate()?;
        pki.write("ca.crt", &ca_certificate.pem())?;
        pki.write("apiserver.crt", &certificate.pem())?;
        pki.write("apiserver.key", &key.serialize_pem())?;
        pki.write("accounts.pub", &accounts.public_key_pem())?;
        pki.write("accounts.key", &accounts.serialize_pem())?;
        Ok(pki)
    }

    /// The path of one of its files.
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Writes a file that only root reads.
    pub fn write(&self, file: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(file);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(path)
    }
}

//! The certificate of the API over TLS. It is not the gateway's own: devices know that one, and its key serves another
//! protocol.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use duet_upstream::secret_file;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

/// Why the API cannot be served over TLS.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: {error}; api.certificate and api.key name the API's certificate and key", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// Others may read the key.
    #[error("{}: mode {mode:04o} lets others read the key; {}", path.display(), secret_file::REMEDY)]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Not what was expected.
    #[error("{}: not {expected} in PEM, or damaged; bring it back, or make certificate and key anew", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// The two do not belong together, or are of a kind that is not supported.
    #[error(
        "{} and {} cannot be used together: one of them is damaged, or another's; bring them back, or make both anew ({error})",
        certificate.display(), key.display()
    )]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
        /// What TLS says.
        error: rustls::Error,
    },
}

/// Reads certificate (with its chain) and key. The other part is when the certificate ends, Unix seconds.
///
/// # Errors
/// [`TlsError`].
pub fn acceptor(certificate: &Path, key: &Path) -> Result<(TlsAcceptor, i64), TlsError> {
    let failed = |path: &Path, error| TlsError::Io { path: path.to_owned(), error };
    let pem = |path: &Path, expected| TlsError::Pem { path: path.to_owned(), expected };
    let text = fs::read(certificate).map_err(|error| failed(certificate, error))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    let chain = chain.ok_or_else(|| pem(certificate, "a certificate"))?;
    let first = chain.first().and_then(|first| x509_parser::parse_x509_certificate(first).ok());
    let (_, first) = first.ok_or_else(|| pem(certificate, "a certificate"))?;
    let end_s = first.validity.not_after.timestamp();
    if let Some(mode) = secret_file::mode_for_others(key).map_err(|error| failed(key, error))? {
        return Err(TlsError::Open { path: key.to_owned(), mode });
    }
    let text = Zeroizing::new(fs::read(key).map_err(|error| failed(key, error))?);
    let secret = PrivateKeyDer::from_pem_slice(&text).map_err(|_| pem(key, "a private key"))?;
    let pair =
        |error| TlsError::Pair { certificate: certificate.to_owned(), key: key.to_owned(), error };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((TlsAcceptor::from(Arc::new(config)), end_s))
}

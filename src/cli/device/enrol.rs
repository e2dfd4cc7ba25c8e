//! `duet device enrol`: the device's side of enrolment. Its key is made here and never leaves.
//!
//! The key is on disk before anybody is asked, and a second call goes on with the same one: so a device whose answer
//! was lost is told the same again, and no token is spent twice.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use duet::admin::{EnrolAnswer, EnrolRequest, Problem};
use duet::hex::{self, Hex};
use duet::identity::{self, mode_for_others};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::add::address;
use crate::cli::output;

/// How long the gateway may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// No answer is longer.
const MAX_ANSWER: usize = 256 * 1024;

/// Flags of `duet device enrol`.
#[derive(Args)]
#[command(
    after_help = "It needs a token (`duet enrol token` on the gateway), and a way to know that it gives the token to \
    the right gateway: --pin or --ca. The key goes to NAME.key beside the credential, mode 0600. Where it is cut off, \
    the same command goes on with the same key."
)]
pub(in super::super) struct Enrol {
    /// The gateway's API: HOST:PORT, or https://HOST:PORT
    #[arg(long, value_name = "URL", value_parser = gateway)]
    gateway: String,
    /// The enrolment token; - reads it from standard input
    #[arg(long, value_name = "TOKEN")]
    token: String,
    /// What the device is to be called, where the token does not say it
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// SHA-256 of the certificate that the API shows, as `duet enrol token` tells it
    #[arg(long, value_name = "HEX", value_parser = pin, required_unless_present = "ca")]
    pin: Option<[u8; 32]>,
    /// The certificate of the API, or of the CA that issued it, PEM
    #[arg(long, value_name = "FILE", conflicts_with = "pin")]
    ca: Option<PathBuf>,
    /// Where the device reaches the gateway [default: as the gateway says, or its host in --gateway]
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    address: Option<String>,
    /// Write the credential to a new file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

fn gateway(text: &str) -> Result<String, &'static str> {
    let text = text.strip_prefix("https://").unwrap_or(text);
    address(text.strip_suffix('/').unwrap_or(text))
}

fn pin(text: &str) -> Result<[u8; 32], &'static str> {
    hex::decode_array(text.strip_prefix("sha256:").unwrap_or(text))
        .ok_or("expected 64 hexadecimal digits, as `duet enrol token` tells them")
}

impl Enrol {
    pub(super) fn run(self) -> Result<()> {
        let out = &self.out;
        if out.symlink_metadata().is_ok() {
            bail!("{}: exists already; nothing was changed", out.display());
        }
        let key_file = out.with_extension("key");
        if key_file == *out {
            bail!("--out {}: the private key would have the same name", out.display());
        }
        let token = Zeroizing::new(match self.token.as_str() {
            "-" => {
                let mut text = String::new();
                io::stdin().lock().take(1024).read_to_string(&mut text)?;
                text.trim().to_owned()
            }
            text => text.to_owned(),
        });
        let key = own_key(&key_file)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // The gateway decides what it is called; some tools want a subject.
        params
            .distinguished_name
            .push(DnType::CommonName, self.name.as_deref().unwrap_or("device"));
        let request = EnrolRequest {
            token: (*token).clone(),
            name: self.name.clone(),
            csr: Some(params.serialize_request(&key)?.pem()?),
            public_key: None,
            certificate: None,
            signature: None,
        };
        let config = tls(self.pin, self.ca.as_deref())?;
        let answer = ask(&self.gateway, config, &request)
            .with_context(|| format!("{}: the device is not enrolled", self.gateway))?;
        let EnrolAnswer { mut credential, port, again, .. } = answer;
        let own = |error| anyhow::anyhow!("unexpected answer from the gateway: {error}");
        let fields = credential.as_object_mut().ok_or_else(|| own("no credential"))?;
        let name = key_file.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{}: not a plain name", key_file.display()))?;
        fields.insert("private_key_file".to_owned(), name.into());
        let gateway = fields.get_mut("gateway").and_then(|facts| facts.as_object_mut());
        let gateway = gateway.ok_or_else(|| own("no gateway"))?;
        if let Some(address) = &self.address {
            gateway.insert("address".to_owned(), address.as_str().into());
        } else if !gateway.contains_key("address") {
            let host = self.gateway.rsplit_once(':').map_or("", |(host, _)| host);
            gateway.insert("address".to_owned(), format!("{host}:{port}").into());
        }
        let shown = fields.get("name").and_then(|name| name.as_str()).unwrap_or_default();
        let told = format!(
            "{} {}; credential {}, key {}",
            if again { "enrolled before, and told again:" } else { "enrolled" },
            shown.escape_default(),
            out.display(),
            key_file.display()
        );
        let mut text = serde_json::to_vec(&credential)?;
        text.push(b'\n');
        let failed = || format!("{}: run the same command again", out.display());
        identity::write_new(out, &text, 0o600).with_context(failed)?;
        identity::sync_dir_of(out).with_context(failed)?;
        output::done(&told)
    }
}

/// The key in this file, or a new one that is put there.
fn own_key(path: &Path) -> Result<KeyPair> {
    let shown = || path.display().to_string();
    if path.symlink_metadata().is_err() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let text = Zeroizing::new(key.serialize_pem());
        identity::write_new(path, text.as_bytes(), 0o600).with_context(shown)?;
        identity::sync_dir_of(path).with_context(shown)?;
        return Ok(key);
    }
    if let Some(mode) = mode_for_others(path).with_context(shown)? {
        bail!(
            "{}: mode {mode:04o} lets others use the private key; run `chmod 600` on it",
            path.display()
        );
    }
    let text = Zeroizing::new(fs::read_to_string(path).with_context(shown)?);
    KeyPair::from_pem_and_sign_algo(&text, &PKCS_ECDSA_P256_SHA256).with_context(shown)
}

/// How the gateway is recognised: by its certificate itself, or by who issued it.
fn tls(pin: Option<[u8; 32]>, ca: Option<&Path>) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match (pin, ca) {
        (Some(pin), _) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Pinned { pin, provider }))
        }
        (None, Some(path)) => {
            let shown = || path.display().to_string();
            let mut roots = RootCertStore::empty();
            for der in CertificateDer::pem_file_iter(path).with_context(shown)? {
                roots.add(der.with_context(shown)?).with_context(shown)?;
            }
            if roots.is_empty() {
                bail!("{}: no certificate in PEM", path.display());
            }
            builder.with_root_certificates(roots)
        }
        (None, None) => bail!("give --pin or --ca, by which the gateway is known"),
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Knows the gateway by the hash of its certificate, whatever names and dates are in it.
#[derive(Debug)]
struct Pinned {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found: [u8; 32] = Sha256::digest(end_entity).into();
        if found == self.pin {
            return Ok(ServerCertVerified::assertion());
        }
        let text =
            format!("it shows another certificate than --pin says, with SHA-256 {}", Hex(&found));
        Err(rustls::Error::General(text))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Why there is no connection over TLS, and what to do.
fn refused(error: &io::Error) -> anyhow::Error {
    let said = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    match said {
        Some(rustls::Error::General(text)) => anyhow::anyhow!("{text}"),
        // What `openssl req -x509` makes where nothing else is said.
        Some(rustls::Error::InvalidCertificate(why)) if why.to_string().contains("CaUsedAs") => {
            anyhow::anyhow!(
                "it shows a certificate of a CA (basicConstraints CA:TRUE) as its own, which TLS does not take: make its \
                 api.certificate with CA:FALSE; or --pin with its SHA-256, as `duet enrol token` tells it, takes it as it is"
            )
        }
        Some(rustls::Error::InvalidCertificate(why)) => anyhow::anyhow!(
            "it shows a certificate that --ca does not vouch for ({why}); --pin with its SHA-256, as `duet enrol token` \
             tells it, takes it as it is"
        ),
        Some(rustls::Error::InvalidMessage(_)) => not_tls(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => not_tls(error),
        _ => anyhow::anyhow!("TLS: {error}"),
    }
}

fn not_tls(error: &io::Error) -> anyhow::Error {
    anyhow::anyhow!(
        "what answers there does not speak TLS ({error}); give the port of api.listen in the gateway's settings"
    )
}

/// Asks the gateway.
fn ask(gateway: &str, config: Arc<ClientConfig>, request: &EnrolRequest) -> Result<EnrolAnswer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = async {
        let host = gateway.rsplit_once(':').map_or(gateway, |(host, _)| host);
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(host.to_owned())?;
        let stream = tokio::net::TcpStream::connect(gateway).await?;
        let connector = tokio_rustls::TlsConnector::from(config);
        let stream = connector.connect(name, stream).await.map_err(|error| refused(&error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        // It holds the token.
        let body = Bytes::from_owner(Zeroizing::new(serde_json::to_vec(request)?));
        let request = hyper::Request::post("/v1/enrol")
            .header("host", gateway)
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body =
            body.map_err(|error| anyhow::anyhow!("its answer broke off: {error}"))?.to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&body).context("unexpected answer");
        }
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => bail!(problem.error),
            Err(_) => bail!("unexpected answer: {status}"),
        }
    };
    runtime.block_on(async {
        let answered = tokio::time::timeout(PATIENCE, asked).await;
        answered.unwrap_or_else(|_| bail!("no answer within {} s", PATIENCE.as_secs()))
    })
}

//! Certificates and private keys as files: what makes one acceptable, and how to make one.
//!
//! Duet pins certificates. A device holds the gateway's certificate and the gateway holds each
//! device's before the first message, and what is compared is the SHA-256 of the whole
//! certificate. So there is no chain to build and no issuer to trust: a self-signed certificate
//! is as good as one from a CA, the CA flag is of no interest, and the issuer's signature is not
//! verified. What is checked is what the handshake relies on: exactly one P-256 key in its
//! uncompressed form, a validity window that contains the present, and a key usage that allows
//! signing. The gateway's key also opens HELLOs (HPKE), which strictly is key agreement; since
//! many tools set `digitalSignature` alone, `keyAgreement` may be absent.
//!
//! This module never prints a secret and never changes an existing file.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use duet_protocol::identity::{Fingerprint, PublicKey};
use duet_upstream::secret_file;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

mod authority;
mod certificate;
mod create;
mod request;
mod seen;
mod steady;

pub use authority::{Authority, AuthorityError, Trusted, create_authority};
pub use certificate::{Certificate, MAX_CERTIFICATE_LEN, Role, pem};
pub use create::{Created, create};
pub use request::{key_digest, key_of_proof, key_of_request, proof_of};
pub(crate) use seen::{Seen, State};
pub use seen::{other_certificate, remember_certificate};
pub use steady::Steady;

/// No certificate or key file is larger.
const MAX_FILE_LEN: usize = 64 * 1024;

/// Why a file was refused. The message says what to do about it.
#[derive(Debug, Error)]
#[error("{}: {reason}", path.display())]
pub struct IdentityError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with a certificate or a key.
#[derive(Debug, Error)]
pub enum Reason {
    /// The file system refused.
    #[error("{0}{missing}", missing = if_missing(.0))]
    Io(#[from] io::Error),
    /// Over 64 KiB.
    #[error("is larger than 64 KiB, so it is no single certificate or key")]
    TooLarge,
    /// Neither PEM nor DER of a certificate.
    #[error("is not an X.509 certificate (expected PEM `BEGIN CERTIFICATE` or DER)")]
    NotACertificate,
    /// A certificate that is too long for the registry.
    #[error(
        "the certificate is {0} bytes long; the longest that is taken has {MAX_CERTIFICATE_LEN}: make one with fewer extensions"
    )]
    CertificateTooLong(usize),
    /// PEM whose text is cut off or altered.
    #[error(
        "the PEM block is damaged: it is cut off, or its base64 is not whole; copy the file again"
    )]
    DamagedPem,
    /// Text in UTF-16, as some editors save it.
    #[error("is text in UTF-16; save it as UTF-8 or plain ASCII")]
    Utf16,
    /// A credential, or another file of that form.
    #[error("is JSON, as a credential is, and no certificate")]
    Json,
    /// Another thing that PEM can hold.
    #[error("holds {0}, not a certificate")]
    OtherPem(&'static str),
    /// DER with something behind it.
    #[error("{0} bytes follow the certificate; the file must end with it")]
    BytesBehind(usize),
    /// A chain or a bundle.
    #[error("holds {count} certificates; Duet pins one, without its chain: keep only {own}")]
    SeveralCertificates {
        /// How many.
        count: usize,
        /// Which of them is to be kept.
        own: Own,
    },
    /// The certificate of a CA, which signs certificates and nothing else.
    #[error(
        "is the certificate of a certificate authority, whose key signs certificates alone; give the one that it issued"
    )]
    Authority,
    /// A device's private key has no business on the gateway.
    #[error("holds a private key, which must stay on the device: give only the certificate")]
    PrivateKeyInside,
    /// Not PKCS #10, or not whole.
    #[error("is not a certificate request (expected PEM `BEGIN CERTIFICATE REQUEST` or DER)")]
    NotARequest,
    /// Whoever sent a public key has not shown that he has the private one.
    #[error(
        "the signature is not one of the private key that belongs to the public key (ECDSA with SHA-256)"
    )]
    Unproven,
    /// Issued by nobody whose certificates are taken.
    #[error("the certificate was not issued by a CA of enrol.trusted, or is not valid now")]
    Untrusted,
    /// Not `id-ecPublicKey`.
    #[error("the key is not an elliptic-curve key; Duet needs P-256 (prime256v1)")]
    NotEllipticCurve,
    /// Another curve.
    #[error("the key is on another curve; Duet needs P-256 (prime256v1)")]
    WrongCurve,
    /// Compressed or hybrid point encoding.
    #[error("the key's point is not in uncompressed form; make the certificate again with it")]
    NotUncompressed,
    /// Not a point of the curve.
    #[error("the key is not a point on the curve P-256")]
    NotOnCurve,
    /// After the validity window.
    #[error(
        "the certificate expired on {0}; make a new one and register it, or correct this machine's clock if that is wrong"
    )]
    Expired(Utc),
    /// Before the validity window.
    #[error("the certificate is not valid before {0}; check this machine's clock")]
    NotYetValid(Utc),
    /// Key usage is present and does not allow signing.
    #[error("the certificate's key usage lacks digitalSignature, which the handshake needs")]
    NotForSigning,
    /// Neither PKCS#8 nor SEC 1 PEM.
    #[error("is not a P-256 private key in PEM (PKCS#8 or SEC 1)")]
    NotAKey,
    /// `ENCRYPTED PRIVATE KEY` and its kin.
    #[error("the key is encrypted with a passphrase; store it decrypted with mode 0600")]
    EncryptedKey,
    /// Key and certificate do not belong together.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    /// Others on the machine could read the key.
    #[error("mode {0:04o} lets others use the private key; {REMEDY}", REMEDY = secret_file::REMEDY)]
    OpenToOthers(u32),
}

/// What to do about a file that is not there.
fn if_missing(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; bring it back, or name the one that is meant",
        _ => "",
    }
}

impl Reason {
    fn at(self, path: &Path) -> IdentityError {
        IdentityError { path: path.to_owned(), reason: self }
    }
}

/// Which certificate of a chain is its owner's, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Own {
    /// The one at this place, the first being 1, with this subject.
    This(usize, String),
    /// The order and the names do not tell.
    Unclear,
}

impl fmt::Display for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::This(place, subject) => {
                write!(f, "number {place} ({})", subject.escape_default())
            }
            Self::Unclear => f.write_str("the one whose private key its owner has"),
        }
    }
}

/// The window in which a certificate may be used, both ends included. Checked when a device is
/// registered and again at every handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First second, Unix time.
    pub not_before_s: i64,
    /// Last second, Unix time.
    pub not_after_s: i64,
}

impl Validity {
    /// Whether the window contains `now_s`.
    #[must_use]
    pub const fn contains(&self, now_s: i64) -> bool {
        self.not_before_s <= now_s && now_s <= self.not_after_s
    }
}

/// A P-256 private scalar, big-endian, in `1..n`. Wiped when dropped; never shown.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretScalar([u8; 32]);

impl SecretScalar {
    /// The scalar's bytes, for the code that computes with it.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The gateway's own identity: its certificate and the key that belongs to it.
pub struct GatewayIdentity {
    /// The certificate that devices hold.
    pub certificate: Certificate,
    /// Its private key.
    pub secret: SecretScalar,
}

impl GatewayIdentity {
    /// Loads both files and checks them against each other and against the clock.
    ///
    /// # Errors
    /// [`IdentityError`] naming the file at fault.
    pub fn load(certificate: &Path, key: &Path, now_s: i64) -> Result<Self, IdentityError> {
        let certificate = load_certificate(certificate, Role::Gateway, now_s)?;
        let secret = load_secret(key, &certificate.key)?;
        Ok(Self { certificate, secret })
    }
}

/// Reads one certificate, PEM or DER, and checks that it can be used in `role` now.
///
/// # Errors
/// [`IdentityError`] with the file and the reason.
pub fn load_certificate(path: &Path, role: Role, now_s: i64) -> Result<Certificate, IdentityError> {
    let bytes = read(path).map_err(|reason| reason.at(path))?;
    Certificate::parse(&bytes, role)
        .and_then(|certificate| certificate.check(now_s).map(|()| certificate))
        .map_err(|reason| reason.at(path))
}

/// Reads the private key that belongs to `public`: PEM, PKCS#8 or SEC 1, in a file that others cannot read
/// ([`secret_file`]).
///
/// # Errors
/// [`IdentityError`] with the file and the reason.
pub fn load_secret(path: &Path, public: &PublicKey) -> Result<SecretScalar, IdentityError> {
    let load = || {
        if let Some(mode) = secret_file::mode_for_others(path)? {
            return Err(Reason::OpenToOthers(mode));
        }
        let bytes = read(path)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| Reason::NotAKey)?;
        let secret = p256::SecretKey::from_pem(key_block(text)?).map_err(|_| Reason::NotAKey)?;
        if secret.public_key().to_sec1_bytes().as_ref() != public.0 {
            return Err(Reason::KeyMismatch);
        }
        Ok(SecretScalar((*Zeroizing::new(secret.to_bytes())).into()))
    };
    load().map_err(|reason: Reason| reason.at(path))
}

/// The PEM block with the private key. `openssl ecparam -genkey` puts the curve's parameters in
/// a block of their own in front of it.
fn key_block(text: &str) -> Result<&str, Reason> {
    if text.contains("ENCRYPTED") {
        return Err(Reason::EncryptedKey);
    }
    for label in ["PRIVATE KEY", "EC PRIVATE KEY"] {
        let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
        if let Some(start) = text.find(&begin) {
            let stop = text[start..].find(&end).ok_or(Reason::NotAKey)?;
            return Ok(&text[start..start + stop + end.len()]);
        }
    }
    Err(Reason::NotAKey)
}

/// Reads a small file into memory that is wiped afterwards: it may hold a key.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Reason> {
    // Reserved up front: a growing vector would leave unwiped copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE_LEN + 1));
    File::open(path)?.take(MAX_FILE_LEN as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_FILE_LEN { Err(Reason::TooLarge) } else { Ok(bytes) }
}

/// SHA-256 of something secret behind a prefix. No part of it stays on the stack: a hash that is moved leaves its last
/// block behind.
#[must_use]
pub fn digest_of_secret(prefix: &[u8], secret: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix(prefix);
    hash.update(secret);
    hash.finalize_reset().into()
}

/// Writes a file that must not exist yet, with exactly this mode, and syncs it.
///
/// # Errors
/// Those of the file system, `AlreadyExists` among them; then no part of it is left.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).inspect_err(|_| {
        let _ = std::fs::remove_file(path);
    })
}

/// Has files that are made in this directory from now on be overwritten in place, where the file system would write each change
/// to another one (btrfs): on a full disk there is none, whatever room was kept, and what was overwritten would stay.
pub fn overwrite_in_place(dir: &Path) {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    // A file system that writes in place anyway has no such flag.
    let _ = std::fs::File::open(dir).map(|dir| {
        let flags = ioctl_getflags(&dir)?;
        if flags.contains(IFlags::NOCOW) {
            Ok(())
        } else {
            ioctl_setflags(&dir, flags | IFlags::NOCOW)
        }
    });
}

/// Puts a file in the place of another name that is free. Where the file system cannot tell whether it is free,
/// the caller's own look has to do.
///
/// # Errors
/// Those of the file system, `AlreadyExists` among them.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => std::fs::rename(from, to),
        renamed => renamed.map_err(Into::into),
    }
}

/// Makes durable that a file was made, renamed or removed: syncs the directory it lies in.
///
/// # Errors
/// Those of the file system.
pub fn sync_dir_of(path: &Path) -> io::Result<()> {
    // The parent of a bare name is the empty path, which is no directory.
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Which file stands under a name: its device and its number there. What is written into a file that is open and has
/// lost its name is lost with it.
///
/// # Errors
/// Those of the file system.
pub fn file_at(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Whether this file still stands under its name.
///
/// # Errors
/// Those of the file system.
pub fn is_at(path: &Path, place: (u64, u64)) -> io::Result<bool> {
    match file_at(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        found => found.map(|found| found == place),
    }
}

/// Whether whoever opens this path finds this open file.
///
/// # Errors
/// Those of the file system.
pub fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    is_at(path, (open.dev(), open.ino()))
}

/// The mode of a file of the state directory, where it lets others than the owner do anything with it. For what an
/// administrator puts elsewhere there is [`secret_file`].
///
/// # Errors
/// Those of the file system.
pub fn mode_for_others(path: &Path) -> io::Result<Option<u32>> {
    let mode = std::fs::metadata(path)?.mode() & 0o777;
    Ok((mode & 0o077 != 0).then_some(mode))
}

/// Seconds since the Unix epoch; negative if the clock stands before it.
#[must_use]
pub fn now_s() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
    }
}

/// Milliseconds since the Unix epoch; 0 if the clock stands before it.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A clock before this was never set (2019-01-01). It is years older than this program, so that whoever sets a clock back to
/// see what an old certificate does can make one.
const CLOCK_BEGINS_S: i64 = 1_546_300_800;

/// Now, where something is made that is to be valid from now on: with a clock that was not set yet, as on a machine
/// without one that has just started, it would be over as soon as somebody sets it.
///
/// # Errors
/// [`ClockNotSet`].
pub fn set_now_s() -> Result<i64, ClockNotSet> {
    let now_s = now_s();
    if now_s < CLOCK_BEGINS_S { Err(ClockNotSet(now_s)) } else { Ok(now_s) }
}

/// This machine's clock cannot be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "this machine's clock says {}, so a certificate that is made now would be over once it is set: set the clock \
     (`timedatectl`), then do this again; nothing was changed",
    Utc(self.0)
)]
pub struct ClockNotSet(i64);

/// Shows Unix seconds as `2031-02-28T12:00:00Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utc(pub i64);

impl Utc {
    /// The second in which these milliseconds since the epoch lie.
    #[must_use]
    pub fn of_ms(ms: u64) -> Self {
        Self(i64::try_from(ms / 1_000).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.0.div_euclid(86_400), self.0.rem_euclid(86_400));
        // Days to a date in eras of 400 years that begin on 1 March, so that the leap day is
        // the last of its year.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = (month_from_march + 2) % 12 + 1;
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        let (hour, minute) = (second / 3600, second / 60 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
    }
}

/// Not a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a time is a date, 2031-02-28, or a date and a time of UTC, 2031-02-28T12:00:00Z")]
pub struct BadTime;

/// Takes what it shows, and a date alone, which is its first second.
impl FromStr for Utc {
    type Err = BadTime;

    fn from_str(text: &str) -> Result<Self, BadTime> {
        let whole = match text.len() {
            10 => &format!("{text}T00:00:00Z"),
            _ => text,
        };
        if whole.len() != 20 || !whole.is_ascii() {
            return Err(BadTime);
        }
        let number = |from: usize, to: usize| whole[from..to].parse::<i64>().map_err(|_| BadTime);
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        let (from_march, year) = if month > 2 { (month - 3, year) } else { (month + 9, year - 1) };
        let days = year * 365 + year.div_euclid(4) - year.div_euclid(100)
            + year.div_euclid(400)
            + (153 * from_march + 2) / 5
            + day
            - 1
            - 719_468;
        let time = Self(days * 86_400 + hour * 3_600 + minute * 60 + second);
        // A thirteenth month, a sixtieth minute or another separator would read as something else.
        if time.to_string() == whole { Ok(time) } else { Err(BadTime) }
    }
}

/// Shows a fingerprint as hexadecimal digits.
#[must_use]
pub fn fingerprint_text(fingerprint: &Fingerprint) -> String {
    crate::hex::Hex(&fingerprint.0).to_string()
}

#[cfg(test)]
mod tests;

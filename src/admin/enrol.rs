//! Enrolment: a device brings a token and proves that it has a key, and is registered with a certificate for it.
//!
//! Strangers may come here, so everything that they can make the gateway do is bounded: the length of a request, the
//! time that it takes, how many are heard at once, and how many wrong tokens an address may bring. A wrong token costs
//! one look-up. The order is: token, proof, certificate, registration; nothing is kept of one who fails on the way.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use duet_core::site;
use duet_protocol::identity::PublicKey;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use utoipa::ToSchema;
use zeroize::{Zeroize, Zeroizing};

use super::wire::{BadLine, DeviceLine, GatewayFacts};
use super::{Credential, CredentialError, Problem};
use crate::config::Enrol;
use crate::hex::{self, Hex};
use crate::identity::{
    self, Authority, Certificate, Reason, Role, Trusted, Utc, key_of_proof, key_of_request,
};
use crate::registry::{
    Claim, Labels, Name, Refusal, Registry, RegistryError, SourceSet, Terms, TokenId,
};

/// By this programs that look for lost secrets recognise a token.
const PREFIX: &str = "duet_enrol_";
/// Enrolments that are heard at once.
const AT_ONCE: usize = 16;
/// How many wrong tokens an address may bring in a minute.
const WRONG_MAX: u32 = 10;
/// The time in which they are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// The most addresses that are counted.
const ADDRESSES_MAX: usize = 4_096;
/// The longest that a token may be valid.
const MAX_TTL_S: u32 = 366 * 86_400;

/// A token that is to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewEnrolToken {
    /// How long it is valid, seconds.
    pub ttl_s: u32,
    /// How many devices it registers.
    pub uses: u32,
    /// What they may be called; `*` stands for anything. A token for a single device names it here.
    pub names: String,
    /// The key sources that they may use, separated by commas; without it, `ephemeral`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_sources: Option<String>,
    /// Their tags, separated by commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<String>,
    /// Their group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// When their registrations end: `2031-02-28`, or `2031-02-28T12:00:00Z`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
}

/// A token that was made. It is shown this once and kept nowhere.
#[derive(Serialize, Deserialize, ToSchema)]
pub struct MadeToken {
    /// By which it is listed and revoked.
    pub id: String,
    /// The token.
    pub token: String,
    /// When it ends, Unix seconds.
    pub ends_s: i64,
}

impl Drop for MadeToken {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

/// A token as it is listed: without the token itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EnrolTokenInfo {
    /// By which it is revoked, hexadecimal.
    pub id: String,
    /// What the devices may be called.
    pub names: String,
    /// How many devices it registers.
    pub uses: u32,
    /// How many it has registered.
    pub used: u32,
    /// When it was made, Unix seconds.
    pub made_s: i64,
    /// When it ends, Unix seconds.
    pub ends_s: i64,
    /// The key sources that they may use.
    pub key_sources: String,
    /// Their tags.
    pub tags: Vec<String>,
    /// Their group.
    pub group: Option<String>,
    /// When their registrations end, Unix seconds.
    pub expires_s: Option<i64>,
}

impl EnrolTokenInfo {
    fn of((id, terms): (TokenId, Terms)) -> Self {
        let Terms { made_s, ends_s, uses, used, names, sources, labels } = terms;
        Self {
            id: id.to_string(),
            names,
            uses,
            used,
            made_s,
            ends_s,
            key_sources: sources,
            tags: labels.tags.iter().map(ToString::to_string).collect(),
            group: labels.group.map(|group| group.to_string()),
            expires_s: labels.expires_s,
        }
    }
}

/// A device that wants to be registered: with a certificate request, with a key and a signature, or with a certificate
/// of a trusted CA and a signature. It holds a token, so it has no `Debug`.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// The enrolment token.
    pub token: String,
    /// What the device is to be called; may be left out where the token says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A certificate request (PKCS #10, P-256), PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub csr: Option<String>,
    /// In its place a public key, an uncompressed point of P-256 in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// Or a certificate that a CA of enrol.trusted has issued, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// With the last two, the proof that the device has the private key: ECDSA with SHA-256, DER in hexadecimal, over
    /// the bytes `duet enrolment v1`, a zero byte, the SHA-256 of the token as text, and the public key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

impl Drop for EnrolRequest {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

/// What a device needs that has enrolled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EnrolAnswer {
    /// Its credential, as `docs/credential.schema.json` describes it; its private key has never left it.
    #[schema(value_type = Object)]
    pub credential: serde_json::Value,
    /// The certificate of the CA that has issued its own, PEM, where the gateway's has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority_pem: Option<String>,
    /// The gateway's port for devices, for a credential without an address.
    pub port: u16,
    /// Whether it was registered before, and is told the same again.
    pub again: bool,
}

/// Reads a token: its id, and the digest that it is known by.
pub(super) fn read_token(text: &str) -> Option<(TokenId, [u8; 32])> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    let id = hex::decode_array::<8>(id)?;
    Zeroizing::new(hex::decode_array::<32>(secret)?);
    Some((TokenId(id), identity::digest_of_secret(b"", text.as_bytes())))
}

/// Makes a token. It is returned and kept nowhere.
///
/// # Errors
/// What is wrong with it; nothing was changed then.
pub fn made_token(
    registry: &Registry,
    wanted: &NewEnrolToken,
    now_s: i64,
) -> Result<MadeToken, Problem> {
    let bad = |text: &str| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, text);
    let NewEnrolToken { ttl_s, uses, names, key_sources, tags, group, expires } = wanted;
    if !(1..=MAX_TTL_S).contains(ttl_s) {
        return Err(bad("a token is valid for 1 second to 366 days"));
    }
    if !(1..=1_000_000).contains(uses) {
        return Err(bad("a token is for 1 to 1000000 devices"));
    }
    let plain = names.replace('*', "");
    if names.len() > 64
        || !(plain.is_empty() && names.contains('*') || plain.parse::<Name>().is_ok())
    {
        return Err(bad("names: 1 to 64 of the characters A-Z a-z 0-9 . _ - and *"));
    }
    if names.starts_with('-') {
        return Err(BadLine::Dash.into());
    }
    if *uses > 1 && !names.contains('*') {
        return Err(bad("a token for several devices needs a pattern of names with *"));
    }
    let sources: SourceSet = match key_sources {
        None => SourceSet::default(),
        Some(text) => text.parse().map_err(|error| Problem::from(BadLine::Sources(error)))?,
    };
    let expires = expires.as_deref().map(str::parse::<Utc>).transpose();
    let labels = Labels {
        tags: tags.as_deref().unwrap_or_default().parse().map_err(BadLine::Label)?,
        group: group.as_deref().map(str::parse).transpose().map_err(BadLine::Label)?,
        expires_s: expires.map_err(BadLine::Expires)?.map(|end| end.0),
    };
    let randomness =
        |_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the kernel gave no random bytes");
    let mut id = [0; 8];
    getrandom::fill(&mut id).map_err(randomness)?;
    let mut secret = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *secret).map_err(randomness)?;
    let secret = Zeroizing::new(Hex(&*secret).to_string());
    let id = TokenId(id);
    let token = format!("{PREFIX}{id}_{}", *secret);
    let ends_s = now_s.saturating_add(i64::from(*ttl_s));
    let terms = Terms {
        made_s: now_s,
        ends_s,
        uses: *uses,
        used: 0,
        names: names.clone(),
        sources: sources.to_string(),
        labels,
    };
    let made = MadeToken { id: id.to_string(), token, ends_s };
    registry.add_token(id, &identity::digest_of_secret(b"", made.token.as_bytes()), &terms)?;
    Ok(made)
}

/// All tokens, those included that have ended or are spent.
///
/// # Errors
/// Those of the registry.
pub fn tokens(registry: &Registry) -> Result<Vec<EnrolTokenInfo>, Problem> {
    Ok(registry.tokens()?.into_iter().map(EnrolTokenInfo::of).collect())
}

/// Ends a token. Devices that it has registered stay.
///
/// # Errors
/// When there is none.
pub fn revoke_token(registry: &Registry, id: &str) -> Result<(), Problem> {
    let unknown = || {
        let text = format!("{}: no enrolment token of this id", id.escape_default());
        Problem::new(StatusCode::NOT_FOUND, text)
    };
    let token = hex::decode_array::<8>(id).map(TokenId).ok_or_else(unknown)?;
    match registry.revoke_token(token) {
        Err(RegistryError::Enrolment(Refusal::Unknown)) => Err(unknown()),
        done => Ok(done?),
    }
}

/// Where devices enrol.
pub(super) struct Desk {
    settings: Enrol,
    places: Semaphore,
    wrong: Mutex<Wrong>,
}

/// Wrong tokens of the present minute.
struct Wrong {
    since: Instant,
    of: HashMap<IpAddr, u32>,
}

/// Where a device's certificate comes from.
enum Comes {
    Issued(Box<Authority>),
    Brought(Vec<u8>),
}

/// A device that has enrolled, for the audit log.
pub(super) struct Done {
    pub(super) answer: EnrolAnswer,
    pub(super) name: Name,
}

impl Desk {
    pub(super) fn new(settings: Enrol) -> Self {
        let wrong = Wrong { since: Instant::now(), of: HashMap::new() };
        Self { settings, places: Semaphore::new(AT_ONCE), wrong: Mutex::new(wrong) }
    }

    /// The places of those who are heard.
    pub(super) fn places(&self) -> &Semaphore {
        &self.places
    }

    /// Whether this address has brought too many wrong tokens.
    pub(super) fn is_closed_to(&self, from: Option<IpAddr>, now: Instant) -> bool {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(wrong.since) >= WINDOW {
            *wrong = Wrong { since: now, of: HashMap::new() };
        }
        let own = from.and_then(|from| wrong.of.get(&site(from)));
        own.is_some_and(|count| *count >= WRONG_MAX)
    }

    /// A wrong token came from there.
    pub(super) fn note_wrong(&self, from: Option<IpAddr>) {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(from) = from.map(site)
            && (wrong.of.len() < ADDRESSES_MAX || wrong.of.contains_key(&from))
        {
            *wrong.of.entry(from).or_default() += 1;
        }
    }

    /// Hears a device. It waits for the disk.
    pub(super) fn enrol(
        &self,
        registry: &Registry,
        request: &EnrolRequest,
        gateway: &GatewayFacts,
        port: u16,
        now_s: i64,
    ) -> Result<Done, Problem> {
        let known = read_token(&request.token).ok_or(Refusal::Unknown);
        let (token, digest) = known.map_err(RegistryError::from)?;
        registry.knows_token(token, &digest)?;
        let name = request.name.as_deref().map(str::parse::<Name>).transpose()?;
        if name.as_ref().is_some_and(|name| name.as_str().starts_with('-')) {
            return Err(BadLine::Dash.into());
        }
        let (key, brought) = self.proven(request, now_s)?;
        let claim = Claim { token, digest: &digest, key: &key, name: name.as_ref() };
        let Enrol { certificate, key: secret, days, .. } = &self.settings;
        let unusable = |error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, error);
        let comes = match brought {
            Some(der) => Comes::Brought(der),
            None if no_authority(&self.settings) => {
                let text = "this gateway has no CA that could issue a certificate: `duet ca init` makes one";
                return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, text));
            }
            None => {
                let own = Authority::load(certificate, secret, now_s);
                Comes::Issued(Box::new(own.map_err(unusable)?))
            }
        };
        let enrolled = registry.enrol(&claim, now_s, |name| match &comes {
            Comes::Issued(by) => by.issue(name.as_str(), &key, *days, now_s),
            Comes::Brought(der) => Ok(der.clone()),
        })?;
        let line = DeviceLine {
            name: enrolled.name.to_string(),
            mode: "certificate".to_owned(),
            certificate: Some(Hex(&enrolled.certificate).to_string()),
            id: None,
            key: None,
            key_sources: Some(enrolled.sources.to_string()),
            tags: None,
            group: None,
            expires: None,
            made: false,
        };
        let failed =
            |error: CredentialError| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error);
        let credential = Credential::of(&line, gateway)
            .and_then(|credential| Ok(serde_json::to_value(&credential)?))
            .map_err(failed)?;
        let authority_pem = match comes {
            Comes::Issued(by) => Some(identity::pem(&by.certificate().der)),
            Comes::Brought(_) => None,
        };
        let answer = EnrolAnswer { credential, authority_pem, port, again: enrolled.again };
        Ok(Done { answer, name: enrolled.name })
    }

    /// The key that the device has proven to have, and the certificate that it has brought.
    fn proven(
        &self,
        request: &EnrolRequest,
        now_s: i64,
    ) -> Result<(PublicKey, Option<Vec<u8>>), Problem> {
        let bad = |field: &str, reason: Reason| {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, format_args!("{field}: {reason}"))
        };
        let EnrolRequest { token, csr, public_key, certificate, signature, .. } = request;
        let hexadecimal = |field: &str, text: &str| {
            let text_ = || format!("{field}: not hexadecimal");
            hex::decode(text).ok_or_else(|| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, text_()))
        };
        match (csr, public_key, certificate, signature) {
            (Some(csr), None, None, None) => {
                let key = key_of_request(csr.trim().as_bytes());
                Ok((key.map_err(|reason| bad("csr", reason))?, None))
            }
            (None, Some(point), None, Some(signature)) => {
                let point = hexadecimal("public_key", point)?;
                let signature = hexadecimal("signature", signature)?;
                let key = key_of_proof(&point, token.as_bytes(), &signature);
                Ok((key.map_err(|reason| bad("public_key", reason))?, None))
            }
            (None, None, Some(certificate), Some(signature)) => {
                let trusted = self.settings.trusted.as_deref().ok_or_else(|| {
                    let text = "certificate: this gateway trusts no other CA (enrol.trusted); send a request (csr)";
                    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, text)
                })?;
                let trusted = Trusted::load(trusted, now_s)
                    .map_err(|error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, error))?;
                let parsed = Certificate::parse(certificate.as_bytes(), Role::Device)
                    .and_then(|parsed| trusted.check(&parsed.der, now_s).map(|()| parsed))
                    .map_err(|reason| bad("certificate", reason))?;
                let signature = hexadecimal("signature", signature)?;
                let key = key_of_proof(&parsed.key.0, token.as_bytes(), &signature);
                Ok((key.map_err(|reason| bad("signature", reason))?, Some(parsed.der)))
            }
            _ => Err(Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "exactly one of these is needed: csr; public_key and signature; certificate and signature",
            )),
        }
    }
}

/// Whether there is no CA, of which neither certificate nor key are there: one of them alone is a mistake, which loading it tells.
fn no_authority(settings: &Enrol) -> bool {
    let is_gone = |path: &Path| {
        path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    is_gone(&settings.certificate) && is_gone(&settings.key)
}

/// Whether what the settings say of enrolment can be used: a CA that is there, and one that is trusted.
///
/// # Errors
/// What is wrong, with its file.
pub fn check(settings: &Enrol, now_s: i64) -> Result<Option<Utc>, identity::AuthorityError> {
    if let Some(trusted) = &settings.trusted {
        Trusted::load(trusted, now_s)?;
    }
    if no_authority(settings) {
        return Ok(None);
    }
    let own = Authority::load(&settings.certificate, &settings.key, now_s)?;
    Ok(Some(Utc(own.certificate().validity.not_after_s)))
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn tokens_are_of_one_form() {
        let good = format!("{PREFIX}{}_{}", "0a".repeat(8), "0b".repeat(32));
        let (id, digest) = read_token(&good).unwrap();
        assert_eq!(id, TokenId([10; 8]));
        assert_eq!(digest, <[u8; 32]>::from(Sha256::digest(good.as_bytes())));
        for bad in ["", "duet_enrol_", &good[1..], &good[..good.len() - 1], &good.replace('a', "x")]
        {
            assert!(read_token(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn who_brings_wrong_tokens_waits_and_keeps_nobody_else_out() {
        let desk = Desk::new(Enrol::default());
        let now = Instant::now();
        let address = |text: &str| text.parse::<IpAddr>().ok();
        let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
        for _ in 0..WRONG_MAX {
            assert!(!desk.is_closed_to(one, now));
            desk.note_wrong(one);
        }
        assert!(desk.is_closed_to(one, now) && !desk.is_closed_to(other, now));
        assert!(desk.is_closed_to(address("::ffff:192.0.2.1"), now), "the same address");
        assert!(!desk.is_closed_to(one, now + WINDOW));
        (0..WRONG_MAX).for_each(|_| desk.note_wrong(address("2001:db8::1")));
        assert!(desk.is_closed_to(address("2001:db8:0:1::2"), now), "the same site");
        assert!(!desk.is_closed_to(address("2001:db8:1::2"), now));
        assert!(!desk.is_closed_to(other, now));
    }

    /// Every way in which a device can bring its key.
    #[test]
    fn a_device_brings_a_request_a_key_or_a_certificate_and_nothing_else_will_do() {
        use p256::ecdsa::signature::hazmat::PrehashSigner as _;

        let now_s = identity::now_s();
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        let registry = Registry::create(&place("registry.redb")).unwrap();
        let write = |name: &str, created: &identity::Created| {
            let (certificate, key) = (place(&format!("{name}.pem")), place(&format!("{name}.key")));
            identity::write_new(&certificate, created.certificate_pem.as_bytes(), 0o644).unwrap();
            identity::write_new(&key, created.key_pem.as_bytes(), 0o600).unwrap();
            Authority::load(&certificate, &key, now_s).unwrap()
        };
        let other = write("other", &identity::create_authority("other", 9, now_s).unwrap());
        let stranger = write("stranger", &identity::create_authority("other", 9, now_s).unwrap());
        let settings = Enrol {
            certificate: place("ca.pem"),
            key: place("ca.key"),
            days: 5,
            trusted: Some(place("other.pem")),
        };
        let desk = Desk::new(settings);
        let wanted = NewEnrolToken {
            ttl_s: 60,
            uses: 9,
            names: "d-*".into(),
            key_sources: None,
            tags: None,
            group: None,
            expires: None,
        };
        let token = made_token(&registry, &wanted, now_s).unwrap();
        let gateway = identity::create("gateway", 1, now_s).unwrap();
        let gateway = Certificate::from_der(&gateway.certificate_der).unwrap();
        let listen = "192.0.2.1:5".parse().unwrap();
        let facts = GatewayFacts::of(0, &gateway, Path::new("gateway.pem"), listen);
        let ask = |name: &str, fill: &dyn Fn(&mut EnrolRequest)| {
            let mut request = EnrolRequest {
                token: token.token.clone(),
                name: Some(name.into()),
                csr: None,
                public_key: None,
                certificate: None,
                signature: None,
            };
            fill(&mut request);
            let done = desk.enrol(&registry, &request, &facts, 5, now_s);
            done.map(|done| done.answer).map_err(|problem| problem.error)
        };
        let secret = |seed: u8| p256::ecdsa::SigningKey::from_slice(&[seed; 32]).unwrap();
        let public = |seed: u8| {
            let point = secret(seed).verifying_key().to_sec1_point(false);
            PublicKey(point.as_bytes().try_into().unwrap())
        };
        let sign = |seed: u8| {
            let message = identity::proof_of(&public(seed), token.token.as_bytes());
            let signed: p256::ecdsa::Signature =
                secret(seed).sign_prehash(&Sha256::digest(message)).unwrap();
            Some(Hex(signed.to_der().as_bytes()).to_string())
        };
        let bare = |key: u8, signer: u8| {
            move |request: &mut EnrolRequest| {
                request.public_key = Some(Hex(&public(key).0).to_string());
                request.signature = sign(signer);
            }
        };
        assert!(ask("d-1", &bare(1, 1)).unwrap_err().contains("no CA that could issue"));
        write("ca", &identity::create_authority("ours", 9, now_s).unwrap());
        let answer = ask("d-1", &bare(1, 1)).unwrap();
        assert!(answer.authority_pem.is_some() && !answer.again);
        assert_eq!(answer.credential["gateway"]["address"], "192.0.2.1:5");
        assert!(ask("d-2", &bare(2, 1)).unwrap_err().contains("public_key: the signature"));
        assert!(ask("d-2", &bare(1, 1)).unwrap().again, "it has another name already");
        let brought = |ca: &Authority, key: u8, signer: u8| {
            let der = ca.issue("x", &public(key), 2, now_s).unwrap();
            let pem = identity::pem(&der);
            move |request: &mut EnrolRequest| {
                request.certificate = Some(pem.clone());
                request.signature = sign(signer);
            }
        };
        let untrusted = ask("d-3", &brought(&stranger, 3, 3)).unwrap_err();
        assert!(untrusted.contains("was not issued by a CA of enrol.trusted"), "{untrusted}");
        assert!(ask("d-3", &brought(&other, 3, 2)).unwrap_err().contains("signature:"));
        let answer = ask("d-3", &brought(&other, 3, 3)).unwrap();
        assert!(answer.authority_pem.is_none());
        let taken = ask("d-4", &brought(&other, 1, 1)).map(|answer| answer.again);
        assert_eq!(taken, Ok(true), "the key has enrolled before");
        let both = |request: &mut EnrolRequest| {
            bare(5, 5)(request);
            request.csr = Some("x".into());
        };
        assert!(ask("d-5", &both).unwrap_err().contains("exactly one of these"));
        assert!(ask("-5", &bare(5, 5)).unwrap_err().contains("begins with -"));
        let garbled = |request: &mut EnrolRequest| request.csr = Some("x".into());
        assert!(ask("d-5", &garbled).unwrap_err().contains("csr: is not a certificate request"));
        let wrong = |request: &mut EnrolRequest| {
            bare(5, 5)(request);
            request.token.pop();
        };
        assert_eq!(ask("d-5", &wrong).unwrap_err(), "no such enrolment token");
        assert_eq!(registry.len().unwrap(), 2);
        assert_eq!(tokens(&registry).unwrap()[0].used, 2);
    }
}

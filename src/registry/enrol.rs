//! Tokens with which devices register themselves, and what becomes of them. A token is spent in the same transaction
//! in which its device is registered: neither happens without the other, whatever is killed, and however many try at
//! once.
//!
//! A token is kept as a hash. Who comes again with the same token and the same key is told the same as the first time,
//! for the first answer may not have reached him.

use std::fmt;
use std::sync::Arc;

use duet_protocol::identity::PublicKey;
use redb::{ReadableDatabase, ReadableTable, TableError};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use thiserror::Error;

use super::labels::matches;
use super::store::{TOKENS, Tables};
use super::{Enrolment, Labels, Name, NewDevice, Registry, RegistryError, SourceSet};
use crate::hex::{self, Hex};
use crate::identity::{AuthorityError, Certificate, Utc, key_digest};

/// The most tokens that are kept.
const MAX_TOKENS: usize = 10_000;
/// How long a token that has ended is still listed, and answers who comes again with it, seconds.
const KEPT_S: i64 = 30 * 86_400;

/// How a token is named: it is no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenId(pub [u8; 8]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

/// What a token allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// When it was made, Unix seconds.
    pub made_s: i64,
    /// The first second in which it opens nothing, Unix time.
    pub ends_s: i64,
    /// How many devices it registers.
    pub uses: u32,
    /// How many it has registered.
    pub used: u32,
    /// What they may be called; `*` stands for anything.
    pub names: String,
    /// The key sources that they may use, as text.
    pub sources: String,
    /// What is said of them.
    pub labels: Labels,
}

/// A token as it is kept.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    sha256: String,
    terms: Terms,
}

/// Why a token does not register a device.
#[derive(Debug, Error)]
pub enum Refusal {
    /// No such token.
    #[error("no such enrolment token")]
    Unknown,
    /// Its time is over.
    #[error("the enrolment token ended on {0}; ask for another")]
    Ended(Utc),
    /// It has registered as many devices as it may.
    #[error("the enrolment token is spent; ask for another")]
    Spent,
    /// It is for other names.
    #[error("the enrolment token is for devices whose names are {0}")]
    Name(String),
    /// Which device it is cannot be known.
    #[error("a name is needed: the enrolment token is for several")]
    NoName,
    /// There is no certificate for it.
    #[error("no certificate was issued: {0}")]
    NotIssued(Box<AuthorityError>),
    /// There are too many.
    #[error("there are {MAX_TOKENS} enrolment tokens already; revoke some")]
    TooMany,
}

impl From<Refusal> for RegistryError {
    fn from(refusal: Refusal) -> Self {
        Self::Enrolment(refusal)
    }
}

/// Who wants to be registered. The token itself is known by its digest alone.
pub struct Claim<'a> {
    /// Which token he has.
    pub token: TokenId,
    /// SHA-256 of it.
    pub digest: &'a [u8; 32],
    /// The key that he has proven to have.
    pub key: &'a PublicKey,
    /// What he wants to be called.
    pub name: Option<&'a Name>,
}

/// A device that a token has registered.
pub struct Enrolled {
    /// Its name.
    pub name: Name,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// The key sources that it may use.
    pub sources: SourceSet,
    /// Whether it was registered before, and is told the same again.
    pub again: bool,
}

impl Registry {
    /// Keeps a token. Tokens whose time has long been over are forgotten.
    ///
    /// # Errors
    /// [`Refusal::TooMany`], or those of the storage engine.
    pub fn add_token(
        &self,
        token: TokenId,
        digest: &[u8; 32],
        terms: &Terms,
    ) -> Result<(), RegistryError> {
        let database = self.ready()?;
        self.store.change(&database, |tables| {
            let mut old = Vec::new();
            let mut count = 0;
            for row in tables.tokens.iter()? {
                let (id, bytes) = row?;
                let is_old = self
                    .kept_token(bytes.value())
                    .is_ok_and(|kept| kept.terms.ends_s.saturating_add(KEPT_S) < terms.made_s);
                if is_old { old.push(TokenId(id.value())) } else { count += 1 }
            }
            for id in old {
                forget_token(tables, id)?;
            }
            if count >= MAX_TOKENS {
                return Err(Refusal::TooMany.into());
            }
            let kept = Kept { sha256: Hex(digest).to_string(), terms: terms.clone() };
            put_token(tables, token, &kept)
        })
    }

    /// All tokens, those included that have ended or are spent.
    ///
    /// # Errors
    /// Those of the storage engine.
    pub fn tokens(&self) -> Result<Vec<(TokenId, Terms)>, RegistryError> {
        self.read(|database| {
            let tokens = match database.begin_read()?.open_table(TOKENS) {
                Ok(tokens) => tokens,
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            };
            let rows = tokens.iter()?.map(|row| {
                let (id, bytes) = row?;
                Ok((TokenId(id.value()), self.kept_token(bytes.value())?.terms))
            });
            rows.collect()
        })
    }

    /// Ends a token. Devices that it has registered stay.
    ///
    /// # Errors
    /// [`Refusal::Unknown`].
    pub fn revoke_token(&self, token: TokenId) -> Result<(), RegistryError> {
        let database = self.ready()?;
        self.store.change(&database, |tables| {
            if tables.tokens.get(token.0)?.is_none() {
                return Err(Refusal::Unknown.into());
            }
            forget_token(tables, token)
        })
    }

    /// Whether there is such a token, spent or not: what a stranger is told before any work is done for him. He is
    /// told the same whether the id, which is no secret, or the rest of it is wrong.
    ///
    /// # Errors
    /// [`Refusal::Unknown`].
    pub fn knows_token(&self, token: TokenId, digest: &[u8; 32]) -> Result<(), RegistryError> {
        self.read(|database| match database.begin_read()?.open_table(TOKENS) {
            Ok(tokens) => self.known(&tokens, token, digest).map(drop),
            Err(TableError::TableDoesNotExist(_)) => Err(Refusal::Unknown.into()),
            Err(error) => Err(error.into()),
        })
    }

    /// Registers the device that a token is for, and spends the token, in one transaction. `issue` makes the certificate
    /// of the device, DER, under its name.
    ///
    /// # Errors
    /// [`Refusal`], or why the device cannot be registered. Nothing was changed then, and the token is not spent.
    pub fn enrol(
        &self,
        claim: &Claim<'_>,
        now_s: i64,
        issue: impl FnOnce(&Name) -> Result<Vec<u8>, AuthorityError>,
    ) -> Result<Enrolled, RegistryError> {
        let database = self.ready()?;
        let slot = self.lock();
        let mut added = None;
        let enrolled = self.store.change(&database, |tables| {
            let mut kept = self.known(&tables.tokens, claim.token, claim.digest)?;
            if let Some(again) = self.enrolled(tables, claim)? {
                return Ok(again);
            }
            let terms = &mut kept.terms;
            if now_s >= terms.ends_s {
                return Err(Refusal::Ended(Utc(terms.ends_s)).into());
            }
            if terms.used >= terms.uses {
                return Err(Refusal::Spent.into());
            }
            let name = match claim.name {
                Some(name) if matches(&terms.names, name.as_str()) => name.clone(),
                Some(_) => return Err(Refusal::Name(terms.names.clone()).into()),
                None => terms.names.parse().map_err(|_| Refusal::NoName)?,
            };
            let der = issue(&name).map_err(|error| Refusal::NotIssued(Box::new(error)))?;
            let sources: SourceSet = terms.sources.parse().unwrap_or_default();
            let enrolment = Enrolment::Certificate { der: der.clone() };
            let labels = terms.labels.clone();
            let device = NewDevice { name: name.clone(), enrolment, sources, made: false, labels };
            added = Some(self.register(tables, device, now_s)?);
            terms.used += 1;
            put_token(tables, claim.token, &kept)?;
            tables.enrolled.insert(enrolled_key(claim), name.as_str())?;
            Ok(Enrolled { name, certificate: der, sources, again: false })
        })?;
        if let (Some(view), Some(device)) = (&*slot, added) {
            view.insert(Arc::clone(&device));
        }
        Ok(enrolled)
    }

    /// The device that this token has registered with this key, if it is still there.
    fn enrolled(
        &self,
        tables: &Tables<'_>,
        claim: &Claim<'_>,
    ) -> Result<Option<Enrolled>, RegistryError> {
        let Some(name) = tables.enrolled.get(enrolled_key(claim))? else { return Ok(None) };
        let name = self.name(name.value())?;
        let record = match self.existing(&tables.devices, &name) {
            Ok(record) if record.revoked_s.is_none() => record,
            Ok(_) | Err(RegistryError::Unknown(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let certificate = record.certificate().ok().flatten();
        Ok(certificate.filter(|certificate| certificate.key == *claim.key).map(|certificate| {
            let Certificate { der, .. } = certificate;
            Enrolled { name, certificate: der, sources: record.sources, again: true }
        }))
    }

    fn known(
        &self,
        tokens: &impl ReadableTable<[u8; 8], &'static [u8]>,
        token: TokenId,
        digest: &[u8; 32],
    ) -> Result<Kept, RegistryError> {
        let kept = match tokens.get(token.0)? {
            Some(bytes) => Some(self.kept_token(bytes.value())?),
            None => None,
        };
        let known = kept.as_ref().and_then(|kept| hex::decode_array::<32>(&kept.sha256));
        let is_it = bool::from(known.unwrap_or_default().ct_eq(digest)) && known.is_some();
        kept.filter(|_| is_it).ok_or_else(|| Refusal::Unknown.into())
    }

    fn kept_token(&self, bytes: &[u8]) -> Result<Kept, RegistryError> {
        serde_json::from_slice(bytes).map_err(|_| self.damaged(super::Damage::Token))
    }
}

fn enrolled_key(claim: &Claim<'_>) -> [u8; 40] {
    let mut key = [0; 40];
    key[..8].copy_from_slice(&claim.token.0);
    key[8..].copy_from_slice(&key_digest(claim.key).0);
    key
}

fn put_token(tables: &mut Tables<'_>, token: TokenId, kept: &Kept) -> Result<(), RegistryError> {
    // Strings and numbers always make JSON.
    let bytes = serde_json::to_vec(kept).unwrap_or_default();
    tables.tokens.insert(token.0, bytes.as_slice())?;
    Ok(())
}

fn forget_token(tables: &mut Tables<'_>, token: TokenId) -> Result<(), RegistryError> {
    tables.tokens.remove(token.0)?;
    let (mut first, mut last) = ([0; 40], [0xff; 40]);
    first[..8].copy_from_slice(&token.0);
    last[..8].copy_from_slice(&token.0);
    tables.enrolled.retain_in(first..=last, |_, _| false)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use duet_protocol::identity::DeviceId;

    use super::*;
    use crate::identity::{create, create_authority};

    const NOW_S: i64 = 1_800_000_000;
    const TOKEN: TokenId = TokenId([1; 8]);
    const DIGEST: [u8; 32] = [2; 32];

    fn terms(names: &str, uses: u32) -> Terms {
        Terms {
            made_s: NOW_S,
            ends_s: NOW_S + 100,
            uses,
            used: 0,
            names: names.into(),
            sources: "ephemeral".into(),
            labels: Labels { tags: "t".parse().unwrap(), ..Labels::default() },
        }
    }

    /// A certificate, and the key in it.
    fn made() -> (Vec<u8>, PublicKey) {
        let der = create("d", 1, NOW_S).unwrap().certificate_der;
        let key = Certificate::from_der(&der).unwrap().key;
        (der, key)
    }

    fn registry() -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::create(&dir.path().join("registry.redb")).unwrap();
        registry.view().unwrap();
        (dir, registry)
    }

    fn enrol(
        registry: &Registry,
        (der, key): &(Vec<u8>, PublicKey),
        name: Option<&str>,
        now_s: i64,
    ) -> Result<Enrolled, RegistryError> {
        let name: Option<Name> = name.map(|name| name.parse().unwrap());
        let claim = Claim { token: TOKEN, digest: &DIGEST, key, name: name.as_ref() };
        registry.enrol(&claim, now_s, |_| Ok(der.clone()))
    }

    fn refusal(done: Result<Enrolled, RegistryError>) -> Refusal {
        match done.map(drop) {
            Err(RegistryError::Enrolment(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_token_registers_as_many_as_it_may_and_the_same_key_once() {
        let (_dir, registry) = registry();
        assert!(registry.tokens().unwrap().is_empty());
        let (one, two, three) = (made(), made(), made());
        assert!(matches!(refusal(enrol(&registry, &one, Some("m-1"), NOW_S)), Refusal::Unknown));
        registry.add_token(TOKEN, &DIGEST, &terms("m-*", 2)).unwrap();
        assert!(matches!(refusal(enrol(&registry, &one, None, NOW_S)), Refusal::NoName));
        assert!(matches!(refusal(enrol(&registry, &one, Some("n"), NOW_S)), Refusal::Name(_)));
        let late = enrol(&registry, &one, Some("m-1"), NOW_S + 100);
        assert!(matches!(refusal(late), Refusal::Ended(_)));
        assert!(!enrol(&registry, &one, Some("m-1"), NOW_S).unwrap().again);
        // The answer was lost: the same once more, even when the token has ended meanwhile.
        let again = enrol(&registry, &one, Some("m-1"), NOW_S + 500).unwrap();
        assert!(again.again && again.certificate == one.0 && again.name.as_str() == "m-1");
        let taken = enrol(&registry, &two, Some("m-1"), NOW_S).map(drop);
        assert!(matches!(taken, Err(RegistryError::NameTaken(_))));
        enrol(&registry, &two, Some("m-2"), NOW_S).unwrap();
        assert!(matches!(refusal(enrol(&registry, &three, Some("m-3"), NOW_S)), Refusal::Spent));
        assert_eq!(registry.tokens().unwrap()[0].1.used, 2);
        assert_eq!(registry.view().unwrap().len(), 2);
        assert_eq!(registry.show(&"m-1".parse().unwrap()).unwrap().labels.tags.to_string(), "t");
        let id = DeviceId::of_certificate(&Certificate::from_der(&one.0).unwrap().fingerprint);
        assert!(registry.view().unwrap().lookup(&id).is_some());
        // Who was revoked is not told that he is registered.
        registry.revoke(&"m-1".parse().unwrap(), NOW_S).unwrap();
        assert!(matches!(refusal(enrol(&registry, &one, Some("m-1"), NOW_S)), Refusal::Spent));
        let wrong = [3; 32];
        assert!(registry.knows_token(TOKEN, &DIGEST).is_ok());
        assert!(registry.knows_token(TOKEN, &wrong).is_err());
        assert!(registry.knows_token(TokenId([9; 8]), &[0; 32]).is_err());
        registry.revoke_token(TOKEN).unwrap();
        assert!(matches!(refusal(enrol(&registry, &two, Some("m-2"), NOW_S)), Refusal::Unknown));
        assert!(registry.revoke_token(TOKEN).is_err());
    }

    #[test]
    fn what_is_not_issued_spends_no_token() {
        let (_dir, registry) = registry();
        registry.add_token(TOKEN, &DIGEST, &terms("m", 1)).unwrap();
        let one = made();
        let claim = Claim { token: TOKEN, digest: &DIGEST, key: &one.1, name: None };
        let failed = registry.enrol(&claim, NOW_S, |_| Err(AuthorityError::Randomness));
        assert!(matches!(refusal(failed), Refusal::NotIssued(_)));
        let ca = create_authority("c", 1, NOW_S).unwrap().certificate_der;
        let odd = registry.enrol(&claim, NOW_S, |_| Ok(ca)).map(drop);
        assert!(matches!(odd, Err(RegistryError::Certificate { .. })));
        assert_eq!(registry.tokens().unwrap()[0].1.used, 0);
        assert!(registry.is_empty().unwrap());
        assert!(!enrol(&registry, &one, None, NOW_S).unwrap().again);
    }

    #[test]
    fn a_hundred_at_once_spend_a_token_once() {
        let (_dir, registry) = registry();
        registry.add_token(TOKEN, &DIGEST, &terms("m-*", 1)).unwrap();
        let keys: Vec<_> = (0..100).map(|_| made()).collect();
        let won = std::thread::scope(|scope| {
            let tries: Vec<_> = keys
                .iter()
                .enumerate()
                .map(|(n, key)| {
                    let registry = &registry;
                    scope
                        .spawn(move || enrol(registry, key, Some(&format!("m-{n}")), NOW_S).is_ok())
                })
                .collect();
            tries.into_iter().filter_map(|one| one.join().unwrap().then_some(())).count()
        });
        assert_eq!((won, registry.len().unwrap()), (1, 1));
    }

    #[test]
    fn tokens_of_long_ago_are_forgotten() {
        let (_dir, registry) = registry();
        registry.add_token(TOKEN, &DIGEST, &terms("m", 1)).unwrap();
        let (made_s, ends_s) = (NOW_S + 100 + KEPT_S, NOW_S + 200 + KEPT_S);
        let later = |made_s| Terms { made_s, ends_s, ..terms("n", 1) };
        registry.add_token(TokenId([5; 8]), &DIGEST, &later(made_s)).unwrap();
        assert_eq!(registry.tokens().unwrap().len(), 2);
        registry.add_token(TokenId([6; 8]), &DIGEST, &later(made_s + 1)).unwrap();
        assert_eq!(registry.tokens().unwrap().len(), 2);
        assert!(registry.knows_token(TOKEN, &DIGEST).is_err());
    }
}

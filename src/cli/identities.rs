//! The gateway's own certificates and keys at a start: which of them are used, and what people are told of them.
//!
//! A machine without a clock of its own starts with a wrong time until the network tells it another. So a
//! certificate that is not valid yet is waited for, with a message, and one that is about to be retired and has
//! ended is left out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use duet::config::{Config, KeyFiles};
use duet::identity::{
    GatewayIdentity, IdentityError, Reason, Utc, now_s, other_certificate, remember_certificate,
};

/// How long before its end a certificate of the gateway is warned of, seconds.
const ENDS_SOON_S: i64 = 60 * 86_400;

/// How often the clock is looked at while it is wrong.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What was loaded.
pub(super) struct Identities {
    /// Key id and identity; the current one first.
    pub(super) all: Vec<(u8, GatewayIdentity)>,
    /// For people.
    pub(super) warnings: Vec<String>,
}

impl Identities {
    /// Loads what the settings name, once. `now_s` is the time by which certificates are judged.
    pub(super) fn load(config: &Config, now_s: i64) -> Result<Self, IdentityError> {
        let mut loaded = Self { all: Vec::new(), warnings: Vec::new() };
        let own = load(&config.gateway, now_s)?;
        let end_s = own.certificate.validity.not_after_s;
        if end_s - now_s < ENDS_SOON_S {
            let path = config.gateway.certificate.display();
            loaded.warnings.push(format!(
                "{path} ends on {}, and no gateway starts with it after that: give devices a new one",
                Utc(end_s)
            ));
        }
        loaded.tell_if_other(config, &config.gateway, &own);
        loaded.all.push((config.gateway.key_id, own));
        if let Some(retiring) = &config.retiring {
            match load(retiring, now_s) {
                Ok(identity) => {
                    loaded.tell_if_other(config, retiring, &identity);
                    loaded.all.push((retiring.key_id, identity));
                }
                // Nobody can use it any more, and devices with the new one can.
                Err(IdentityError { path, reason: Reason::Expired(end) }) => {
                    loaded.warnings.push(format!(
                        "{}: the retiring certificate ended on {end} and is left out; remove [gateway.retiring] \
                         from the settings, and give devices that still hold it the new one",
                        path.display()
                    ));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(loaded)
    }

    fn tell_if_other(&mut self, config: &Config, files: &KeyFiles, identity: &GatewayIdentity) {
        let found = &identity.certificate.fingerprint;
        let (state, path) = (&config.state, &files.certificate);
        self.warnings.extend(other_certificate(state, files.key_id, path, found));
    }

    /// Remembers what a gateway runs with from now on.
    pub(super) fn remember(&self, state: &Path) {
        for (key_id, identity) in &self.all {
            remember_certificate(state, *key_id, &identity.certificate.fingerprint);
        }
    }

    /// Loads what the settings name, and waits for the clock while it stands before a certificate's beginning.
    /// `tell` is given what people must know meanwhile; `pause` waits so long, and says whether to go on: `None` where it
    /// says no.
    pub(super) fn load_in_time(
        config: &Config,
        mut tell: impl FnMut(&str),
        mut pause: impl FnMut(Duration) -> bool,
    ) -> Result<Option<Self>, IdentityError> {
        let mut waited: Option<PathBuf> = None;
        loop {
            let now_s = now_s();
            match Self::load(config, now_s) {
                Err(IdentityError { path, reason: Reason::NotYetValid(from) }) => {
                    if waited.as_ref() != Some(&path) {
                        tell(&format!(
                            "{}: the certificate is not valid before {from}, and this machine's clock says {}: \
                             waiting for the clock to be set",
                            path.display(),
                            Utc(now_s)
                        ));
                        waited = Some(path);
                    }
                    if !pause(LOOK_EVERY) {
                        return Ok(None);
                    }
                }
                Ok(loaded) => {
                    if waited.is_some() {
                        tell(&format!("the clock says {} now: starting", Utc(now_s)));
                    }
                    return Ok(Some(loaded));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn load(files: &KeyFiles, now_s: i64) -> Result<GatewayIdentity, IdentityError> {
    GatewayIdentity::load(&files.certificate, &files.key, now_s)
}

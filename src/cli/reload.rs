//! A running gateway takes changed settings, at SIGHUP or when it is asked: all that can be taken at once, or, if
//! anything is wrong, nothing.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use duet::admin::{Reloaded, Telemetry, acceptor};
use duet::config::catalogue::Taken;
use duet::config::{Loaded, Overrides, changes};
use duet::identity::now_s;
use duet::server::Control;
use duet_protocol::identity::Fingerprint;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::Place;
use super::identities::Identities;
use super::run::gateway_keys;

/// What a running gateway is asked to do anew.
pub(super) struct Reloader {
    place: Place,
    flags: Overrides,
    control: Arc<Control>,
    telemetry: Telemetry,
    /// Gives the API over TLS another certificate.
    renew_tls: Option<watch::Sender<TlsAcceptor>>,
    state: Mutex<State>,
}

struct State {
    /// The settings that the process started with.
    started: Loaded,
    /// Those that were taken last.
    current: Loaded,
    /// Of the certificates in use.
    fingerprints: Vec<(u8, Fingerprint)>,
}

/// The settings that a gateway starts with.
pub(super) struct Start {
    pub(super) place: Place,
    pub(super) flags: Overrides,
    pub(super) loaded: Loaded,
}

impl Reloader {
    pub(super) fn new(
        start: Start,
        identities: &Identities,
        control: Arc<Control>,
        telemetry: Telemetry,
        renew_tls: Option<watch::Sender<TlsAcceptor>>,
    ) -> Result<Self> {
        let Start { place, flags, loaded: started } = start;
        let current = place.loaded(&flags)?;
        let state = State { started, current, fingerprints: fingerprints(identities) };
        Ok(Self { place, flags, control, telemetry, renew_tls, state: Mutex::new(state) })
    }

    /// Reads the settings and the certificates again and takes what can be taken.
    ///
    /// # Errors
    /// Whatever is wrong with them; then all is as it was.
    pub(super) fn reload(&self) -> Result<Reloaded> {
        // The state is only ever replaced when everything was right.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let new = self.place.loaded(&self.flags)?;
        let identities = Identities::load(&new.config, now_s())?;
        let keys = gateway_keys(&identities)?;
        let api = new.config.api.as_ref().map(|api| acceptor(&api.certificate, &api.key));
        let api = api.transpose()?;
        let keys_before = std::mem::replace(&mut state.fingerprints, fingerprints(&identities));
        let mut applied: Vec<String> = changes(&state.current, &new)
            .into_iter()
            .filter(|change| change.taken == Taken::AtReload)
            .map(|change| change.to_string())
            .collect();
        if state.fingerprints != keys_before {
            applied.push("the gateway's certificates".into());
        }
        let restart = changes(&state.started, &new)
            .into_iter()
            .filter(|change| change.taken == Taken::AtStart)
            .map(|change| change.to_string())
            .collect();
        // Everything is right: from here on nothing fails.
        self.control.renew(&new.config, &keys);
        if let (Some(sender), Some(api)) = (&self.renew_tls, api) {
            sender.send_replace(api);
        }
        for (key_id, identity) in &identities.all {
            self.telemetry.set_certificate_end(*key_id, identity.certificate.validity.not_after_s);
        }
        state.current = new;
        Ok(Reloaded { applied, restart, warnings: identities.warnings })
    }
}

fn fingerprints(identities: &Identities) -> Vec<(u8, Fingerprint)> {
    let of = |(key_id, identity): &(u8, duet::identity::GatewayIdentity)| {
        (*key_id, identity.certificate.fingerprint)
    };
    identities.all.iter().map(of).collect()
}

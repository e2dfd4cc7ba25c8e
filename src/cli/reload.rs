//! A running gateway takes changed settings, at SIGHUP or when it is asked: all that can be taken at once, or, if
//! anything is wrong, nothing.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use duet::admin::{GatewayFacts, Reloaded, Telemetry, acceptor};
use duet::config::catalogue::Taken;
use duet::config::{Loaded, Overrides, changes};
use duet::identity::now_s;
use duet::log;
use duet::server::Control;
use duet_protocol::identity::Fingerprint;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::Place;
use super::identities::Identities;
use super::run::{facts, gateway_keys};

/// What a running gateway is asked to do anew.
pub(super) struct Reloader {
    place: Place,
    flags: Overrides,
    control: Arc<Control>,
    telemetry: Telemetry,
    renewed: Renewed,
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

/// What the API is given anew.
pub(super) struct Renewed {
    /// What devices need to know of this gateway.
    pub(super) facts: watch::Sender<Option<GatewayFacts>>,
    /// How its connections over TLS are accepted, where it has any.
    pub(super) tls: Option<watch::Sender<TlsAcceptor>>,
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
        renewed: Renewed,
    ) -> Self {
        let Start { place, flags, loaded: started } = start;
        // Not what the file says by now: a start may have waited long for its clock.
        let current = started.clone();
        let state = State { started, current, fingerprints: fingerprints(identities) };
        Self { place, flags, control, telemetry, renewed, state: Mutex::new(state) }
    }

    /// Reads the settings and the certificates again and takes what can be taken.
    ///
    /// # Errors
    /// Whatever is wrong with them; then all is as it was.
    pub(super) fn reload(&self) -> Result<Reloaded> {
        let done = self.take();
        self.telemetry.count_reload(done.is_ok());
        match &done {
            Ok(done) => done.lines().iter().for_each(|line| tracing::info!("reload: {line}")),
            Err(error) => {
                let text = crate::message(error).replace("\n  ", "; ");
                tracing::error!("reload: nothing was changed: {text}");
            }
        }
        done
    }

    fn take(&self) -> Result<Reloaded> {
        // The state is only ever replaced when everything was right.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let new = self.place.loaded(&self.flags)?;
        super::files::check_named(&new.config)?;
        let identities = Identities::load(&new.config, now_s())?;
        let keys = gateway_keys(&identities)?;
        let api = new.config.api.as_ref().map(|api| acceptor(&api.certificate, &api.key));
        let (api, api_end_s) = api.transpose()?.unzip();
        let now = fingerprints(&identities);
        let mut applied: Vec<String> = changes(&state.current, &new)
            .into_iter()
            .filter(|change| change.taken == Taken::AtReload)
            .map(|change| change.to_string())
            .collect();
        if state.fingerprints != now {
            applied.push("the gateway's certificates".into());
        }
        let restart = changes(&state.started, &new)
            .into_iter()
            .filter(|change| change.taken == Taken::AtStart)
            .map(|change| change.to_string())
            .collect();
        applied.extend(self.control.change_upstreams(&new.config)?);
        // Everything is right: from here on nothing fails.
        self.control.renew(&new.config, &keys);
        identities.remember(&new.config.state);
        log::set_level(new.config.log.level);
        log::set_format(new.config.log.format);
        let facts = facts(&new.config, &identities, self.control.listen());
        self.renewed.facts.send_replace(Some(facts));
        if let (Some(sender), Some(api)) = (&self.renewed.tls, api) {
            sender.send_replace(api);
        }
        if let Some(end_s) = api_end_s {
            self.telemetry.set_api_certificate_end(end_s);
        }
        for (gone, _) in &state.fingerprints {
            if now.iter().all(|(key_id, _)| key_id != gone) {
                self.telemetry.forget_certificate(*gone);
            }
        }
        for (key_id, identity) in &identities.all {
            self.telemetry.set_certificate_end(*key_id, identity.certificate.validity.not_after_s);
        }
        (state.current, state.fingerprints) = (new, now);
        Ok(Reloaded { applied, restart, warnings: identities.warnings })
    }
}

fn fingerprints(identities: &Identities) -> Vec<(u8, Fingerprint)> {
    let of = |(key_id, identity): &(u8, duet::identity::GatewayIdentity)| {
        (*key_id, identity.certificate.fingerprint)
    };
    identities.all.iter().map(of).collect()
}

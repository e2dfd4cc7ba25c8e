//! Why a gateway gives no answer. It never tells a stranger; whoever has its state directory may look.

use duet::admin::DeviceInfo;
use duet::hex::Hex;
use duet::identity::{Utc, now_s};
use duet::presence::Presence;
use duet::registry;
use duet_device::credentials::Credentials;

use super::super::super::Place;
use super::super::super::control::Control;

/// What is said where nothing can be looked up.
const PERHAPS: &str = "A gateway says nothing to a device that it does not know, or that holds another gateway's \
    certificate. On the gateway's machine, `duet device show` says whether this device is registered and not revoked, \
    and `duet device try --state DIR` looks for the cause. Perhaps a firewall drops what is sent, or this is not the \
    gateway's address";

/// The cause of the silence, as far as it can be known here, in sentences that begin with `waited`.
/// The device was tried from `since_ms` on.
pub(super) fn why(
    place: &Place,
    credentials: &Credentials,
    profile: &str,
    since_ms: u64,
    waited: &str,
) -> String {
    let Some(cause) = look(place, credentials, profile, since_ms) else {
        return format!("{waited}. {PERHAPS}");
    };
    format!("{waited}. {cause}")
}

/// What the state directory says, if there is one.
fn look(place: &Place, credentials: &Credentials, profile: &str, since_ms: u64) -> Option<String> {
    let state = place.state().ok().filter(|state| state.join(registry::FILE).exists())?;
    let shown = state.display();
    let mut control = Control::open(&state).ok()?;
    let runs = matches!(control, Control::Gateway(_));
    let facts = control.facts(place).ok()?;
    let theirs = Hex(&credentials.gateway.fingerprint.0).to_string();
    if facts.fingerprint != theirs {
        return Some(format!(
            "The credential holds another gateway's certificate ({}…) than that of {shown} ({}…): write the credential \
             anew",
            &theirs[..16],
            facts.fingerprint.get(..16).unwrap_or_default()
        ));
    }
    let name = &credentials.name;
    let cause = match control.show(name) {
        Err(error) => Some(format!("In {shown}: {error:#}")),
        Ok(device) => refused(&device, credentials, profile)
            .or_else(|| turned_away(device.presence.as_ref()?, name, since_ms)),
    };
    cause.or_else(|| {
        (!runs).then(|| format!("No gateway runs on {shown}, in which {name} is registered: start it with `duet run`"))
    })
}

/// What the running gateway itself noted when it turned the device away.
fn turned_away(presence: &Presence, name: &str, since_ms: u64) -> Option<String> {
    let last = presence.refusals.iter().find(|refusal| refusal.at_ms >= since_ms)?;
    Some(format!("The gateway turned {name} away: {}", last.text))
}

/// Why the gateway refuses a device of which it knows this.
fn refused(device: &DeviceInfo, credentials: &Credentials, profile: &str) -> Option<String> {
    let DeviceInfo { name, mode, key_sources, .. } = device;
    if let Some(since) = device.revoked_s {
        return Some(format!("{name} was revoked at {}: it needs a new credential", Utc(since)));
    }
    if device.id != credentials.identity.id.to_string() {
        return Some(format!(
            "{name} is registered under the id {}, and this credential is for {}: it is an older one",
            device.id, credentials.identity.id
        ));
    }
    if device.fingerprint != Hex(&credentials.identity.fingerprint.0).to_string() {
        return Some(format!(
            "{name} is registered with another certificate than the credential's"
        ));
    }
    let (of_credential, source) = profile.split_once('/')?;
    if of_credential != mode || !key_sources.split(',').any(|allowed| allowed == source) {
        return Some(format!(
            "{name} is registered for {mode} with {key_sources}, and this credential is for {profile}"
        ));
    }
    let now = now_s();
    if let Some(end) = device.not_after_s.filter(|end| *end < now) {
        return Some(format!("The certificate of {name} ended at {}", Utc(end)));
    }
    if let Some(end) = device.expires_s.filter(|end| *end <= now) {
        return Some(format!(
            "The registration ended at {}; `duet device set {name} --expires` moves the end",
            Utc(end)
        ));
    }
    let start = device.not_before_s.filter(|start| *start > now)?;
    Some(format!("The certificate of {name} is valid from {} on", Utc(start)))
}

//! Which devices are asked for: the same filters in the API and, while no gateway runs, in commands.

use duet_control::segment;
use duet_protocol::profile::{KeySource, Profile};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Problem;
use super::wire::DeviceInfo;
use crate::registry::matches;

/// The longest pattern of names.
const MAX_PATTERN: usize = 256;

/// Where in its life a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// It may connect.
    Registered,
    /// Refused for ever.
    Revoked,
    /// Its certificate or its registration has ended.
    Expired,
    /// Its certificate is not valid yet.
    NotYetValid,
}

impl DeviceState {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Registered, Self::Revoked, Self::Expired, Self::NotYetValid];

    /// Where a device is at this time, Unix seconds.
    #[must_use]
    pub fn of(device: &DeviceInfo, now_s: i64) -> Self {
        if device.revoked_s.is_some() {
            Self::Revoked
        } else if device.not_after_s.is_some_and(|end| end < now_s)
            || device.expires_s.is_some_and(|end| end <= now_s)
        {
            Self::Expired
        } else if device.not_before_s.is_some_and(|start| start > now_s) {
            Self::NotYetValid
        } else {
            Self::Registered
        }
    }

    /// Its name in the API and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
        }
    }
}

/// Which devices are wanted: those that meet everything that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeviceQuery {
    /// Only devices whose names come after this one.
    pub after: Option<String>,
    /// At most so many.
    pub limit: Option<usize>,
    /// Only devices whose names match; `*` stands for anything.
    pub name: Option<String>,
    /// Only devices with all of these tags, separated by commas.
    pub tag: Option<String>,
    /// Only devices of this group.
    pub group: Option<String>,
    /// Only devices that prove themselves in this way: `certificate`, `registered-certificate` or `registered-id`.
    pub mode: Option<String>,
    /// Only devices that may use this profile, for example `certificate/ephemeral`, or this key source.
    pub profile: Option<String>,
    /// Only devices in this state.
    pub state: Option<DeviceState>,
    /// Only devices that end within so many seconds, or have ended: by their certificates or their registrations.
    pub expiring_s: Option<i64>,
    /// Only devices that are online.
    #[serde(default)]
    pub online: bool,
}

impl DeviceQuery {
    /// Refuses what no device can meet, and would only look like an empty list.
    ///
    /// # Errors
    /// A [`Problem`] that names the parameter.
    pub fn check(&self) -> Result<(), Problem> {
        if self.name.as_ref().is_some_and(|pattern| pattern.len() > MAX_PATTERN) {
            return Err(Problem::bad(format_args!("name: at most {MAX_PATTERN} characters")));
        }
        if let Some(tags) = &self.tag {
            tags.parse::<crate::registry::Tags>()
                .map_err(|error| Problem::bad(format_args!("tag: {error}")))?;
        }
        if let Some(group) = &self.group {
            group
                .parse::<crate::registry::Word>()
                .map_err(|error| Problem::bad(format_args!("group: {error}")))?;
        }
        let modes = ["certificate", "registered-certificate", "registered-id"];
        if self.mode.as_deref().is_some_and(|mode| !modes.contains(&mode)) {
            return Err(Problem::bad(format_args!("mode: one of {}", modes.join(", "))));
        }
        let is_profile =
            |name: &str| Profile::from_name(name).is_some() || KeySource::from_name(name).is_some();
        if self.profile.as_deref().is_some_and(|name| !is_profile(name)) {
            return Err(Problem::bad(
                "profile: a mode and a key source, for example certificate/ephemeral, or a key source alone",
            ));
        }
        Ok(())
    }

    /// Whether a device meets what the registry can tell: everything but whether it is online.
    #[must_use]
    pub fn wants(&self, device: &DeviceInfo, now_s: i64) -> bool {
        let ends = |within: i64| {
            let ends = [device.not_after_s, device.expires_s].into_iter().flatten();
            let end = ends.min().filter(|_| device.revoked_s.is_none());
            end.is_some_and(|end| end <= now_s.saturating_add(within))
        };
        let allows = |profile: &String| {
            let source = match profile.rsplit_once('/') {
                Some((mode, _)) if mode != device.mode => return false,
                Some((_, source)) => source,
                None => profile,
            };
            device.key_sources.split(',').any(|allowed| allowed == source)
        };
        let has = |tags: &String| {
            tags.split(',').map(str::trim).all(|tag| device.tags.iter().any(|has| has == tag))
        };
        self.state.is_none_or(|state| state == DeviceState::of(device, now_s))
            && self.mode.as_ref().is_none_or(|mode| *mode == device.mode)
            && self.name.as_ref().is_none_or(|pattern| matches(pattern, &device.name))
            && self.tag.as_ref().is_none_or(has)
            && self.group.as_ref().is_none_or(|group| device.group.as_ref() == Some(group))
            && self.profile.as_ref().is_none_or(allows)
            && self.expiring_s.is_none_or(ends)
    }

    /// Whether a device is online, if that is asked.
    #[must_use]
    pub fn finds_there(&self, device: &DeviceInfo) -> bool {
        !self.online || device.presence.as_ref().is_some_and(|presence| presence.online)
    }

    /// The query as it stands in an address.
    #[must_use]
    pub fn target(&self, path: &str) -> String {
        let mut target = path.to_owned();
        let mut put = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                let mark = if target.contains('?') { '&' } else { '?' };
                target.push(mark);
                target.push_str(name);
                target.push('=');
                target.push_str(&segment(value));
            }
        };
        put("after", self.after.as_deref());
        put("limit", self.limit.map(|limit| limit.to_string()).as_deref());
        put("name", self.name.as_deref());
        put("tag", self.tag.as_deref());
        put("group", self.group.as_deref());
        put("mode", self.mode.as_deref());
        put("profile", self.profile.as_deref());
        put("state", self.state.map(DeviceState::name));
        put("expiring_s", self.expiring_s.map(|within| within.to_string()).as_deref());
        put("online", self.online.then_some("true"));
        target
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> DeviceInfo {
        DeviceInfo {
            name: "m-1".into(),
            mode: "certificate".into(),
            id: String::new(),
            fingerprint: String::new(),
            key_sources: "ephemeral,xor-key".into(),
            created_s: 0,
            revoked_s: None,
            not_before_s: Some(10),
            not_after_s: Some(100),
            mark: 0,
            tags: vec!["a".into(), "b".into()],
            group: Some("g".into()),
            expires_s: Some(50),
            renewing_s: None,
            presence: None,
        }
    }

    #[test]
    fn every_filter_finds_and_leaves_out_and_goes_over_the_wire() {
        let given = |text: &str| Some(text.to_owned());
        let base = DeviceQuery::default();
        let [good, bad] = [
            ["m-*", "b,a", "g", "certificate", "certificate/xor-key"],
            ["n-*", "a,c", "h", "registered-id", "registered-id/ephemeral"],
        ]
        .map(|[name, tag, group, mode, profile]| {
            [
                DeviceQuery { name: given(name), ..base.clone() },
                DeviceQuery { tag: given(tag), ..base.clone() },
                DeviceQuery { group: given(group), ..base.clone() },
                DeviceQuery { mode: given(mode), ..base.clone() },
                DeviceQuery { profile: given(profile), ..base.clone() },
            ]
        });
        for (good, bad) in good.iter().zip(&bad) {
            assert!(good.wants(&device(), 20) && good.check().is_ok(), "{good:?}");
            assert!(!bad.wants(&device(), 20) && bad.check().is_ok(), "{bad:?}");
        }
        let state = |now_s| DeviceState::of(&device(), now_s);
        assert_eq!(
            [9, 10, 49, 50].map(state).map(DeviceState::name),
            ["not-yet-valid", "registered", "registered", "expired"]
        );
        let ends = |within| DeviceQuery { expiring_s: Some(within), ..base.clone() };
        assert!(ends(30).wants(&device(), 20) && !ends(29).wants(&device(), 20));
        assert!(!DeviceQuery { online: true, ..base.clone() }.finds_there(&device()));
        for wrong in [
            DeviceQuery { tag: given("a b"), ..base.clone() },
            DeviceQuery { group: given(""), ..base.clone() },
            DeviceQuery { mode: given("x"), ..base.clone() },
            DeviceQuery { profile: given("certificate"), ..base.clone() },
            DeviceQuery { name: Some("*".repeat(257)), ..base.clone() },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
        let all = DeviceQuery {
            after: given("a"),
            limit: Some(3),
            name: given("m-*&x=1"),
            state: Some(DeviceState::NotYetValid),
            expiring_s: Some(-1),
            online: true,
            ..good[4].clone()
        };
        let uri: axum::http::Uri = all.target("/v1/devices").parse().unwrap();
        let axum::extract::Query(read) =
            axum::extract::Query::<DeviceQuery>::try_from_uri(&uri).unwrap();
        assert_eq!(read, all);
    }
}

//! Settings: defaults, refusals with their places, what stands above what.

use std::net::Ipv6Addr;

use super::*;

fn with(text: &str, variables: &[(&str, &str)]) -> Result<(Config, Values), String> {
    let variables = variables.iter().map(|(name, text)| ((*name).into(), (*text).into()));
    let resolved = resolve(text, variables, &Overrides::default(), Path::new("state"));
    resolved.map_err(|problems| Lines(&problems).to_string())
}

fn load(text: &str) -> Result<Config, String> {
    with(text, &[]).map(|(config, _)| config)
}

fn message(text: &str) -> String {
    load(text).unwrap_err()
}

#[test]
fn the_template_says_the_defaults() {
    let uncommented = |line: &str| match line.strip_prefix('#') {
        // A setting is commented without a space; prose has one.
        Some(rest) if !rest.starts_with(' ') => rest.to_owned(),
        _ => line.to_owned(),
    };
    let all: Vec<_> = TEMPLATE.lines().map(uncommented).collect();
    let defaults = load(&TEMPLATE).unwrap();
    assert_eq!(load("").unwrap(), defaults);
    let given = load(&all.join("\n")).unwrap();
    let retiring = given.retiring.clone();
    assert_eq!(retiring.as_ref().unwrap().key_id, 255);
    let enrol = Enrol { trusted: None, ..given.enrol.clone() };
    let given = Config { shards: defaults.shards, retiring: None, api: None, enrol, ..given };
    assert_eq!(given, defaults);
    assert_eq!(defaults.listen, (Ipv6Addr::UNSPECIFIED, PORT).into());
    assert_eq!(defaults.metrics.listen.port(), METRICS_PORT);
    let values = all.iter().filter(|line| line.contains(" = ") && !line.starts_with('#'));
    assert_eq!(values.count(), catalogue::SETTINGS.len());
}

#[test]
fn unknown_keys_and_wrong_kinds_are_refused_with_their_place() {
    let unknown = message("shards = 2\nlisen = \"[::]:1\"\n");
    assert!(
        unknown.contains("line 2, column 1: unknown setting lisen; did you mean listen?"),
        "{unknown}"
    );
    assert!(unknown.contains("lisen = \"[::]:1\""), "the line itself: {unknown}");
    let table = message("[sesion]\nidle = 3");
    assert!(table.contains("line 1, column 2: unknown setting sesion"), "{table}");
    let inner = message("[session]\n  idle_timeut_s = 3");
    assert!(
        inner.contains("line 2, column 3") && inner.contains("session.idle_timeout_s?"),
        "{inner}"
    );
    for (text, must) in [
        ("listen = \"localhost\"", "listen must be an IP address and a port"),
        ("shards = \"two\"", "shards must be 1 to 256, and is \"two\""),
        ("io = \"kqueue\"", "io must be \"auto\", \"io_uring\", \"epoll\", and is \"kqueue\""),
        ("shards = -1", "and is -1"),
        ("shards = 1.5", "and is 1.5"),
        ("pin = 1", "pin must be true or false, and is 1"),
        ("[spool]\nwhen_full = \"drop\"", "drop_oldest"),
        ("[spool]\ndir = \"\"", "a path in quotation marks"),
        ("gateway = 1", "unknown setting gateway"),
        ("state = 1", "state must be a path"),
        ("shards = ", "not TOML"),
        ("a = 1\na = 2", "not TOML"),
        ("\u{1}", "not TOML"),
    ] {
        let said = message(text);
        assert!(said.contains(must) && said.contains("line "), "{text}: {said}");
        assert!(!said.contains('\u{1}'));
    }
}

#[test]
fn every_value_out_of_range_is_named_at_once() {
    let all = message(
        "shards = 0\ngather_us = 10001\n[spool]\nsegment_bytes = 5\nmax_bytes = 6\nmax_age_s = 7\n\
         [metrics]\nlisten = \"192.0.2.1:9\"\n\
         [quota]\nreadings_per_s = 1000001\nbytes_per_s = 1073741825\nshare_percent = 26\n\
         [session]\nidle_timeout_s = 1\npending_timeout_ms = 1\nlifetime_s = 1\n\
         [limits]\nmax_sessions = 0\nmax_pending = 0\nmax_streams = 0\n\
         [queues]\nsubmissions = 0\ncompletions = 65537\ndatagram_buffers = 3\nstream_buffers = 0\n\
         send_slots = 0\n",
    );
    for key in [
        "shards must",
        "gather_us must",
        "spool.segment_bytes must",
        "spool.max_bytes must",
        "spool.max_age_s must",
        "quota.readings_per_s must",
        "quota.bytes_per_s must",
        "quota.share_percent must",
        "metrics.listen must",
        "session.idle_timeout_s must",
        "session.pending_timeout_ms must",
        "session.lifetime_s must",
        "limits.max_sessions must",
        "limits.max_pending must",
        "limits.max_streams must",
        "queues.submissions must",
        "queues.completions must",
        "queues.datagram_buffers must",
        "queues.stream_buffers must",
        "queues.send_slots must",
    ] {
        assert!(all.contains(key), "{key}: {all}");
    }
    let same = "listen = \"127.0.0.1:5\"\n[metrics]\nlisten = \"127.0.0.1:5\"";
    assert!(message(same).contains("must differ"));
    let twice = "[gateway.retiring]\ncertificate = \"a\"\nkey = \"b\"\nkey_id = 0";
    assert!(message(twice).contains("gateway.retiring.key_id must differ"));
    assert!(
        message("[gateway.retiring]\nkey = \"b\"")
            .contains("gateway.retiring.certificate must be given")
    );
    assert!(message("[api]\nlisten = \"[::1]:1\"").contains("api.key must be given"));
    assert!(message("[api]\nkey = \"k\"").contains("api.key must come with api.listen"));
    let pair = "certificate = \"c\"\nkey = \"k\"";
    for address in ["127.0.0.1:23838", "[::]:23839", "127.0.0.1:23839"] {
        let said = message(&format!("[api]\nlisten = \"{address}\"\n{pair}"));
        assert!(said.contains("api.listen must differ from"), "{address}: {said}");
    }
    let wildcard = "listen = \"0.0.0.0:5\"\n[metrics]\nlisten = \"127.0.0.1:5\"";
    assert!(message(wildcard).contains("metrics.listen must differ"));
    assert!(load("[metrics]\nlisten = \"192.0.2.1:9\"\nallow_remote = true").is_ok());
    let short = "[session]\nlifetime_s = 60\nidle_timeout_s = 61";
    assert!(message(short).contains("line 3, column 1: session.idle_timeout_s must be at most"));
    let block = "[spool]\nsegment_bytes = 1048577";
    assert!(message(block).contains("a multiple of 4096"));
}

/// What is wrong with an upstream is said in the words of the file.
#[test]
fn upstreams_that_cannot_be_read_are_told_in_the_words_of_the_file() {
    let hook = "[[upstream]]\nname = \"h\"\nkind = \"webhook\"\nurl = \"http://h/\"\n";
    assert!(message("[upstream]\nname = \"h\"").contains("[[upstream]], in two brackets"));
    for (line, must) in [("in_flight = \"4\"", "in_flight"), ("late_after_s = -1", "late_after_s")]
    {
        let said = message(&format!("{hook}{line}"));
        let number = said.contains("expected a whole number from 0 on");
        assert!(number && said.contains("line 5") && said.contains(must), "{said}");
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE), b"pin = true\n# caf\xe9\n").unwrap();
    let said = Config::load(Some(dir.path()), None, &Overrides::default()).unwrap_err().to_string();
    assert!(said.contains("line 2 is not UTF-8 text"), "{said}");
}

/// Each setting in turn: a value of every kind is taken, or refused with its place; none is ignored.
#[test]
fn no_setting_is_ignored() {
    for setting in catalogue::SETTINGS {
        let (table, name) = setting.key.rsplit_once('.').unwrap_or(("", setting.key));
        let table = if table.is_empty() { String::new() } else { format!("[{table}]\n") };
        for value in ["[]", "{}", "1979-05-27", "1e999", "-9223372036854775808", "\"\\u0000\""] {
            let said = message(&format!("{table}{name} = {value}"));
            assert!(
                said.contains("line ") && said.contains(setting.key),
                "{}: {said}",
                setting.key
            );
        }
    }
}

/// Each setting in turn: there is another value than the default that is taken, and the gateway would run with it.
#[test]
fn every_setting_means_something() {
    use catalogue::Kind;
    for setting in catalogue::SETTINGS {
        let values: Vec<String> = match setting.kind {
            Kind::Number { min, max, .. } => {
                let default = setting.default.parse().unwrap_or(min);
                [min, max, default + 1, default * 2, 61].map(|number| number.to_string()).to_vec()
            }
            Kind::PowerOfTwo { max } => vec!["2".into(), max.to_string()],
            Kind::Blocks { min, max, .. } => vec![min.to_string(), max.to_string()],
            Kind::Switch => vec!["true".into(), "false".into()],
            Kind::Address => vec!["\"127.0.0.1:4242\"".into()],
            Kind::Path => vec!["\"elsewhere\"".into()],
            Kind::Word(words) => words.iter().map(|word| format!("\"{word}\"")).collect(),
        };
        let (table, name) = setting.key.rsplit_once('.').unwrap_or(("", setting.key));
        // What cannot be given without the others of its table, and what only allows another one.
        let around = match (table, name) {
            ("gateway.retiring", _) => "certificate = \"a\"\nkey = \"b\"\nkey_id = 5",
            ("api", _) => "listen = \"[::1]:1\"\ncertificate = \"a\"\nkey = \"b\"",
            ("metrics", "allow_remote") => "listen = \"192.0.2.1:1\"",
            _ => "",
        };
        let others: Vec<_> =
            around.lines().filter(|line| !line.starts_with(&format!("{name} "))).collect();
        let head = if table.is_empty() { String::new() } else { format!("[{table}]\n") };
        let with = |line: &str| load(&format!("{head}{}\n{line}\n", others.join("\n")));
        // Without the one that allows the others, these are refused.
        let before = load(&format!("{head}{around}\n")).ok();
        let taken = values.iter().any(|value| {
            with(&format!("{name} = {value}")).is_ok_and(|config| Some(config) != before)
        });
        assert!(taken, "{}: none of {values:?} changes anything", setting.key);
    }
}

#[test]
fn flags_and_environment_stand_above_the_file_and_paths_below_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("other.toml");
    std::fs::write(&file, "shards = 3\nstate = \"here\"\n[spool]\ndir = \"/spool\"").unwrap();
    let flags = Overrides {
        listen: Some("127.0.0.1:0".parse().unwrap()),
        metrics: Some("[::1]:0".parse().unwrap()),
        shards: Some(7),
        defaults: false,
    };
    let loaded = Loaded::load(None, Some(&file), &flags).unwrap();
    let config = &loaded.config;
    assert_eq!((config.shards, config.listen.port()), (7, 0));
    assert_eq!(config.state, dir.path().join("here"));
    assert_eq!(config.gateway.key, dir.path().join("here/gateway.key"));
    assert_eq!(config.spool.dir, Path::new("/spool"));
    let origin = |key| loaded.values.get(key).unwrap().1;
    assert_eq!(origin("shards"), Origin::Flag("--shards"));
    assert_eq!(origin("spool.dir"), Origin::File { line: 4 });
    assert_eq!(origin("pin"), Origin::Default);
    let missing = Config::load(None, Some(&dir.path().join("none.toml")), &flags);
    assert!(matches!(missing, Err(ConfigError::Missing(_))));
    assert!(matches!(Config::load(Some(dir.path()), None, &flags), Err(ConfigError::Missing(_))));
    let flags = Overrides { defaults: true, ..flags };
    assert_eq!(Config::load(Some(dir.path()), None, &flags).unwrap().shards, 7);
    // Half of an editor's save is not a wish for other settings.
    for empty in ["", "\n"] {
        std::fs::write(dir.path().join(FILE), empty).unwrap();
        let read = Config::load(Some(dir.path()), None, &flags);
        assert!(matches!(read, Err(ConfigError::Empty(_))), "{read:?}");
    }

    let text = "[session]\nlifetime_s = 60\nidle_timeout_s = 60";
    let above = [("DUET__SESSION__LIFETIME_S", "90"), ("DUET_STATE", "x"), ("OTHER", "y")];
    let (config, values) = with(text, &above).unwrap();
    assert_eq!(config.session.lifetime_s, 90);
    let origin = Origin::Environment("DUET__SESSION__LIFETIME_S".into());
    assert_eq!(values.get("session.lifetime_s").unwrap(), (Value::Number(90), origin));
    let wrong =
        with(text, &[("DUET__SESSION__LIFETIME_S", "9"), ("DUET__SHARD", "9")]).unwrap_err();
    assert!(
        wrong.contains("DUET__SESSION__LIFETIME_S (environment): session.lifetime_s must be 60"),
        "{wrong}"
    );
    assert!(wrong.contains("DUET__SHARD (environment): there is no setting shard"), "{wrong}");
    let odd = std::os::unix::ffi::OsStringExt::from_vec(b"/spool-\xff".to_vec());
    let variables = std::iter::once(("DUET__SPOOL__DIR".into(), odd));
    let refused = resolve("", variables, &Overrides::default(), Path::new("state")).unwrap_err();
    let refused = Lines(&refused).to_string();
    assert!(refused.contains("DUET__SPOOL__DIR (environment): spool.dir must be"), "{refused}");
}

#[test]
fn a_change_is_known_by_its_values() {
    let dir = tempfile::tempdir().unwrap();
    let load = |text: &str| {
        std::fs::write(dir.path().join(FILE), text).unwrap();
        Loaded::load(Some(dir.path()), None, &Overrides::default()).unwrap()
    };
    let old = load("shards = 2\n[session]\nidle_timeout_s = 60");
    let new = load("shards = 3\n# a comment\n[session]\nlifetime_s = 86400\nidle_timeout_s = 90");
    let found = changes(&old, &new);
    let keys: Vec<_> = found.iter().map(|change| (change.key, change.taken)).collect();
    use catalogue::Taken::{AtReload, AtStart};
    assert_eq!(keys, [("shards", AtStart), ("session.idle_timeout_s", AtReload)]);
    assert_eq!(found[0].to_string(), "shards = 3 (was 2)");
    assert_eq!(changes(&new, &new), []);
}

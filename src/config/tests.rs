//! Settings: defaults, refusals with their places, what stands above what.

use super::*;

fn load(text: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE), text).unwrap();
    let loaded = Config::load(Some(dir.path()), None, &Overrides::default());
    loaded.map(|config| Config { state: "state".into(), ..config })
}

fn message(text: &str) -> String {
    load(text).unwrap_err().to_string()
}

#[test]
fn the_template_says_the_defaults() {
    let uncommented = |line: &str| match line.strip_prefix('#') {
        // A setting is commented without a space; prose has one.
        Some(rest) if !rest.starts_with(' ') => rest.to_owned(),
        _ => line.to_owned(),
    };
    let all: Vec<_> = TEMPLATE.lines().map(uncommented).collect();
    let state = Path::new("/nonexistent");
    let parse = |text: &str| {
        Config::resolve(toml::from_str(text).unwrap(), state.into(), &Overrides::default())
    };
    let defaults = parse(TEMPLATE).unwrap();
    assert_eq!(parse("").unwrap(), defaults);
    assert_eq!(Config { shards: cpus(), ..parse(&all.join("\n")).unwrap() }, defaults);
    assert!(all.iter().filter(|line| line.contains(" = ")).count() >= 15);
}

#[test]
fn unknown_keys_and_wrong_kinds_are_refused_with_their_place() {
    let unknown = message("shards = 2\nlisten_address = \"[::]:1\"\n");
    assert!(unknown.contains("duet.toml") && unknown.contains("line 2"), "{unknown}");
    assert!(unknown.contains("listen_address"), "{unknown}");
    assert!(message("[session]\nidle = 3").contains("line 2"));
    assert!(message("listen = \"localhost\"").contains("line 1"));
    assert!(message("shards = \"two\"").contains("line 1"));
    assert!(message("io = \"kqueue\"").contains("line 1"));
    assert!(message("shards = ").contains("line 1"));
    assert!(message("[spool]\nwhen_full = \"drop\"").contains("drop_oldest"));
    assert!(message("shards = -1").contains("line 1"));
}

#[test]
fn every_value_out_of_range_is_named_at_once() {
    let all = message(
        "shards = 0\ngather_us = 10001\n[spool]\nsegment_bytes = 5\nmax_bytes = 6\nmax_age_s = 7\n\
         [metrics]\nlisten = \"192.0.2.1:9\"\n\
         [quota]\nreadings_per_s = 1000001\nbytes_per_s = 1073741825\nshare_percent = 26\n\
         [session]\nidle_timeout_s = 1\npending_timeout_ms = 1\nlifetime_s = 1\n\
         [limits]\nmax_sessions = 0\nmax_pending = 0\nmax_streams = 0\nmax_tables = 0\n\
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
        "limits.max_tables must",
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
    assert!(load("[metrics]\nlisten = \"192.0.2.1:9\"\nallow_remote = true").is_ok());
}

#[test]
fn flags_stand_above_the_file_and_paths_below_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("other.toml");
    std::fs::write(&file, "shards = 3\nstate = \"here\"\n[spool]\ndir = \"/spool\"").unwrap();
    let flags = Overrides {
        listen: Some("127.0.0.1:0".parse().unwrap()),
        metrics: Some("[::1]:0".parse().unwrap()),
        shards: Some(7),
    };
    let config = Config::load(None, Some(&file), &flags).unwrap();
    assert_eq!((config.shards, config.listen.port()), (7, 0));
    assert_eq!(config.state, dir.path().join("here"));
    assert_eq!(config.gateway.key, dir.path().join("here/gateway.key"));
    assert_eq!(config.spool.dir, Path::new("/spool"));
    let missing = Config::load(None, Some(&dir.path().join("none.toml")), &flags);
    assert!(matches!(missing, Err(ConfigError::Io { .. })));
    assert_eq!(Config::load(Some(dir.path()), None, &flags).unwrap().shards, 7);
}

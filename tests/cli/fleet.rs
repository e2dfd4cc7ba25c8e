//! Many devices at once: imported, exported, listed, ended.

use std::fs;

use serde_json::Value;

use crate::world::{Scratch, text};

/// Devices of every mode.
fn fleet(scratch: &Scratch) {
    for (name, days, mode) in [("long", 400, "--cert"), ("short", 10, "--registered-cert")] {
        let created = duet::identity::create(name, days, duet::identity::now_s()).unwrap();
        let file = format!("{name}.pem");
        fs::write(scratch.path(&file), &created.certificate_pem).unwrap();
        scratch.good(&["device", "add", name, mode, &file]);
    }
    for name in ["m-1", "m-2", "n-1"] {
        let out = format!("{name}.json");
        let sources = ["--key-sources", "ephemeral,xor-key", "--out", &out];
        let labels = ["--tag", "site-b, meter", "--group", "north", "--expires", "2099-01-01"];
        let labels = if name == "m-2" { &labels[..] } else { &[] };
        let add = ["device", "add", name, "--registered-id"];
        scratch.good(&[&add[..], &sources[..], labels].concat());
    }
}

fn listed(scratch: &Scratch, flags: &[&str]) -> Vec<String> {
    let list = ["device", "list", "--format", "names"];
    scratch.good(&[&list[..], flags].concat()).lines().map(str::to_owned).collect()
}

/// What is known of each device but when it was registered and how often it was here.
fn facts(scratch: &Scratch) -> Vec<Value> {
    let listed = scratch.good(&["device", "list", "--format", "json"]);
    let device = |line: &str| {
        let mut device: Value = serde_json::from_str(line).unwrap();
        let device_ = device.as_object_mut().unwrap();
        device_.remove("created_s");
        device_.remove("mark");
        device
    };
    listed.lines().map(device).collect()
}

#[test]
fn a_fleet_that_is_exported_and_imported_is_the_same() {
    let scratch = Scratch::initialised();
    fleet(&scratch);
    let round = |file: &str| {
        scratch.good(&["device", "export", "--with-keys", "--out", file]);
        let other = Scratch::initialised();
        fs::copy(scratch.path(file), other.path(file)).unwrap();
        let dry = other.good(&["device", "import", file, "--dry-run"]);
        assert_eq!(dry.lines().count(), 5);
        assert!(
            dry.lines().all(|line| line.contains("\"result\":\"would be registered\"")),
            "{dry}"
        );
        assert_eq!(other.good(&["device", "list", "--format", "names"]), "");
        assert_eq!(other.good(&["device", "import", file]), "registered 5 devices\n");
        assert_eq!(facts(&other), facts(&scratch));
        // A key that was brought along may have been used before, so the gateway meets the device anew.
        let shown = other.good(&["device", "show", "m-1", "--format", "json"]);
        assert!(shown.contains("\"mark\":0"), "{shown}");
        other.good(&["device", "export", "--with-keys", "--out", "again"]);
        let again = fs::read_to_string(other.path("again")).unwrap();
        if !file.ends_with("csv") {
            assert_eq!(again, fs::read_to_string(scratch.path(file)).unwrap());
        }
    };
    round("fleet.ndjson");
    round("fleet.csv");
    // The running gateway says the same, and no key unless it is asked for.
    let direct = scratch.good(&["device", "export", "--with-keys"]);
    let _gateway = scratch.run();
    assert_eq!(scratch.good(&["device", "export", "--with-keys"]), direct);
    let without = scratch.good(&["device", "export"]);
    assert!(
        direct.contains("\"key\":")
            && !without.contains("\"key\":")
            && without.lines().count() == 5
    );
    let taken = scratch.bad(&["device", "export", "--out", "fleet.csv"]);
    assert!(taken.contains("fleet.csv") && taken.contains("exists"), "{taken}");
    // Who was revoked is not registered elsewhere.
    scratch.good(&["device", "revoke", "m-1"]);
    assert_eq!(scratch.good(&["device", "export"]).lines().count(), 4);
    // Who took all keys away stands in the log.
    let audit = scratch.good(&["audit", "show"]);
    for from in ["offline", "socket"] {
        assert!(audit.contains(&format!("({from}): GET /v1/export: done")), "{from}: {audit}");
    }
}

#[test]
fn every_line_that_would_be_refused_is_told_and_none_is_taken() {
    let scratch = Scratch::initialised();
    scratch.good(&["device", "add", "a", "--registered-id", "--out", "a.json"]);
    let lines = "\u{feff}{\"name\":\"b\",\"mode\":\"registered-id\"}\n\
        {\"name\":\"a\",\"mode\":\"registered-id\"}\n\n\
        {\"name\":\"c\\u001b[31m<b>\",\"mode\":\"registered-id\"}\n\
        {\"name\":\"d\",\"mode\":\"registered-id\",\"key\":\"12\"}\n\
        {\"name\":\"b\",\"mode\":\"registered-id\"}\n\
        {\"name\":\"e\",\"mode\":\"telepathy\"}\n";
    fs::write(scratch.path("fleet.ndjson"), lines).unwrap();
    let round = || {
        for flags in [&["--dry-run"][..], &["--results", "--out", "made.json"]] {
            let import = [&["device", "import", "fleet.ndjson"][..], flags].concat();
            let output = scratch.duet(&import);
            let (out, said) = (text(&output.stdout), text(&output.stderr));
            assert_eq!(output.status.code(), Some(1), "{said}");
            let results: Vec<Value> =
                out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let refused = |line: &Value| line["result"] == "refused";
            let places = results
                .iter()
                .filter(|line| refused(line))
                .map(|line| line["line"].as_u64().unwrap());
            assert_eq!(places.collect::<Vec<_>>(), [2, 4, 5, 6, 7], "{out}");
            for part in [
                "line 2: a: a device of this name",
                "line 5: d: key must be 64",
                "line 6: b: line 1 has this name, too",
                "line 7: e: mode must be",
                "5 of 6 devices",
            ] {
                assert!(said.contains(part), "{part}: {said}");
            }
            // A hostile name reaches no terminal as it is.
            assert!(!said.contains('\u{1b}') && !out.contains('\u{1b}'), "{said:?}");
            assert!(!scratch.path("made.json").exists());
        }
        assert_eq!(listed(&scratch, &[]), ["a"]);
    };
    round();
    let _gateway = scratch.run();
    round();
}

#[test]
fn csv_is_read_as_spreadsheets_write_it_and_blamed_by_its_line() {
    let scratch = Scratch::initialised();
    let created = duet::identity::create("one", 400, duet::identity::now_s()).unwrap();
    let csv = format!(
        "\u{feff}name,mode,certificate,key_sources\r\n\
         one,certificate,\"{}\",\"ephemeral,client-key\"\r\n\
         two,registered-id,,\r\n",
        created.certificate_pem.replace('\n', "\r\n")
    );
    fs::write(scratch.path("fleet.csv"), csv).unwrap();
    let import = ["device", "import", "fleet.csv", "--out", "made.json"];
    assert_eq!(scratch.good(&import), "registered 2 devices\n");
    assert_eq!(fs::read_to_string(scratch.path("made.json")).unwrap().lines().count(), 2);
    assert!(scratch.good(&["device", "show", "one"]).contains("ephemeral,client-key"));
    for (rows, said) in [
        ("name,modus\nx,y\n", "line 2 is not a device: unknown field"),
        ("name,mode\nx,registered-id\ny\n", "line 3 is not a device: it has 1 fields"),
        ("name\nx\n", "line 2 is not a device: missing field"),
        ("x,registered-id\n", "the first line must name the columns"),
        ("name;mode\nx;registered-id\n", "the first line must name the columns"),
    ] {
        fs::write(scratch.path("bad.csv"), rows).unwrap();
        let told = scratch.bad(&["device", "import", "bad.csv", "--out", "none.json"]);
        assert!(told.contains("bad.csv") && told.contains(said), "{told}");
    }
}

#[test]
fn many_devices_are_ended_together_or_not_at_all() {
    let scratch = Scratch::initialised();
    fleet(&scratch);
    let round = |end: &str, kept: usize| {
        let said = scratch.bad(&["device", end, "m-1", "nobody"]);
        assert!(said.contains("nobody: no device of this name"), "{said}");
        assert_eq!(listed(&scratch, &["--only", "registered"]).len(), kept);
    };
    round("revoke", 5);
    assert_eq!(scratch.good(&["device", "revoke", "m-1", "m-2"]), "revoked 2 devices\n");
    assert_eq!(listed(&scratch, &["--only", "revoked"]), ["m-1", "m-2"]);
    let gateway = scratch.run();
    round("remove", 3);
    fs::write(scratch.path("names"), "m-1\n\n n-1 \nlong\n").unwrap();
    assert_eq!(scratch.good(&["device", "remove", "--file", "names"]), "removed 3 devices\n");
    assert_eq!(listed(&scratch, &[]), ["m-2", "short"]);
    assert!(gateway.get("/metrics").contains("duet_devices 1\n"));
    fs::write(scratch.path("names"), "\n").unwrap();
    assert!(scratch.bad(&["device", "remove", "--file", "names"]).contains("no names"));
    assert_eq!(scratch.duet(&["device", "remove"]).status.code(), Some(2));
}

#[test]
fn a_list_is_filtered() {
    let scratch = Scratch::initialised();
    fleet(&scratch);
    scratch.good(&["device", "revoke", "n-1"]);
    assert_eq!(listed(&scratch, &["--name", "*-1"]), ["m-1", "n-1"]);
    assert_eq!(listed(&scratch, &["--name", "m-*", "--only", "registered"]), ["m-1", "m-2"]);
    assert_eq!(listed(&scratch, &["--mode", "certificate"]), ["long"]);
    assert_eq!(listed(&scratch, &["--expiring", "30d"]), ["short"]);
    assert_eq!(listed(&scratch, &["--expiring", "401d"]), ["long", "short"]);
    assert!(listed(&scratch, &["--expiring", "9d"]).is_empty());
    let table = scratch.good(&["device", "list"]);
    assert!(table.starts_with("NAME") && table.contains(" ENDS ") && table.lines().count() == 6);
    assert_eq!(scratch.duet(&["device", "list", "--expiring", "soon"]).status.code(), Some(2));
}

#[test]
fn devices_are_found_by_what_is_said_of_them_and_ended_together() {
    let scratch = Scratch::initialised();
    fleet(&scratch);
    let round = || {
        assert_eq!(listed(&scratch, &["--tag", "meter,site-b"]), ["m-2"]);
        assert_eq!(listed(&scratch, &["--group", "north", "--expiring", "40000d"]), ["m-2"]);
        assert!(listed(&scratch, &["--tag", "meter,other"]).is_empty());
        assert_eq!(listed(&scratch, &["--profile", "registered-id/xor-key"]).len(), 3);
        let odd = scratch.bad(&["device", "list", "--profile", "certificate/none"]);
        assert!(odd.contains("profile: a mode and a key source"), "{odd}");
    };
    round();
    let gateway = scratch.run();
    round();
    // Where nobody can be asked, nothing is done without a word for it.
    let said = scratch.bad(&["device", "revoke", "--tag", "meter"]);
    assert!(said.contains("1 devices would be revoked (m-2); give --yes"), "{said}");
    scratch.good(&["device", "set", "m-1", "n-1", "--add-tag", "meter", "--set-group", "south"]);
    let said = scratch.bad(&["device", "set", "m-1", "--add-tag", "=cmd|x"]);
    assert!(said.contains("a tag or a group is 1 to 32"), "{said}");
    assert_eq!(
        scratch.good(&["device", "revoke", "--tag", "meter", "--name", "m-*", "--yes"]),
        "revoked 2 devices\n"
    );
    let said = scratch.bad(&["device", "revoke", "--tag", "meter", "--name", "m-*", "--yes"]);
    assert!(said.contains("no device meets these filters"), "{said}");
    gateway.stop("-TERM");
    assert_eq!(
        scratch.good(&["device", "remove", "--only", "revoked", "--yes"]),
        "removed 2 devices\n"
    );
    assert_eq!(listed(&scratch, &["--group", "south"]), ["n-1"]);
    let shown = scratch.good(&["device", "show", "n-1"]);
    assert!(shown.contains("tags         meter\n") && shown.contains("group        south\n"));
    scratch.good(&["device", "set", "n-1", "--tags", "", "--set-group", ""]);
    assert!(!scratch.good(&["device", "show", "n-1"]).contains("group"));
    for flags in [&["n-1", "--tag", "meter"][..], &["--file", "x", "--only", "revoked"], &["n-1"]] {
        let set = [&["device", "set"][..], flags].concat();
        assert_eq!(scratch.duet(&set).status.code(), Some(2), "{flags:?}");
    }
}

#[test]
fn a_device_whose_registration_has_ended_is_refused_until_it_is_moved() {
    let scratch = Scratch::initialised();
    let past = ["device", "add", "m", "--registered-id", "--out", "m.json", "--expires"];
    let said = scratch.bad(&[&past[..], &["2020-01-01"]].concat());
    assert!(said.contains("has passed; nothing was registered"), "{said}");
    let gateway = scratch.run();
    scratch.good(&[&past[..], &["90d"]].concat());
    // An answer may be late where the machine has much to do; for none it is not waited long.
    let attempt = |patience: &str| {
        let output = scratch.duet(&["device", "try", "m.json", "--timeout", patience]);
        (output.status.code(), text(&output.stderr))
    };
    assert_eq!(attempt("20").0, Some(0));
    scratch.good(&["device", "set", "m", "--expires", "2020-01-01"]);
    let (code, said) = attempt("1");
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("registration ended at 2020-01-01T00:00:00Z"), "{said}");
    let shown = scratch.good(&["device", "show", "m"]);
    for part in
        ["state        expired", "ends         2020-01-01T00:00:00Z", "registration has ended"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert_eq!(listed(&scratch, &["--only", "expired"]), ["m"]);
    let metrics = gateway.get("/metrics");
    let counted = |line: &str| line.contains("reason=\"expired\"") && !line.ends_with(" 0");
    assert!(metrics.lines().any(counted), "{metrics}");
    scratch.good(&["device", "set", "m", "--expires", "never"]);
    assert_eq!(attempt("20").0, Some(0));
}

#[test]
fn an_import_writes_a_directory_of_credentials_or_none() {
    let scratch = Scratch::initialised();
    let fleet = |names: &[&str]| {
        let line = |name: &&str| format!("{{\"name\":\"{name}\",\"mode\":\"registered-id\"}}\n");
        fs::write(scratch.path("fleet.ndjson"), names.iter().map(line).collect::<String>())
            .unwrap();
    };
    fleet(&["a", "b"]);
    // What an import has left that was killed, and a place that nothing can be written to.
    fs::create_dir(scratch.path("made.draft")).unwrap();
    fs::write(scratch.path("made.draft/a.json"), "half").unwrap();
    let import = |dir: &str| scratch.duet(&["device", "import", "fleet.ndjson", "--out-dir", dir]);
    let said = text(&import("/proc/made").stderr);
    assert!(said.contains("/proc/made: nothing was registered"), "{said}");
    assert!(listed(&scratch, &[]).is_empty());
    assert!(import("made").status.success());
    let mut names: Vec<_> =
        fs::read_dir(scratch.path("made")).unwrap().map(|entry| entry.unwrap()).collect();
    names.sort_by_key(|entry| entry.file_name());
    assert_eq!(
        names.iter().map(|entry| entry.file_name()).collect::<Vec<_>>(),
        ["a.json", "b.json"]
    );
    for entry in names {
        assert_eq!(crate::mode(&entry.path()), 0o600);
    }
    assert!(!scratch.path("made.draft").exists());
    fleet(&["c"]);
    assert!(text(&import("made").stderr).contains("made: nothing was registered"));
    assert_eq!(listed(&scratch, &[]), ["a", "b"]);
    let gateway = scratch.run();
    let address = gateway.address.to_string();
    let tried = ["device", "try", "made/b.json", "--timeout", "20", "--address", &address];
    assert!(scratch.duet(&tried).status.success());
}

#[test]
fn a_device_that_is_registered_again_is_not_given_what_was_queued_before() {
    let scratch = Scratch::initialised();
    scratch.good(&["device", "add", "a", "--registered-id", "--out", "a.json"]);
    scratch.good(&["device", "export", "--with-keys", "--out", "a.ndjson"]);
    scratch.good(&["device", "add", "b", "--registered-id", "--out", "b.json"]);
    let gateway = scratch.run();
    scratch.good(&["command", "a", "open the valve"]);
    scratch.good(&["command", "b", "close the valve"]);
    gateway.stop("-TERM");
    // The same id and the same key.
    scratch.good(&["device", "remove", "a"]);
    scratch.good(&["device", "import", "a.ndjson"]);
    let gateway = scratch.run();
    let said = scratch.good(&["command", "list"]);
    let states: Vec<_> = said.lines().skip(1).map(|line| line.split_whitespace().nth(2)).collect();
    assert_eq!(states, [Some("cancelled"), Some("queued")], "{said}");
    scratch.good(&["command", "a", "open the valve"]);
    gateway.stop("-TERM");
    // What is queued for the new registration stays its own.
    let gateway = scratch.run();
    let said = scratch.good(&["command", "list", "--open"]);
    assert_eq!(said.lines().count(), 3, "{said}");
    gateway.stop("-TERM");
}

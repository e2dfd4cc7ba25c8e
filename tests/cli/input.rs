//! Files that are not what a command wants, and files as editors leave them.

use std::fs;

use crate::world::Scratch;

fn marked(text: &str) -> String {
    format!("\u{feff}{text}")
}

fn wide(text: &str) -> Vec<u8> {
    marked(text).encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_file_and_utf_16_is_named() {
    let scratch = Scratch::initialised();
    let gateway = scratch.run();
    let (one, csv) =
        ("{\"name\":\"a\",\"mode\":\"registered-id\"}\r\n", "name,mode\r\nb,registered-id\r\n");
    for (name, lines) in [("one.ndjson", one), ("two.csv", csv)] {
        fs::write(scratch.path(name), wide(lines)).unwrap();
        let refused = scratch.bad(&["device", "import", name, "--out-dir", "made"]);
        assert!(refused.contains(name) && refused.contains("UTF-16"), "{refused}");
        fs::write(scratch.path(name), marked(lines)).unwrap();
        scratch.good(&["device", "import", name, "--out-dir", "made"]);
        fs::rename(scratch.path("made"), scratch.path(&format!("of-{name}"))).unwrap();
    }
    let credential = fs::read_to_string(scratch.path("of-one.ndjson/a.json")).unwrap();
    let address = gateway.address.to_string();
    let attempt = ["device", "try", "a.json", "--address", &address];
    fs::write(scratch.path("a.json"), wide(&credential)).unwrap();
    let refused = scratch.bad(&attempt);
    assert!(refused.contains("a.json") && refused.contains("UTF-8"), "{refused}");
    fs::write(scratch.path("a.json"), marked(&credential)).unwrap();
    scratch.good(&attempt);
    fs::write(scratch.path("names"), marked("a\r\nb\r\n")).unwrap();
    scratch.good(&["device", "revoke", "--file", "names"]);
    gateway.stop("-TERM");
}

#[test]
fn what_is_another_file_is_named_with_its_line() {
    let scratch = Scratch::initialised();
    scratch.good(&["device", "add", "a", "--registered-id", "--out", "a.json"]);
    fs::write(scratch.path("names"), "a\n\nb c\n").unwrap();
    fs::write(scratch.path("list.json"), "[{\"name\":\"b\"}]").unwrap();
    fs::write(scratch.path("lines.json"), "{\n\"name\":\"b\"}").unwrap();
    for (arguments, told) in [
        (&["device", "revoke", "--file", "names"][..], "names: line 3"),
        (&["device", "import", "list.json"], "line 1 begins a list; write one JSON object a line"),
        (&["device", "import", "lines.json"], "line 1 ends before its JSON object does"),
        (&["device", "add", "c", "--cert", "a.json"], "a.json: is JSON, as a credential is"),
        (&["device", "try", "/dev/zero"], "/dev/zero: is larger than 1 MiB"),
        (&["--config", "a.json", "check"], "JSON, and settings are TOML"),
    ] {
        let refused = scratch.bad(arguments);
        assert!(refused.contains(told), "{arguments:?}: {refused}");
        assert!(!refused.contains("registration_key"), "{arguments:?}: {refused}");
    }
}

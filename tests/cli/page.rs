//! The gateway's page in a real browser: with a token over TLS, as narrow as a telephone and as wide as a desk, light and
//! dark; and whatever it is told, it stays text.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::browser::Browser;
use crate::world::{Gateway, Scratch, text};
use crate::{P256, has_openssl};

/// A gateway with the API over TLS, a fleet, an upstream that is far behind, and noise.
fn gateway(scratch: &Scratch) -> Gateway {
    scratch.certificate("api", P256, "-addext subjectAltName=IP:127.0.0.1");
    for end in ["pem", "key"] {
        fs::copy(scratch.path(&format!("api.{end}")), scratch.state().join(format!("api.{end}")))
            .unwrap();
    }
    let settings = "[api]\nlisten = \"127.0.0.1:0\"\ncertificate = \"api.pem\"\nkey = \"api.key\"\n
        [[upstream]]\nname = \"archive\"\nkind = \"file\"\ndir = \"delivered\"\n";
    fs::write(scratch.state().join("duet.toml"), settings).unwrap();
    let names = (1..=250)
        .map(|number| format!("{{\"name\":\"boiler-{number:03}\",\"mode\":\"registered-id\"}}\n"));
    fs::write(scratch.path("fleet.ndjson"), names.collect::<String>()).unwrap();
    scratch.good(&["device", "import", "fleet.ndjson", "--out", "fleet.json"]);
    scratch.good(&["device", "revoke", "boiler-002"]);
    let gateway = scratch.run();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..5 {
        socket.send_to(b"noise", gateway.address).unwrap();
    }
    gateway
}

#[test]
fn the_page_shows_the_gateway_to_whoever_has_a_token() {
    let scratch = Scratch::initialised();
    let Some(mut browser) = Browser::start(scratch.dir.path()) else {
        eprintln!("SKIPPED: no browser (chromium) to open the page with");
        return;
    };
    if !has_openssl() {
        return;
    }
    let gateway = gateway(&scratch);
    let token = scratch.good(&["token", "add", "me", "--role", "viewer"]);
    browser.look(375, 800, false);
    browser.open(&format!("https://{}/", gateway.api));
    browser.until("document.getElementById('phase')?.textContent === 'token needed'");
    let enter = |token: &str| {
        format!(
            "document.getElementById('token').value = {};
             document.getElementById('token-form').requestSubmit()",
            json!(token)
        )
    };
    browser.ask(&enter("duet_wrong"));
    browser.until("document.getElementById('login-said').textContent.includes('not valid')");
    browser.ask(&enter(token.trim()));
    browser.until("document.getElementById('phase').textContent === 'well'");
    browser.until("document.getElementById('fleet').innerText.includes('249')");
    browser.until("document.getElementById('drops').innerText.includes('scanners and noise')");
    browser.until("document.getElementById('upstreams').innerText.includes('archive (file)')");
    browser.until("document.querySelectorAll('#devices tr').length === 200");
    browser.until("document.querySelectorAll('#readings-line polyline').length === 1");
    browser.ask(
        "document.getElementById('search').value = 'boiler-00';
        document.getElementById('search').dispatchEvent(new Event('input'))",
    );
    browser.until("document.getElementById('devices-said').textContent === '9 found.'");
    browser.until("document.getElementById('devices').innerText.includes('revoked')");
    let axe =
        npm("axe-core/axe.min.js", "what keeps people from using the page is looked for by axe");
    axe.iter().for_each(|axe| drop(browser.ask(&fs::read_to_string(axe).unwrap())));
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    for (width, dark, name) in [
        (375, false, ""),
        (375, true, ""),
        (768, false, ""),
        (1440, false, "page.png"),
        (1440, true, "page-dark.png"),
    ] {
        browser.look(width, 900, dark);
        // What is too wide is scrolled in a box of its own.
        browser.until("document.scrollingElement.scrollWidth <= window.innerWidth");
        if axe.is_some() {
            let excluded = barriers(&mut browser);
            assert_eq!(excluded, "", "{width} pixels, dark: {dark}");
        }
        let photograph = browser.photograph();
        assert!(photograph.len() > 10_000, "{width}: {} bytes", photograph.len());
        if !name.is_empty() && std::env::var_os("DUET_WRITE_DOCS").is_some() {
            fs::write(images.join(name), photograph).unwrap();
        }
    }
    // Who is there, and who was.
    let search = |name: &str| {
        format!(
            "document.getElementById('search').value = '{name}';
            document.getElementById('search').dispatchEvent(new Event('input'))"
        )
    };
    scratch.good(&["device", "add", "pump-1", "--registered-id", "--out", "pump-1.json"]);
    browser.ask(&search("pump"));
    browser.until("document.getElementById('devices').innerText.includes('registered')");
    scratch.good(&["device", "try", "pump-1.json", "--send", "21.5"]);
    browser.ask(&search("pump-"));
    browser.until("document.getElementById('devices').innerText.includes('offline since')");
    // A token that is ended is asked for again.
    scratch.good(&["token", "revoke", "me"]);
    browser.open(&format!("https://{}/", gateway.api));
    browser.until("document.getElementById('login-said')?.textContent.includes('not valid')");
}

/// What axe finds wrong with the page as it is.
fn barriers(browser: &mut Browser) -> String {
    browser.ask(
        "window.found = undefined;
        axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => {
            window.found = violations.map(({ id, help, nodes }) =>
                `${id}: ${help}: ${nodes.map(({ target, failureSummary }) => target + failureSummary).join(', ')}`
            ).join('\\n');
        }); 0",
    );
    browser.until("window.found !== undefined");
    browser.ask("window.found").as_str().unwrap().to_owned()
}

/// A file of what `scripts/fetch-npm` brings; says what is not tested without it.
fn npm(file: &str, what: &str) -> Option<PathBuf> {
    let found = std::env::var_os("DUET_NPM").map(|place| Path::new(&place).join(file));
    if found.is_none() {
        eprintln!("SKIPPED: {what}, where DUET_NPM says what scripts/fetch-npm has brought");
    }
    found
}

#[test]
fn the_description_of_the_api_is_what_the_standard_wants() {
    let what = "the API's description is validated";
    let Some(validator) = npm(".bin/validate-api", what) else { return };
    let scratch = Scratch::initialised();
    let _gateway = scratch.run();
    let mut socket = UnixStream::connect(scratch.state().join("control.sock")).unwrap();
    write!(socket, "GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (_, document) = answer.split_once("\r\n\r\n").unwrap();
    assert!(document.contains("/v1/devices"), "{answer}");
    let validate = |document: &str| {
        let path = scratch.path("openapi.json");
        fs::write(&path, document).unwrap();
        let output = Command::new(&validator).arg(&path).output().unwrap();
        (output.status.success(), text(&output.stdout))
    };
    let (valid, said) = validate(document);
    assert!(valid && said.contains("\"valid\": true"), "{said}");
    let (_, said) = validate(&document.replacen("\"responses\"", "\"answers\"", 1));
    assert!(said.contains("\"valid\": false"), "the validator must find something: {said}");
}

#[test]
fn hostile_text_stays_text_on_the_page() {
    let scratch = Scratch::initialised();
    let Some(mut browser) = Browser::start(scratch.dir.path()) else {
        eprintln!("SKIPPED: no browser (chromium) to open the page with");
        return;
    };
    if !has_openssl() {
        return;
    }
    let gateway = gateway(&scratch);
    let markup = "</td><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>";
    let long = "x".repeat(100_000);
    let upstream = json!({ "name": markup, "kind": "webhook", "late": true, "oldest_ms": 5, "backlog": 1,
        "delivered": 0, "parked": 0, "lost": 0, "problem": long });
    let moment = json!({
        "time_ms": 1, "faults": [{ "fault": markup, "advice": "\u{202e}\u{7}" }],
        "status": { "phase": "running", "faults": [markup], "listen": markup, "driver": "epoll", "shards": 1,
            "uptime_s": 1, "devices": 1, "sessions": 1, "pending": 0, "upstreams": [upstream] },
        "activity": { "readings": 0, "readings_early": 0, "readings_known": 0, "accepts": 0, "confirmed": 0,
            "challenges": 0, "resets": 0, "unsent": 0, "drops": [{ "reason": markup, "count": 1, "advice": long }] },
    });
    let device = json!({ "name": markup, "mode": long, "id": markup, "revoked_s": null, "not_after_s": null });
    let answers = json!({ "/v1/live": format!("event: moment\ndata: {moment}\n\n"), "/v1/devices": format!("{device}\n") });
    browser.before_each_page(&format!(
        "const answers = {answers}; window.fetch = async (url) => new Response(answers[url]);"
    ));
    browser.look(375, 800, false);
    browser.open(&format!("https://{}/", gateway.api));
    browser.until("document.getElementById('devices')?.innerText.includes('onerror')");
    browser.until("document.getElementById('upstreams').innerText.includes('onerror')");
    browser.until("document.getElementById('drops').innerText.includes('onerror')");
    browser.until("document.scrollingElement.scrollWidth <= window.innerWidth");
    assert_eq!(browser.ask("document.title"), json!("Duet gateway"));
    assert_eq!(browser.ask("document.querySelectorAll('img, main script').length"), json!(0));
}

#[test]
fn top_shows_a_running_gateway_in_a_terminal() {
    let scratch = Scratch::initialised();
    assert!(scratch.bad(&["top", "--once"]).contains("no gateway is running"));
    scratch.good(&["device", "add", "a", "--registered-id", "--out", "a.json"]);
    let gateway = scratch.run();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(b"noise", gateway.address).unwrap();
    // Counts are published every second.
    let picture =
        (0..30).map(|_| scratch.good(&["top", "--once"])).find(|text| text.contains("scanners"));
    let picture = picture.expect("what was discarded is shown");
    assert!(picture.contains("fleet        1 devices, 0 sessions, 0 pending\n"), "{picture}");
    assert!(picture.contains("delivery     no upstream"), "{picture}");
}

//! Messages that must be refused, each with the reason. What they are refused by, they are all made
//! from: genuine ones of two handshakes, changed in one thing.

use duet_protocol::{
    ec::{self, SecretScalar},
    identity::{DeviceId, Proof},
    mark::MARK_MAX,
    message::{Down, PAYLOAD_MAX, Up},
    reason::DropReason,
    record::Cipher,
    schedule::{self, SessionKeys},
    wire::{COOKIE, DownHeader, Kind, Reset, Retry, SessionId, UP_HEADER, UpHeader},
};

use crate::{
    Vector,
    handshake::accepted,
    scene::{self, Scene},
    steps::{self, Device, Made},
};

/// A message, whom it is for, and why he refuses it.
struct Case {
    name: String,
    to: &'static str,
    reason: DropReason,
    message: Vec<u8>,
}

#[derive(Default)]
struct Cases(Vec<Case>);

impl Cases {
    fn add(&mut self, to: &'static str, name: &str, reason: DropReason, message: &[u8]) {
        let (name, message) = (name.to_owned(), message.to_vec());
        self.0.push(Case { name, to, reason, message });
    }
}

fn scene(file: &str) -> Scene {
    scene::scenes().into_iter().find(|scene| scene.file() == file).unwrap()
}

fn touched(message: &[u8], at: usize) -> Vec<u8> {
    let mut touched = message.to_vec();
    touched[at] ^= 1;
    touched
}

/// A HELLO whose clear header or sealed text is not what the recipe gives, sealed all the same.
fn forged(scene: &Scene, header: [u8; 4], forge: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let made = scene.hello();
    let (gateway, device) = (&scene.gateway, &scene.device);
    let recipe = scene.recipe();
    steps::seal(gateway, device, &recipe, made.offer, header, made.e, forge).message
}

/// HELLOs, as the gateway of `plain` and `early` takes them on a datagram path.
fn hellos(cases: &mut Cases, plain: &Scene, early: &Scene) {
    use DropReason as R;
    let to = "gateway";
    let made = plain.hello();
    let hello = &made.message;
    let header = made.header;
    let with = |at: usize, byte: u8| {
        let mut message = hello.clone();
        message[at] = byte;
        message
    };
    cases.add(to, "nothing", R::Malformed, &[]);
    cases.add(to, "version 2", R::Version, &with(0, 0x12));
    cases.add(to, "kind 8", R::Kind, &with(0, 0x81));
    cases.add(to, "kind ACCEPT, for the other direction", R::Kind, &with(0, 0x21));
    cases.add(to, "HELLO, a byte short", R::Malformed, &hello[..hello.len() - 1]);
    cases.add(to, "HELLO, a byte long", R::Malformed, &[&hello[..], &[0]].concat());
    let cut = made.with_cookie(&[7; COOKIE]);
    cases.add(to, "HELLO, a byte of its cookie missing", R::Malformed, &cut[..cut.len() - 1]);
    let long = [&cut[..], &[0]].concat();
    cases.add(to, "HELLO, a byte behind its cookie", R::Malformed, &long);
    for (name, byte) in [
        ("mode 3", header[2] | 3),
        ("key source 3", header[2] | 0x0c),
        ("ephemeral with transfer random", header[2] | 0x10),
        ("on a datagram path, for a stream", header[2] | 0x20),
    ] {
        cases.add(to, &format!("HELLO, {name}"), R::Profile, &with(2, byte));
    }
    cases.add(to, "HELLO, a key id that the gateway lacks", R::GatewayKey, &with(3, 9));
    let x = |x: &[u8; 32]| [&hello[..4], x, &hello[36..]].concat();
    let prime = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ];
    cases.add(to, "HELLO, x(E) is the field's prime", R::Point, &x(&prime));
    let mut no_point = made.enc.x();
    let secret = &plain.secret;
    while ec::agree(secret, &no_point).is_some() {
        no_point[31] = no_point[31].wrapping_add(1);
    }
    cases.add(to, "HELLO, x(E) of no point", R::Point, &x(&no_point));
    cases.add(to, "HELLO, a touched tag", R::HelloOpen, &touched(hello, hello.len() - 1));
    cases.add(to, "HELLO, a touched ciphertext", R::HelloOpen, &touched(hello, 40));
    cases.add(to, "HELLO, another slot in the clear", R::HelloOpen, &touched(hello, 1));
    let [kind, slot, profile, key] = header;
    let other = forged(plain, [kind, slot ^ 1, profile, key], |_| ());
    cases.add(to, "HELLO, sealed with a slot that is not its id's", R::Slot, &other);
    let unknown = forged(plain, header, |text| {
        // An id of the same slot.
        let slot_of = |id: [u8; 8]| DeviceId(id).slot();
        let found = (0..u64::MAX).map(u64::to_be_bytes).find(|id| slot_of(*id) == slot).unwrap();
        text[..8].copy_from_slice(&found);
    });
    cases.add(to, "HELLO, a device that nobody knows", R::Proof, &unknown);
    let proof = forged(plain, header, |text| text[16] ^= 1);
    cases.add(to, "HELLO, a wrong proof", R::Proof, &proof);
    let fresh = forged(plain, header, |text| text[15] ^= 1);
    cases.add(to, "HELLO, another fresh than the proof covers", R::Proof, &fresh);
    cases.add(to, "HELLO, said to answer a challenge", R::Malformed, &with(2, header[2] | 0x40));
    cases.add(to, "HELLO, said to carry a reading", R::Malformed, &with(2, header[2] | 0x80));

    let made = early.hello();
    let hello = &made.message;
    let n = |n: u16| {
        let mut message = hello.clone();
        message[36..38].copy_from_slice(&n.to_be_bytes());
        message
    };
    let most = u16::try_from(made.offer.profile.reading_max()).unwrap();
    cases.add(to, "early HELLO, n = 2", R::Malformed, &n(2));
    let mut longest = n(most + 1);
    longest.resize(1_200, 0);
    cases.add(to, "early HELLO, n one above what fits", R::Malformed, &longest);
    cases.add(to, "early HELLO, n longer than its message", R::Malformed, &n(most));
    cases.add(to, "early HELLO, another n in a message as long", R::Proof, &n(4));
    let reading_at = made.text.len() - made.offer.padding_len(3) - 3;
    let text = |name: &str, byte: u8, cases: &mut Cases| {
        let message = forged(early, made.header, |text| text[reading_at] = byte);
        cases.add(to, name, R::Message, &message);
    };
    text("early HELLO, its reading is without confirm", 0x01, cases);
    text("early HELLO, a result in the reading's place", 0x02, cases);
    text("early HELLO, its reading has an unknown flag", 0x91, cases);
    text("early HELLO, its reading lacks the id that it announces", 0x51, cases);
    let padding = forged(early, made.header, |text| *text.last_mut().unwrap() = 1);
    cases.add(to, "early HELLO, padding that is not zero", R::Malformed, &padding);
}

/// UP records, sealed under the session's keys unless they say otherwise.
fn up(cases: &mut Cases, session: SessionId, keys: &SessionKeys) {
    use DropReason as R;
    let to = "gateway";
    let cipher = Cipher::new(&keys.up);
    let seal = |sequence, text: &[u8]| {
        let mut out = vec![0; 2_000];
        let len = cipher.seal_up(UpHeader { session, sequence }, text, &mut out);
        out.truncate(len);
        out
    };
    let genuine = seal(7, &[3]);
    cases.add(to, "UP, no text", R::Malformed, &genuine[..25]);
    cases.add(to, "UP, 1,201 bytes", R::Malformed, &seal(7, &[1; 1_176]));
    cases.add(to, "UP, a touched tag", R::RecordOpen, &touched(&genuine, 25));
    cases.add(to, "UP, another sequence in the clear", R::RecordOpen, &touched(&genuine, 8));
    let mut last = genuine;
    last[5..UP_HEADER].copy_from_slice(&[0xff; 4]);
    cases.add(to, "UP, sequence 2^32 - 1", R::RecordOpen, &last);
    let long = [&[0x11, 0, 2][..], &[0; PAYLOAD_MAX + 1]].concat();
    for (name, text) in [
        ("type 0", &[0][..]),
        ("type 6", &[6, 0, 0]),
        ("ack, a text of the other direction", &[8, 0, 0, 0, 1, 0, 1]),
        ("reading with an unknown flag", &[0x81, 0, 2, 1]),
        ("reading, half a channel", &[0x11, 0]),
        ("reading, half an age", &[0x31, 0, 2, 0, 0]),
        ("reading, half an id", &[0x51, 0, 2, 1, 2, 3, 4]),
        ("reading, again without confirm", &[[0x41, 0, 2].as_slice(), &[9; 16]].concat()),
        ("reading, 1,025 bytes of payload", &long),
        ("result with a flag", &[0x12, 0, 0, 0, 1, 0]),
        ("result without status", &[2, 0, 0, 0, 1]),
        ("ping with a body", &[3, 0]),
        ("close with a body", &[4, 0]),
        ("here, three bytes", &[5, 1, 2, 3]),
        ("here, five bytes", &[5, 1, 2, 3, 4, 5]),
    ] {
        cases.add(to, &format!("UP, {name}"), R::Message, &seal(8, text));
    }
}

/// What a device that waits with `made`, and has the session, must refuse.
fn down(cases: &mut Cases, scene: &Scene, made: &Made, accept: &[u8], keys: &SessionKeys) {
    use DropReason as R;
    let to = "device";
    let session = scene.grant().session;
    cases.add(to, "ACCEPT, a touched tag", R::AcceptOpen, &touched(accept, accept.len() - 1));
    cases.add(to, "ACCEPT, another point", R::AcceptOpen, &with_other_point(accept));
    cases.add(to, "ACCEPT, a byte short", R::Malformed, &accept[..accept.len() - 1]);
    let digest = made.digest();
    let retry = Retry { echo: [0; 8], wait_10ms: 3, cookie: [1; 16] };
    cases.add(to, "RETRY, the echo of another HELLO", R::Unexpected, &retry.encode());
    let proven = scene.proven(&made.message).unwrap();
    let beyond = proven.challenge_message(&scene::CHALLENGE, MARK_MAX + 1, &[9; 16]);
    cases.add(to, "CHALLENGE, a mark above 2^62", R::Mark, &beyond);
    let challenge = proven.challenge_message(&scene::CHALLENGE, 9_000, &[9; 16]);
    cases.add(to, "CHALLENGE, a touched tag", R::Unexpected, &touched(&challenge, 56));
    // Whoever knows the token, but not what the device sent.
    let mac = schedule::reset_mac(&scene.grant().reset_token, &digest);
    let reset = Reset { session, mac };
    cases.add(to, "RESET, the MAC of no record", R::Unexpected, &reset.encode());

    let cipher = Cipher::new(&keys.down);
    let seal = |sequence, text: &[u8]| {
        let mut out = vec![0; 2_000];
        let len = cipher.seal_down(DownHeader { sequence }, session, text, &mut out);
        out.truncate(len);
        out
    };
    let genuine = seal(7, &[10]);
    cases.add(to, "DOWN, no text", R::Malformed, &genuine[..21]);
    cases.add(to, "DOWN, a touched tag", R::RecordOpen, &touched(&genuine, 21));
    let mut elsewhere = vec![0; 22];
    let other = SessionId(session.0 ^ 1);
    let len = cipher.seal_down(DownHeader { sequence: 8 }, other, &[10], &mut elsewhere);
    cases.add(to, "DOWN, of another session", R::RecordOpen, &elsewhere[..len]);
    let many = [&[8][..], &[0, 0, 0, 1, 0, 1].repeat(33)].concat();
    let long = [&[9, 0, 0, 0, 1][..], &[0; PAYLOAD_MAX + 1]].concat();
    for (name, text) in [
        ("ack without ranges", &[8][..]),
        ("ack, half a range", &[8, 0, 0, 0, 1]),
        ("ack, a count of 0", &[8, 0, 0, 0, 1, 0, 0]),
        ("ack, 33 ranges", &many),
        ("ack, an unknown flag", &[0x28, 0, 0, 0, 1, 0, 1]),
        ("command, half a number", &[9, 0, 0, 1]),
        ("command, 1,025 bytes of payload", &long),
        ("pong with a body", &[10, 0]),
        ("pong, nothing waits, without the ping", &[0x1a]),
        ("pong, nothing waits, a byte too many", &[0x1a, 0, 0, 0, 1, 0]),
        ("close with a body", &[11, 0]),
        ("prove, three bytes", &[12, 1, 2, 3]),
        ("ping, a text of the other direction", &[3]),
    ] {
        cases.add(to, &format!("DOWN, {name}"), R::Message, &seal(9, text));
    }
}

fn with_other_point(accept: &[u8]) -> Vec<u8> {
    let other = SecretScalar::from_bytes(&[0x77; 32]).unwrap().public_key().x();
    [&accept[..1], &other, &accept[33..]].concat()
}

/// The reason for which the gateway discards a message.
fn gateway_says(
    message: &[u8],
    scenes: [&Scene; 2],
    session: SessionId,
    keys: &SessionKeys,
) -> Option<DropReason> {
    match Kind::of(message) {
        Err(reason) => return Some(reason),
        Ok(Kind::Hello) => {}
        Ok(Kind::Up) => {
            let header = match UpHeader::decode(message) {
                Ok(header) => header,
                Err(reason) => return Some(reason),
            };
            assert_eq!(header.session, session);
            let mut message = message.to_vec();
            let opened = Cipher::new(&keys.up).open_up(header, &mut message);
            let Some(text) = opened else { return Some(DropReason::RecordOpen) };
            return Up::decode(text).err();
        }
        Ok(_) => return Some(DropReason::Kind),
    }
    let early = message.get(2).is_some_and(|byte| byte & 0x80 != 0);
    scenes[usize::from(early)].proven(message).err()
}

/// The reason for which the device discards a message.
fn device_says(
    message: &[u8],
    scene: &Scene,
    made: &Made,
    keys: &SessionKeys,
) -> Option<DropReason> {
    let session = scene.grant().session;
    match Kind::of(message).unwrap() {
        Kind::Accept if message.len() != made.offer.profile.accept_len() => {
            Some(DropReason::Malformed)
        }
        Kind::Accept => steps::accepted(&scene.gateway, &scene.device, made, message)
            .is_none()
            .then_some(DropReason::AcceptOpen),
        Kind::Retry => {
            let retry = Retry::decode(message).unwrap();
            (retry.echo != made.digest()[..8]).then_some(DropReason::Unexpected)
        }
        Kind::Challenge => match made.challenge(message) {
            None => Some(DropReason::Unexpected),
            Some((_, mark)) => (mark > MARK_MAX).then_some(DropReason::Mark),
        },
        Kind::Reset => {
            let reset = Reset::decode(message).unwrap();
            assert_eq!(reset.session, session);
            let sent = made.message.clone();
            let mac = schedule::reset_mac(&scene.grant().reset_token, &sent);
            (reset.mac != mac).then_some(DropReason::Unexpected)
        }
        Kind::Down => {
            let header = match DownHeader::decode(message) {
                Ok(header) => header,
                Err(reason) => return Some(reason),
            };
            let mut message = message.to_vec();
            let opened = Cipher::new(&keys.down).open_down(header, session, &mut message);
            let Some(text) = opened else { return Some(DropReason::RecordOpen) };
            Down::decode(text).err()
        }
        Kind::Hello | Kind::Up => Some(DropReason::Kind),
    }
}

#[test]
fn every_hostile_message_is_refused_for_the_reason_that_its_vector_says() {
    let plain = scene("registered-id-ephemeral.json");
    let early = scene("registered-id-client-random-early.json");
    let made = plain.hello();
    let (accept, keys, _) = accepted(&plain, &made);
    let session = plain.grant().session;
    let mut cases = Cases::default();
    hellos(&mut cases, &plain, &early);
    up(&mut cases, session, &keys);
    down(&mut cases, &plain, &made, &accept, &keys);

    let mut vector = Vector::default();
    vector.section("what they are made from");
    vector.text("registered-id-ephemeral.json", "its keys, HELLO, ACCEPT and session");
    vector.text("registered-id-client-random-early.json", "its HELLO, where they say early HELLO");
    for Case { name, to, reason, message } in &cases.0 {
        let says = match *to {
            "gateway" => gateway_says(message, [&plain, &early], session, &keys),
            _ => device_says(message, &plain, &made, &keys),
        };
        assert_eq!(says, Some(*reason), "{to}: {name}");
        vector.section(&format!("to the {to}: {name}"));
        vector.text("refused as", reason.label()).hex("message", message);
    }
    vector.check("hostile.json");
    // The genuine ones pass the same judges.
    assert_eq!(gateway_says(&made.message, [&plain, &early], session, &keys), None);
    let hello = early.hello().message;
    assert_eq!(gateway_says(&hello, [&plain, &early], session, &keys), None);
    assert_eq!(device_says(&accept, &plain, &made, &keys), None);
}

/// A genuine id, with another secret than the registry's.
#[test]
fn another_secret_does_not_open_the_door() {
    for scene in scene::scenes() {
        let mut device = Device { credential: scene.device.credential.clone(), d: [0x13; 32] };
        if let Proof::Binder(key) = &mut device.credential.proof {
            key.0 = [0x13; 32];
        }
        let made = steps::hello(&scene.gateway, &device, &scene.recipe());
        assert_eq!(scene.proven(&made.message).err(), Some(DropReason::Proof), "{}", scene.file());
    }
}

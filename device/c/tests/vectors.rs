//! The vectors of `protocol/vectors/` as a device meets them, for tests on the board: `vectors.h` is a C array, and
//! `vectors.bin` has the same for a program in Rust. `DUET_WRITE_VECTORS=1` in the environment writes both anew.
//!
//! A device makes HELLO from what it is given and from its random bytes; it takes ACCEPT; it opens two records; and the record
//! that it answers with shows the keys of the other direction. What comes behind a CHALLENGE is not among them: a device
//! gets there only by a HELLO that the files do not have.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

use std::{fmt::Write as _, fs, path::Path};

use duet_device_c::DUET_TRANSMIT_MAX;
use machine::protocol::{
    aead,
    message::Up,
    profile::Offer,
    wire::{SessionId, UpHeader},
};
use serde_json::Value;

/// One file of the protocol's vectors.
struct Vector {
    name: String,
    json: Value,
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

impl Vector {
    fn text(&self, section: &str, name: &str) -> Option<&str> {
        self.json[section][name].as_str()
    }

    fn hex(&self, section: &str, name: &str) -> Vec<u8> {
        bytes(self.text(section, name).unwrap_or_else(|| panic!("{}: no {name}", self.name)))
    }

    fn or_zeros(&self, section: &str, name: &str, len: usize) -> Vec<u8> {
        let given = self.text(section, name).filter(|text| !text.is_empty());
        given.map_or_else(|| vec![0; len], bytes)
    }

    fn offer(&self) -> Offer {
        Offer::decode(self.hex("hello", "hdr")[2]).unwrap()
    }

    /// The payload of the reading inside HELLO, if there is one.
    fn payload(&self) -> Option<Vec<u8>> {
        let text = bytes(self.text("hello", "reading")?);
        // Flags and channel stand before it.
        Some(text[3..].to_vec())
    }

    /// The device's answer to the second record, the first that it seals.
    fn here(&self) -> Vec<u8> {
        let keys = [self.hex("records", "up key"), self.hex("records", "up iv")];
        let session = self.hex("accept", "session id").try_into().unwrap();
        let header = UpHeader { session: SessionId(u32::from_be_bytes(session)), sequence: 0 };
        let challenge = self.hex("records", "path challenge").try_into().unwrap();
        let mut text = [0; 64];
        let len = Up::Here { challenge }.encode(&mut text);
        let clear = header.encode();
        // The nonce of the first record is the IV itself.
        let [key, iv] = keys;
        let (key, iv) = (key.try_into().unwrap(), iv.try_into().unwrap());
        let tag = aead::seal(&key, &iv, &clear, &mut text[..len]);
        [&clear[..], &text[..len], &tag].concat()
    }

    /// What its fields are, in the order of both files.
    fn fields(&self) -> [(&'static str, Vec<u8>); 9] {
        let fresh = self.hex("hello", "fresh");
        let setup = |name| self.hex("setup", name);
        let key = self.text("setup", "registration key d");
        [
            ("profile", vec![self.offer().encode() & 0x1f]),
            ("gateway_key_id", setup("gateway key id")),
            ("id", setup("id")),
            ("key", key.map_or_else(|| setup("device private key d"), bytes)),
            ("fingerprint", setup("cD")),
            ("public_key", self.or_zeros("setup", "device public key pkD", 65)),
            ("gateway_fingerprint", setup("cS")),
            ("gateway_public_key", setup("gateway public key pkS")),
            ("first_fresh", fresh),
        ]
    }

    /// The random bytes of the device, in the order in which it draws them.
    fn random(&self) -> Vec<u8> {
        let extra = self.or_zeros("hello", "signature extra entropy", 32);
        [self.hex("hello", "random for e_c"), self.or_zeros("hello", "S", 16), extra].concat()
    }

    fn messages(&self) -> [(&'static str, Vec<u8>); 5] {
        [
            ("hello", self.hex("hello", "HELLO")),
            ("accept", self.hex("accept", "ACCEPT")),
            ("ack", self.hex("records", "DOWN")),
            ("prove", self.hex("records", "DOWN 2, prove")),
            ("here", self.here()),
        ]
    }
}

fn vectors() -> Vec<Vector> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../protocol/vectors");
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let json = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        Vector { name: path.file_stem().unwrap().to_str().unwrap().to_owned(), json }
    };
    let all = paths.iter().map(read).filter(|vector| vector.json["setup"].is_object());
    all.filter(|vector| !vector.offer().challenged).collect()
}

fn list(bytes: &[u8]) -> String {
    let mut out = String::new();
    for byte in bytes {
        write!(out, "{byte},").unwrap();
    }
    out
}

fn header(vectors: &[Vector]) -> String {
    let mut out = String::from(
        "/* The protocol's vectors, as a device meets them: made by tests/vectors.rs, do not edit. */\n\
         #ifndef DUET_VECTORS_H\n#define DUET_VECTORS_H\n\n#include \"duet.h\"\n\n\
         typedef struct {\n    const char *name;\n    duet_credentials credentials;\n    \
         uint8_t stream, early, stored, random[80];\n    size_t payload_len, hello_len, accept_len, ack_len, prove_len, \
         here_len;\n    const uint8_t *payload, *hello, *accept, *ack, *prove, *here;\n} duet_vector;\n\n\
         static const duet_vector duet_vectors[] = {\n",
    );
    for vector in vectors {
        writeln!(out, "{{.name = \"{}\",\n.credentials = {{", vector.name).unwrap();
        for (name, bytes) in vector.fields() {
            match bytes.len() {
                1 => writeln!(out, ".{name} = {},", bytes[0]).unwrap(),
                8 if name == "first_fresh" => {
                    let value = u64::from_be_bytes(bytes.try_into().unwrap());
                    writeln!(out, ".{name} = {value},").unwrap();
                }
                _ => writeln!(out, ".{name} = {{{}}},", list(&bytes)).unwrap(),
            }
        }
        let stored = u8::from(vector.text("accept", "stored") == Some("yes"));
        let stream = u8::from(vector.name.ends_with("-stream"));
        let payload = vector.payload();
        let early = u8::from(payload.is_some());
        writeln!(out, "}}, .stream = {stream}, .early = {early}, .stored = {stored},").unwrap();
        writeln!(out, ".random = {{{}}},", list(&vector.random())).unwrap();
        let payload = payload.unwrap_or_default();
        let payload = [("payload", payload)].into_iter().filter(|(_, bytes)| !bytes.is_empty());
        for (name, bytes) in payload.chain(vector.messages()) {
            let (len, bytes) = (bytes.len(), list(&bytes));
            writeln!(out, ".{name}_len = {len}, .{name} = (const uint8_t[]){{{bytes}}},").unwrap();
        }
        out.push_str("},\n");
    }
    out.push_str("};\n\n#endif\n");
    out
}

/// For each vector: a head of flags, the fields, the random bytes, and each message behind its length.
fn binary(vectors: &[Vector]) -> Vec<u8> {
    let mut out = Vec::new();
    for vector in vectors {
        let payload = vector.payload();
        out.push(u8::from(vector.name.ends_with("-stream")));
        out.push(u8::from(payload.is_some()));
        out.push(u8::from(vector.text("accept", "stored") == Some("yes")));
        vector.fields().iter().for_each(|(_, bytes)| out.extend(bytes));
        out.extend(vector.random());
        let payload = [("payload", payload.unwrap_or_default())];
        for (_, bytes) in payload.into_iter().chain(vector.messages()) {
            out.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
            out.extend(bytes);
        }
    }
    out
}

#[test]
fn the_vectors_for_boards_are_those_of_the_protocol() {
    let vectors = vectors();
    // All profiles, a reading inside HELLO, points of odd y, a stream.
    assert!(vectors.len() >= 22, "{}", vectors.len());
    for vector in &vectors {
        assert!(vector.messages().iter().all(|(_, bytes)| bytes.len() <= DUET_TRANSMIT_MAX));
        assert_eq!(vector.random().len(), 80, "{}", vector.name);
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let made = [("vectors.h", header(&vectors).into_bytes()), ("vectors.bin", binary(&vectors))];
    for (name, made) in made {
        let path = folder.join(name);
        if std::env::var_os("DUET_WRITE_VECTORS").is_some() {
            fs::write(&path, &made).unwrap();
        }
        let kept = fs::read(&path).unwrap_or_default();
        assert!(made == kept, "{name} is stale: DUET_WRITE_VECTORS=1 writes it anew");
    }
}

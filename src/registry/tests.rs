//! The registry as a whole, on real files.

use std::path::PathBuf;

use duet_core::Directory as _;
use duet_protocol::identity::RegistrationKey;
use duet_protocol::profile::Mode;
use duet_protocol::reading::ReadingId;

use super::*;
use crate::identity::create;

const NOW_S: i64 = 1_800_000_000;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn new(text: &str, enrolment: Enrolment) -> NewDevice {
    NewDevice {
        name: name(text),
        enrolment,
        sources: SourceSet::default(),
        made: false,
        labels: Default::default(),
    }
}

fn keyed(text: &str, id: u64) -> NewDevice {
    let mut key = RegistrationKey([9; 32]);
    key.0[..8].copy_from_slice(&id.to_be_bytes());
    let id = DeviceId(id.to_be_bytes());
    let enrolment = Enrolment::RegisteredId { id, key };
    new(text, enrolment)
}

fn certified(text: &str, der: &[u8]) -> NewDevice {
    let enrolment = Enrolment::Certificate { der: der.to_vec() };
    new(text, enrolment)
}

fn with_key(text: &str, id: u8, key: u8) -> NewDevice {
    let (id, key) = (DeviceId([id; 8]), RegistrationKey([key; 32]));
    let enrolment = Enrolment::RegisteredId { id, key };
    new(text, enrolment)
}

/// Two certificates over the same key.
fn over_one_key() -> [Vec<u8>; 2] {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    ["one", "two"].map(|cn| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, cn);
        params.self_signed(&key).unwrap().der().to_vec()
    })
}

fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    drop(Registry::create(&path).unwrap());
    (dir, path)
}

#[test]
fn what_was_added_is_there_after_a_restart() {
    let (_dir, path) = scratch();
    let der = create("d", 1, NOW_S).unwrap().certificate_der;
    let registry = Registry::open(&path).unwrap();
    registry.add(keyed("a", 1), NOW_S).unwrap();
    registry.add(certified("b", &der), NOW_S).unwrap();
    assert!(matches!(Registry::open(&path), Err(RegistryError::InUse(_))));
    assert!(matches!(Registry::create(&path), Err(RegistryError::Exists(_))));
    drop(registry);

    let registry = Registry::open(&path).unwrap();
    let entries = registry.list(None, 10).unwrap();
    assert_eq!(entries.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(entries[1].mode, Mode::Certificate);
    assert_eq!(entries[1].fingerprint, Fingerprint::of_certificate(&der));
    assert!(entries[1].validity.unwrap().contains(NOW_S));
    assert_eq!(registry.list(Some(&name("a")), 10).unwrap().len(), 1);
    let view = registry.view().unwrap();
    assert_eq!(view.len(), 2);
    assert!(view.lookup(&DeviceId(1u64.to_be_bytes())).is_some());
}

#[test]
fn the_view_follows_each_change() {
    let (_dir, path) = scratch();
    let registry = Registry::open(&path).unwrap();
    let view = registry.view().unwrap();
    registry.add(keyed("a", 1), NOW_S).unwrap();
    let device = view.lookup(&DeviceId(1u64.to_be_bytes())).unwrap();
    assert_eq!(registry.revoke(&name("a"), NOW_S).unwrap(), device.credential.id);
    assert!(device.is_revoked() && view.is_empty());
    registry.add(keyed("b", 2), NOW_S).unwrap();
    registry.remove(&name("b")).unwrap();
    assert!(view.is_empty());
    assert!(matches!(registry.show(&name("b")), Err(RegistryError::Unknown(_))));
}

#[test]
fn duplicates_are_refused_whole() {
    let (_dir, path) = scratch();
    let registry = Registry::open(&path).unwrap();
    let der = create("d", 1, NOW_S).unwrap().certificate_der;
    registry.add(certified("a", &der), NOW_S).unwrap();
    registry.add(keyed("k", 7), NOW_S).unwrap();
    let add = |devices: Vec<NewDevice>| registry.add_all(devices, NOW_S).unwrap_err().error;
    assert!(matches!(add(vec![keyed("a", 1)]), RegistryError::NameTaken(_)));
    assert!(matches!(add(vec![certified("b", &der)]), RegistryError::IdTaken { .. }));
    let enrolment = Enrolment::RegisteredCertificate { id: DeviceId([5; 8]), der };
    let again = NewDevice {
        name: name("b"),
        enrolment,
        sources: SourceSet::ALL,
        made: false,
        labels: Default::default(),
    };
    assert!(matches!(add(vec![again]), RegistryError::CredentialTaken { .. }));
    let refused = registry.add_all([keyed("x", 2), keyed("y", 3), keyed("z", 7)], NOW_S);
    let NotAdded { index, error } = refused.unwrap_err();
    assert_eq!(index, Some(2));
    assert_eq!(error.to_string(), "z: id 0000000000000007 belongs to device k");
    assert_eq!(registry.len().unwrap(), 2);
}

#[test]
fn a_revoked_credential_never_returns_but_its_name_may() {
    let (_dir, path) = scratch();
    let registry = Registry::open(&path).unwrap();
    let view = registry.view().unwrap();
    let der = create("d", 1, NOW_S).unwrap().certificate_der;
    registry.add(certified("a", &der), NOW_S).unwrap();
    registry.revoke(&name("a"), NOW_S).unwrap();
    let again = registry.revoke(&name("a"), NOW_S);
    assert!(matches!(again, Err(RegistryError::RevokedAlready(..))));
    let back = |text: &str| registry.add(certified(text, &der), NOW_S).unwrap_err().to_string();
    assert!(back("a").contains("was revoked on 2027-01-15"), "{}", back("a"));
    assert!(back("b").contains("stays refused"));
    registry.remove(&name("a")).unwrap();
    assert!(back("a").contains("stays refused"));
    let new = create("d", 1, NOW_S).unwrap().certificate_der;
    registry.add(certified("a", &new), NOW_S).unwrap();
    assert_eq!((view.len(), registry.show(&name("a")).unwrap().revoked_s), (1, None));
}

#[test]
fn a_revoked_registration_key_is_refused_under_any_id() {
    let (_dir, path) = scratch();
    let registry = Registry::open(&path).unwrap();
    registry.add(with_key("a", 1, 1), NOW_S).unwrap();
    registry.revoke(&name("a"), NOW_S).unwrap();
    let error = registry.add(with_key("b", 2, 1), NOW_S).unwrap_err();
    assert!(matches!(error, RegistryError::Refused { .. }));
    registry.add(with_key("b", 2, 2), NOW_S).unwrap();
}

#[test]
fn a_new_certificate_over_a_revoked_key_is_refused() {
    let (_dir, path) = scratch();
    let registry = Registry::open(&path).unwrap();
    let [one, two] = over_one_key();
    registry.add(certified("a", &one), NOW_S).unwrap();
    registry.revoke(&name("a"), NOW_S).unwrap();
    let error = registry.add(certified("a", &two), NOW_S).unwrap_err();
    assert!(matches!(error, RegistryError::Refused { .. }));
}

#[test]
fn two_devices_never_share_a_key() {
    let (_dir, path) = scratch();
    let registry = Registry::open(&path).unwrap();
    let [one, two] = over_one_key();
    registry.add(certified("a", &one), NOW_S).unwrap();
    let error = registry.add(certified("b", &two), NOW_S).unwrap_err();
    assert!(matches!(error, RegistryError::CredentialTaken { .. }), "{error}");
    registry.add(with_key("c", 1, 7), NOW_S).unwrap();
    let error = registry.add(with_key("d", 2, 7), NOW_S).unwrap_err();
    assert!(matches!(error, RegistryError::CredentialTaken { .. }), "{error}");
    // A key is free again when its device is removed, with all that was known of it.
    registry.remove(&name("a")).unwrap();
    registry.add(certified("b", &two), NOW_S).unwrap();
}

#[test]
fn expired_certificates_are_refused_at_the_door_but_load() {
    let (_dir, path) = scratch();
    let der = create("d", 1, NOW_S).unwrap().certificate_der;
    let registry = Registry::open(&path).unwrap();
    let late = registry.add(certified("a", &der), NOW_S + 90_000).unwrap_err();
    assert!(late.to_string().starts_with("a: the certificate expired on"), "{late}");
    registry.add(certified("a", &der), NOW_S).unwrap();
    let view = registry.view().unwrap();
    let id = DeviceId::of_certificate(&Fingerprint::of_certificate(&der));
    assert!(!view.lookup(&id).unwrap().may_connect(NOW_S + 90_000));
}

#[test]
fn marks_survive_removal_and_never_fall() {
    let (_dir, path) = scratch();
    let registry = Registry::open(&path).unwrap();
    let view = registry.view().unwrap();
    registry.add(keyed("a", 1), NOW_S).unwrap();
    let id = DeviceId(1u64.to_be_bytes());
    let device = view.lookup(&id).unwrap();
    assert!(device.raise_mark(100));
    view.save_later(&device);
    let marks = || view.take_moved().iter().map(|d| Mark::from(&**d)).collect::<Vec<_>>();
    registry.save_marks(marks()).unwrap();
    let fingerprint = Fingerprint::of_registered_id(&id);
    registry.save_marks([Mark { id, fingerprint, value: 50 }]).unwrap();
    assert_eq!(registry.show(&name("a")).unwrap().mark, 100);
    registry.remove(&name("a")).unwrap();
    registry.add(keyed("a", 1), NOW_S).unwrap();
    assert_eq!(view.lookup(&id).unwrap().mark(), 100);
    drop(registry);
    let view = Registry::open(&path).unwrap().view().unwrap();
    assert_eq!(view.lookup(&id).unwrap().mark(), 100);
}

#[test]
fn ten_thousand_devices_are_one_transaction() {
    let (_dir, path) = scratch();
    let registry = Registry::open(&path).unwrap();
    let devices = (0..10_000).map(|i| keyed(&format!("d{i}"), i));
    assert_eq!(registry.add_all(devices, NOW_S).unwrap(), 10_000);
    drop(registry);
    assert_eq!(Registry::open(&path).unwrap().view().unwrap().len(), 10_000);
}

#[test]
fn a_damaged_file_is_reported_and_left_alone() {
    let (dir, path) = scratch();
    let registry = Registry::open(&path).unwrap();
    registry.add_all((0..500).map(|i| keyed(&format!("d{i}"), i)), NOW_S).unwrap();
    drop(registry);
    let good = std::fs::read(&path).unwrap();
    let hurt = dir.path().join("hurt.redb");
    std::fs::copy(dir.path().join(KEYS_FILE), dir.path().join("hurt.keys")).unwrap();
    let reopen = |bytes: &[u8]| {
        let _ = std::fs::remove_file(&hurt);
        crate::identity::write_new(&hurt, bytes, 0o600).unwrap();
        let opened = Registry::open(&hurt).and_then(|r| r.view().map(|view| view.len()));
        (opened, std::fs::read(&hurt).unwrap())
    };
    for part in 0..16 {
        let bytes = &good[..good.len() * part / 16];
        let (opened, after) = reopen(bytes);
        let Err(error) = opened else { panic!("opened {part}/16 of the file") };
        assert!(error.to_string().contains("hurt.redb: the registry is damaged"), "{error}");
        assert!(after == bytes, "{part}/16 of the file was changed");
    }
    let (opened, _) = reopen(b"this is not a registry, whatever its name says");
    assert!(matches!(opened, Err(RegistryError::Damaged { .. })));
    // One changed page: found, or outside what is in use; never a panic, never a wrong record.
    for page in 0..good.len() / 4096 {
        let mut bytes = good.clone();
        bytes[page * 4096 + 700..page * 4096 + 800].fill(0xa5);
        match reopen(&bytes).0 {
            Ok(len) => assert_eq!(len, 500),
            Err(RegistryError::Damaged { .. } | RegistryError::Storage(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let missing = Registry::open(&dir.path().join("none.redb"));
    assert!(matches!(missing, Err(RegistryError::Missing(_))));
}

/// What a registry of these bytes and keys says: whether the device of this id may connect, or why it does not open.
fn may_connect(
    path: &std::path::Path,
    bytes: &[u8],
    keys: &[u8],
    id: DeviceId,
) -> Result<bool, RegistryError> {
    for (path, bytes) in [(path.to_owned(), bytes), (path.with_extension("keys"), keys)] {
        let _ = std::fs::remove_file(&path);
        crate::identity::write_new(&path, bytes, 0o600).unwrap();
    }
    Ok(Registry::open(path)?.view()?.lookup(&id).is_some())
}

#[test]
fn no_flipped_bit_brings_a_revoked_device_back() {
    let (_dir, path) = scratch();
    let registry = Registry::open(&path).unwrap();
    registry.add_all((0..40).map(|i| keyed(&format!("d{i}"), i)), NOW_S).unwrap();
    let before = std::fs::read(&path).unwrap();
    // The key as well, as if it could not be overwritten.
    let keys = std::fs::read(path.with_file_name(KEYS_FILE)).unwrap();
    registry.revoke(&name("d7"), NOW_S).unwrap();
    // As it lies there when the process is killed now.
    let after = std::fs::read(&path).unwrap();
    let id = DeviceId(7u64.to_be_bytes());
    // In memory where that is possible: each of hundreds of starts syncs several times.
    let memory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let hurt = memory.path().join("hurt.redb");
    assert!(may_connect(&hurt, &before, &keys, id).unwrap());
    assert!(!may_connect(&hurt, &after, &keys, id).unwrap());

    // All bits of what says which commit counts, one of each other byte that the engine reads first, and some of
    // what the change has written.
    let changed = |place: &usize| before.get(*place) != Some(&after[*place]);
    let written: Vec<_> = (320..after.len()).filter(changed).collect();
    let step = (written.len() / 150).max(1);
    let flips = (0..8).map(|bit| (9, bit)).chain((0..320).map(|place| (place, place % 8)));
    let flips = flips.chain(written.into_iter().step_by(step).map(|place| (place, place % 8)));
    let (mut refused, mut tried) = (0, 0);
    for (place, bit) in flips {
        let mut bytes = after.clone();
        bytes[place] ^= 1 << bit;
        tried += 1;
        match may_connect(&hurt, &bytes, &keys, id) {
            Ok(connects) => assert!(!connects, "bit {bit} of byte {place} brings it back"),
            Err(RegistryError::Damaged { .. } | RegistryError::Storage(_)) => refused += 1,
            Err(error) => panic!("bit {bit} of byte {place}: {error}"),
        }
    }
    assert!(tried > 400 && refused > 20, "{refused} of {tried} refused");
}

#[test]
fn a_change_without_its_second_commit_gets_it_at_the_next_start() {
    let (_dir, path) = scratch();
    let registry = Registry::open(&path).unwrap();
    registry.add(keyed("a", 1), NOW_S).unwrap();
    let pairs = || {
        let (database, _) = registry.store.get().unwrap();
        let read = database.begin_read().unwrap();
        let table = redb::TableDefinition::<(), u64>::new("pairs");
        read.open_table(table).unwrap().get(()).unwrap().unwrap().value()
    };
    let complete = pairs();
    assert_eq!(complete % 2, 0);
    registry
        .store
        .change_once(&registry.store.get().unwrap().0, |tables| {
            store::count_pair(&mut tables.pairs, 1)
        })
        .unwrap();
    assert_eq!(pairs(), complete + 1);
    drop(registry);
    let registry = Registry::open(&path).unwrap();
    let (database, _) = registry.store.get().unwrap();
    let table = redb::TableDefinition::<(), u64>::new("pairs");
    let count = database.begin_read().unwrap().open_table(table).unwrap();
    assert_eq!(count.get(()).unwrap().unwrap().value(), complete + 2);
}

#[test]
fn what_was_revoked_is_known_by_its_key_that_is_gone_and_what_was_removed_may_come_back() {
    let (_dir, path) = scratch();
    let registry = Registry::open(&path).unwrap();
    registry.add_all((0..3).map(|i| keyed(&format!("d{i}"), i)), NOW_S).unwrap();
    registry.revoke(&name("d0"), NOW_S).unwrap();
    registry.remove(&name("d1")).unwrap();
    drop(registry);
    let registry = Registry::open(&path).unwrap();
    assert_eq!(registry.view().unwrap().len(), 1);
    assert!(matches!(registry.add(keyed("d0", 0), NOW_S), Err(RegistryError::Refused { .. })));
    registry.remove(&name("d0")).unwrap();
    assert!(matches!(registry.add(keyed("d0", 0), NOW_S), Err(RegistryError::Refused { .. })));
    registry.add(keyed("d1", 1), NOW_S).unwrap();
    assert_eq!(registry.export(None, 9).unwrap().0.len(), 2);
}

#[test]
fn a_key_that_a_killed_process_left_behind_goes_at_the_next_start() {
    let (_dir, path) = scratch();
    let keys = path.with_file_name(KEYS_FILE);
    let registry = Registry::open(&path).unwrap();
    registry.add_all((0..9).map(|i| keyed(&format!("d{i}"), i)), NOW_S).unwrap();
    let before = std::fs::read(&keys).unwrap();
    registry.remove(&name("d4")).unwrap();
    drop(registry);
    // The row is gone, and its key was not overwritten; another has a key that was written and no row.
    let mut left = before.clone();
    left.extend([7; 32]);
    std::fs::write(&keys, left).unwrap();
    let registry = Registry::open(&path).unwrap();
    let after = std::fs::read(&keys).unwrap();
    let is_clean = |cell: usize| after[32 * (cell + 1)..][..32] == [0; 32];
    assert_eq!((0..10).filter(|cell| is_clean(*cell)).collect::<Vec<_>>(), [4, 9]);
    assert_eq!(registry.view().unwrap().len(), 8);
}

#[test]
fn what_is_refused_leaves_no_key() {
    let (_dir, path) = scratch();
    let registry = Registry::open(&path).unwrap();
    registry.add(keyed("a", 1), NOW_S).unwrap();
    registry.add_all([keyed("b", 2), keyed("c", 3), keyed("d", 1)], NOW_S).unwrap_err();
    registry.check_all([keyed("b", 2), keyed("b", 3)], NOW_S).unwrap();
    let bytes = std::fs::read(path.with_file_name(KEYS_FILE)).unwrap();
    assert!(bytes[32..64] != [0; 32] && bytes[64..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_key_that_is_not_its_devices_is_told_and_the_device_can_be_revoked() {
    let (_dir, path) = scratch();
    let keys = path.with_file_name(KEYS_FILE);
    let registry = Registry::open(&path).unwrap();
    registry.add_all((0..3).map(|i| keyed(&format!("d{i}"), i)), NOW_S).unwrap();
    drop(registry);
    let mut bytes = std::fs::read(&keys).unwrap();
    bytes[32 * 2 + 9] ^= 1;
    std::fs::write(&keys, &bytes).unwrap();
    let registry = Registry::open(&path).unwrap();
    let error = registry.view().err().unwrap().to_string();
    assert!(error.contains("the key of d1 is not in registry.keys"), "{error}");
    assert!(registry.export(None, 9).is_err() && registry.list(None, 9).unwrap().len() == 3);
    registry.revoke(&name("d1"), NOW_S).unwrap();
    assert_eq!(registry.view().unwrap().len(), 2);
    drop(registry);

    let aside = path.with_file_name("aside");
    std::fs::rename(&keys, &aside).unwrap();
    let error = Registry::open(&path).err().unwrap().to_string();
    assert!(error.contains("registry.keys: missing") && !keys.exists(), "{error}");
    let other = tempfile::tempdir().unwrap();
    drop(Registry::create(&other.path().join(FILE)).unwrap());
    std::fs::copy(other.path().join(KEYS_FILE), &keys).unwrap();
    let error = Registry::open(&path).err().unwrap().to_string();
    assert!(error.contains("another registry"), "{error}");
    std::fs::rename(&aside, &keys).unwrap();
    let registry = Registry::open(&path).unwrap();
    std::fs::rename(&keys, &aside).unwrap();
    let error = registry.add(keyed("e", 8), NOW_S).unwrap_err();
    assert!(matches!(error, RegistryError::Replaced(_)), "{error}");
}

#[test]
fn a_registry_with_keys_in_its_rows_is_refused_with_what_to_do() {
    let (_dir, path) = scratch();
    Registry::open(&path).unwrap().add(keyed("a", 1), NOW_S).unwrap();
    let database = redb::Database::open(&path).unwrap();
    let write = database.begin_write().unwrap();
    {
        let mut devices = write.open_table(DEVICES).unwrap();
        let mut row = devices.get("a").unwrap().unwrap().value().to_vec();
        row[0] = 2;
        row.truncate(76);
        devices.insert("a", &*row).unwrap();
    }
    write.commit().unwrap();
    drop(database);
    let error = Registry::open(&path).err().unwrap().to_string();
    assert!(error.contains("earlier version") && error.contains("export"), "{error}");
}

/// Numbers that look like any, and are the same in each run (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> usize {
        usize::try_from(self.next() % end).unwrap()
    }
}

/// A registry whose devices have names, labels and keys of many kinds, and who of them is registered.
struct Layout {
    numbers: Numbers,
    dir: tempfile::TempDir,
    registry: Option<Registry>,
    living: Vec<(Name, [u8; 32])>,
    gone: Vec<[u8; 32]>,
}

impl Layout {
    fn new(seed: u64) -> Self {
        let (dir, path) = scratch();
        let registry = Some(Registry::open(&path).unwrap());
        Self { numbers: Numbers(seed), dir, registry, living: Vec::new(), gone: Vec::new() }
    }

    fn registry(&self) -> &Registry {
        self.registry.as_ref().unwrap()
    }

    fn add(&mut self, count: usize, longest: u64) {
        let mut devices = Vec::new();
        for _ in 0..count {
            let mut key = [0; 32];
            key.as_chunks_mut()
                .0
                .iter_mut()
                .for_each(|part| *part = self.numbers.next().to_be_bytes());
            let id = DeviceId(self.numbers.next().to_be_bytes());
            let length = 17 + self.numbers.below(longest);
            let name = name(&format!("{id}-{}", "n".repeat(length)).as_str()[..length]);
            let enrolment = Enrolment::RegisteredId { id, key: RegistrationKey(key) };
            let tags = "t".repeat(1 + self.numbers.below(30));
            let labels = Labels { tags: tags.parse().unwrap(), ..Labels::default() };
            self.living.push((name.clone(), key));
            devices.push(NewDevice {
                name,
                enrolment,
                sources: SourceSet::default(),
                made: false,
                labels,
            });
        }
        self.registry().add_all(devices, NOW_S).unwrap();
    }

    /// Ends those whose number among the living is such a one, some at a time.
    fn end(&mut self, is_one: impl Fn(usize) -> bool, at_once: usize) {
        let living = std::mem::take(&mut self.living).into_iter().enumerate();
        let (ended, stay): (Vec<_>, Vec<_>) = living.partition(|(number, _)| is_one(*number));
        self.living = stay.into_iter().map(|(_, device)| device).collect();
        for some in ended.chunks(at_once) {
            let names: Vec<_> = some.iter().map(|(_, (name, _))| name.clone()).collect();
            if self.numbers.below(2) == 0 {
                self.registry().revoke_all(&names, NOW_S).unwrap();
            } else {
                self.registry().remove_all(&names).unwrap();
            }
            self.gone.extend(some.iter().map(|(_, (_, key))| key));
            self.check();
        }
    }

    fn compact(&mut self) {
        self.registry = None;
        let path = self.dir.path().join(FILE);
        redb::Database::open(&path).unwrap().compact().unwrap();
        self.registry = Some(Registry::open(&path).unwrap());
    }

    /// Searches every file of the directory for eight bytes of a key, wherever they lie in it.
    fn check(&self) {
        let mut there = std::collections::HashSet::new();
        let wanted: std::collections::HashSet<[u8; 8]> = self
            .gone
            .iter()
            .chain(self.living.iter().map(|(_, key)| key))
            .flat_map(|key| key.windows(8).map(|piece| piece.try_into().unwrap()))
            .collect();
        for file in std::fs::read_dir(self.dir.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            let pieces = bytes.windows(8).map(|piece| piece.try_into().unwrap());
            there.extend(pieces.filter(|piece: &[u8; 8]| wanted.contains(piece)));
        }
        let found = |key: &[u8; 32]| {
            key.windows(8)
                .filter(|piece| there.contains(&<[u8; 8]>::try_from(*piece).unwrap()))
                .count()
        };
        let left = self.gone.iter().filter(|key| found(key) > 0).count();
        assert_eq!(left, 0, "of {} keys that are gone", self.gone.len());
        assert!(self.living.iter().all(|(_, key)| found(key) == 25));
    }
}

#[test]
fn no_layout_of_the_file_leaves_a_key_that_is_gone() {
    for (seed, count) in (0..).zip([1, 2, 3, 7, 20, 51, 120, 333, 1_000, 5_000]) {
        // Each length of a name for few devices, one for many.
        for longest in [48, 1, 9].into_iter().take(if count > 200 { 1 } else { 3 }) {
            let mut layout = Layout::new(seed * 100 + longest);
            // Some one by one, so that the pages move.
            let single = count.min(20);
            (0..single).for_each(|_| layout.add(1, longest));
            layout.add(count - single, longest);
            layout.check();
            let at_once = 1 + count / 8;
            layout.end(|number| number == 0, 1);
            let last = layout.living.len().saturating_sub(1);
            layout.end(|number| number == last, 1);
            layout.end(|number| number % 2 == 0, at_once);
            layout.compact();
            layout.check();
            layout.add(count / 3, longest);
            layout.check();
            layout.end(|number| number % 5 == 1, at_once);
            layout.compact();
            layout.end(|_| true, at_once);
            layout.add(2, longest);
            layout.check();
        }
    }
}

#[test]
fn a_registry_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let (_dir, path) = scratch();
    for file in [FILE, KEYS_FILE] {
        let path = path.with_file_name(file);
        let set = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for mode in [0o604, 0o640, 0o620] {
            set(mode);
            let error = Registry::open(&path.with_file_name(FILE)).err().unwrap().to_string();
            assert!(error.contains("chmod 600") && error.contains(file), "{error}");
        }
        set(0o600);
    }
}

fn reading(number: u8) -> ReadingId {
    ReadingId::decode(&[number; 16])
}

#[test]
fn marks_of_the_spool_are_merged_with_the_place_they_were_read_up_to() {
    let (_dir, path) = scratch();
    let registry = Registry::open(&path).unwrap();
    registry.add(keyed("a", 1), NOW_S).unwrap();
    let id = DeviceId(1u64.to_be_bytes());
    let credential = short(&Fingerprint::of_registered_id(&id));
    let commit = |mark, last: u8| CommitMark { credential, mark, last: reading(last) };
    let at = |spool: u8, index| SpoolCursor { spool: [spool; 16], index };
    assert_eq!(registry.spool_cursor().unwrap(), None);
    let stranger = CommitMark { credential: [0; 8], mark: 9, last: reading(9) };
    let taken = registry.merge_marks(at(1, 10), [commit(5, 1), stranger, commit(7, 2)]).unwrap();
    assert_eq!((taken, registry.spool_cursor().unwrap()), (2, Some(at(1, 10))));
    // The same reading again stands for a lower mark; a mark that leaves no room is none.
    registry
        .merge_marks(at(1, 12), [commit(6, 3), commit(duet_protocol::mark::MARK_MAX + 1, 4)])
        .unwrap();
    assert_eq!(registry.merge_marks(at(1, 11), [commit(90, 5)]).unwrap(), 0);
    registry
        .save_marks([Mark { id, fingerprint: Fingerprint::of_registered_id(&id), value: u64::MAX }])
        .unwrap();
    drop(registry);
    let registry = Registry::open(&path).unwrap();
    assert_eq!(registry.show(&name("a")).unwrap().mark, 7);
    let device = registry.view().unwrap().lookup(&id).unwrap();
    assert_eq!((device.mark(), device.last()), (7, Some(reading(3))));
    // At start the rest of the spool is read into the view; another spool begins anew.
    assert_eq!(registry.restore_marks([commit(8, 6), stranger, commit(2, 7)]).unwrap(), 2);
    assert_eq!((device.mark(), device.last()), (8, Some(reading(7))));
    registry.merge_marks(at(2, 1), [commit(9, 8)]).unwrap();
    assert_eq!(registry.spool_cursor().unwrap(), Some(at(2, 1)));
    // They outlive the device.
    registry.remove(&name("a")).unwrap();
    registry.merge_marks(at(2, 3), [commit(11, 9)]).unwrap();
    registry.add(keyed("a", 1), NOW_S).unwrap();
    let device = registry.view().unwrap().lookup(&id).unwrap();
    assert_eq!((device.mark(), device.last()), (11, Some(reading(9))));
}

#[test]
fn what_would_be_refused_is_found_and_changes_nothing() {
    let (_dir, path) = scratch();
    let registry = Registry::open(&path).unwrap();
    registry.add(keyed("a", 1), NOW_S).unwrap();
    registry.revoke(&name("a"), NOW_S).unwrap();
    registry.add(keyed("b", 2), NOW_S).unwrap();
    // The second has another name and the first's id; the third takes the place of a revoked device in vain, for its
    // id is another's, and leaves it as it was; the fifth is the fourth again.
    let devices = || {
        [
            keyed("c", 3),
            keyed("d", 3),
            with_key("a", 3, 9),
            keyed("e", 5),
            keyed("e", 6),
            keyed("a", 1),
        ]
    };
    let mut third = devices();
    third[2].enrolment =
        Enrolment::RegisteredId { id: DeviceId(2u64.to_be_bytes()), key: RegistrationKey([9; 32]) };
    let refused = registry.check_all(third, NOW_S).unwrap();
    assert_eq!(refused.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [1, 2, 4, 5]);
    assert!(matches!(refused[0].1, RegistryError::IdTaken { .. }), "{}", refused[0].1);
    assert!(matches!(refused[1].1, RegistryError::IdTaken { .. }), "{}", refused[1].1);
    assert!(matches!(refused[2].1, RegistryError::NameTaken(_)), "{}", refused[2].1);
    assert!(matches!(refused[3].1, RegistryError::Refused { .. }), "{}", refused[3].1);
    let entries = registry.list(None, 10).unwrap();
    assert_eq!(entries.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(entries[0].revoked_s.is_some());
}

#[test]
fn a_secret_that_the_registration_made_has_a_first_mark_and_one_brought_along_has_none() {
    let (_dir, path) = scratch();
    let registry = Registry::open(&path).unwrap();
    let view = registry.view().unwrap();
    registry.add(NewDevice { made: true, ..keyed("a", 1) }, NOW_S).unwrap();
    registry.add(keyed("b", 2), NOW_S).unwrap();
    let mark = |id: u64| view.lookup(&DeviceId(id.to_be_bytes())).unwrap().mark();
    assert_eq!([mark(1), mark(2)], [1, 0]);
    assert_eq!(registry.show(&name("a")).unwrap().mark, 1);
    // A mark that is known already is not lowered.
    let fingerprint = Fingerprint::of_registered_id(&DeviceId(1u64.to_be_bytes()));
    registry
        .save_marks([Mark { id: DeviceId(1u64.to_be_bytes()), fingerprint, value: 70 }])
        .unwrap();
    registry.remove(&name("a")).unwrap();
    registry.add(NewDevice { made: true, ..keyed("a", 1) }, NOW_S).unwrap();
    assert_eq!(mark(1), 70);
}

#[test]
fn what_is_said_of_a_device_follows_it_and_a_file_from_before_opens() {
    let (_dir, path) = scratch();
    let registry = Registry::open(&path).unwrap();
    let view = registry.view().unwrap();
    let labels = Labels {
        tags: "x,y".parse().unwrap(),
        group: Some("g".parse().unwrap()),
        expires_s: Some(NOW_S + 9),
    };
    let said = NewDevice { labels: labels.clone(), ..keyed("a", 1) };
    registry.add_all([said, keyed("b", 2)], NOW_S).unwrap();
    let shown = |registry: &Registry, text: &str| registry.show(&name(text)).unwrap().labels;
    assert_eq!(shown(&registry, "a"), labels);
    assert_eq!(registry.export(None, 9).unwrap().0[0].labels, labels);
    let device = view.lookup(&DeviceId(1u64.to_be_bytes())).unwrap();
    assert!(device.may_connect(NOW_S + 8) && !device.may_connect(NOW_S + 9));
    let later = Relabel { expires_s: Some(Some(NOW_S + 20)), ..Relabel::default() };
    registry.relabel(&name("a"), &later).unwrap();
    assert!(device.may_connect(NOW_S + 19) && !device.is_revoked(), "it is the same device");
    let many = Relabel {
        add: (0..15).map(|n| format!("t{n}")).collect::<Vec<_>>().join(",").parse().unwrap(),
        ..Relabel::default()
    };
    assert!(matches!(registry.relabel(&name("a"), &many), Err(RegistryError::Label { .. })));
    assert!(matches!(registry.relabel(&name("c"), &later), Err(RegistryError::Unknown(_))));
    drop((registry, view, device));

    let registry = Registry::open(&path).unwrap();
    let device = registry.view().unwrap().lookup(&DeviceId(1u64.to_be_bytes())).unwrap();
    assert_eq!(device.expiry(), Some(NOW_S + 20));
    registry.revoke(&name("a"), NOW_S).unwrap();
    assert_eq!(shown(&registry, "a").tags, labels.tags, "a revoked device is found by its tags");
    let again = with_key("a", 5, 5);
    registry.add(again, NOW_S).unwrap();
    assert_eq!(shown(&registry, "a"), Labels::default(), "another device of the same name");
    drop((registry, device));

    // As an earlier version has left it: without the table.
    let database = redb::Database::open(&path).unwrap();
    let write = database.begin_write().unwrap();
    assert!(write.delete_table(store::LABELS).unwrap());
    write.commit().unwrap();
    drop(database);
    let registry = Registry::open(&path).unwrap();
    assert_eq!(registry.view().unwrap().len(), 2);
    assert_eq!(registry.list(None, 9).unwrap().len(), 2);
    assert_eq!(registry.export(None, 9).unwrap().0.len(), 2);
    assert_eq!(shown(&registry, "b"), Labels::default());
    registry.relabel(&name("b"), &later).unwrap();
    assert_eq!(shown(&registry, "b").expires_s, Some(NOW_S + 20));
}

#[test]
fn a_file_that_lost_its_name_takes_no_change_until_it_has_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let aside = dir.path().join("aside");
    let registry = Registry::create(&path).unwrap();
    registry.add(keyed("a", 1), NOW_S).unwrap();
    std::fs::rename(&path, &aside).unwrap();
    let refused = |registry: &Registry| {
        let error = registry.revoke(&name("a"), NOW_S).unwrap_err();
        assert!(matches!(error, RegistryError::Replaced(_)), "{error}");
        assert!(registry.in_place().is_err());
        assert!(matches!(
            registry.copy_to(&dir.path().join("copy")),
            Err(RegistryError::Replaced(_))
        ));
    };
    refused(&registry);
    // An older copy in its place would bring back whoever was revoked since.
    std::fs::copy(&aside, &path).unwrap();
    refused(&registry);
    std::fs::rename(&aside, &path).unwrap();
    registry.revoke(&name("a"), NOW_S).unwrap();
    drop(registry);
    let registry = Registry::open(&path).unwrap();
    assert!(registry.show(&name("a")).unwrap().revoked_s.is_some());
}

/// Without it nobody could tell an older copy, which knows nothing of what was revoked since.
#[test]
fn what_says_how_far_a_registry_has_come_is_told_when_it_is_gone_or_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let (path, seen) = (dir.path().join(FILE), dir.path().join("registry.seen"));
    let told = || Registry::open(&path).unwrap().told();
    assert_eq!(Registry::create(&path).unwrap().told(), None);
    std::fs::remove_file(&seen).unwrap();
    assert_eq!(told(), None, "nothing has been revoked in a new one");
    Registry::open(&path).unwrap().add(keyed("a", 1), NOW_S).unwrap();
    let whole = std::fs::read(&seen).unwrap();
    for harm in [None, Some(&b""[..]), Some(&whole[..40]), Some(&[7; 64][..])] {
        match harm {
            None => std::fs::remove_file(&seen).unwrap(),
            Some(bytes) => std::fs::write(&seen, bytes).unwrap(),
        }
        let said = told().unwrap();
        assert!(said.contains("registry.seen: it was gone or damaged"), "{said}");
        assert_eq!(std::fs::read(&seen).unwrap(), whole, "it was made anew");
        assert_eq!(told(), None);
    }
}

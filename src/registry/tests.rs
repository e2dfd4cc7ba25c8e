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

/// What a registry of these bytes says: whether the device of this id may connect, or why it does not open.
fn may_connect(path: &std::path::Path, bytes: &[u8], id: DeviceId) -> Result<bool, RegistryError> {
    let _ = std::fs::remove_file(path);
    crate::identity::write_new(path, bytes, 0o600).unwrap();
    Ok(Registry::open(path)?.view()?.lookup(&id).is_some())
}

#[test]
fn no_flipped_bit_brings_a_revoked_device_back() {
    let (_dir, path) = scratch();
    let registry = Registry::open(&path).unwrap();
    registry.add_all((0..40).map(|i| keyed(&format!("d{i}"), i)), NOW_S).unwrap();
    let before = std::fs::read(&path).unwrap();
    registry.revoke(&name("d7"), NOW_S).unwrap();
    // As it lies there when the process is killed now.
    let after = std::fs::read(&path).unwrap();
    let id = DeviceId(7u64.to_be_bytes());
    // In memory where that is possible: each of hundreds of starts syncs several times.
    let memory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let hurt = memory.path().join("hurt.redb");
    assert!(may_connect(&hurt, &before, id).unwrap());
    assert!(!may_connect(&hurt, &after, id).unwrap());

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
        match may_connect(&hurt, &bytes, id) {
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
        .change_once(&registry.store.get().unwrap().0, |tables| tables.count_pair(1))
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
fn a_key_that_was_revoked_or_removed_is_in_the_file_no_more() {
    let (_dir, path) = scratch();
    let registry = Registry::open(&path).unwrap();
    let key = |i: u8| -> [u8; 32] { std::array::from_fn(|at| i ^ u8::try_from(at * 7).unwrap()) };
    let device = |i: u8| {
        let (id, key) = (DeviceId([i; 8]), RegistrationKey(key(i)));
        let enrolment = Enrolment::RegisteredId { id, key };
        NewDevice {
            name: name(&format!("d{i}")),
            enrolment,
            sources: SourceSet::default(),
            made: false,
            labels: Labels::default(),
        }
    };
    // One by one, so that the pages move.
    (0..120).for_each(|i| registry.add(device(i), NOW_S).unwrap());
    let there = |i: u8| {
        let bytes = std::fs::read(&path).unwrap();
        let key = key(i);
        let pieces = key.as_chunks::<8>().0;
        pieces.iter().any(|piece| memchr::memmem::find(&bytes, piece).is_some())
    };
    assert!((0..120).all(there));
    let names: Vec<_> = (0..60).map(|i| name(&format!("d{i}"))).collect();
    registry.revoke_all(&names[..30], NOW_S).unwrap();
    registry.remove_all(&names[30..]).unwrap();
    assert_eq!((0..120).filter(|i| there(*i)).collect::<Vec<_>>(), (60..120).collect::<Vec<_>>());
    for i in 60..90 {
        registry.revoke(&name(&format!("d{i}")), NOW_S).unwrap();
    }
    drop(registry);
    assert_eq!((0..120).filter(|i| there(*i)).collect::<Vec<_>>(), (90..120).collect::<Vec<_>>());
    // What was revoked is still known by its key, and what was removed may come back.
    let registry = Registry::open(&path).unwrap();
    assert_eq!(registry.view().unwrap().len(), 30);
    assert!(matches!(registry.add(device(5), NOW_S), Err(RegistryError::Refused { .. })));
    registry.remove(&name("d5")).unwrap();
    assert!(matches!(registry.add(device(5), NOW_S), Err(RegistryError::Refused { .. })));
    registry.add(device(45), NOW_S).unwrap();
}

#[test]
fn a_registry_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let (_dir, path) = scratch();
    for mode in [0o604, 0o640, 0o620] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let error = Registry::open(&path).err().unwrap().to_string();
        assert!(error.contains("chmod 600") && error.contains("registry.redb"), "{error}");
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

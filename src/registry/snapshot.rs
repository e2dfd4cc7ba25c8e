//! Copies of the registry, and what must not come back with one.

use std::path::Path;

use super::{Registry, RegistryError};

impl Registry {
    /// Copies the file, as it is after the last change, and that of the keys to new ones that only their owner may read.
    /// Changes wait meanwhile; lookups do not.
    ///
    /// # Errors
    /// Those of the storage engine and of both files.
    pub fn copy_to(&self, path: &Path) -> Result<(), RegistryError> {
        let database = self.ready()?;
        self.store.copy(&database, path)
    }

    /// Puts every device back to where the gateway has not met it: no mark, no newest early reading, no place in a
    /// spool. Enrolment tokens go, too.
    ///
    /// An older copy has older marks, under which readings inside HELLOs that were taken since would pass a second
    /// time (R123). At mark 0 a reading inside HELLO is stored only behind a challenge, which nobody can play back.
    ///
    /// # Errors
    /// Those of the storage engine; nothing was changed then.
    pub fn forget_marks(&self) -> Result<(), RegistryError> {
        let database = self.ready()?;
        self.store.change(&database, |tables| {
            tables.marks.retain(|_, _| false)?;
            tables.last.retain(|_, _| false)?;
            tables.cursor.remove(())?;
            // A token that was spent or revoked since would open once more.
            tables.tokens.retain(|_, _| false)?;
            tables.enrolled.retain(|_, _| false)?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use duet_protocol::identity::{DeviceId, Fingerprint, RegistrationKey};
    use duet_protocol::reading::ReadingId;

    use crate::registry::{CommitMark, Enrolment, NewDevice, SourceSet, SpoolCursor, short};

    use super::*;

    #[test]
    fn a_copy_of_an_open_registry_is_whole_and_its_marks_can_be_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::create(&dir.path().join("registry.redb")).unwrap();
        let id = DeviceId([0, 0, 0, 0, 0, 0, 0, 7]);
        let mut key = RegistrationKey([9; 32]);
        key.0[..8].copy_from_slice(&id.0);
        let enrolment = Enrolment::RegisteredId { id, key };
        let (name, sources) = ("a".parse().unwrap(), SourceSet::default());
        registry
            .add(NewDevice { name, enrolment, sources, made: true, labels: Default::default() }, 5)
            .unwrap();
        let (credential, spool) = (short(&Fingerprint::of_registered_id(&id)), [3; 16]);
        let last = ReadingId { hello: [1; 12], sequence: 2 };
        let mark = CommitMark { credential, mark: 40, last };
        registry.merge_marks(SpoolCursor { spool, index: 8 }, [mark]).unwrap();

        let path = dir.path().join("copy.redb");
        registry.copy_to(&path).unwrap();
        assert!(registry.copy_to(&path).is_err(), "a file that is there is not overwritten");
        registry.revoke(&"a".parse().unwrap(), 6).unwrap();
        let copy = Registry::open(&path).unwrap();
        let entry = copy.show(&"a".parse().unwrap()).unwrap();
        assert_eq!((entry.mark, entry.revoked_s), (40, None));
        assert_eq!(copy.spool_cursor().unwrap(), Some(SpoolCursor { spool, index: 8 }));

        copy.forget_marks().unwrap();
        drop(copy);
        let copy = Registry::open(&path).unwrap();
        assert_eq!(copy.spool_cursor().unwrap(), None);
        let device = copy.view().unwrap().lookup(&id).unwrap();
        assert_eq!((device.mark(), device.last()), (0, None));
    }
}

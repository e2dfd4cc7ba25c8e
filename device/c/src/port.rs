//! What the caller provides: random bytes, a clock, two pages that survive, and perhaps a key.

use core::ffi::{c_int, c_void};

use machine::{
    CryptoError, DeviceKey, Element, Hedge, HedgeKey, Kept, Store, StoreError, certificate,
    protocol::{
        ec::{SecretScalar, Signature},
        identity::PublicKey,
    },
    software::Random,
    store::{PAGE_LEN, Pages, TwoPages},
};

/// The functions of the caller's. They are called from within `duet_…` functions, and must not call those
/// with the same device. All but `random` and `now_us` may be null.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct duet_port {
    /// Handed to every function.
    pub user: *mut c_void,
    /// Fills `out` with random bytes; 0 on success.
    pub random: Option<unsafe extern "C" fn(user: *mut c_void, out: *mut u8, len: usize) -> c_int>,
    /// A clock, microseconds. Where it goes back, as one of 32 bits does after 71 minutes, time goes on from where it was; it must
    /// be asked more often than that.
    pub now_us: Option<unsafe extern "C" fn(user: *mut c_void) -> u64>,
    /// Writes page 0 or 1, `DUET_PAGE_LEN` bytes; 0 once no power cut can undo it. A page that is torn by a
    /// power cut does no harm.
    pub store: Option<
        unsafe extern "C" fn(user: *mut c_void, page: u8, bytes: *const u8, len: usize) -> c_int,
    >,
    /// Reads page 0 or 1; 1 if it is there, 0 if it was never written, anything else for a failure. Without
    /// `store` and `load` the counter is lost with the power, and each start costs a challenge.
    pub load: Option<
        unsafe extern "C" fn(user: *mut c_void, page: u8, out: *mut u8, len: usize) -> c_int,
    >,
    /// Signs a SHA-256 digest of 32 bytes with the device's key: r and s, 64 bytes; 0 on success.
    pub sign: Option<
        unsafe extern "C" fn(user: *mut c_void, digest: *const u8, signature: *mut u8) -> c_int,
    >,
    /// x of the product of a point (65 bytes) with the device's key, 32 bytes; 0 on success. Needed where
    /// `sign` is and the key source is not `ephemeral`.
    pub agree:
        Option<unsafe extern "C" fn(user: *mut c_void, point: *const u8, shared: *mut u8) -> c_int>,
}

impl duet_port {
    pub(crate) const fn is_complete(&self) -> bool {
        self.random.is_some()
            && self.now_us.is_some()
            && self.store.is_some() == self.load.is_some()
    }

    /// The device's key: outside where the port signs, else in memory.
    pub(crate) fn key(&self, secret: &[u8; 32], public: &[u8; 65]) -> Option<DeviceKey> {
        if self.sign.is_some() {
            let hedge = Hedge::Key(HedgeKey(*secret));
            return Some(DeviceKey::External { public: certificate::checked(public)?, hedge });
        }
        SecretScalar::from_bytes(secret).map(DeviceKey::Private)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Port(pub(crate) duet_port);

impl Port {
    pub(crate) fn now_us(&self) -> u64 {
        // SAFETY: the function is the caller's, called as the header says.
        self.0.now_us.map_or(0, |now_us| unsafe { now_us(self.0.user) })
    }
}

impl Random for Port {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        let random = self.0.random.ok_or(CryptoError::Random)?;
        // SAFETY: the function is the caller's, called as the header says.
        match unsafe { random(self.0.user, out.as_mut_ptr(), out.len()) } {
            0 => Ok(()),
            _ => Err(CryptoError::Random),
        }
    }
}

impl Element for Port {
    fn sign(&mut self, digest: &[u8; 32]) -> Result<Signature, CryptoError> {
        let sign = self.0.sign.ok_or(CryptoError::Unsupported)?;
        let mut signature = [0; 64];
        // SAFETY: the function is the caller's, called as the header says.
        match unsafe { sign(self.0.user, digest.as_ptr(), signature.as_mut_ptr()) } {
            0 => Ok(signature),
            _ => Err(CryptoError::Failed),
        }
    }

    fn agree(&mut self, point: &PublicKey) -> Result<[u8; 32], CryptoError> {
        let agree = self.0.agree.ok_or(CryptoError::Unsupported)?;
        let mut shared = [0; 32];
        // SAFETY: the function is the caller's, called as the header says.
        match unsafe { agree(self.0.user, point.0.as_ptr(), shared.as_mut_ptr()) } {
            0 => Ok(shared),
            _ => Err(CryptoError::Failed),
        }
    }
}

impl Pages for Port {
    fn read(&mut self, page: u8, out: &mut [u8; PAGE_LEN]) -> Result<bool, StoreError> {
        let load = self.0.load.ok_or(StoreError)?;
        // SAFETY: the function is the caller's, called as the header says.
        match unsafe { load(self.0.user, page, out.as_mut_ptr(), out.len()) } {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(StoreError),
        }
    }

    fn write(&mut self, page: u8, bytes: &[u8; PAGE_LEN]) -> Result<(), StoreError> {
        let store = self.0.store.ok_or(StoreError)?;
        // SAFETY: the function is the caller's, called as the header says.
        match unsafe { store(self.0.user, page, bytes.as_ptr(), bytes.len()) } {
            0 => Ok(()),
            _ => Err(StoreError),
        }
    }
}

/// The port's pages, or nothing where it has none.
pub(crate) struct PortStore(Option<TwoPages<Port>>);

impl PortStore {
    pub(crate) fn new(port: Port) -> Self {
        Self(port.0.store.map(|_| TwoPages::new(port)))
    }
}

impl Store for PortStore {
    fn load(&mut self) -> Result<Option<Kept>, StoreError> {
        self.0.as_mut().map_or(Ok(None), Store::load)
    }

    fn save(&mut self, kept: &Kept) -> Result<(), StoreError> {
        self.0.as_mut().map_or(Ok(()), |pages| pages.save(kept))
    }
}

//! The Python face of `duet-device`'s blocking client. Python sees `duet.Device`; the types are in
//! `python/duet/_duet.pyi`.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
    thread::{self, ThreadId},
    time::Duration,
};

use duet_device::{
    client::{Client, ClientError, Options, Outcome},
    credentials::Credentials,
    protocol::profile::Transport,
};
use pyo3::{create_exception, exceptions::PyException, prelude::*, types::PyBytes};

create_exception!(_duet, DuetError, PyException);
create_exception!(_duet, DuetTimeout, DuetError);

fn error(error: ClientError) -> PyErr {
    match error {
        ClientError::Timeout { .. } => DuetTimeout::new_err(error.to_string()),
        _ => DuetError::new_err(error.to_string()),
    }
}

/// Bytes, or text as UTF-8.
#[derive(FromPyObject)]
enum Payload {
    #[pyo3(transparent)]
    Bytes(Vec<u8>),
    #[pyo3(transparent)]
    Text(String),
}

impl Payload {
    fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Text(text) => text.into_bytes(),
        }
    }
}

/// A reading that the gateway has stored.
#[pyclass(frozen, module = "duet")]
struct Confirmed {
    id: [u8; 16],
}

#[pymethods]
impl Confirmed {
    /// Its name for ever among the device's readings.
    #[getter]
    fn id<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.id)
    }

    fn __repr__(&self) -> String {
        let hex: String = self.id.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("Confirmed(id={hex})")
    }
}

/// A device and its connection to the gateway.
#[pyclass(frozen, module = "duet")]
struct Device {
    /// Nothing after `close`.
    client: Mutex<Option<Client>>,
    /// The thread that uses it at the moment: another one waits, the same one would wait for itself.
    user: Mutex<Option<ThreadId>>,
}

/// Says which thread uses a device for as long as it does.
struct Use<'d>(&'d Mutex<Option<ThreadId>>);

impl<'d> Use<'d> {
    fn begin(user: &'d Mutex<Option<ThreadId>>) -> Self {
        *user.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current().id());
        Self(user)
    }
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Device {
    /// An error where a command's function calls its own device, which would wait for ever.
    fn is_free(&self) -> PyResult<()> {
        let user = *self.user.lock().unwrap_or_else(PoisonError::into_inner);
        if user == Some(thread::current().id()) {
            let what = "a command's function cannot call its own device: return the result, and send afterwards";
            return Err(DuetError::new_err(what));
        }
        Ok(())
    }

    /// Does something with the client while other Python threads run.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        act: impl FnOnce(&mut Client) -> Result<T, ClientError> + Send,
    ) -> PyResult<T> {
        self.is_free()?;
        let done = py.detach(|| {
            let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
            let _use = Use::begin(&self.user);
            client.as_mut().map(act)
        });
        done.ok_or_else(|| DuetError::new_err("the device is closed"))?.map_err(error)
    }
}

fn seconds(value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value).map_err(|_| DuetError::new_err("no number of seconds"))
}

/// What a Python function makes of a command.
fn carry_out(act: &Py<PyAny>, payload: &[u8]) -> Outcome {
    Python::attach(|py| {
        let result = act.bind(py).call1((PyBytes::new(py, payload),));
        let output = result.and_then(|value| {
            if value.is_none() { Ok(Vec::new()) } else { Ok(value.extract::<Payload>()?.into_bytes()) }
        });
        match output {
            Ok(output) => Outcome::done(output),
            Err(error) => {
                let output = error.to_string().into_bytes();
                error.write_unraisable(py, None);
                Outcome { status: 1, output }
            }
        }
    })
}

#[pymethods]
impl Device {
    /// The device of a credential file; its counter is kept beside it, in `NAME.counter`.
    #[staticmethod]
    #[pyo3(signature = (path, *, tcp = false, address = None, timeout = 60.0))]
    fn from_file(path: PathBuf, tcp: bool, address: Option<String>, timeout: f64) -> PyResult<Self> {
        let transport = if tcp { Transport::Stream } else { Transport::Datagram };
        let timeout = seconds(timeout)?;
        let options = Options { transport, address, timeout, ..Options::default() };
        let credentials =
            Credentials::read(&path).map_err(|wrong| error(ClientError::Credential(wrong)))?;
        let client =
            Client::new(&credentials, path.with_extension("counter"), options).map_err(error)?;
        Ok(Self { client: Mutex::new(Some(client)), user: Mutex::new(None) })
    }

    /// Sends a reading and returns once the gateway has stored it.
    fn send(&self, py: Python<'_>, channel: u16, payload: Payload) -> PyResult<Confirmed> {
        let payload = payload.into_bytes();
        let confirmed = self.with(py, move |client| client.send(channel, &payload))?;
        Ok(Confirmed { id: confirmed.id.encode() })
    }

    /// Sends a reading without waiting: whether it arrives nobody knows.
    fn post(&self, py: Python<'_>, channel: u16, payload: Payload) -> PyResult<()> {
        let payload = payload.into_bytes();
        self.with(py, move |client| client.post(channel, &payload))
    }

    /// Carries out commands with a function of their bytes; what it returns is the result, an exception is a failure.
    fn on_command(&self, py: Python<'_>, act: Py<PyAny>) -> PyResult<()> {
        self.with(py, move |client| {
            client.on_command(move |payload| carry_out(&act, payload));
            Ok(())
        })
    }

    /// Waits for commands, and carries them out.
    #[pyo3(name = "wait")]
    fn wait_for(&self, py: Python<'_>, seconds: f64) -> PyResult<()> {
        let time = self::seconds(seconds)?;
        self.with(py, move |client| client.wait(time))
    }

    /// Waits until nothing waits for the device at its gateway: whoever sleeps then misses nothing.
    fn rest(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, Client::rest)
    }

    /// Ends the session.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.is_free()?;
        py.detach(|| {
            let client = self.client.lock().unwrap_or_else(PoisonError::into_inner).take();
            client.map_or(Ok(()), Client::close)
        })
        .map_err(error)
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_arguments))]
    fn __exit__(&self, py: Python<'_>, _arguments: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py)
    }
}

/// What `duet` is made of.
#[pymodule]
fn _duet(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Device>()?;
    module.add_class::<Confirmed>()?;
    module.add("DuetError", module.py().get_type::<DuetError>())?;
    module.add("DuetTimeout", module.py().get_type::<DuetTimeout>())
}

//! A TLS server that takes readings and confirms them, on one thread for all connections. It stores
//! nothing: its processor time is the handshake's and the record's alone.

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use rustls::{ServerConfig, ServerConnection};

use crate::compare::CONFIRMATION;
use crate::exchange::thread_cpu;
use crate::process_clock::{process_cpu, process_memory};

use super::{Variant, framed, server_config};

/// The tokens that are no connection's.
const LISTENER: Token = Token(0);
const STOP: Token = Token(1);
const FIRST: usize = 2;

/// What a server runs in.
#[derive(Clone, Debug)]
pub enum Host {
    /// A thread of this process; its memory is not told apart from this process's.
    Thread {
        /// Where it listens.
        address: Ipv4Addr,
    },
    /// A process of its own: `program serve-tls`, which is [`serve`].
    Program {
        /// The `loadgen` program.
        program: PathBuf,
        /// Where it listens.
        address: Ipv4Addr,
    },
}

/// A running server; ends when dropped.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    running: Running,
}

enum Running {
    Thread { waker: Waker, thread: Option<JoinHandle<()>>, cpu_ns: Arc<AtomicU64> },
    Process(Child),
}

impl Server {
    /// Starts a variant with the keys of a directory, on a free port.
    ///
    /// # Errors
    /// When there is no socket, no thread or no process.
    pub fn start(dir: &Path, variant: Variant, host: &Host) -> Result<Self> {
        match host {
            Host::Thread { address } => {
                let looped = Loop::new(server_config(dir, variant)?, *address)?;
                let address = looped.listener.local_addr()?;
                let waker = Waker::new(looped.poll.registry(), STOP)?;
                let cpu_ns = Arc::clone(&looped.cpu_ns);
                let thread = std::thread::Builder::new().name("tls".into()).spawn(move || {
                    // Without it the clients fail, and say so.
                    let _ = looped.run();
                })?;
                let thread = Some(thread);
                Ok(Self { address, running: Running::Thread { waker, thread, cpu_ns } })
            }
            Host::Program { program, address } => {
                let mut child = Command::new(program)
                    .arg("serve-tls")
                    .arg(dir)
                    .args([variant.name(), &address.to_string()])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .with_context(|| program.display().to_string())?;
                let mut line = String::new();
                let out = child.stdout.take().context("a server without output")?;
                BufReader::new(out).read_line(&mut line)?;
                let running = Running::Process(child);
                let address = line.trim().parse().context("the TLS server did not start")?;
                Ok(Self { address, running })
            }
        }
    }

    /// The processor time that its thread or process has used.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        match &self.running {
            Running::Thread { cpu_ns, .. } => Duration::from_nanos(cpu_ns.load(Ordering::Relaxed)),
            // A process that has ended shows as jobs that fail.
            Running::Process(child) => process_cpu(child.id()).unwrap_or_default(),
        }
    }

    /// The memory that its process occupies, bytes; `None` for a thread.
    #[must_use]
    pub fn memory(&self) -> Option<u64> {
        match &self.running {
            Running::Thread { .. } => None,
            Running::Process(child) => process_memory(child.id()).ok(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        match &mut self.running {
            Running::Thread { waker, thread, .. } => {
                let woken = waker.wake();
                if let Some(thread) = thread.take()
                    && woken.is_ok()
                {
                    let _ = thread.join();
                }
            }
            Running::Process(child) => {
                // It has ended, or is ended here.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// What a server's process does: says where it listens, serves, and ends when its standard input does, as
/// it does when whoever started it is gone.
///
/// # Errors
/// When there is no socket, or the keys cannot be read.
pub fn serve(dir: &Path, variant: Variant, address: Ipv4Addr) -> Result<()> {
    let looped = Loop::new(server_config(dir, variant)?, address)?;
    println!("{}", looped.listener.local_addr()?);
    let waker = Waker::new(looped.poll.registry(), STOP)?;
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        let _ = waker.wake();
    });
    Ok(looped.run()?)
}

struct Loop {
    poll: Poll,
    listener: TcpListener,
    config: Arc<ServerConfig>,
    /// The thread's processor time at the end of each turn.
    cpu_ns: Arc<AtomicU64>,
}

struct Connection {
    stream: TcpStream,
    tls: ServerConnection,
    text: Vec<u8>,
}

impl Loop {
    fn new(config: ServerConfig, address: Ipv4Addr) -> Result<Self> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind((address, 0).into())
            .with_context(|| format!("no TCP port on {address} for a TLS server"))?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let cpu_ns = Arc::new(AtomicU64::new(0));
        Ok(Self { poll, listener, config: Arc::new(config), cpu_ns })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        let (mut connections, mut next) = (HashMap::new(), FIRST);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                match event.token() {
                    STOP => return Ok(()),
                    LISTENER => {
                        while let Some(connection) = self.accept(Token(next))? {
                            connections.insert(Token(next), connection);
                            next += 1;
                        }
                    }
                    token => {
                        let Some(connection) = connections.get_mut(&token) else { continue };
                        // A client that leaves or misbehaves is not the server's fault.
                        if !connection.advance().unwrap_or(false) {
                            connections.remove(&token);
                        }
                    }
                }
            }
            let cpu_ns = u64::try_from(thread_cpu().as_nanos()).unwrap_or(u64::MAX);
            self.cpu_ns.store(cpu_ns, Ordering::Relaxed);
        }
    }

    fn accept(&self, token: Token) -> io::Result<Option<Connection>> {
        let mut stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        stream.set_nodelay(true)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, token, interest)?;
        let tls = ServerConnection::new(Arc::clone(&self.config)).map_err(io::Error::other)?;
        Ok(Some(Connection { stream, tls, text: Vec::new() }))
    }
}

impl Connection {
    /// Reads what there is, confirms a whole reading, writes; whether the connection goes on.
    fn advance(&mut self) -> Result<bool> {
        loop {
            match self.tls.read_tls(&mut self.stream) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
            let refused = self.tls.process_new_packets().is_err();
            if !refused {
                self.confirm()?;
            }
            // Alerts, too.
            while self.tls.wants_write() && self.tls.write_tls(&mut self.stream).is_ok() {}
            if refused {
                return Ok(false);
            }
        }
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    fn confirm(&mut self) -> Result<()> {
        if let Some(mut early) = self.tls.early_data() {
            early.read_to_end(&mut self.text)?;
        }
        let mut buffer = [0; 1_024];
        while let Ok(len @ 1..) = self.tls.reader().read(&mut buffer) {
            self.text.extend_from_slice(&buffer[..len]);
        }
        while let Some((&len, rest)) = self.text.split_first_chunk()
            && let len = usize::from(u16::from_be_bytes(len))
            && rest.len() >= len
        {
            self.text.drain(..len + 2);
            self.tls.writer().write_all(&framed(CONFIRMATION)?)?;
        }
        Ok(())
    }
}

//! The command line: reads arguments, does one thing, says what became of it.
//!
//! Results go to standard output, everything else to standard error. Only here and in `main` are
//! errors made into sentences for people.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use duet::config::{Config, Loaded, Overrides};

mod archive;
mod backup;
mod ca;
mod command;
mod control;
#[cfg(feature = "demo")]
mod demo;
mod device;
mod doctor;
mod enrol;
mod files;
mod identities;
mod init;
mod life;
mod log;
mod output;
mod owner;
mod papers;
mod reload;
mod restore;
mod run;
mod settings;
mod spool;
mod talk;
mod times;
mod token;
mod top;
mod version;

/// Where `--state` points if it is not given.
const DEFAULT_STATE: &str = "duet-state";

/// An edge aggregation gateway: a mutually authenticated channel in two messages.
#[derive(Parser)]
#[command(
    name = "duet",
    version = version::short(),
    long_version = version::long(),
    max_term_width = 98,
    after_help = "First steps:\n  \
        duet init                                        make a state directory and a certificate\n  \
        duet run                                         take devices; the rest goes into another terminal\n  \
        duet device add boiler-1 --registered-id --address 127.0.0.1:23838 --out boiler-1.json\n  \
        duet device try boiler-1.json --send 21.5        be that device\n  \
        duet spool cat                                   what was stored\n\n\
        Exit codes: 0 done, 1 failed (the reason is on standard error), 2 wrong usage."
)]
struct Cli {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

/// Above the flags that every command has, which would stand among its own otherwise.
const WHICH: &str = "Which gateway";

/// Which gateway is meant.
#[derive(Args, Clone)]
struct Place {
    /// State directory: settings, certificate, registry, control socket [default: $DUET_STATE, or
    /// duet-state]
    #[arg(long, global = true, value_name = "DIR", help_heading = WHICH)]
    state: Option<PathBuf>,
    /// Settings file [default: duet.toml in the state directory]
    #[arg(long, global = true, value_name = "FILE", help_heading = WHICH)]
    config: Option<PathBuf>,
    /// Do without a settings file where there is none
    #[arg(long, global = true, help_heading = WHICH)]
    defaults: bool,
}

#[derive(Subcommand)]
enum Command {
    #[cfg(feature = "demo")]
    /// See it work: a gateway and a thousand devices on this machine, in under a minute
    Demo(demo::Demo),
    /// Make a state directory with a certificate, settings and an empty registry
    Init(init::Init),
    /// Run the gateway until SIGTERM or SIGINT
    Run(Run),
    /// Register, list and revoke devices, whether or not the gateway is running
    #[command(subcommand)]
    Device(device::Device),
    /// Have a device do something, now or when it wakes
    #[command(name = "command")]
    Send(command::Command),
    #[command(subcommand)]
    Spool(spool::Spool),
    /// Show how the running gateway is; exit code 1 if something is wrong
    Status(talk::ShowStatus),
    /// Watch the running gateway: fleet, handshakes, delivery, what is discarded and why
    Top(top::Top),
    /// Check settings, certificates, directories and addresses; exit code 1 if a gateway would not start
    Check(settings::Check),
    /// Find out whether this machine lets a gateway run at full speed; exit code 1 if something is wrong
    Doctor(doctor::Doctor),
    #[command(subcommand)]
    Config(settings::Settings),
    /// Write what a gateway cannot be made anew without into one file
    Backup(backup::Backup),
    /// Make a state directory from a backup
    Restore(restore::Restore),
    #[command(subcommand)]
    Log(log::Log),
    #[command(subcommand)]
    Ca(ca::Ca),
    #[command(subcommand)]
    Enrol(enrol::Enrol),
    #[command(subcommand)]
    Token(token::Token),
    #[command(subcommand)]
    Audit(token::Audit),
    /// Print what has a shell complete this command
    Completions(papers::Completions),
    /// Write manual pages and completions, as packages have them
    #[command(hide = true)]
    Papers(papers::Papers),
}

/// Flags of `duet run`: each stands above its setting in the file.
#[derive(Args)]
#[command(after_help = "The settings are checked whole before anything is bound. On SIGTERM or \
    SIGINT the gateway ends its sessions, saves what it must and exits with 0. On SIGHUP it takes changed \
    settings and certificates, as `duet config reload` has it do.")]
struct Run {
    /// Address for UDP and TCP, for example [::]:23838
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Address for /metrics, /health and /ready; port 0 lets the system choose
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// Data-plane threads
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=256))]
    shards: Option<usize>,
    /// Give up what an upstream that the settings no longer have did not get
    #[arg(long, value_name = "NAME")]
    forget: Vec<String>,
}

/// How results are shown.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// For programs: one JSON object a line
    Json,
}

impl Place {
    /// The state directory, for commands that need no settings.
    fn state(&self) -> Result<PathBuf> {
        match (&self.state, &self.config) {
            (None, Some(_)) => Ok(self.load(&Overrides::default())?.state),
            _ => Ok(self.chosen()),
        }
    }

    /// The settings.
    fn load(&self, flags: &Overrides) -> Result<Config> {
        self.loaded(flags).map(|loaded| loaded.config)
    }

    /// The settings with their origins.
    fn loaded(&self, flags: &Overrides) -> Result<Loaded> {
        let flags = &Overrides { defaults: self.defaults, ..flags.clone() };
        let state = match (&self.state, &self.config) {
            (None, Some(_)) => None,
            _ => Some(self.chosen()),
        };
        let in_state = state.as_ref().map(|state| state.join(duet::config::FILE));
        if let Some(settings) = self.config.as_ref().or(in_state.as_ref()) {
            files::look(settings)?;
        }
        let loaded = Loaded::load(state.as_deref(), self.config.as_deref(), flags);
        // Settings that cannot be read are then no more than a sign of it.
        if let (Err(_), Some(state)) = (&loaded, &state) {
            restore::is_finished(state)?;
        }
        Ok(loaded?)
    }

    fn chosen(&self) -> PathBuf {
        let environment = || std::env::var_os("DUET_STATE").map(PathBuf::from);
        self.state.clone().or_else(environment).unwrap_or_else(|| DEFAULT_STATE.into())
    }
}

/// Does what the command line asks.
pub(crate) fn run() -> Result<ExitCode> {
    let Cli { place, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and the version are results like any other.
        Err(asked) if !asked.use_stderr() => {
            asked.print().and_then(|()| output::stdout().flush()).map_err(output::named)?;
            return Ok(ExitCode::SUCCESS);
        }
        Err(wrong) => wrong.exit(),
    };
    let owner = owner::Owner::look(&place);
    let done = carry_out(command, place);
    owner.into_iter().for_each(owner::Owner::give);
    done
}

fn carry_out(command: Command, place: Place) -> Result<ExitCode> {
    match command {
        #[cfg(feature = "demo")]
        Command::Demo(demo) => demo.run(),
        Command::Init(init) => init.run(&place.chosen()),
        Command::Run(Run { listen, metrics, shards, forget }) => {
            run::run(place, Overrides { listen, metrics, shards, defaults: false }, &forget)
        }
        Command::Device(device) => device.run(&place),
        Command::Send(command) => command.run(&place.state()?),
        Command::Spool(spool) => spool.run(&place),
        Command::Status(status) => status.run(&place.state()?),
        Command::Top(top) => top.run(&place.state()?),
        Command::Check(check) => check.run(&place),
        Command::Doctor(doctor) => doctor.run(&place),
        Command::Config(settings) => settings.run(&place),
        Command::Log(log) => log.run(&place.state()?),
        Command::Backup(backup) => backup.run(&place),
        Command::Restore(restore) => restore.run(&place),
        Command::Ca(ca) => ca.run(&place),
        Command::Enrol(enrol) => enrol.run(&place),
        Command::Token(token) => token.run(&place.state()?),
        Command::Audit(audit) => audit.run(&place.state()?),
        Command::Completions(completions) => completions.run(),
        Command::Papers(papers) => papers.run(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        super::Cli::command().debug_assert();
    }
}

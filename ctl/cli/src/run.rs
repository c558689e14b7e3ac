//! Carries commands out.

use std::io::Write;
use std::time::Duration;

use api::results::{
    BdevInfo, ConnectionInfo, DeviceInfo, ExportInfo, HostAccess, Stats, VersionInfo,
};
use api::{BdevCreate, BdevKind, Call, ControlSocket, LogLevel, Nothing};
use clap::CommandFactory as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::arguments::{
    Arguments, BdevCommand, Command, ConnectionCommand, CreateCommand, DeviceCommand,
    ExportArguments, HostCommand, Level, SizedArguments,
};
use crate::error::CliError;
use crate::{run_volumes, tables};

/// Longer than a controller may take to come up (CAP.TO is at most 127.5 s), and a pool to open.
const CALL_TIMEOUT: Duration = Duration::from_secs(150);

/// Runs one command and prints its result.
pub(crate) fn run(arguments: &Arguments, out: &mut impl Write) -> Result<(), CliError> {
    match &arguments.command {
        Command::Completions { shell } => print_completions(*shell, out),
        Command::Man => Ok(clap_mangen::Man::new(Arguments::command()).render(out)?),
        Command::Export(export) => {
            let call = export_call(export);
            Session::open(arguments, out)?.show(call, |info: &ExportInfo| tables::export(info))
        }
        Command::Stats { watch } => print_stats(*watch, arguments, out),
        command => run_simple(command, &mut Session::open(arguments, out)?),
    }
}

fn run_simple<W: Write>(command: &Command, session: &mut Session<'_, W>) -> Result<(), CliError> {
    match command {
        Command::Device(command) => run_device(command, session),
        Command::Bdev(command) => run_bdev(command, session),
        Command::Host(command) => run_host(command, session),
        Command::Pool(command) => run_volumes::run_pool(command, session),
        Command::Volume(command) => run_volumes::run_volume(command, session),
        Command::Snapshot(command) => run_volumes::run_snapshot(command, session),
        Command::Unexport(arguments) => {
            let api = api::ExportRemove {
                nqn: arguments.nqn.clone(),
                nsid: arguments.nsid,
                force: arguments.force,
            };
            session.done(Call::ExportRemove(api), "no longer exported")
        }
        Command::Exports => session
            .show(Call::ExportList(Nothing {}), |infos: &Vec<ExportInfo>| tables::exports(infos)),
        Command::Connection(ConnectionCommand::List) => session
            .show(Call::ConnectionList(Nothing {}), |infos: &Vec<ConnectionInfo>| {
                tables::connections(infos)
            }),
        Command::Log { level } => {
            let level = match level {
                Level::Error => LogLevel::Error,
                Level::Warn => LogLevel::Warn,
                Level::Info => LogLevel::Info,
                Level::Debug => LogLevel::Debug,
            };
            session.done(Call::LogLevel(api::LogSet { level }), "log level set")
        }
        Command::Shutdown => session.done(Call::Shutdown(Nothing {}), "the daemon ends"),
        Command::Version => {
            session.show(Call::Version(Nothing {}), |info: &VersionInfo| tables::version(info))
        }
        // These need no daemon or have functions of their own; `run` has seen to them.
        Command::Export(_) | Command::Stats { .. } | Command::Completions { .. } | Command::Man => {
            Ok(())
        }
    }
}

fn run_device<W: Write>(
    command: &DeviceCommand,
    session: &mut Session<'_, W>,
) -> Result<(), CliError> {
    let one = |info: &DeviceInfo| tables::devices(std::slice::from_ref(info));
    match command {
        DeviceCommand::List => session
            .show(Call::DeviceList(Nothing {}), |infos: &Vec<DeviceInfo>| tables::devices(infos)),
        DeviceCommand::Show { bdf } => {
            let call = Call::DeviceShow(api::DeviceShow { bdf: bdf.clone() });
            session.show(call, |info: &DeviceInfo| tables::device(info))
        }
        DeviceCommand::Bind { bdf, force } => {
            let bind = api::DeviceBind { bdf: bdf.clone(), force: *force };
            session.show(Call::DeviceBind(bind), one)
        }
        DeviceCommand::Release { bdf } => {
            session.show(Call::DeviceRelease(api::DeviceRelease { bdf: bdf.clone() }), one)
        }
    }
}

fn run_bdev<W: Write>(command: &BdevCommand, session: &mut Session<'_, W>) -> Result<(), CliError> {
    match command {
        BdevCommand::List => {
            session.show(Call::BdevList(Nothing {}), |infos: &Vec<BdevInfo>| tables::bdevs(infos))
        }
        BdevCommand::Create(create) => {
            let call = Call::BdevCreate(create_params(create)?);
            session.show(call, |info: &BdevInfo| tables::bdevs(std::slice::from_ref(info)))
        }
        BdevCommand::Delete { name } => {
            session.done(Call::BdevDelete(api::BdevDelete { name: name.clone() }), "deleted")
        }
    }
}

fn run_host<W: Write>(command: &HostCommand, session: &mut Session<'_, W>) -> Result<(), CliError> {
    let change = |arguments: &crate::arguments::HostArguments| api::HostChange {
        nqn: arguments.nqn.clone(),
        host: arguments.host.clone(),
        any_host: arguments.any_host,
    };
    let one = |access: &HostAccess| tables::hosts(std::slice::from_ref(access));
    match command {
        HostCommand::Allow(arguments) => session.show(Call::HostAllow(change(arguments)), one),
        HostCommand::Deny(arguments) => session.show(Call::HostDeny(change(arguments)), one),
        HostCommand::List { nqn } => {
            let list = api::HostList { nqn: nqn.clone() };
            session.show(Call::HostList(list), |all: &Vec<HostAccess>| tables::hosts(all))
        }
    }
}

/// A connection to the daemon, and where results go.
pub(crate) struct Session<'a, W> {
    socket: ControlSocket,
    json: bool,
    /// Each result as JSON in a line of its own, for whoever reads them as they come.
    one_line: bool,
    /// What the next call takes its time for.
    waiting: Option<String>,
    out: &'a mut W,
}

impl<'a, W: Write> Session<'a, W> {
    fn open(arguments: &Arguments, out: &'a mut W) -> Result<Self, CliError> {
        let socket = ControlSocket::connect(&arguments.socket, CALL_TIMEOUT)
            .map_err(|source| CliError::Connect { socket: arguments.socket.clone(), source })?;
        Ok(Session { socket, json: arguments.json, one_line: false, waiting: None, out })
    }

    /// Says what the next call takes its time for, to whoever looks at a terminal meanwhile.
    pub(crate) fn wait_for(&mut self, what: String) {
        self.waiting = Some(what);
    }

    /// Makes a call.
    pub(crate) fn call<R: DeserializeOwned>(&mut self, call: Call) -> Result<R, CliError> {
        let waiting = self.waiting.take().filter(|_| !self.json);
        let spinner = waiting.map(|what| {
            // Drawn on standard error, and there on a terminal only.
            let spinner = ProgressBar::new_spinner().with_message(what);
            spinner.enable_steady_tick(Duration::from_millis(100));
            spinner
        });
        let result = self.socket.call(call);
        if let Some(spinner) = spinner {
            spinner.finish_and_clear();
        }
        Ok(result?)
    }

    /// A bar that shows how many of so many bytes are done, where there is a terminal.
    pub(crate) fn bar(&self, bytes: u64, what: &str) -> ProgressBar {
        if self.json {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(bytes).with_style(style).with_message(what.to_owned())
    }

    /// Makes a call that returns nothing for each of several names, until one fails.
    pub(crate) fn each(
        &mut self,
        names: &[String],
        call: impl Fn(&String) -> Call,
        text: &str,
    ) -> Result<(), CliError> {
        let bar = match names.len() > 1 && !self.json {
            true => ProgressBar::new(names.len() as u64),
            false => ProgressBar::hidden(),
        };
        let mut done = Vec::new();
        let mut outcome = Ok(());
        for name in names {
            outcome = self.call::<Nothing>(call(name)).map(drop);
            if outcome.is_err() {
                break;
            }
            bar.inc(1);
            done.push(name);
        }
        bar.finish_and_clear();
        // What is done is told also when something failed behind it.
        if self.json {
            self.print_json(&done)?;
        } else {
            done.iter().try_for_each(|name| writeln!(self.out, "{name}: {text}"))?;
        }
        outcome
    }

    /// Makes a call and prints its result: as JSON, or as `table` makes it.
    pub(crate) fn show<R: DeserializeOwned + Serialize>(
        &mut self,
        call: Call,
        table: impl FnOnce(&R) -> String,
    ) -> Result<(), CliError> {
        let result: R = self.call(call)?;
        self.print(&result, table)
    }

    pub(crate) fn print<R: Serialize>(
        &mut self,
        result: &R,
        table: impl FnOnce(&R) -> String,
    ) -> Result<(), CliError> {
        match self.json {
            true => self.print_json(result)?,
            false => writeln!(self.out, "{}", table(result))?,
        }
        Ok(())
    }

    fn print_json(&mut self, result: &impl Serialize) -> Result<(), CliError> {
        let written = match self.one_line {
            true => serde_json::to_writer(&mut *self.out, result),
            false => serde_json::to_writer_pretty(&mut *self.out, result),
        };
        written.map_err(|error| {
            if error.is_io() { CliError::Output(error.into()) } else { CliError::Json(error) }
        })?;
        Ok(writeln!(self.out)?)
    }

    /// Makes a call that returns nothing.
    pub(crate) fn done(&mut self, call: Call, text: &str) -> Result<(), CliError> {
        self.show(call, |_: &Nothing| text.to_owned())
    }
}

fn export_call(arguments: &ExportArguments) -> Call {
    Call::ExportAdd(api::ExportAdd {
        bdev: arguments.bdev.clone(),
        nqn: arguments.nqn.clone(),
        hosts: arguments.hosts.clone(),
        any_host: arguments.any_host,
        nsid: arguments.nsid,
        listeners: arguments.listeners.clone(),
    })
}

fn create_params(create: &CreateCommand) -> Result<BdevCreate, CliError> {
    let sized = |kind, arguments: &SizedArguments| BdevCreate {
        kind,
        name: arguments.name.clone(),
        size_bytes: Some(arguments.size),
        block_bytes: arguments.block_size,
        path: None,
    };
    match create {
        CreateCommand::Ram(arguments) => Ok(sized(BdevKind::Ram, arguments)),
        CreateCommand::Null(arguments) => Ok(sized(BdevKind::Null, arguments)),
        CreateCommand::File { name, path, size, block_size } => {
            // The daemon's working directory is not ours.
            let path = std::path::absolute(path)
                .map_err(|error| CliError::Usage(format!("{}: {error}", path.display())))?;
            let path = path.to_str().ok_or_else(|| {
                CliError::Usage(format!("{}: the path is not UTF-8", path.display()))
            })?;
            Ok(BdevCreate {
                kind: BdevKind::File,
                name: name.clone(),
                size_bytes: *size,
                block_bytes: *block_size,
                path: Some(path.to_owned()),
            })
        }
    }
}

fn print_stats(
    watch: Option<u32>,
    arguments: &Arguments,
    out: &mut impl Write,
) -> Result<(), CliError> {
    loop {
        // Anew each time: the daemon gives up connections that are silent for long.
        let mut session = Session::open(arguments, out)?;
        session.one_line = watch.is_some();
        session.show(Call::Stats(Nothing {}), |stats: &Stats| tables::stats(stats))?;
        out.flush()?;
        match watch {
            Some(seconds) => std::thread::sleep(Duration::from_secs(u64::from(seconds))),
            None => return Ok(()),
        }
    }
}

fn print_completions(shell: clap_complete::Shell, out: &mut impl Write) -> Result<(), CliError> {
    // Into memory first: the generator panics when a write fails, as it does under `| head`.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "forebay", &mut text);
    Ok(out.write_all(&text)?)
}

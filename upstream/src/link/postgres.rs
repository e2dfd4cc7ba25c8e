//! PostgreSQL: readings go into a table by `COPY`, and the spool's cursor into another in the same transaction. So each
//! reading is there once, whatever is killed: what the table has is read when the connection is made, and decides.
//!
//! Batches that wait together are one transaction. It moves the cursor from where it is known to be, or does not commit:
//! neither a connection that was thought dead nor a copy of the gateway can write a reading twice. Since a
//! cursor is one number, the table must take batches in their order; after one is refused, all that were sent after it
//! are void, and come again behind its halves.

use std::cell::OnceCell;
use std::pin::pin;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::future::join;
use futures_util::sink::SinkExt;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, Config, Error, NoTls, Row, SimpleQueryMessage, Statement};

use super::bounded::{Allowance, InTls};
use super::{Answer, Cause, Failure, Known, Link, Local, Message, net};
use crate::SpoolId;
use crate::settings::{Address, Upstream};
use crate::text;

/// What makes both tables, under the names that it has for them.
const SCHEMA: &str = include_str!("../../sql/readings.sql");
/// The columns that readings fill, and their types.
const COLUMNS: [(&str, Type); 11] = [
    ("spool", Type::UUID),
    ("index", Type::INT8),
    ("device", Type::TEXT),
    ("id", Type::UUID),
    ("type", Type::TEXT),
    ("channel", Type::INT4),
    ("received", Type::TIMESTAMPTZ),
    ("measured", Type::TIMESTAMPTZ),
    ("again", Type::BOOL),
    ("payload", Type::BYTEA),
    ("facts", Type::JSONB),
];
/// What rows in binary begin and end with.
const HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const END: &[u8] = &[0xff, 0xff];
/// A transaction takes no further batch beyond so many bytes.
const GROUP_MAX: usize = 1 << 20;

/// A connection to a database.
pub(crate) struct Postgres {
    jobs: mpsc::UnboundedSender<Job>,
    /// Rises with each refusal that was heard of; what was submitted under an earlier one is void.
    epoch: u64,
    connection: JoinHandle<()>,
    writer: JoinHandle<()>,
    /// Why the writer has ended, set before its queue is gone.
    ended: Rc<OnceCell<Failure>>,
    at: String,
    worth: String,
    last: Option<u64>,
}

struct Job {
    epoch: u64,
    last: u64,
    body: Bytes,
    answer: oneshot::Sender<Answer>,
}

/// Why a transaction was not committed.
enum Trouble {
    /// For what is in it.
    Data(String),
    /// For anything else: the connection is void.
    Failed(Failure),
}

impl Postgres {
    /// Connects, makes the tables where they are missing and reads how far they are.
    pub(crate) async fn connect(
        upstream: &Upstream,
        address: &Address,
        (database, table): (&str, &str),
        spool: SpoolId,
    ) -> Result<Self, Failure> {
        let at = address.authority();
        let allowance = Allowance::new();
        let (client, connection) = open(upstream, address, database, &at, &allowance).await?;
        let opened = Table::open(client, allowance, &at, table, spool, upstream).await;
        let (table, worth) = match opened {
            Ok(opened) => opened,
            Err(failure) => {
                connection.abort();
                return Err(failure);
            }
        };
        let (jobs, waiting) = mpsc::unbounded_channel();
        let last = u64::try_from(table.last).ok();
        let ended = Rc::<OnceCell<Failure>>::default();
        let writer = tokio::task::spawn_local(table.serve(waiting, Rc::clone(&ended)));
        Ok(Self { jobs, epoch: 0, connection, writer, ended, at, worth, last })
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.writer.abort();
        self.connection.abort();
    }
}

/// Opens the connection, and a task that keeps it going.
async fn open(
    upstream: &Upstream,
    address: &Address,
    database: &str,
    at: &str,
    allowance: &Allowance,
) -> Result<(Client, JoinHandle<()>), Failure> {
    let credentials = &upstream.credentials;
    let mut config = Config::new();
    config.dbname(database).application_name(format!("duet {}", upstream.name));
    if let Some(user) = &credentials.user {
        config.user(user);
    }
    if let Some(path) = &credentials.password_file {
        config.password(net::secret(path)?.as_bytes());
    }
    let stream = net::tcp(address).await?;
    let refused = |error: Error| match judge(at, &error) {
        Trouble::Data(said) => Failure::new(Cause::Setting, said),
        Trouble::Failed(failure) => failure,
    };
    // Why a connection ends is told by whatever was asked of it.
    if address.secure {
        let tls = net::client_config(&upstream.tls)?;
        let mut tls = tokio_postgres_rustls::MakeRustlsConnect::new(tls);
        let tls = tokio_postgres::tls::MakeTlsConnect::<net::Fair<TcpStream>>::make_tls_connect(
            &mut tls,
            &address.host,
        );
        let Ok(tls) = tls;
        let tls = InTls { tls, allowance: allowance.clone() };
        config.ssl_mode(SslMode::Require);
        let (client, connection) = config.connect_raw(stream, tls).await.map_err(refused)?;
        Ok((client, tokio::task::spawn_local(async move { drop(connection.await) })))
    } else {
        config.ssl_mode(SslMode::Disable);
        let (client, connection) =
            config.connect_raw(allowance.bind(stream), NoTls).await.map_err(refused)?;
        Ok((client, tokio::task::spawn_local(async move { drop(connection.await) })))
    }
}

/// A name of one or two parts, each in quotes.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('.', "\".\""))
}

/// What makes both tables under these names.
fn schema(table: &str, cursor: &str) -> String {
    let mut parts =
        SCHEMA.split("duet_readings_cursor").map(|part| part.replace("duet_readings", table));
    let first = parts.next().unwrap_or_default();
    parts.fold(first, |whole, part| whole + cursor + &part)
}

/// The table, its cursor and the way to both.
struct Table {
    client: Client,
    allowance: Allowance,
    at: String,
    cursor_name: String,
    begin: String,
    /// The table of the cursor, and whose row in it, as SQL has both.
    cursor: String,
    spool: SpoolId,
    copy: Statement,
    /// The last index that the table has; -1 where it has none.
    last: i64,
}

impl Table {
    async fn open(
        client: Client,
        allowance: Allowance,
        at: &str,
        name: &str,
        spool: SpoolId,
        upstream: &Upstream,
    ) -> Result<(Self, String), Failure> {
        let (table, cursor) = (quoted(name), quoted(&format!("{name}_cursor")));
        let failed = |error: Error| match judge(at, &error) {
            // Nothing of ours is in these.
            Trouble::Data(said) => Failure::new(Cause::Setting, said),
            Trouble::Failed(failure) => failure,
        };
        let worth = prepare_session(&client, at, name, upstream, &failed).await?;
        let known = format!(
            "SELECT to_regclass('{table}') IS NOT NULL AND to_regclass('{cursor}') IS NOT NULL"
        );
        let known = client.query_one(&known, &[]).await.map_err(failed)?;
        if !field::<bool>(&known, 0, at)? {
            let schema = schema(&table, &cursor);
            client.batch_execute(&schema).await.map_err(|error| {
                let failure = failed(error);
                let text = format!(
                    "{}; tables {name} and {name}_cursor are missing: make them as upstream/sql/readings.sql does",
                    failure.text
                );
                Failure { text: text.into(), ..failure }
            })?;
        }
        logged(&client, at, &table, &cursor, &failed).await?;
        let columns = COLUMNS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let look =
            client.prepare(&format!("SELECT {columns} FROM {table}")).await.map_err(failed)?;
        for (column, (wanted_name, wanted)) in look.columns().iter().zip(&COLUMNS) {
            if column.type_() != wanted {
                let text = format!(
                    "{at}: column {wanted_name} of table {name} is {}, and must be {wanted}",
                    column.type_()
                );
                return Err(Failure::new(Cause::Setting, text));
            }
        }
        // A cursor that somebody removed is made anew from what the table has.
        let select = format!("SELECT last FROM {cursor} WHERE spool = '{spool}'");
        let last = match client.query_opt(&select, &[]).await.map_err(failed)? {
            Some(row) => row,
            None => {
                let begin = format!(
                    "INSERT INTO {cursor} (spool, last) SELECT '{spool}', coalesce(max(index), -1) FROM {table} \
                     WHERE spool = '{spool}' ON CONFLICT DO NOTHING"
                );
                client.batch_execute(&begin).await.map_err(failed)?;
                client.query_one(&select, &[]).await.map_err(failed)?
            }
        };
        let last = field(&last, 0, &format!("{at}: table {name}_cursor"))?;
        let copy = format!("COPY {table} ({columns}) FROM STDIN (FORMAT binary)");
        let copy = client.prepare(&copy).await.map_err(failed)?;
        let cursor_name = format!("{name}_cursor");
        let wait = upstream.answer_timeout.as_millis();
        let begin = format!("BEGIN; SET LOCAL statement_timeout = {wait}");
        let at = at.to_owned();
        let table = Self { client, allowance, at, cursor_name, begin, cursor, spool, copy, last };
        Ok((table, worth))
    }

    /// Stores what comes until nothing comes any more or the connection is void.
    async fn serve(
        mut self,
        mut waiting: mpsc::UnboundedReceiver<Job>,
        ended: Rc<OnceCell<Failure>>,
    ) {
        let mut queue: Vec<Job> = Vec::new();
        let mut epoch = 0;
        // So many at the front go one by one, since one of them is to blame for a refusal.
        let mut alone = 0_usize;
        loop {
            if queue.is_empty() {
                let Some(job) = waiting.recv().await else { return };
                queue.push(job);
            }
            while let Ok(job) = waiting.try_recv() {
                queue.push(job);
            }
            let void = queue.extract_if(.., |job| job.epoch != epoch);
            void.for_each(|job| job.reply(Answer::Void));
            let count = if alone > 0 { 1 } else { fitting(&queue) };
            let Some(group) = queue.get(..count) else { continue };
            match self.store(group).await {
                Ok(()) => {
                    queue.drain(..count).for_each(|job| job.reply(Answer::Delivered));
                    alone = alone.saturating_sub(1);
                }
                Err(Trouble::Data(_)) if count > 1 => alone = count,
                Err(Trouble::Data(said)) => {
                    (epoch, alone) = (epoch + 1, 0);
                    queue.remove(0).reply(Answer::Refused(said));
                }
                Err(Trouble::Failed(failure)) => {
                    // Set here alone.
                    let _ = ended.set(failure.clone());
                    waiting.close();
                    while let Ok(job) = waiting.try_recv() {
                        queue.push(job);
                    }
                    return queue
                        .into_iter()
                        .for_each(|job| job.reply(Answer::Failed(failure.clone())));
                }
            }
        }
    }

    /// One transaction.
    async fn store(&mut self, group: &[Job]) -> Result<(), Trouble> {
        let Some(last) = group.last().and_then(|job| i64::try_from(job.last).ok()) else {
            return Ok(());
        };
        let stored = self.transaction(group, last).await;
        if stored.is_err() {
            // Where even this fails the connection is gone, and the transaction with it.
            let _ = self.client.batch_execute("ROLLBACK").await;
        } else {
            self.last = last;
        }
        stored
    }

    async fn transaction(&self, group: &[Job], last: i64) -> Result<(), Trouble> {
        self.allowance.renew();
        let failed = |error: Error| judge(&self.at, &error);
        // Asked in one go: the answers take one way there and back. The beginning and the cursor's move are one text, of
        // which the server carries out nothing behind what fails; a copy that does not end is none.
        let Self { begin, cursor, spool, last: before, .. } = self;
        let begin = format!(
            "{begin}; UPDATE {cursor} SET last = {last}, changed = now() WHERE spool = '{spool}' AND last = {before}"
        );
        let (begun, sink) =
            join(self.client.simple_query(&begin), self.client.copy_in::<_, Bytes>(&self.copy))
                .await;
        let begun = begun.map_err(failed)?;
        if !matches!(begun.last(), Some(SimpleQueryMessage::CommandComplete(1))) {
            let text = format!(
                "{}: somebody else has moved this spool's cursor in table {}: does a copy of this gateway run?",
                self.at, self.cursor_name
            );
            return Err(Trouble::Failed(Failure::new(Cause::Busy, text)));
        }
        let mut sink = pin!(sink.map_err(failed)?);
        sink.feed(Bytes::from_static(HEAD)).await.map_err(failed)?;
        for job in group {
            sink.feed(job.body.clone()).await.map_err(failed)?;
        }
        sink.feed(Bytes::from_static(END)).await.map_err(failed)?;
        sink.finish().await.map_err(failed)?;
        self.client.batch_execute("COMMIT").await.map_err(failed)
    }
}

/// How many of those that wait become one transaction.
fn fitting(queue: &[Job]) -> usize {
    let mut bytes = 0;
    let within = queue.iter().take_while(|job| {
        bytes += job.body.len();
        bytes <= GROUP_MAX
    });
    // One that is too large goes alone.
    within.count().max(1)
}

impl Job {
    fn reply(self, answer: Answer) {
        // Nobody waits any more where the link was dropped meanwhile.
        let _ = self.answer.send(answer);
    }
}

/// A column of a row, if it is there and of the type that it should be of: tables and servers are others' own.
fn field<'a, T: FromSql<'a>>(row: &'a Row, column: usize, at: &str) -> Result<T, Failure> {
    row.try_get(column).map_err(|error| {
        let mut text = format!("{at}: {error}");
        if let Some(source) = std::error::Error::source(&error) {
            text = format!("{text}: {source}");
        }
        Failure::new(Cause::Setting, text::printable(text.as_bytes()))
    })
}

/// What holds for the whole connection, and what a commit is worth by the server's settings.
async fn prepare_session(
    client: &Client,
    at: &str,
    name: &str,
    upstream: &Upstream,
    failed: &dyn Fn(Error) -> Failure,
) -> Result<String, Failure> {
    let wait = upstream.answer_timeout.as_millis();
    // A connection that hangs must not keep its locks from the next one for longer than an answer may take.
    let session =
        format!("SET lock_timeout = {wait}; SET idle_in_transaction_session_timeout = {wait}");
    client.batch_execute(&session).await.map_err(failed)?;
    let look = "SELECT current_setting('server_version'), current_setting('fsync'), \
                current_setting('synchronous_commit'), pg_is_in_recovery()";
    let row = client.query_one(look, &[]).await.map_err(failed)?;
    let (version, fsync, commit): (String, String, String) =
        (field(&row, 0, at)?, field(&row, 1, at)?, field(&row, 2, at)?);
    if field(&row, 3, at)? {
        let text = format!("{at}: this server is a standby, which takes nothing: name the primary");
        return Err(Failure::new(Cause::Setting, text));
    }
    if commit == "off" {
        client.batch_execute("SET synchronous_commit = on").await.map_err(failed)?;
    }
    let promise = if fsync == "on" {
        "what is committed survives a crash and a power cut"
    } else {
        "what is committed survives a crash; the server has fsync off, so a power cut may destroy the database"
    };
    Ok(format!("{at} (PostgreSQL {version}), table {name}: each reading once; {promise}"))
}

/// Refuses tables that a crash of the server empties. A cursor would say that they have what they lost, and the spool
/// have let it go; or the cursor alone would be lost.
async fn logged(
    client: &Client,
    at: &str,
    table: &str,
    cursor: &str,
    failed: &dyn Fn(Error) -> Failure,
) -> Result<(), Failure> {
    let look = format!(
        "SELECT oid::regclass::text FROM pg_class WHERE relpersistence <> 'p' AND relkind IN ('r', 'p') AND oid IN \
         (SELECT '{table}'::regclass UNION SELECT '{cursor}'::regclass UNION \
         SELECT relid FROM pg_partition_tree('{table}') UNION SELECT relid FROM pg_partition_tree('{cursor}')) \
         ORDER BY 1 LIMIT 1"
    );
    let Some(row) = client.query_opt(&look, &[]).await.map_err(failed)? else { return Ok(()) };
    let found: String = field(&row, 0, at)?;
    let found = text::printable(found.as_bytes());
    let text = format!(
        "{at}: table {found} is unlogged, so a crash of the server empties it, also of what it has confirmed: \
         ALTER TABLE {found} SET LOGGED"
    );
    Err(Failure::new(Cause::Setting, text))
}

impl Link for Postgres {
    fn submit(&mut self, message: Message) -> Local<'_, Result<Local<'static, Answer>, Failure>> {
        let (answer, answered) = oneshot::channel();
        let last = message.id.range.last;
        let job = Job { epoch: self.epoch, last, body: message.body, answer };
        let (sent, at) = (self.jobs.send(job), self.at.clone());
        let why = Rc::clone(&self.ended);
        Box::pin(async move {
            let ended = move || {
                why.get().cloned().unwrap_or_else(|| {
                    Failure::new(Cause::Connection, format!("{at}: the connection ended"))
                })
            };
            if sent.is_err() {
                return Err(ended());
            }
            let answer: Local<'static, Answer> =
                Box::pin(async move { answered.await.unwrap_or_else(|_| Answer::Failed(ended())) });
            Ok(answer)
        })
    }

    fn worth(&self) -> String {
        self.worth.clone()
    }

    fn resume(&self) -> Option<Known> {
        Some(Known { last: self.last, decides: true })
    }

    fn refusal_heard(&mut self) -> bool {
        self.epoch += 1;
        true
    }
}

/// What an error means.
fn judge(at: &str, error: &Error) -> Trouble {
    let failed = |cause, said: String| Trouble::Failed(Failure::new(cause, said));
    let Some(said) = error.as_db_error() else {
        let mut text = format!("{at}: {error}");
        let mut cause = std::error::Error::source(error);
        while let Some(source) = cause {
            text = format!("{text}: {}", text::printable(source.to_string().as_bytes()));
            cause = source.source();
        }
        if text.contains("server does not support TLS") {
            text += "; where the network may be trusted, end the url with ?sslmode=disable";
            return failed(Cause::Tls, text);
        }
        let tls = text.contains("TLS handshake");
        return failed(if tls { Cause::Tls } else { Cause::Connection }, text);
    };
    let code = said.code().code();
    let text = format!("{at}: {} ({code})", text::printable(said.message().as_bytes()));
    match (code.get(..2).unwrap_or_default(), code) {
        // A row is there that the cursor does not know of: no fault of the reading. An index of the administrator's own is
        // another matter.
        (_, "23505") if said.constraint().is_some_and(|name| name.ends_with("_pkey")) => failed(
            Cause::Setting,
            format!(
                "{text}: the table has readings beyond its cursor; remove the spool's row from the cursor's table, and it is made anew"
            ),
        ),
        ("22" | "23" | "54", _) => Trouble::Data(text),
        ("28", _) | (_, "42501") => failed(Cause::Credentials, text),
        ("3D" | "3F" | "42" | "0A", _) => failed(Cause::Setting, text),
        (_, "57014" | "55P03") => failed(Cause::Timeout, text),
        ("08", _) | (_, "57P01" | "57P02" | "57P03") => failed(Cause::Connection, text),
        _ => failed(Cause::Busy, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_for_administrators_makes_the_columns_that_are_written() {
        let table = SCHEMA.split("CREATE TABLE IF NOT EXISTS duet_readings (").nth(1).unwrap();
        let columns = table.lines().filter_map(|line| line.strip_prefix("    "));
        let mut columns = columns.filter(|line| line.starts_with(char::is_lowercase));
        for (name, kind) in COLUMNS {
            let line = columns.next().unwrap();
            let mut words = line.split([' ', ',']).filter(|word| !word.is_empty());
            let named = words.next().unwrap();
            let short = match words.next().unwrap() {
                "bigint" => "int8",
                "integer" => "int4",
                "boolean" => "bool",
                other => other,
            };
            assert_eq!((named, short), (name, kind.name()));
        }
    }

    #[test]
    fn tables_of_any_name_are_made() {
        let made = schema("\"duet_readings\"", "\"duet_readings_cursor\"");
        assert_eq!(made.matches("EXISTS \"duet_readings\" (").count(), 1);
        assert_eq!(made.matches("EXISTS \"duet_readings_cursor\" (").count(), 1);
        assert!(!made.contains("\"\""));
    }

    #[test]
    fn names_are_quoted_part_by_part() {
        assert_eq!(quoted("readings"), "\"readings\"");
        assert_eq!(quoted("site.readings_cursor"), "\"site\".\"readings_cursor\"");
    }
}

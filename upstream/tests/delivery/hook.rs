//! A web hook that does what a test tells it to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What came.
#[derive(Clone)]
pub(crate) struct Post {
    pub(crate) path: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Post {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// What is answered.
pub(crate) enum Reply {
    Status(u16, &'static str, &'static str),
    /// The connection is closed without an answer, after the post was taken.
    Reset,
    /// Nothing, and the connection stays.
    Silence,
}

pub(crate) const OK: Reply = Reply::Status(200, "", "");

type Rule = Box<dyn FnMut(&Post) -> Reply + Send>;

pub(crate) struct Hook {
    pub(crate) address: SocketAddr,
    /// Posts that were answered with 200, or reset after they were taken.
    pub(crate) taken: Arc<Mutex<Vec<Post>>>,
    rule: Arc<Mutex<Rule>>,
}

impl Hook {
    pub(crate) fn new(rule: impl FnMut(&Post) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let rule: Arc<Mutex<Rule>> = Arc::new(Mutex::new(Box::new(rule)));
        let taken = Arc::default();
        let hook = Self { address, taken: Arc::clone(&taken), rule: Arc::clone(&rule) };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (rule, taken) = (Arc::clone(&rule), Arc::clone(&taken));
                std::thread::spawn(move || serve(stream.unwrap(), &rule, &taken));
            }
        });
        hook
    }

    pub(crate) fn change(&self, rule: impl FnMut(&Post) -> Reply + Send + 'static) {
        *self.rule.lock().unwrap() = Box::new(rule);
    }

    pub(crate) fn settings(&self, more: &str) -> String {
        format!(
            "name = \"hook\"\nkind = \"webhook\"\nurl = \"http://{}/in?a=b\"\n{more}",
            self.address
        )
    }

    pub(crate) fn taken(&self) -> Vec<Post> {
        self.taken.lock().unwrap().clone()
    }

    pub(crate) fn lines(&self) -> String {
        self.taken().iter().map(Post::text).collect()
    }
}

fn serve(stream: TcpStream, rule: &Mutex<Rule>, taken: &Mutex<Vec<Post>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(post) = read(&mut reader) {
        let reply = (rule.lock().unwrap())(&post);
        match reply {
            Reply::Status(status, header, body) => {
                if status == 200 {
                    taken.lock().unwrap().push(post);
                }
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status} x\r\n{header}content-length: {length}\r\n\r\n{body}"
                );
                if (&stream).write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
            Reply::Reset => {
                taken.lock().unwrap().push(post);
                return;
            }
            Reply::Silence => {}
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Post> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_owned(), value.to_owned())),
            None => break,
        }
    }
    let mut post = Post { path, headers, body: Vec::new() };
    post.body.resize(post.header("content-length")?.parse().ok()?, 0);
    reader.read_exact(&mut post.body).ok()?;
    Some(post)
}

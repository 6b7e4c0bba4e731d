//! A TCP proxy in front of a server that delays, cuts, holds back and swallows what goes through it.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{listen, shutdown};

use super::server::free_port;

/// The way of a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// The treatment of bytes that arrive from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Passes them on.
    Pass,
    /// Passes them on later, in each direction.
    Delay { up: Duration, down: Duration },
    /// Passes on so many bytes of a direction, counted over all connections. It then closes both sides of the
    /// connection of the last one, and the mode becomes `Pass`.
    Cut { direction: Direction, after: u64 },
    /// Passes requests on and drops the answers. If `then_cut`, it closes the connection 20 ms after the first answer,
    /// and the mode becomes `Pass`: the client does not learn whether its request was carried out.
    Swallow { then_cut: bool },
    /// Keeps the requests of the connections that are open now, until [`Proxy::deliver`]. They are delivered even if
    /// the client has closed its side. Connections made later pass.
    Hold,
    /// Passes nothing on, in no direction, until the mode changes. Connections made later pass, unless `new_too`.
    Stall { new_too: bool },
    /// Refuses new connections, and passes on the bytes of the others.
    Refuse,
}

/// A proxy on a port of 127.0.0.1. Dropping it closes all its connections.
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    port: u16,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    mode: Mode,
    server_port: u16,
    /// `true` while the port accepts connections.
    listens: bool,
    ended: bool,
    accepted: u64,
    /// Connections with smaller numbers were open when the mode was set.
    first_new: u64,
    connections: HashMap<u64, Connection>,
    passed: [u64; 2],
    since_set: [u64; 2],
    swallowed: u64,
    late_answers: Vec<u8>,
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    to_server: Sender<Parcel>,
    held: Vec<u8>,
    /// The client has closed its side while requests of it were held.
    is_orphan: bool,
    /// It ends with the bytes that are under way.
    is_cut: bool,
}

/// Bytes, and when they are due.
type Parcel = (Instant, Vec<u8>);

impl Proxy {
    /// Starts a proxy in front of a port on 127.0.0.1.
    pub(crate) fn start(server_port: u16) -> Self {
        let (listener, port) = listener();
        let state = State {
            mode: Mode::Pass,
            server_port,
            listens: true,
            ended: false,
            accepted: 0,
            first_new: 0,
            connections: HashMap::new(),
            passed: [0; 2],
            since_set: [0; 2],
            swallowed: 0,
            late_answers: vec![],
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let accepting = shared.clone();
        thread::spawn(move || accepting.accept(&listener));
        Self { shared, port }
    }

    /// Its port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The address of the server through it.
    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }

    /// Switches to another mode, and sets [`since_set`](Self::since_set) to 0.
    pub(crate) fn set(&self, mode: Mode) {
        let mut state = self.shared.lock();
        state.mode = mode;
        state.since_set = [0; 2];
        state.first_new = state.accepted;
        self.shared.changed.notify_all();
        let listens = mode != Mode::Refuse;
        drop(self.shared.changed.wait_while(state, |state| state.listens != listens).unwrap());
    }

    /// Leads connections made from now on to another server.
    pub(crate) fn lead_to(&self, server_port: u16) {
        self.shared.lock().server_port = server_port;
    }

    /// The bytes passed on so far. A conversation that is recorded with it can be cut at each of its bytes.
    pub(crate) fn bytes(&self, direction: Direction) -> u64 {
        self.shared.lock().passed[direction as usize]
    }

    /// The bytes passed on since the mode was set.
    pub(crate) fn since_set(&self, direction: Direction) -> u64 {
        self.shared.lock().since_set[direction as usize]
    }

    /// The connections accepted so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.shared.lock().accepted
    }

    /// The connections that are open now.
    pub(crate) fn open(&self) -> usize {
        self.shared.lock().connections.len()
    }

    /// The bytes of requests that are held now.
    pub(crate) fn held(&self) -> usize {
        self.shared.lock().connections.values().map(|connection| connection.held.len()).sum()
    }

    /// The bytes of answers that were dropped so far.
    pub(crate) fn swallowed(&self) -> u64 {
        self.shared.lock().swallowed
    }

    /// Sends what was held to the server, on the connections on which it came.
    pub(crate) fn deliver(&self) {
        for connection in self.shared.lock().connections.values_mut() {
            let held = std::mem::take(&mut connection.held);
            if !held.is_empty() {
                connection.to_server.send((Instant::now(), held)).ok();
            }
        }
    }

    /// The answers of the server to requests whose client was gone.
    pub(crate) fn late_answers(&self) -> Vec<u8> {
        self.shared.lock().late_answers.clone()
    }

    /// Closes all connections. The server's side stays open if requests are held, for [`deliver`](Self::deliver).
    pub(crate) fn cut(&self) {
        let mut state = self.shared.lock();
        let all: Vec<_> = state.connections.iter().map(|(number, found)| (*number, found.held.is_empty())).collect();
        for (number, holds_nothing) in all {
            match holds_nothing {
                true => state.close(number),
                false => state.client_has_closed(number),
            }
        }
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        for (_, connection) in state.connections.drain() {
            connection.close();
        }
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn accept(self: Arc<Self>, listener: &TcpListener) {
        loop {
            let mut state = self.lock();
            if state.ended {
                return;
            }
            let listens = state.mode != Mode::Refuse;
            match (state.listens, listens) {
                // A closed socket would go on to listen in each child process that is about to start its program.
                (true, false) => shutdown(listener, rustix::net::Shutdown::Both).unwrap(),
                (false, true) => listen(listener, 128).unwrap(),
                _ => {}
            }
            state.listens = listens;
            self.changed.notify_all();
            drop(state);
            match listener.accept() {
                Ok((client, _)) => self.clone().begin(client),
                // Nothing to wait for wakes up at a switch of the mode as well.
                Err(_) => drop(self.changed.wait_timeout(self.lock(), Duration::from_millis(1)).unwrap()),
            }
        }
    }

    fn begin(self: Arc<Self>, client: TcpStream) {
        client.set_nonblocking(false).unwrap();
        let server_port = self.lock().server_port;
        // Without a server, the client sees a connection that closes.
        let Ok(server) = TcpStream::connect(("127.0.0.1", server_port)) else { return };
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let (to_server, for_server) = mpsc::channel();
        let (to_client, for_client) = mpsc::channel();
        let [from_client, into_client] = [&client, &client].map(|stream| stream.try_clone().unwrap());
        let [from_server, into_server] = [&server, &server].map(|stream| stream.try_clone().unwrap());
        let mut state = self.lock();
        let number = state.accepted;
        state.accepted += 1;
        let up = to_server.clone();
        let connection = Connection { client, server, to_server, held: vec![], is_orphan: false, is_cut: false };
        state.connections.insert(number, connection);
        drop(state);
        let (up_shared, down_shared) = (self.clone(), self);
        thread::spawn(move || write(for_server, into_server));
        thread::spawn(move || write(for_client, into_client));
        thread::spawn(move || up_shared.read(number, Direction::Up, from_client, &up));
        thread::spawn(move || down_shared.read(number, Direction::Down, from_server, &to_client));
    }

    fn read(&self, number: u64, direction: Direction, mut from: TcpStream, to: &Sender<Parcel>) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            self.pass(number, direction, &buffer[..length], to);
        }
        let mut state = self.lock();
        match direction {
            // After a cut, this is the end that the proxy itself has made.
            Direction::Up if state.connections.get(&number).is_some_and(|connection| connection.is_orphan) => {}
            Direction::Up => state.client_has_closed(number),
            Direction::Down => state.close(number),
        }
    }

    fn pass(&self, number: u64, direction: Direction, bytes: &[u8], to: &Sender<Parcel>) {
        let is_stalled = |state: &mut State| {
            state.connections.contains_key(&number)
                && matches!(state.mode, Mode::Stall { new_too } if new_too || number < state.first_new)
        };
        let mut state = self.changed.wait_while(self.lock(), is_stalled).unwrap();
        let (mode, is_old) = (state.mode, number < state.first_new);
        let Some(connection) = state.connections.get_mut(&number) else { return };
        if connection.is_cut {
            return;
        }
        // Later requests stay behind those that are held.
        if direction == Direction::Up && (mode == Mode::Hold && is_old || !connection.held.is_empty()) {
            connection.held.extend(bytes);
            return;
        }
        if direction == Direction::Down && connection.is_orphan {
            state.late_answers.extend(bytes);
            return;
        }
        let (mut passed, mut wait, mut cuts) = (bytes.len(), Duration::ZERO, false);
        match (mode, direction) {
            (Mode::Delay { up, .. }, Direction::Up) => wait = up,
            (Mode::Delay { down, .. }, Direction::Down) => wait = down,
            (Mode::Swallow { then_cut }, Direction::Down) => {
                state.swallowed += bytes.len() as u64;
                if then_cut {
                    state.mode = Mode::Pass;
                    drop(state);
                    thread::sleep(Duration::from_millis(20));
                    self.lock().close(number);
                }
                return;
            }
            (Mode::Cut { direction: cut, after }, _) if cut == direction => {
                let left = (after - state.since_set[direction as usize]) as usize;
                (passed, cuts) = (passed.min(left), left <= passed);
            }
            _ => {}
        }
        state.passed[direction as usize] += passed as u64;
        state.since_set[direction as usize] += passed as u64;
        if passed > 0 {
            to.send((Instant::now() + wait, bytes[..passed].to_vec())).ok();
        }
        if cuts {
            state.mode = Mode::Pass;
            // An empty parcel closes the connection behind the bytes that go before it.
            to.send((Instant::now() + wait, vec![])).ok();
            if let Some(connection) = state.connections.get_mut(&number) {
                connection.is_cut = true;
            }
        }
    }
}

impl State {
    fn client_has_closed(&mut self, number: u64) {
        match self.connections.get_mut(&number) {
            Some(connection) if connection.is_orphan || !connection.held.is_empty() => {
                connection.is_orphan = true;
                connection.client.shutdown(Shutdown::Both).ok();
            }
            _ => self.close(number),
        }
    }

    fn close(&mut self, number: u64) {
        if let Some(connection) = self.connections.remove(&number) {
            connection.close();
        }
    }
}

impl Connection {
    fn close(&self) {
        self.client.shutdown(Shutdown::Both).ok();
        self.server.shutdown(Shutdown::Both).ok();
    }
}

/// A listener and its port, which it keeps while it refuses connections: the kernel takes back only ports that it chose.
fn listener() -> (TcpListener, u16) {
    let bind = |_| {
        let port = free_port();
        Some((TcpListener::bind(("127.0.0.1", port)).ok()?, port))
    };
    let (listener, port) = (0..10).find_map(bind).expect("a free port");
    listener.set_nonblocking(true).unwrap();
    (listener, port)
}

/// Writes bytes when they are due.
fn write(parcels: Receiver<Parcel>, mut into: TcpStream) {
    for (due, bytes) in parcels {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if bytes.is_empty() || into.write_all(&bytes).is_err() {
            break;
        }
    }
    into.shutdown(Shutdown::Both).ok();
}

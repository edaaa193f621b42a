"""Clients that use up shared resources, each kind for as long as the server lets it. All have one address.

They run in a process of their own with the lowest priority (nice 19). On the single machine of a bench, their own work
therefore takes nothing from honest clients, and only the work that they cause in the server is measured.
"""
import contextlib
import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import threading
import time

ADDRESS = '127.0.0.9'
HELLO = b'\x93STILL\r\n' + struct.pack('<HHIII', 1, 1, 0, 0, 0)


class Abusers:
    """Abusers of one kind in a child process, which runs for the duration of a `with`."""

    def __init__(self, kind, server, name, scratch, rsync):
        self.over = multiprocessing.Event()
        self.done = multiprocessing.Value('Q', 0)
        self.process = multiprocessing.get_context('fork').Process(
            target=work, args=(KINDS[kind], Target(server.address, server.port, name, scratch, rsync, self.over, self.done)))

    def __enter__(self):
        self.process.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.process.join(20)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Target:
    def __init__(self, address, port, name, scratch, rsync, over, done):
        self.address, self.port, self.name, self.scratch, self.rsync, self.over, self.done = address, port, name, scratch, rsync, over, done

    def connect(self):
        return socket.create_connection((self.address, self.port), timeout=10, source_address=(ADDRESS, 0))

    def count(self):
        with self.done.get_lock():
            self.done.value += 1


def work(kind, target):
    os.nice(19)
    sessions, session = kind
    threads = [threading.Thread(target=again, args=(session, target, number), daemon=True) for number in range(sessions)]
    for thread in threads:
        thread.start()
    target.over.wait()
    # Wait for the client processes that were started. Sessions that still listen end with this process.
    deadline = time.monotonic() + 5
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    os._exit(0)


def again(session, target, number):
    while not target.over.is_set():
        with contextlib.suppress(OSError):
            session(target, number)
        target.count()


# One session of each kind.


def flood(target, _):
    """Connections that send nothing: 500 per second in total, each kept open for as long as the server lets it."""
    held = []
    for _ in range(100):
        held.append(target.connect())
        time.sleep(0.1)
    for connection in held:
        connection.close()


def rules(target, _):
    """Rules that are expensive for every name and match none, from a client that leaves before they are evaluated."""
    hostile = b'- ' + b'*?' * 1000
    words = frame(b''.join(struct.pack('<I', len(hostile)) + hostile for _ in range(7)))
    with target.connect() as connection:
        connection.sendall(opening(target.name, [f'{target.name}/']) + words * 17 + frame(bytes(4)))
        listen(connection, 5)


def bits(target, number):
    """Repeated requests for three bytes at each of thousands of places."""
    items = bytearray()
    for at in range(8000):
        items += varint(1 + (at * 7 + number) % 300) + varint((at * 31) % 900) + varint(3)
    with target.connect() as connection:
        connection.sendall(HELLO + native(1, 2, varint(len(target.name)) + target.name.encode()))
        request = varint(0) + varint(8000) + bytes(items)
        for at in range(8):
            connection.sendall(native(2 + at, 6, request))
        listen(connection, 10)


def lists(target, _):
    """A list for one client that repeats everything many times, from a client that then keeps the session open."""
    with target.connect() as connection:
        connection.sendall(opening(target.name, [f'{target.name}/'] * 1000, '-r') + frame(bytes(4)))
        listen(connection, 10)
        target.over.wait(5)


def slow(target, number):
    """A pull at the lowest rate that a client can ask for."""
    dest = os.path.join(target.scratch, f'slow{number}')
    client = subprocess.Popen([target.rsync, '-a', '--bwlimit=1', f'--address={ADDRESS}', f'rsync://{target.address}:{target.port}/{target.name}/', dest],
                              stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while client.poll() is None and not target.over.wait(0.2):
        pass
    with contextlib.suppress(ProcessLookupError):
        # Kill the whole process group that was started here, because rsync's receiver is a separate process.
        os.killpg(client.pid, signal.SIGKILL)
    client.wait()


# Number of concurrent sessions, and the function for one session.
KINDS = {
    'slow (--bwlimit=1)': (40, slow),
    'rules': (40, rules),
    'bits of files': (30, bits),
    'connections': (50, flood),
    'own lists': (60, lists),
}


def listen(connection, seconds):
    """Read until the server closes the connection, for up to `seconds`."""
    deadline = time.monotonic() + seconds
    connection.settimeout(1)
    while time.monotonic() < deadline:
        try:
            if not connection.recv(65536):
                return
        except TimeoutError:
            pass


def frame(data):
    return struct.pack('<I', len(data) | 7 << 24) + data


def opening(name, paths, options='-lHogDtpr'):
    """Return everything that a client sends before the filter rules at protocol 31."""
    words = ['--server', '--sender', options + 'e.iLsfxCIvu', '.', *paths, '']
    return (f'@RSYNCD: 31.0 md5 md4\n{name}\n' + ''.join(word + '\0' for word in words)).encode() + b'\x03md5'


def native(number, kind, payload):
    return struct.pack('<IIBBH', len(payload), number, kind, 0, 0) + payload


def varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7f | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])

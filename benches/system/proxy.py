"""A proxy for one port that limits the rate towards the client, delays both directions and counts what it passes on."""
import contextlib
import queue
import socket
import threading
import time

# Limits on what is passed on at once, in bytes.
CHUNK = 1 << 10, 16 << 10


class Proxy:
    """As a context manager, listens until it ends. `down` and `up` are the bytes passed to and from clients so far."""

    def __init__(self, address, port, rate=None, delay=0.0):
        self.target, self.rate, self.delay = (address, port), rate, delay
        # A kill loses what is passed on at once, so a slow link passes on less.
        self.chunk = min(max(CHUNK[0], int((rate or 1e9) * 0.004)), CHUNK[1])
        self.down = self.up = 0
        self.lock = threading.Lock()
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.port = self.listener.getsockname()[1]

    def __enter__(self):
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.listener.close()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                # What waits in a buffer here when the client is killed would count as sent.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.chunk)
                server = socket.create_connection(self.target)
                for name, reader, writer, rate in (('down', server, client, self.rate), ('up', client, server, None)):
                    threading.Thread(target=self.pump, args=(name, reader, writer, rate), daemon=True).start()

    def pump(self, name, reader, writer, rate):
        due, passed = time.monotonic(), queue.Queue()
        if self.delay:
            threading.Thread(target=self.deliver, args=(name, passed, reader, writer), daemon=True).start()
        with contextlib.suppress(OSError):
            while data := reader.recv(self.chunk):
                if rate:
                    due = max(due, time.monotonic() - 0.05) + len(data) / rate
                    time.sleep(max(0.0, due - time.monotonic()))
                if self.delay:
                    passed.put((time.monotonic() + self.delay, data))
                else:
                    self.write(name, writer, data)
        if self.delay:
            passed.put((time.monotonic() + self.delay, b''))
        else:
            close(reader, writer)

    def deliver(self, name, passed, reader, writer):
        """Pass on what comes, each piece when its delay is over. The rate bounds what waits."""
        with contextlib.suppress(OSError):
            while True:
                due, data = passed.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    break
                self.write(name, writer, data)
        close(reader, writer)

    def write(self, name, writer, data):
        writer.sendall(data)
        with self.lock:
            setattr(self, name, getattr(self, name) + len(data))


def close(*ends):
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

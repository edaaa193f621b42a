"""A proxy for one port that limits the rate towards the client and counts what it passes on."""
import contextlib
import socket
import threading
import time

# Limits on what is passed on at once, in bytes.
CHUNK = 1 << 10, 16 << 10


class Proxy:
    """As a context manager, listens until it ends. `down` and `up` are the bytes passed to and from clients so far."""

    def __init__(self, address, port, rate=None):
        self.target, self.rate = (address, port), rate
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
        due = time.monotonic()
        with contextlib.suppress(OSError):
            while data := reader.recv(self.chunk):
                if rate:
                    due = max(due, time.monotonic() - 0.05) + len(data) / rate
                    time.sleep(max(0.0, due - time.monotonic()))
                writer.sendall(data)
                with self.lock:
                    setattr(self, name, getattr(self, name) + len(data))
        for end in (reader, writer):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

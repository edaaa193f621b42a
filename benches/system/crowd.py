#!/usr/bin/env python3
"""Many simultaneous native sessions on a large repository, then honest clients beside clients that stall forever.

Real clients connect through a gate that passes no byte before all of them have a connection to the daemon, so the sessions
are truly simultaneous. The stalling clients replay parts of the bytes that a real client sent.
"""
import asyncio
import contextlib
import itertools
import os
import pathlib
import resource
import socket
import subprocess
import threading
import time

import bench
import trees

MIB = 1 << 20
SMALL_FILES, SMALL_BYTES = 200, 20000


def run(b):
    if not b.stillmirror:
        raise SystemExit('this script measures only stillmirror')
    allow_open_files()
    listing(b)
    stalls(b)


def allow_open_files():
    """Raise the limit of open files for the gate's two sockets per client.

    The daemon inherits the limit, as it would from its service file.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def listing(b):
    store = pathlib.Path(b.args.store or b.work / 'store')
    b.stillmirror.index(b.args.tree, store)
    with b.stillmirror.serve(b.args.tree, store) as server, bench.Sampler(server, 0.1) as sampler:
        idle = server.memory()['resident']
        with Gate(server, b.args.clients, b.args.patience) as gate:
            start = time.monotonic()
            clients = [spawn(b, 'list', gate.url) for _ in range(b.args.clients)]
            codes = [client.wait() for client in clients]
            seconds = time.monotonic() - start
        b.table('listing', [{'clients': b.args.clients, 'failed': sum(code != 0 for code in codes), 'wall s': seconds,
                             'peak open at once': gate.peak, 'idle resident': idle, 'peak resident': sampler.peak['resident'],
                             'peak anonymous': sampler.peak['anonymous'], 'server cpu s': server.cpu()}])
    b.check(f'none of {b.args.clients} listings fails', not any(codes))
    b.check('all sessions were open at once', gate.peak == b.args.clients)
    b.at_most('peak resident memory, MiB', sampler.peak['resident'] / MIB, 256)


def stalls(b):
    source, store = b.work / 'small', b.work / 'small-store'
    trees.make(source, SMALL_FILES, SMALL_BYTES)
    b.stillmirror.index(source, store)
    with b.stillmirror.serve(source, store) as server:
        with Gate(server, 1) as gate:
            b.stillmirror.pull(gate.url, b.work / 'first', b.work / 'first-store')
        rows = [pulls(b, server, source, 'alone')]
        stalling = [stall(server, kind, gate.said) for kind, _ in zip(itertools.cycle(KINDS), range(b.args.stalled))]
        time.sleep(1)
        rows.append(pulls(b, server, source, f'beside {len(stalling)} stalling clients'))
        for connection in stalling:
            connection.close()
    b.table('pulls', rows)
    b.check(f'all {b.args.honest} honest pulls succeed beside {b.args.stalled} stalling clients', rows[1]['good'] == b.args.honest)


def pulls(b, server, source, what):
    folder = b.work / what.replace(' ', '-')
    folder.mkdir()
    start = time.monotonic()
    clients = [spawn(b, 'pull', server.url, folder / str(number), '--store', folder / f'{number}.store', '--quiet')
               for number in range(b.args.honest)]
    deadline = start + b.args.patience
    good = 0
    for number, client in enumerate(clients):
        try:
            ended = client.wait(max(0.1, deadline - time.monotonic())) == 0
        except subprocess.TimeoutExpired:
            client.kill()
            ended = False
        good += ended and not trees.differences(source, folder / str(number))
    return {'pulls': what, 'good': good, 'of': len(clients), 'wall s': time.monotonic() - start} | server.memory()


def spawn(b, *words):
    return subprocess.Popen(b.stillmirror.argv(*words), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


# The ways to stall: what a client sends before it falls silent. `said` is what a real client sent in a whole session.
KINDS = {
    'silent': lambda said: b'',
    'one byte': lambda said: said[:1],
    'garbage': lambda said: os.urandom(64),
    'half of the first bytes': lambda said: said[:len(said) // 2],
    'a whole session, never reading the answer': lambda said: said,
}


def stall(server, kind, said):
    connection = socket.create_connection((server.address, server.port), timeout=10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(KINDS[kind](said))
    return connection


class Gate:
    """A relay on loopback that passes bytes only after all clients have a connection to the server."""

    def __init__(self, server, clients, patience=10):
        self.server, self.clients, self.patience = server, clients, patience
        self.port, self.open, self.peak, self.said = bench.free_port(), 0, 0, b''
        self.url = server.url.replace(str(server.port), str(self.port))

    def __enter__(self):
        ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.relay(ready)), daemon=True)
        self.thread.start()
        ready.wait()
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.done.set)
        self.thread.join()

    async def relay(self, ready):
        self.loop = asyncio.get_running_loop()
        self.done, self.all_here = asyncio.Event(), asyncio.Event()
        async with await asyncio.start_server(self.session, '127.0.0.1', self.port, backlog=4096):
            ready.set()
            await self.done.wait()

    async def session(self, reader, writer):
        above, below = await asyncio.open_connection(self.server.address, self.server.port)
        self.open += 1
        self.peak = max(self.peak, self.open)
        if self.open == self.clients:
            self.all_here.set()
        with contextlib.suppress(TimeoutError):  # some clients may never connect
            await asyncio.wait_for(self.all_here.wait(), self.patience)
        with contextlib.suppress(asyncio.CancelledError):  # the gate closes
            await asyncio.gather(self.pump(reader, below, heard=True), self.pump(above, writer))
        self.open -= 1

    async def pump(self, reader, writer, heard=False):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if heard and self.clients == 1:
                    self.said += data
                writer.write(data)
                await writer.drain()
        writer.close()


bench.main(__doc__, [
    ('--tree', dict(metavar='DIR', required=True, help='the large repository')),
    ('--store', dict(metavar='DIR', help='its store, if it is indexed already')),
    ('--clients', dict(type=int, default=1000)),
    ('--stalled', dict(type=int, default=200)),
    ('--honest', dict(type=int, default=50)),
    ('--patience', dict(type=int, default=120, help='timeout for all honest pulls, in seconds (default: %(default)s)')),
], run)

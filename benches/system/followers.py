#!/usr/bin/env python3
"""Many idle followers (`pull --follow`) on one daemon: what each costs, how soon all hear of a publish, and how they ask for the head after it.

The followers are connections of one process that speaks the wire, fifty from each of many addresses of loopback, so the daemon
has its default limits except that of followers. After news, each asks for the head on a new connection, after a random part of
the time that the news names, as `pull` does.
"""
import asyncio
import collections
import hashlib
import os
import pathlib
import random
import resource
import struct
import threading
import time

import bench
import trees

HELLO = struct.Struct('<8sHHIII')
FRAME = struct.Struct('<IIB3x')
MAGIC = b'\x93STILL\r\n'
SIGNED_HEADS, FOLLOWING = 1, 2
HEAD, FOLLOW = 2, 7
SIGNATURE, NEWS, END, ERROR, PINNED = 135, 136, 133, 134, 129
PER_ADDRESS = 50
AT_ONCE = 200
KIB = 1 << 10


def run(b):
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    source, store = b.work / 'source', b.work / 'store'
    trees.make(source, b.args.files, (1 << 10, 16 << 10))
    b.stillmirror.index(source, store)
    config = b.work / 'mirror.toml'
    config.write_text(f'[daemon]\nfollowers = {b.args.followers + 100}\nlisten = "127.0.0.1:{(port := bench.free_port())}"\n'
                      f'serve_private = true\n[[repository]]\nname = "{bench.NAME}"\nroot = "{source}"\nstore = "{store}"\n')
    argv = b.stillmirror.argv('serve', '--config', config)
    with bench.Server(b, 'stillmirror', argv, '127.0.0.1', port) as server:
        # What the first session of all needs is not counted.
        b.stillmirror.pull(server.url, b.work / 'dest', b.work / 'dest.store', '--check', 'none')
        crowd = Crowd(server, b.args.followers)
        before, kernel = server.memory(), slab()
        seconds = crowd.begin()
        time.sleep(3)
        after = server.memory()
        each = {key: (after[key] - before[key]) / b.args.followers for key in after}
        start, began = server.cpu(), time.monotonic()
        time.sleep(b.args.idle)
        idle = (server.cpu() - start) / (time.monotonic() - began)
        b.table('idle followers', [{
            'followers': b.args.followers, 'seconds to connect': seconds, 'daemon before (KiB)': before['private_dirty'] / KIB,
            'daemon after (KiB)': after['private_dirty'] / KIB, 'private bytes each': each['private_dirty'],
            'kernel bytes each, both ends': (slab() - kernel) / b.args.followers, 'CPU, share of a core': idle}])
        rows = []
        for number in range(b.args.publishes):
            trees.write(source / 'd0000' / 'f000000.bin', random.Random(number).randbytes(5000))
            crowd.expect()
            ticks = server.cpu()
            b.stillmirror.index(source, store)
            published = os.lstat(store / 'current').st_mtime
            wall, report = bench.clock(b.stillmirror.pull, server.url, b.work / 'dest', b.work / 'dest.store', '--check', 'none')
            heard, asked = crowd.wait(b.args.patience)
            times = sorted(heard)
            rows.append({
                'publish': number + 1, 'heard': len(times), 'first (s)': times[0] - published, 'half (s)': bench.median(times) - published,
                'all (s)': times[-1] - published, 'spread (s)': crowd.spread, 'all have asked for the head (s)': max(asked) - published,
                'refused': crowd.refused, "an ordinary pull's wall (s)": wall, 'its generation': report['generation'], 'CPU (s)': server.cpu() - ticks})
        b.table('publishes', rows)
        maps = pathlib.Path(f'/proc/{server.pid}/maps').read_text()
        mapped = {line.rpartition('/generations/')[2].split('/')[0] for line in maps.splitlines() if '/generations/' in line and line.endswith('/list')}
        crowd.end()
    b.at_most('private memory of the daemon per idle follower, in bytes', each['private_dirty'], 4096)
    b.at_most('share of a core that idle followers cost', idle, 0.1)
    b.check(f'each follower heard of each publish ({crowd.failures[:3]})', not crowd.failures and all(row['heard'] == b.args.followers for row in rows))
    b.at_most('seconds until all have heard, the slowest publish', max(row['all (s)'] for row in rows), 3.0)
    b.check(f'nobody who asks for the head after news is refused ({crowd.reasons.most_common(3)})', all(row['refused'] == 0 for row in rows))
    b.at_most('seconds until all have asked for the head, without the spread', max(row['all have asked for the head (s)'] - row['spread (s)'] for row in rows), 5.0)
    b.check(f'followers keep no list mapped but the current one: {sorted(mapped)}', len(mapped) == 1)


def slab():
    """Return the kernel memory for objects, among them sockets, in bytes."""
    with open('/proc/meminfo') as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith('Slab:')) * 1024


class Crowd:
    """Followers in a thread of their own."""

    def __init__(self, server, count):
        self.address, self.port, self.count = server.address, server.port, count
        self.heard, self.asked, self.failures, self.refused, self.spread = [], [], [], 0, 0.0
        self.ready, self.loop = threading.Event(), asyncio.new_event_loop()
        self.connected, self.reasons = 0, collections.Counter()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def begin(self):
        start = time.monotonic()
        self.thread.start()
        while not self.ready.wait(1) and not self.failures and time.monotonic() < start + 300:
            pass
        if not self.ready.is_set():
            raise SystemExit(f'only {self.connected} followers are connected: {self.failures[:3]}')
        return time.monotonic() - start

    def run(self):
        self.loop.run_until_complete(self.follow_all())

    async def follow_all(self):
        self.gate = asyncio.Semaphore(AT_ONCE)
        self.tasks = [asyncio.ensure_future(self.follow(number)) for number in range(self.count)]
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def connect(self, number, capabilities):
        local = (f'127.1.{number // PER_ADDRESS // 250}.{number // PER_ADDRESS % 250 + 1}', 0)
        reader, writer = await asyncio.open_connection(self.address, self.port, local_addr=local, limit=4096)
        writer.write(HELLO.pack(MAGIC, 1, 1, capabilities, 0, 0))
        return reader, writer

    async def follow(self, number):
        known = bytes(32)
        try:
            async with self.gate:
                reader, writer = await self.connect(number, SIGNED_HEADS | FOLLOWING)
                capabilities = HELLO.unpack(await hello(reader))[3]
                assert capabilities & FOLLOWING, 'the daemon tells nobody'
            while True:
                name = bench.NAME.encode()
                payload = bytes([len(name)]) + name + known
                writer.write(FRAME.pack(len(payload), 1, FOLLOW) + payload)
                news = await answer(reader)
                if NEWS not in news:
                    continue
                is_first, spread, head = known == bytes(32), *varint(news[NEWS])
                known = hashlib.sha256(head + news.get(SIGNATURE, b'')).digest()
                if is_first:
                    self.connected += 1
                    if self.connected == self.count:
                        self.ready.set()
                    continue
                self.heard.append(time.time())
                self.spread = max(self.spread, spread / 1000)
                asyncio.ensure_future(self.ask(number, random.uniform(0, spread / 1000)))
        except (OSError, EOFError, AssertionError) as error:
            self.failures.append(f'{type(error).__name__}: {error}')

    async def ask(self, number, pause):
        await asyncio.sleep(pause)
        try:
            reader, writer = await self.connect(number, SIGNED_HEADS)
            name = bench.NAME.encode()
            writer.write(FRAME.pack(1 + len(name), 1, HEAD) + bytes([len(name)]) + name)
            await hello(reader)
            assert PINNED in await answer(reader)
            writer.close()
        except (OSError, EOFError, AssertionError) as error:
            self.refused += 1
            self.reasons[f'{type(error).__name__}: {error}'] += 1
        self.asked.append(time.time())

    def expect(self):
        self.heard, self.asked, self.refused, self.spread = [], [], 0, 0.0

    def wait(self, patience):
        deadline = time.monotonic() + patience
        while len(self.asked) < self.count and time.monotonic() < deadline:
            time.sleep(0.2)
        return self.heard, self.asked

    def end(self):
        for task in self.tasks:
            self.loop.call_soon_threadsafe(task.cancel)
        self.thread.join(30)


async def hello(reader):
    """Read the daemon's hello. A connection that was silent for a second gets a greeting for rsync clients first."""
    first = await reader.readexactly(HELLO.size)
    if first.startswith(b'@RSYNCD:'):
        rest = first.partition(b'\n')[2] if b'\n' in first else (await reader.readuntil(b'\n'))[:0]
        first = rest + await reader.readexactly(HELLO.size - len(rest))
    return first


async def answer(reader):
    """Read one answer. Returns the payloads by kind."""
    frames = {}
    while END not in frames:
        length, _, kind = FRAME.unpack(await reader.readexactly(FRAME.size))
        frames[kind] = await reader.readexactly(length)
        assert kind != ERROR, frames[kind].decode(errors='replace')
    return frames


def varint(data):
    """Return the number at the beginning of `data`, and the rest."""
    value, shift = 0, 0
    for at, byte in enumerate(data):
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, data[at + 1:]
    raise ValueError('a varint without an end')


bench.main(__doc__, [
    ('--followers', dict(type=int, default=10_000, help='(default: %(default)s)')),
    ('--files', dict(type=int, default=1000, help='files in the tree (default: %(default)s)')),
    ('--publishes', dict(type=int, default=3, help='(default: %(default)s)')),
    ('--idle', dict(type=float, default=60, help='seconds for which the idle CPU is measured (default: %(default)s)')),
    ('--patience', dict(type=float, default=150, help='seconds to wait for all (default: %(default)s)')),
], run)

#!/usr/bin/env python3
"""Honest pulls by stock clients beside clients that are killed, stall or lie. The honest pulls must finish with the right
trees.

A lying client sends what a real client sent up to some point, and then something else. The server must end each such
session by itself, stay within its memory, and continue to serve the others.

Then clients from one address use up shared resources, one kind at a time for --seconds, beside honest stock and native
clients from two other addresses. The honest pulls may take twice as long as in a quiet time of the same run.
"""
import contextlib
import itertools
import os
import random
import signal
import shutil
import socket
import statistics
import struct
import subprocess
import threading
import time

import abusers
import bench
import rsync_peers as peers
import trees

MIB = 1 << 20


def run(b):
    if b.args.part in ('all', 'lies'):
        lies(b)
    if b.args.part in ('all', 'fair') and b.stillmirror:
        fair(b)


def lies(b):
    root, store = b.work / 'tree', b.work / 'store'
    trees.make(root, b.args.files, (1, 40_000))
    trees.write(root / 'first', bytes(100_000))
    trees.make_large(root / 'large', 2, 16 * MIB)
    peers.index(b, root, store)
    # Short timeouts, so that the end of stalled sessions is observed too.
    impatient = 'handshake_timeout = "3s"\nidle_timeout = "5s"'
    with (peers.passive(b, root, store, daemon=impatient) if b.stillmirror else peers.stock(b, root, more='timeout = 5')) as server:
        heard = Heard(server, b.work / 'heard', b.args.rsync)
        idle = server.memory()
        alone = honest(b, server, root, 'alone')
        with Abuse(b, server, heard) as abuse, bench.Sampler(server, 0.1) as memory:
            beside = honest(b, server, root, 'beside abuse')
        b.table('honest pulls', [alone, beside])
        b.table('abuse', [{'kind': kind, 'sessions': count} for kind, count in sorted(abuse.done.items())])
        b.check(f'all {b.args.honest} honest pulls succeed beside {sum(abuse.done.values())} others', beside['good'] == b.args.honest)
        one_by_one(b, server, heard)
        deadline = time.monotonic() + 20
        while connections(server) and time.monotonic() < deadline:
            time.sleep(0.2)
        b.check('no connection is left', not connections(server))
        time.sleep(1)
        b.table('memory', [{'when': 'idle'} | idle, {'when': 'peak'} | memory.peak, {'when': 'after'} | server.memory()])
        if b.stillmirror:
            b.at_most('peak resident memory, MiB', memory.peak['resident'] / MIB, 256)
        b.check('the server still serves', honest(b, server, root, 'after all', count=2)['good'] == 2)


def honest(b, server, root, what, count=None):
    count = count or b.args.honest
    start = time.monotonic()
    ways = itertools.cycle((['-a'], ['-aH', '--no-inc-recursive'], ['-az'], ['-a', '--protocol=29'], ['-ac', '--protocol=30'], ['-a', '--delay-updates'], ['-a', '--protocol=27']))
    running, good, number = [], 0, 0
    folder = b.work / what.replace(' ', '-')
    folder.mkdir()
    while running or number < count:
        while len(running) < b.args.at_once and number < count:
            dest = folder / str(number)
            running.append((dest, subprocess.Popen([b.args.rsync, *next(ways), f'{server.url}/', f'{dest}/'], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)))
            number += 1
        dest, client = running.pop(0)
        try:
            _, said = client.communicate(timeout=b.args.patience)
        except subprocess.TimeoutExpired:
            client.kill()
            said = b'hangs'
        # Old protocols carry times in whole seconds only, so times are not compared.
        right = client.returncode == 0 and not bench.must(['rsync', '-rlnic', '--delete', f'{root}/', f'{dest}/'])[1]
        if not right:
            print(f'{what}: exit {client.returncode}: {client.args}: {said.decode(errors="replace")[-300:]}')
        good += right
        peers.empty(dest)
    return {'pulls': what, 'good': good, 'of': count, 'wall s': time.monotonic() - start}


def fair(b):
    """Run each kind of abuse beside honest clients, with the server's default limits.

    Only the memory for lists is lower than by default, because this tree needs little of it.
    """
    os.environ.pop('STILLMIRROR_DAEMON__CONNECTIONS_PER_ADDRESS', None)
    root, store = b.work / 'fair', b.work / 'fair-store'
    # These files are the first rows of the list; the abusers that ask for bits of files name them by row.
    root.mkdir()
    for number in range(300):
        trees.write(root / f'f{number:03}', os.urandom(1000 + number * 100))
    trees.make_large(root / 'large', 1, 4 * MIB)
    peers.index(b, root, store)
    rows = []
    with peers.passive(b, root, store, daemon='list_memory = "16MiB"', address='0.0.0.0') as server:
        server.address = '127.0.0.1'
        rows.append(beside(b, server, root, store, 'nobody', contextlib.nullcontext()))
        for kind in abusers.KINDS:
            scratch = b.work / 'abusers'
            scratch.mkdir(exist_ok=True)
            with abusers.Abusers(kind, server, bench.NAME, scratch, b.args.rsync) as crowd:
                time.sleep(1)
                rows.append(beside(b, server, root, store, kind, crowd))
            shutil.rmtree(scratch, ignore_errors=True)
        again = beside(b, server, root, store, 'nobody, again', contextlib.nullcontext())
        rows.append(again)
    b.table('honest pulls beside clients that use up shared resources', rows)
    quiet = rows[0]
    for row in rows[1:-1]:
        for dialect in ('stock', 'native'):
            b.check(f'no {dialect} pull fails beside {row["beside"]}', row[f'{dialect} failed'] == 0 and row[f'{dialect} pulls'] > 0)
            b.at_most(f'{dialect} pulls beside {row["beside"]}, seconds over those of quiet ones', row[f'{dialect} s'] / quiet[f'{dialect} s'], 2)
    b.at_most('peak resident memory of all, MiB', max(row['peak resident'] for row in rows) / MIB, 512)


def beside(b, server, root, store, what, crowd):
    """Run twenty honest clients for --seconds, the stock ones from one address and the native ones from another.

    Each client pulls again and again with a pause in between.
    """
    folder, until = b.work / 'honest', time.monotonic() + b.args.seconds
    folder.mkdir()
    times, failed, lock = {'stock': [], 'native': []}, {'stock': 0, 'native': 0}, threading.Lock()

    def client(number):
        dialect = ('stock', 'native')[number % 2]
        time.sleep(number / 20 * 2)
        while time.monotonic() < until:
            dest, local = folder / f'{number}', folder / f'{number}-store'
            url = f'127.0.0.1:{server.port}/{bench.NAME}'
            argv = [b.args.rsync, '-a', '--address=127.0.0.2', f'rsync://{url}/', f'{dest}/'] if dialect == 'stock' else b.stillmirror.argv('pull', f'stillmirror://{url}', dest, '--store', local, '--quiet')
            start = time.monotonic()
            try:
                code = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=b.args.patience).returncode
            except subprocess.TimeoutExpired:
                code = 'hangs'
            seconds = time.monotonic() - start
            with lock:
                times[dialect].append(seconds)
                failed[dialect] += code != 0
            shutil.rmtree(dest, ignore_errors=True)
            shutil.rmtree(local, ignore_errors=True)
            time.sleep(2)

    before = getattr(crowd, 'done', None) and crowd.done.value
    with bench.Sampler(server, 0.2) as memory:
        threads = [threading.Thread(target=client, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    done = crowd.done.value - before if hasattr(crowd, 'done') else 0
    shutil.rmtree(folder, ignore_errors=True)
    middle = {f'{dialect} s': statistics.median(of) for dialect, of in times.items()}
    slowest = {f'slowest {dialect} s': max(of) for dialect, of in times.items()}
    counts = {f'{dialect} pulls': len(of) for dialect, of in times.items()} | {f'{dialect} failed': count for dialect, count in failed.items()}
    return {'beside': what, 'abuses': done} | middle | slowest | counts | {'peak resident': memory.peak['resident'], 'disk': disk(server, store)}


def disk(server, store):
    """Return the bytes of the store and of the deleted files that the server still has mapped."""
    total = sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(store) for name in names if not os.path.islink(os.path.join(folder, name)))
    with open(f'/proc/{server.pid}/maps') as lines:
        for line in lines:
            if line.rstrip().endswith('(deleted)'):
                first, last = line.split()[0].split('-')
                total += int(last, 16) - int(first, 16)
    return total


def connections(server):
    """Return the number of connections that are open at the server's end, according to the kernel."""
    with open(f'/proc/{server.pid}/net/tcp') as lines:
        return sum(line.split()[3] == '01' and int(line.split()[1].rpartition(':')[2], 16) == server.port for line in list(lines)[1:])


class Heard:
    """What real clients send in a whole pull, by protocol, recorded by a relay."""

    def __init__(self, server, dest, client):
        self.said = {}
        for protocol in peers.PROTOCOLS:
            with socket.create_server(('127.0.0.1', 0)) as relay:
                port = relay.getsockname()[1]
                process = subprocess.Popen([client, '-aH', f'--protocol={protocol}', f'rsync://127.0.0.1:{port}/{bench.NAME}/', str(dest)],
                                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
                near, _ = relay.accept()
                with near, socket.create_connection((server.address, server.port)) as far:
                    said = []
                    threads = [threading.Thread(target=pump, args=pair) for pair in ((near, far, said), (far, near, None))]
                    for thread in threads:
                        thread.start()
                    for thread in threads:
                        thread.join()
                process.wait()
                self.said[protocol] = b''.join(said)
            peers.empty(dest)


def pump(source, sink, heard):
    try:
        while data := source.recv(65536):
            if heard is not None:
                heard.append(data)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


# What lying clients send.


def frame(data, tag=7):
    return struct.pack('<I', len(data) | tag << 24) + data


def opening(options='-lHogDtpre.iLsfxCIvu', more=(), path='', protocol=31):
    """Return everything that a client sends before the filter rules. It does not depend on the server's answers."""
    end = '\0' if protocol >= 30 else '\n'
    words = ['--server', '--sender', options, *more, '.', f'{bench.NAME}/{path}', '']
    said = f'@RSYNCD: {protocol}{".0 md5 md4" if protocol >= 30 else ""}\n{bench.NAME}\n' + end.join([*words, ''])
    return said.encode() + (b'\x03md5' if 'v' in options.partition('e.')[2] else b'')


def rule(text):
    return struct.pack('<I', len(text)) + text


NONE = frame(bytes(4))
# A request for the first file of the first list as a new file. Its index is 2, after the root's.
TRANSFER = b'\x03\x00\xa0'
LIES = {
    'nothing': b'',
    'a byte': b'@',
    'garbage': os.urandom(4096),
    'zeros': bytes(100_000),
    'a greeting without end': b'@RSYNCD: 31.0 ' + b'a' * 200_000,
    'a huge version': b'@RSYNCD: 99999999999999999999.99999999999999999999\n',
    'a negative version': b'@RSYNCD: -1.-1\n',
    'an old version': b'@RSYNCD: 19\n',
    'NUL in the greeting': b'@RSYNCD: 31\0.0 md5\n',
    'a long module': b'@RSYNCD: 31.0 md5\n' + b'm' * 100_000 + b'\n',
    'a module outside': b'@RSYNCD: 31.0 md5\n../../etc\n',
    'endless early input': b'@RSYNCD: 31.0 md5\n#early_input=999999999\n' + bytes(100_000),
    'an unknown command': b'@RSYNCD: 31.0 md5\n#frobnicate\n',
    'endless arguments': opening()[:40] + b'--include=x\0' * 200_000,
    'one endless argument': b'@RSYNCD: 31.0 md5\n' + bench.NAME.encode() + b'\n--server\0' + b'x' * 4_000_000,
    'a path outside': opening(path='../../../../etc/') + NONE,
    'an absolute path': opening(path='/etc/passwd') + NONE,
    'a pusher': opening().replace(b'--sender\0', b'') + NONE,
    'a broken digest list': opening()[:-4] + b'\xff\xff' + b'z' * 40_000,
    'no common digest': opening()[:-4] + b'\x05frobn' + NONE,
    'a frame of an unknown kind': opening() + frame(b'x', 99),
    'a frame too long': opening() + struct.pack('<I', 0xffffff | 7 << 24) + bytes(100_000),
    'ERROR_EXIT': opening() + NONE + frame(struct.pack('<I', 23), 7 + 86),
    'ERROR_EXIT at once': opening() + frame(struct.pack('<I', 1), 7 + 86),
    'a rule of 2 GiB': opening() + frame(struct.pack('<i', 0x7fffffff) + b'- x'),
    'a rule of negative length': opening() + frame(struct.pack('<i', -5)),
    'an invalid rule': opening() + frame(rule(b'? what') + bytes(4)),
    'endless rules': opening() + b''.join(frame(rule(b'- pattern%06d' % number) * 50) for number in range(4000)),
    'patterns that blow up': opening() + frame(b''.join(rule(b'- ' + b'*a' * 60 + b'b') + rule(b'- ' + b'**/' * 40 + b'x') + rule(b'- [' + b'a-z' * 200) for _ in range(20)) + bytes(4)),
    'index out of range': opening() + NONE + frame(b'\xfe\xff\xff\xff\x7f\x00\xa0' + bytes(16)),
    'a negative index': opening() + NONE + frame(b'\xff\x50\x00\xa0' + bytes(16)),
    'a folder requested as a file': opening() + NONE + frame(b'\x01\x00\x80' + bytes(16)),
    'a huge count of blocks': opening() + NONE + frame(TRANSFER + struct.pack('<iiii', 0x7fffffff, 700, 16, 0)),
    'a huge block': opening() + NONE + frame(TRANSFER + struct.pack('<iiii', 1, 0x7fffffff, 16, 0)),
    'a negative count': opening() + NONE + frame(TRANSFER + struct.pack('<iiii', -1, 700, 16, 0)),
    'a remainder beyond its block': opening() + NONE + frame(TRANSFER + struct.pack('<iiii', 1, 700, 16, 701)),
    'sums that never end': opening() + NONE + frame(TRANSFER + struct.pack('<iiii', 1 << 20, 131072, 16, 0)) + b''.join(frame(bytes(60_000)) for _ in range(300)),
    'a name without end': opening() + NONE + frame(b'\x03\x00\xb0\xff\xff' + b'x' * 32767),
    'DONE a thousand times': opening() + NONE + frame(b'\0' * 1000),
    'requests without end': opening() + NONE + frame(b'\x02\x08\x00' * 5000) * 40,
    'the same file for ever': opening() + NONE + frame(TRANSFER + bytes(16)) + frame((b'\xfe\x00\x00\x00\xa0' + bytes(16)) * 1000) * 5,
    'names from the client without end': opening(more=['--files-from=-', '--from0'], options='-lHogDtpRe.LsfxCIvu') + NONE + b''.join(frame(b'd0001/f%06d.bin\0' % number * 1) for number in range(20_000)),
    'a name from the client that is too long': opening(more=['--files-from=-', '--from0'], options='-lHogDtpRe.LsfxCIvu') + NONE + frame(b'x' * 60_000) * 20,
    'names from the client that go outside': opening(more=['--files-from=-', '--from0'], options='-lHogDtpRe.LsfxCIvu') + NONE + frame(b'../../etc/passwd\0/etc/shadow\0d0000/../../x\0\0'),
    'old: garbage rules': opening(options='-lHogDtpr', protocol=29) + os.urandom(2000),
    'old: a huge head': opening(options='-lHogDtpr', protocol=28) + bytes(4) + struct.pack('<i', 1) + struct.pack('<iiii', 0x7fffffff, 0x7fffffff, 16, 0),
    'old: index out of range': opening(options='-lHogDtpr', protocol=27) + bytes(4) + struct.pack('<i', 0x7fffffff) + bytes(16),
}


def one_by_one(b, server, heard):
    """Send every lie once, then shut down the sending side. The server must not keep the connection."""
    rows = []
    for name, lie in LIES.items():
        answer, seconds = tell(server, lie)
        rows.append({'lie': name, 'answer': answer, 'bytes sent': len(lie), 's': seconds})
    b.table('lies, one by one', rows)
    b.check('the server ends every lying session by itself, or when the client ends it', all(row['answer'] != 'hangs' for row in rows))


def tell(server, lie):
    """Send a lie, shut down the sending side, and read until the server closes the connection.

    Returns how it ended, with a line of error if the server sent one, and the seconds until then.
    """
    start = time.monotonic()
    with socket.create_connection((server.address, server.port), timeout=15) as connection:
        teller = threading.Thread(target=lambda: say(connection, lie))
        teller.start()
        heard = b''
        try:
            while piece := connection.recv(65536):
                heard = (heard + piece)[-4096:]
            ended = 'closed'
        except TimeoutError:
            ended = 'hangs'
        except OSError:
            ended = 'reset'
        teller.join()
    word = next((line for line in heard.split(b'\n') if b'@ERROR' in line or b'rror' in line), b'')
    return ended if ended == 'hangs' else f'{ended} {word[-60:].decode(errors="replace")}'.strip(), time.monotonic() - start


def say(connection, lie):
    try:
        connection.sendall(lie)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass


class Abuse:
    """All kinds of abuse at once, repeated until the honest clients are done."""

    def __init__(self, b, server, heard):
        self.b, self.server, self.heard, self.over, self.done, self.lock = b, server, heard, threading.Event(), {}, threading.Lock()
        self.threads = [threading.Thread(target=self.loop, args=(number,)) for number in range(b.args.abusers)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()

    def loop(self, number):
        rng = random.Random(number)
        kinds = [self.killed, self.stalled, self.stopped_reading, self.cut_short, self.flipped, self.lie]
        while not self.over.is_set():
            kind = kinds[number % len(kinds)]
            try:
                kind(rng)
            except OSError:
                time.sleep(0.05)
            with self.lock:
                self.done[kind.__name__] = self.done.get(kind.__name__, 0) + 1

    def said(self, rng):
        return self.heard.said[rng.choice(list(peers.PROTOCOLS))]

    def connect(self):
        connection = socket.create_connection((self.server.address, self.server.port), timeout=10)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        return connection

    def killed(self, rng):
        dest = self.b.work / f'killed-{threading.get_ident()}'
        client = subprocess.Popen([self.b.args.rsync, '-a', f'--protocol={rng.choice(list(peers.PROTOCOLS))}', f'{self.server.url}/', f'{dest}/'],
                                  stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(rng.random() * 0.5)
        # Kill the whole process group that was started here, because rsync's receiver is a separate process.
        os.killpg(client.pid, signal.SIGKILL)
        client.wait()
        peers.empty(dest)

    def stalled(self, rng):
        said = self.said(rng)
        with self.connect() as connection:
            connection.sendall(said[:rng.randrange(min(len(said), 400))])
            self.over.wait(rng.random() * 10)

    def stopped_reading(self, rng):
        with self.connect() as connection:
            connection.settimeout(5)
            connection.sendall(self.said(rng))
            self.over.wait(rng.random() * 10)

    def cut_short(self, rng):
        said = self.said(rng)
        with self.connect() as connection:
            connection.sendall(said[:rng.randrange(len(said))])
            connection.recv(1000)

    def flipped(self, rng):
        said = bytearray(self.said(rng))
        for _ in range(rng.choice((1, 3, 30))):
            said[rng.randrange(min(len(said), 2000))] = rng.randrange(256)
        with self.connect() as connection:
            threading.Thread(target=say, args=(connection, bytes(said))).start()
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline and connection.recv(65536):
                pass

    def lie(self, rng):
        with self.connect() as connection:
            connection.settimeout(5)
            connection.sendall(rng.choice(list(LIES.values())))
            connection.recv(1000)


bench.main(__doc__, [
    ('--part', dict(choices=('all', 'lies', 'fair'), default='all', help='the part to run (default: %(default)s)')),
    ('--seconds', dict(type=int, default=60, help='duration of each kind of abuse beside honest clients (default: %(default)s)')),
    ('--files', dict(type=int, default=600)),
    ('--honest', dict(type=int, default=50)),
    ('--at-once', dict(type=int, default=10, help='honest pulls at once (default: %(default)s)')),
    ('--abusers', dict(type=int, default=24, help='abusive clients at once (default: %(default)s)')),
    ('--patience', dict(type=int, default=120, help='timeout for an honest pull, in seconds (default: %(default)s)')),
    ('--rsync', dict(metavar='PATH', default='rsync')),
], run)

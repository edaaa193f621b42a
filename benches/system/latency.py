#!/usr/bin/env python3
"""A first pull and a no-op pull of many small files over a link with a long round trip.

They are compared with `tar` piped through one TCP connection, and with rsync, over the same link (see link.py), in turns.
The host's TCP settings are not changed. A pull makes its files durable, which the peers do not, so there is a row without
that, too; with --work in memory, the disk has no part in any of them.
"""
import os
import subprocess
import sys

import bench
import link
import trees

SEND = 'import socket, subprocess, sys; s = socket.create_server((sys.argv[1], int(sys.argv[2]))); ' \
       'c, _ = s.accept(); subprocess.run(["tar", "-C", sys.argv[3], "-cf", "-", "."], stdout=c, check=True)'
RECEIVE = 'import socket, subprocess, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2]))); ' \
          'subprocess.run(["tar", "-C", sys.argv[3], "-xf", "-"], stdin=s, check=True)'


def run(b):
    source = b.work / 'source'
    trees.make(source, b.args.files, b.args.bytes)
    if b.stillmirror:
        b.stillmirror.index(source, b.work / 'store')
    with link.delayed(b.args.rtt / 2) as (at_server, at_client):
        rtt = min(float(bench.must([*at_client, sys.executable, '-c', PING, link.SERVER])[1]) for _ in range(5))
        turns = []
        for _ in range(b.args.turns):
            turns.append(with_tar(b, source, at_server, at_client))
            turns += with_rsync(b, source, at_server, at_client)
            if b.stillmirror:
                turns += with_stillmirror(b, source, at_server, at_client)
    b.tables['turns'] = turns
    rows = []
    for who in dict.fromkeys(row['who'] for row in turns):
        its = [row for row in turns if row['who'] == who]
        rows.append(its[-1] | {'wall s': bench.median(row['wall s'] for row in its)})
    for row in rows:
        row['wall in round trips'] = row['wall s'] / rtt
    b.table(f'{b.args.files:,} files of {b.args.bytes:,} bytes, measured round trip {rtt * 1000:.1f} ms', rows)
    if b.stillmirror:
        tar, first, quiet = (next(row for row in rows if row['who'] == who) for who in ('tar', 'stillmirror, first', 'stillmirror, no-op'))
        unsynced = next(row for row in rows if row['who'] == 'stillmirror, first --no-fsync')
        b.at_most('first pull over tar, wall time', first['wall s'] / tar['wall s'], 1.2)
        b.at_most('first pull without fsync over tar, wall time', unsynced['wall s'] / tar['wall s'], 1.2)
        b.at_most('no-op: round trips as reported', quiet['round trips'], 5)
        b.at_most('no-op: whole round trips that fit into its wall time', int(quiet['wall in round trips']), 5)


# A connection attempt to a closed port is refused after one round trip.
PING = '''import socket, sys, time
start = time.monotonic()
try: socket.create_connection((sys.argv[1], 9))
except ConnectionRefusedError: print(time.monotonic() - start)'''


def with_tar(b, source, at_server, at_client):
    dest = b.work / 'tar'
    empty(dest)
    dest.mkdir()
    port = bench.free_port()
    with subprocess.Popen([*at_server, sys.executable, '-c', SEND, link.SERVER, str(port), source]) as sender:
        while not bench.listens(sender.pid, port):
            pass
        seconds, _ = bench.must([*at_client, sys.executable, '-c', RECEIVE, link.SERVER, port, dest])
    judge(b, source, dest, 'tar')
    return {'who': 'tar', 'wall s': seconds}


def with_rsync(b, source, at_server, at_client):
    empty(b.work / 'rsync')
    with b.rsyncd(source, prefix=at_server, address=link.SERVER) as server:
        pull = [*at_client, 'rsync', '-a', '--delete', f'{server.url}/', f'{b.work}/rsync/']
        rows = [{'who': f'rsync, {what}', 'wall s': bench.must(pull)[0]} for what in ('first', 'no-op')]
    judge(b, source, b.work / 'rsync', 'rsync')
    return rows


def with_stillmirror(b, source, at_server, at_client):
    rows = []
    with b.stillmirror.serve(source, b.work / 'store', prefix=at_server, address=link.SERVER) as server:
        pull = server.url, b.work / 'dest', b.work / 'mirror'
        for what, more in (('first --no-fsync', ('--no-fsync',)), ('first', ()), ('no-op', ()), ('no-op --check none', ('--check', 'none'))):
            if what.startswith('first'):
                empty(*pull[1:])
            report = b.stillmirror.pull(*pull, *more, prefix=at_client)
            rows.append({'who': f'stillmirror, {what}', 'wall s': report['wall'], 'round trips': report['round_trips'],
                         'received': report['bytes_received'], 'sent': report['bytes_sent']})
    judge(b, source, b.work / 'dest', 'stillmirror')
    return rows


def empty(*folders):
    """Remove what an earlier turn left, and let the disk become idle."""
    bench.must(['rm', '-rf', *folders])
    os.sync()


def judge(b, source, dest, who):
    b.check(f'{who} makes the same tree', not trees.differences(source, dest))


bench.main(__doc__, [
    ('--rtt', dict(type=float, default=0.1, metavar='SECONDS', help='round-trip time (default: %(default)s)')),
    ('--files', dict(type=int, default=10000)),
    ('--turns', dict(type=int, default=3, help='pulls of each (default: %(default)s)')),
    ('--bytes', dict(type=int, default=4096, help='size of each file')),
], run)

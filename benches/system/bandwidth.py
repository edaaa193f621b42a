#!/usr/bin/env python3
"""How exactly bandwidth limits hold: those of the daemon (in total, for a repository, for a connection), and --bwlimit of clients.

Clients pull a file that is in the page cache, each through a proxy that counts. Bytes are counted for --seconds, after the first
ones have arrived and the burst at the beginning is over. Lower rates than the limit are failures, too.
"""
import subprocess
import time

import bench
import proxy

MIB = 1 << 20
# How far the counted rate may be from the limit, as a share of it.
TOLERANCE = 0.05
# Seconds that are not counted after the first bytes.
SETTLING = 2.0


def run(b):
    if not b.stillmirror:
        raise SystemExit('this script measures only stillmirror')
    source, store = b.work / 'source', b.work / 'store'
    source.mkdir()
    largest = max(rate for *_, rate in CASES)
    with open(source / 'file', 'wb') as file, open('/dev/urandom', 'rb') as random:
        for _ in range(int(largest * (b.args.seconds + 2 * SETTLING + 5))):
            file.write(random.read(MIB))
    b.stillmirror.index(source, store, '--no-block-checksums', '*')
    rows = [measure(b, source, store, *case) for case in CASES]
    b.table('rates over time', rows)
    for row in rows:
        b.check(f'{row["limit"]} at {row["MiB/s"]} MiB/s: {row["of it"]:.3f} of it', abs(row['of it'] - 1) <= TOLERANCE)


# What is limited, the keys of [daemon], those of [[repository]], the clients (stock or native, and their options), and the rate of
# all of them together in MiB/s.
CASES = [
    ('in total', 'bandwidth = "20MiB"', '', [('stock',), ('native',)], 20),
    ('a repository', '', 'bandwidth = "20MiB"', [('stock',), ('native',)], 20),
    ('a connection, stock', 'bandwidth_per_connection = "10MiB"', '', [('stock',)], 10),
    ('a connection, native', 'bandwidth_per_connection = "10MiB"', '', [('native',)], 10),
    ('rsync --bwlimit', '', '', [('stock', '--bwlimit=10m')], 10),
    ('pull --bwlimit', '', '', [('native', '--bwlimit', '1MiB')], 1),
    ('pull --bwlimit', '', '', [('native', '--bwlimit', '10MiB')], 10),
    ('pull --bwlimit', '', '', [('native', '--bwlimit', '40MiB')], 40),
]


def measure(b, source, store, what, daemon_keys, repository_keys, clients, rate):
    port = bench.free_port()
    config = b.work / f'{port}.toml'
    config.write_text(f'[daemon]\nlisten = "127.0.0.1:{port}"\n{daemon_keys}\n'
                      f'[[repository]]\nname = "{bench.NAME}"\nroot = "{source}"\nstore = "{store}"\n{repository_keys}\n')
    argv = b.stillmirror.argv('serve', '--config', config)
    with bench.Server(b, 'stillmirror', argv, '127.0.0.1', port):
        proxies = [proxy.Proxy('127.0.0.1', port).__enter__() for _ in clients]
        running = [start(b, at, client) for at, client in zip(proxies, clients)]
        while not all(at.down > MIB // 4 for at in proxies):
            time.sleep(0.01)
        time.sleep(SETTLING)
        began, before = time.monotonic(), sum(at.down for at in proxies)
        time.sleep(b.args.seconds)
        counted, passed = sum(at.down for at in proxies) - before, time.monotonic() - began
        is_over = any(client.poll() is not None for client in running)
        for client in running:
            client.kill()
            client.wait()
        for at in proxies:
            at.__exit__()
    if is_over:
        raise SystemExit(f'{what}: a client ended before the time was over')
    return {'limit': what, 'clients': len(clients), 'MiB/s': rate, 'of it': counted / passed / (rate * MIB)}


def start(b, at, client):
    kind, *options = client
    dest = b.work / f'dest-{at.port}'
    if kind == 'stock':
        argv = ['rsync', '-a', *options, f'rsync://127.0.0.1:{at.port}/{bench.NAME}/', dest]
    else:
        url = f'stillmirror://127.0.0.1:{at.port}/{bench.NAME}'
        argv = b.stillmirror.argv('pull', url, dest, '--store', f'{dest}-store', *options)
    return subprocess.Popen([str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == '__main__':
    bench.main(__doc__, [
        ('--seconds', dict(type=float, default=30.0, help='that are counted (default: %(default)s)')),
    ], run)

#!/usr/bin/env python3
"""A publisher changes a served tree while many clients pull in a loop. No client may ever get a file that was not published.

Files are replaced by rename, rewritten in place, added, removed and renamed. The content of every name is recorded before
each index. A client's file is unpublished if no generation up to the client's own had that content under that name. Stock
rsync clients of an rsyncd on the same tree are counted too, but nothing is claimed about them.
"""
import concurrent.futures
import json
import threading
import time

import bench
import trees

FILES, SIZES = 150, (500, 400_000)
EACH = {'replace': 4, 'rewrite': 4, 'add': 2, 'remove': 2, 'rename': 1}
# Success, and the documented exit codes for "some files not transferred" (23) and "some files vanished or stale" (24).
EXPECTED = (0, 23, 24)


def run(b):
    source = b.work / 'source'
    trees.make(source, FILES, SIZES)
    publication = Publication(b, source)
    publication.index()
    over = threading.Event()
    with Servers(b, source) as servers:
        clients = [RsyncClient(b, servers.rsyncd, publication, number) for number in range(b.args.rsync_clients)]
        if b.stillmirror:
            clients += [Client(b, servers.stillmirror, publication, number) for number in range(b.args.clients)]
        with concurrent.futures.ThreadPoolExecutor(len(clients) + 1) as pool:
            work = [pool.submit(client.loop, over) for client in clients] + [pool.submit(publication.loop, over)]
            concurrent.futures.wait(work, b.args.seconds, concurrent.futures.FIRST_EXCEPTION)
            over.set()
            for one in work:
                one.result()
        publication.index()
        for client in clients:
            client.converge()
    report(b, publication, clients)


class Servers:
    def __init__(self, b, source):
        self.rsyncd = b.rsyncd(source)
        self.stillmirror = b.stillmirror.serve(source, b.work / 'publisher') if b.stillmirror else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.rsyncd.stop()
        if self.stillmirror:
            self.stillmirror.stop()


class Publication:
    """The publisher: changes the tree in bursts, and indexes it after each."""

    def __init__(self, b, source):
        self.b, self.source = b, source
        self.publisher, self.history, self.generation, self.editions = trees.Publisher(source), trees.History(), None, {}

    def index(self):
        edition = self.history.publish(self.source)  # before it becomes public, so that no client gets ahead of the history
        if self.b.stillmirror:
            self.generation = self.b.stillmirror.index(self.source, self.b.work / 'publisher')['generation']
            self.editions[self.generation] = edition

    def loop(self, over):
        while not over.is_set():
            for how, count in EACH.items():
                getattr(self.publisher, how)(count)
                time.sleep(0.05)
            self.index()
            over.wait(self.b.args.pause)


class Client:
    """A client that pulls into its own tree and store again and again, and checks what it got."""
    who = 'stillmirror'

    def __init__(self, b, server, publication, number):
        self.b, self.server, self.publication = b, server, publication
        self.dest, self.store = b.work / f'{self.who}{number}', b.work / f'{self.who}{number}.store'
        self.pulls, self.codes, self.unpublished, self.left = 0, {}, [], []

    def loop(self, over):
        while not over.is_set():
            generation = self.pull()
            edition = self.publication.editions.get(generation)  # not known yet while its index is still running; it is the newest then
            self.unpublished += self.publication.history.unpublished(self.dest, edition)

    def pull(self):
        """Pull once. Returns the generation that was pulled, if the client knows it."""
        report = self.b.stillmirror.pull(self.server.url, self.dest, self.store, accept=range(-64, 256))
        self.count(report['exit'])
        return report.get('generation')

    def count(self, code):
        self.pulls += 1
        self.codes[code] = self.codes.get(code, 0) + 1

    def converge(self):
        self.b.stillmirror.pull_generation(self.publication.generation, self.server.url, self.dest, self.store)
        self.left = trees.differences(self.publication.source, self.dest)


class RsyncClient(Client):
    who = 'rsync'

    def pull(self):
        self.count(bench.timed(['rsync', '-aH', '--delete', f'{self.server.url}/', f'{self.dest}/'], capture_output=True)[1].returncode)

    def converge(self):
        self.pull()
        self.left = trees.differences(self.publication.source, self.dest)


def report(b, publication, clients):
    rows = {}
    for client in clients:
        row = rows.setdefault(client.who, {'clients of': client.who, 'clients': 0, 'pulls': 0, 'unpublished files': 0, 'not converged': 0, 'exits': {}})
        row['clients'] += 1
        row['pulls'] += client.pulls
        row['unpublished files'] += len(client.unpublished)
        row['not converged'] += bool(client.left)
        for code, count in client.codes.items():
            row['exits'][str(code)] = row['exits'].get(str(code), 0) + count
    for row in rows.values():
        row['exits'] = json.dumps(row['exits'])
    b.table(f'{publication.history.edition} generations in {b.args.seconds} s', rows.values())
    ours = [client for client in clients if client.who == 'stillmirror']
    if ours:
        unpublished = [name for client in ours for name in client.unpublished]
        b.check(f'no client gets a file that was never published: {unpublished[:5]}', not unpublished)
        left = [line for client in ours for line in client.left]
        b.check(f'every client converges: {left[:5]}', not left)
        b.check('pulls end with 0, 23 or 24', all(code in EXPECTED for client in ours for code in client.codes))


bench.main(__doc__, [
    ('--seconds', dict(type=int, default=120)),
    ('--clients', dict(type=int, default=20)),
    ('--rsync-clients', dict(type=int, default=2)),
    ('--pause', dict(type=float, default=0.5, metavar='SECONDS', help='pause between an index and the next changes (default: %(default)s)')),
], run)

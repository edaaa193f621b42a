#!/usr/bin/env python3
"""New generations are published while stock clients pull: every client ends with 0, 23 or 24, no file is ever one that
was not published, with the times and modes that it was published with, and the next pull converges.

The publisher replaces, rewrites in place, adds, removes and renames. Without --stillmirror there is nothing to show: a
stock daemon has no generations.
"""
import collections
import random
import subprocess
import threading
import time

import bench
import rsync_peers as peers
import trees

OPTIONS = [['-aH', '--delete'], ['-rlptH', '--delete-after', '--no-inc-recursive'], ['-a', '--delay-updates', '--delete-delay'], ['-ac', '--delete'],
           ['-az', '--delete', '--protocol=30'], ['-a', '--protocol=29', '--delete'], ['-aH', '--protocol=28', '--delete'], ['-a', '--protocol=27', '--delete'],
           ['-a', '--inplace', '--delete'], ['-aH', '--numeric-ids', '--delete-excluded', '--exclude=*9.bin']]
MAY_END = {0, 23, 24}


def run(b):
    if not b.stillmirror:
        raise SystemExit('this script measures only stillmirror')
    root, store = b.work / 'tree', b.work / 'store'
    trees.make(root, b.args.files, (1, 60_000))
    published = Published()
    published.publish(root)
    peers.index(b, root, store)
    with peers.passive(b, root, store) as server:
        over = threading.Event()
        clients = [Client(b, server, number, published, over) for number in range(b.args.clients)]
        threads = [threading.Thread(target=client.run) for client in clients]
        for thread in threads:
            thread.start()
        generations = publish(b, root, store, published, time.monotonic() + b.args.seconds)
        over.set()
        for thread in threads:
            thread.join()
        time.sleep(1)
        exits = collections.Counter(code for client in clients for code in client.codes)
        b.table('during publishing', [{'generations': generations, 'pulls': sum(exits.values()), 'exits': ' '.join(f'{code}: {count}' for code, count in sorted(exits.items())),
                                       'unpublished files': sum(len(client.unpublished) for client in clients)}])
        b.check('clients end with 0, 23 or 24', exits.keys() <= MAY_END)
        b.check('no file is one that was not published', not any(client.unpublished for client in clients))
        b.check('some pull met a change', exits[0] and len(exits) > 1)
        for client in clients:
            print(*client.unpublished[:5], *client.words[:3], sep='\n') if client.unpublished else None
        wrong = {' '.join(client.options): client.converge(root) for client in clients}
    for options, found in wrong.items():
        b.check(f'the next pull converges: {options}', not found)
        for line in found[:5]:
            print('   ', line)


def publish(b, root, store, published, end):
    publisher, generations, rng = trees.Publisher(root), 1, random.Random(4)
    while time.monotonic() < end:
        for change, most in ((publisher.replace, 20), (publisher.rewrite, 20), (publisher.add, 10), (publisher.remove, 8), (publisher.rename, 5)):
            change(rng.randint(1, most))
            # Clients come while a publisher is at work, too.
            time.sleep(rng.random() * 0.05)
        published.publish(root)
        peers.index(b, root, store)
        generations += 1
        time.sleep(rng.random() * 0.5)
    return generations


class Published:
    """Every state that every name has been published in: content, time and mode."""

    def __init__(self):
        self.states, self.lock = collections.defaultdict(set), threading.Lock()

    def publish(self, root):
        found = peers.snapshot(root)
        with self.lock:
            for name, facts in found.items():
                self.states[name].add(self.state(facts))

    def unpublished(self, dest, seconds_only, start):
        """Files whose content was not published under their name, or not with their time."""
        found_unpublished = []
        for name, facts in peers.snapshot(dest).items():
            if facts['type'] != 8 or b'/.' in b'/' + name:
                continue
            with self.lock:
                states = set(self.states.get(name, ()))
            if seconds_only:
                states = {(content, mtime // peers.NS * peers.NS, mode) for content, mtime, mode in states}
            if self.state(facts) not in states:
                same_content = any(state[0] == facts.get('content') for state in states)
                found_unpublished.append((name, 'published content, but not so' if same_content else 'content never published', facts))
        return found_unpublished

    @staticmethod
    def state(facts):
        return facts.get('content'), facts['mtime'], facts['mode']


class Client:
    """Pulls again and again with its own options into its own copy."""

    def __init__(self, b, server, number, published, over):
        self.b, self.server, self.published, self.over = b, server, published, over
        self.options, self.dest = OPTIONS[number % len(OPTIONS)], b.work / f'dest-{number}'
        self.seconds_only = any(f'--protocol={old}' in self.options for old in (27, 28, 29, 30))
        self.codes, self.unpublished, self.words = [], [], []

    def pull(self):
        done = subprocess.run([self.b.args.rsync, *self.options, f'{self.server.url}/', f'{self.dest}/'], stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=peers.PATIENCE, check=False)
        if done.returncode not in MAY_END:
            self.words.append(f'exit {done.returncode}: {" ".join(self.options)}: {done.stderr.decode(errors="replace")[-300:]}')
        return done.returncode

    def run(self):
        while not self.over.is_set():
            start = time.time_ns()
            self.codes.append(self.pull())
            # What --inplace leaves of a transfer that was given up is its own affair.
            if '--inplace' not in self.options or self.codes[-1] == 0:
                self.unpublished += self.published.unpublished(self.dest, self.seconds_only, start)

    def converge(self, root):
        code = self.pull()
        judge = ['rsync', '-naiHc', '--delete', *[option for option in self.options if option.startswith('--exclude')], f'{root}/', f'{self.dest}/']
        if self.seconds_only:
            judge.insert(2, '--modify-window=1')
        if '-H' not in ''.join(self.options[:1]):
            judge[1] = '-naic'
        _, out = bench.must(judge)
        return ([f'exit {code}'] if code else []) + out.splitlines()


bench.main(__doc__, [
    ('--files', dict(type=int, default=1500)),
    ('--clients', dict(type=int, default=10, help='pulling at once, each with other options (default: %(default)s)')),
    ('--seconds', dict(type=int, default=60)),
    ('--rsync', dict(metavar='PATH', default='rsync')),
], run)

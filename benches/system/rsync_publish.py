#!/usr/bin/env python3
"""New generations are published while stock clients pull. Every client must end with 0, 23 or 24. Every file must have been
published with the content, time and mode that the client has. The next pull must converge.

The publisher replaces files by rename, rewrites them in place, adds, removes and renames. The script needs --stillmirror,
because a stock daemon has no generations.
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
        b.check('no client gets a file that was not published', not any(client.unpublished for client in clients))
        b.check('some pulls coincide with a change', exits[0] and len(exits) > 1)
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
            # Clients may come at any moment of a change.
            time.sleep(rng.random() * 0.05)
        published.publish(root)
        peers.index(b, root, store)
        generations += 1
        time.sleep(rng.random() * 0.5)
    return generations


class Published:
    """All states (content, time and mode) in which each name has been published."""

    def __init__(self):
        self.states, self.lock = collections.defaultdict(set), threading.Lock()

    def publish(self, root):
        found = peers.snapshot(root)
        with self.lock:
            for name, facts in found.items():
                self.states[name].add(self.state(facts))

    def unpublished(self, dest, seconds_only, start):
        """Return the files whose content was not published under their name, or not with their time and mode."""
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
                found_unpublished.append((name, 'published content, but with another time or mode' if same_content else 'content never published', facts))
        return found_unpublished

    @staticmethod
    def state(facts):
        return facts.get('content'), facts['mtime'], facts['mode']


class Client:
    """A client that pulls again and again with its own options into its own copy."""

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
            # After an aborted transfer with --inplace, a client keeps a partial file of its own making.
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
    ('--clients', dict(type=int, default=10, help='clients at once, with different options (default: %(default)s)')),
    ('--seconds', dict(type=int, default=60)),
    ('--rsync', dict(metavar='PATH', default='rsync')),
], run)

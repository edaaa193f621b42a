#!/usr/bin/env python3
"""`kill -9` of index and pull at random moments, many times. After each kill, store and tree must be intact.

A file under a final name must be one that was published under that name. For comparison, pulls by stock rsync are killed
too; the files that they leave behind are counted, but nothing is claimed about them.
"""
import os
import random
import re
import signal
import subprocess
import time

import bench
import trees

FILES, SIZES = 300, (1000, 600_000)
EACH = {'replace': 15, 'rewrite': 10, 'add': 6, 'remove': 6, 'rename': 5}
FINISH_EVERY = 10
# The name of a file that rsync was still receiving: `.NAME.XXXXXX`.
TEMPORARY = re.compile(r'(^|/)\.[^/]+\.[A-Za-z0-9]{6}$')


def run(b):
    source = b.work / 'source'
    trees.make(source, FILES, SIZES)
    publication = Publication(source, b.args.seed)
    rows = [kill_rsync_pulls(b, publication)]
    if b.stillmirror:
        rows += [kill_indexes(b, publication), kill_pulls(b, publication)]
    b.table('kills', rows)


class Publication:
    def __init__(self, source, seed):
        self.source, self.random = source, random.Random(seed)
        self.publisher, self.history = trees.Publisher(source, seed), trees.History()
        self.history.publish(source)

    def change(self):
        for how, count in EACH.items():
            getattr(self.publisher, how)(count)
        self.history.publish(self.source)


def kill(argv, publication, within):
    """Start a command and kill it after a random time of up to `within` seconds. Returns whether it was still running."""
    process = subprocess.Popen([str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    time.sleep(publication.random.uniform(0, within))
    os.killpg(process.pid, signal.SIGKILL)  # safe: the process is not waited for, so the group id is still its own; rsync has two processes
    return process.wait() == -signal.SIGKILL


def until(kills, one):
    """Call `one`, which returns whether its kill hit a running process, until `kills` kills did. Returns the number of calls."""
    hits = attempts = 0
    while hits < kills:
        attempts += 1
        hits += one(attempts)
        if attempts > 20 * kills:
            raise SystemExit(f'only {hits} of {attempts} kills hit a running process')
    return attempts


def kill_indexes(b, publication):
    store = b.work / 'publisher'
    argv = b.stillmirror.argv('index', '--root', publication.source, '--store', store, '--name', bench.NAME)
    b.stillmirror.index(publication.source, store)
    publication.change()
    within = b.stillmirror.index(publication.source, store)['wall'] * 1.1
    broken = []

    def one(attempt):
        publication.change()
        hit = kill(argv, publication, within)
        broken.extend(opens(b, store, attempt))
        if attempt % FINISH_EVERY == 0:
            b.stillmirror.index(publication.source, store)
            broken.extend(opens(b, store, attempt))
        return hit

    attempts = until(b.args.kills, one)
    b.stillmirror.index(publication.source, store)
    with b.stillmirror.serve(publication.source, store) as server:
        b.stillmirror.pull(server.url, b.work / 'after-index', b.work / 'after-index.store')
    judge(b, publication, b.work / 'after-index', f'{b.args.kills} killed indexes, a final index and a pull')
    b.check(f'the store opens after every killed index: {broken[:3]}', not broken)
    return {'killed': 'index', 'kills': b.args.kills, 'attempts': attempts, 'broken stores': len(broken)}


def kill_pulls(b, publication):
    published, dest, store = b.work / 'publisher', b.work / 'dest', b.work / 'mirror'
    unpublished, unfinished, broken = [], [], []
    with b.stillmirror.serve(publication.source, published) as server:
        argv = b.stillmirror.argv('pull', server.url, dest, '--store', store, '--delete', '--quiet')
        b.stillmirror.pull(server.url, dest, store)
        within = advance(b, publication, published, server, dest, store)['wall'] * 1.1

        def one(attempt):
            publication.change()
            b.stillmirror.index(publication.source, published)
            hit = kill(argv, publication, within)
            unpublished.extend(publication.history.unpublished(dest))
            broken.extend(opens(b, store, attempt))
            if attempt % FINISH_EVERY == 0:
                advance(b, publication, published, server, dest, store)
                unfinished.extend(trees.differences(publication.source, dest))
            return hit

        attempts = until(b.args.kills, one)
        advance(b, publication, published, server, dest, store)
    judge(b, publication, dest, f'{b.args.kills} killed pulls and a final one')
    verified = b.stillmirror.run('verify', dest, '--store', store, accept=range(256))
    b.check('verify finds every file in the state of its generation', verified['exit'] == 0)
    b.check(f'pulls in between complete the work of killed ones: {unfinished[:3]}', not unfinished)
    b.check(f'the store opens after every killed pull: {broken[:3]}', not broken)
    b.check(f'every file under a final name was published: {unpublished[:3]}', not unpublished)
    return {'killed': 'pull', 'kills': b.args.kills, 'attempts': attempts, 'broken stores': len(broken), 'unpublished files': len(unpublished)}


def advance(b, publication, published, server, dest, store):
    """Publish a generation with changes and pull it to the end."""
    publication.change()
    generation = b.stillmirror.index(publication.source, published)['generation']
    return b.stillmirror.pull_generation(generation, server.url, dest, store)


def kill_rsync_pulls(b, publication):
    dest, unpublished, temporary = b.work / 'rsync', [], []
    with b.rsyncd(publication.source) as server:
        argv = ['rsync', '-aH', '--delete', f'{server.url}/', f'{dest}/']
        bench.must(argv)
        publication.change()
        within = bench.must(argv)[0] * 1.1

        def one(_):
            publication.change()
            hit = kill(argv, publication, within)
            left = publication.history.unpublished(dest)
            temporary.extend(name for name in left if TEMPORARY.search(name))
            unpublished.extend(name for name in left if not TEMPORARY.search(name))
            return hit

        attempts = until(b.args.kills, one)
        bench.must(argv)
    judge(b, publication, dest, f'{b.args.kills} killed pulls by rsync and a final one')
    return {'killed': 'rsync pull', 'kills': b.args.kills, 'attempts': attempts, 'unpublished files': len(unpublished), 'visible partial files': len(temporary)}


def opens(b, store, attempt):
    done = bench.timed(b.stillmirror.argv('list', '--store', store, '--recursive'), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)[1]
    return [f'after attempt {attempt}: {done.stderr.decode(errors="replace").strip()}'] if done.returncode else []


def judge(b, publication, dest, what):
    lines = trees.differences(publication.source, dest)
    b.check(f'rsync -naiHc --delete prints nothing after {what}' + ''.join(f'\n     {line}' for line in lines[:5]), not lines)


bench.main(__doc__, [
    ('--kills', dict(type=int, default=200, help='kills of each command (default: %(default)s)')),
    ('--seed', dict(type=int, default=1)),
], run)

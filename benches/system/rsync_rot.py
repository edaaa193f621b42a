#!/usr/bin/env python3
"""Single bytes of a store are flipped at random places in all its files. No client may end with 0 and a wrong file.

After each flip come a stock client (protocols 27 to 32, -a and -ac, with and without an old copy) and a native pull. Half of
the flips precede the start of the daemon. The other half happen under a daemon that has mapped the files and served them
before. Each flip has a fresh copy of the store. Nothing may panic, as shown by the daemon's log and exit code and by the
pull's messages.

If packs, compressed lists or deltas are damaged, the data is read from the tree or made again. No client may notice that, so
all end with 0. The list and the local facts are mapped and accessed everywhere, and a flip under a running daemon is not
checked for (docs/index-format.md says what is checked when). A session may fail then, or a client may get a wrong attribute,
which is counted, but never wrong content. The script needs --stillmirror.
"""
import collections
import concurrent.futures
import dataclasses
import os
import pathlib
import random
import shutil
import subprocess

import bench
import rsync_peers as peers
import trees

OPTIONS = (['-a'], ['-ac'], ['-aH', '--no-inc-recursive'], ['-az'])
# Lists with fewer entries are not kept encoded.
KEPT_FROM = 4200
# Parts of which damage is always detected and repaired for every client.
MENDED = ('pack', 'list.zst', 'delta')
# Parts that are checked when they are opened, and then mapped and accessed everywhere.
MAPPED = ('list', 'local')


@dataclasses.dataclass
class Flip:
    """One flip, and the clients that follow it."""
    number: int
    part: str
    place: float
    bits: int
    is_running: bool
    protocol: int
    options: list
    is_old: bool


def run(b):
    if not b.stillmirror:
        raise SystemExit('this script measures only stillmirror')
    small, wide = World(b, 'small', 0), World(b, 'wide', KEPT_FROM)
    if 'encoded list' not in wide.parts:
        raise SystemExit('no list was kept encoded')
    rng = random.Random(b.args.seed)
    flips = [plan(number, rng, sorted({*small.parts, 'encoded list'})) for number in range(b.args.flips)]
    with concurrent.futures.ThreadPoolExecutor(b.args.jobs) as pool:
        outcomes = list(pool.map(lambda flip: meet(b, wide if flip.part == 'encoded list' else small, flip), flips))
    report(b, outcomes)


def report(b, outcomes):
    rows = []
    for part in sorted({outcome['part'] for outcome in outcomes}):
        for state in ('at start', 'running'):
            its = [outcome for outcome in outcomes if (outcome['part'], outcome['state']) == (part, state)]
            if its:
                exits = {who: collections.Counter(outcome[who] for outcome in its) for who in ('stock', 'native')}
                rows.append({'part': part, 'state': state, 'flips': len(its)}
                            | {f'{who} exits': ' '.join(f'{code}: {count}' for code, count in sorted(found.items(), key=str)) for who, found in exits.items()}
                            | {what: sum(bool(outcome[what]) for outcome in its) for what in ('content', 'attributes', 'panics')})
    b.table('single bytes flipped', rows)
    for what in ('content', 'attributes', 'panics'):
        for outcome in [outcome for outcome in outcomes if outcome[what]][:5]:
            print('   ', what, outcome['flip'], outcome[what])
    b.check('no client ends with 0 and wrong content', not any(outcome['content'] for outcome in outcomes))
    checked = [outcome for outcome in outcomes if outcome['state'] == 'at start' or outcome['part'] not in MAPPED]
    b.check('no client ends with 0 and a wrong attribute, if the flipped part is checked', not any(outcome['attributes'] for outcome in checked))
    b.check('nothing panics', not any(outcome['panics'] for outcome in outcomes))
    mended = [outcome for outcome in outcomes if outcome['part'] in MENDED]
    b.check('no client notices damage to packs, compressed lists and deltas', all(outcome['stock'] == outcome['native'] == 0 for outcome in mended))


def plan(number, rng, parts):
    """Plan a flip. Protocols, options and states take turns; the place is random."""
    part = rng.choice(parts)
    return Flip(number, part, rng.random(), rng.randint(1, 255), bool(number % 2), peers.PROTOCOLS[number % 6],
                OPTIONS[number // 6 % len(OPTIONS)], bool(number // 24 % 2))


class World:
    """A tree with two generations, a store of both with encoded lists, and a client's copy of the first generation."""

    def __init__(self, b, name, symlinks):
        place = b.work / name
        self.root, self.store = place / 'tree', place / 'store'
        trees.make(self.root, 120, (1, 9_000), per_folder=30)
        trees.make(self.root / 'large', 6, (40_000, 300_000), seed=2)
        (self.root / 'link').symlink_to('d0000/f000001.bin')
        os.link(self.root / 'd0000/f000002.bin', self.root / 'd0001/hard')
        shutil.copy2(self.root / 'd0000/f000003.bin', self.root / 'd0001/same')
        for number in range(symlinks):
            (self.root / 'd0002' / f's{number}').symlink_to(f'../to/{number}')
        # Set old times, so that they differ from those of files that a client makes.
        age(self.root)
        peers.index(b, self.root, self.store)
        self.old, self.old_store = place / 'old', place / 'old-store'
        with b.stillmirror.serve(self.root, self.store) as server:
            b.stillmirror.pull(server.url, self.old, self.old_store)
        for name in ('d0000/f000004.bin', 'd0002/f000070.bin', 'large/d0000/f000001.bin'):
            path = self.root / name
            path.write_bytes(random.Random(name).randbytes(path.stat().st_size // 2) + path.read_bytes()[path.stat().st_size // 2:])
        age(self.root, 100)
        # Wrong content with the right size and time, which only -c detects.
        wrong = self.old / 'd0003/f000100.bin'
        facts = wrong.stat()
        wrong.write_bytes(bytes(facts.st_size))
        os.utime(wrong, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        peers.index(b, self.root, self.store)
        with peers.passive(b, self.root, self.store) as server:
            for _ in range(2 if symlinks else 0):
                for protocol in peers.PROTOCOLS:
                    for options in OPTIONS:
                        peers.pull(b.args.rsync, server, [*options, f'--protocol={protocol}', '{M}/', '{D}/'], place / 'warm')
        self.tree = facts_of(self.root)
        # Each part counts once, however many packs and encoded lists there are.
        self.parts = sorted({part_of(path) for path in self.files(self.store)})

    @staticmethod
    def files(store):
        """Return all files of a store that are read, and the symlink `current`."""
        current = store / 'generations' / os.path.basename(os.readlink(store / 'current'))
        folders = [folder for folder in (current, store / 'sums', store / 'lists') if folder.exists()]
        return sorted([path for folder in folders for path in folder.iterdir()] + [store / 'repository', store / 'current'])


def part_of(path):
    return {'.pack': 'pack'}.get(path.suffix, 'encoded list' if path.parent.name == 'lists' else path.name)


def age(root, seconds=0):
    for path in (root, *root.rglob('*')):
        os.utime(path, (1_600_000_000 + seconds if path.is_file() else 1_600_000_000,) * 2, follow_symlinks=False)


def facts_of(root):
    """Return the facts about each entry that the oldest protocol carries. Only regular files keep their times."""
    tree = peers.snapshot(root)
    keys = ('type', 'mode', 'content', 'target')
    return {name: {key: facts[key] for key in keys if key in facts} | {'mtime': facts['mtime'] // peers.NS if facts['type'] == 8 else 0}
            for name, facts in tree.items()}


def meet(b, world, flip):
    """Flip a byte of a copy of the store, let the clients pull, and return the outcome."""
    place = b.work / f'flip-{flip.number}'
    store = place / 'store'
    shutil.copytree(world.store, store, symlinks=True)
    outcome = {'part': flip.part, 'state': 'running' if flip.is_running else 'at start', 'content': [], 'attributes': [], 'panics': [], 'flip': str(flip)}
    stock = {'words': [*flip.options, f'--protocol={flip.protocol}', '--delete', '{M}/', '{D}/'], 'dest': place / 'dest'}
    try:
        if not flip.is_running:
            rot(store, flip)
        try:
            server = peers.passive(b, world.root, store)
        except SystemExit as error:
            # The flip made it another repository's store, so nothing is served.
            outcome |= {'stock': 'no daemon', 'native': 'no daemon'}
            if 'panicked' in str(error) or 'a store of its own' not in str(error):
                outcome['panics'].append(('serve', str(error)))
            return outcome
        with server:
            if flip.is_running:
                # Everything that the daemon maps for these clients is mapped now, and was intact.
                served = peers.pull(b.args.rsync, server, stock['words'], place / 'before')
                pulled = native(b, server, place / 'native-before', None)
                if served.code or pulled.returncode:
                    raise SystemExit(f'an intact store is not served: {served.errors} {pulled.stderr}')
                rot(store, flip)
            if flip.is_old:
                bench.must(['cp', '-a', world.old, stock['dest']])
            done = peers.pull(b.args.rsync, server, stock['words'], stock['dest'])
            outcome['stock'] = done.code
            if done.code == 0:
                judge(outcome, world, stock['dest'], flip, flip.is_old and '-ac' not in flip.options)
            if flip.is_old:
                bench.must(['cp', '-a', world.old, place / 'native'])
                bench.must(['cp', '-a', world.old_store, place / 'native-store'])
            pulled = native(b, server, place / 'native', place / 'native-store')
            outcome['native'] = pulled.returncode
            if pulled.returncode == 0:
                judge(outcome, world, place / 'native', flip, flip.is_old)
            if pulled.returncode == 101 or b'panicked' in pulled.stderr:
                outcome['panics'].append(('pull', pulled.stderr[-300:]))
        log = server.log.read_text(errors='replace')
        if flip.part == 'repository' and server.process.returncode == 1 and 'a store of its own' in log:
            # The daemon listens before it opens its stores, so it was seen listening, but it serves nothing.
            outcome |= {'stock': 'no daemon', 'native': 'no daemon'}
        elif server.process.returncode != 0 or 'panicked' in log:
            outcome['panics'].append((server.process.returncode, log[-2000:]))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return outcome


def native(b, server, dest, store):
    url = f'stillmirror://{server.address}:{server.port}/{bench.NAME}'
    argv = b.stillmirror.argv('pull', url, dest, '--delete', '--quiet', *(['--store', store] if store else []))
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=peers.PATIENCE, check=False)


def rot(store, flip):
    """Change one byte in place, so that a process that has the file mapped sees it."""
    files = [path for path in World.files(store) if part_of(path) == flip.part]
    sizes = [len(os.readlink(path)) if path.is_symlink() else path.stat().st_size for path in files]
    at = int(flip.place * sum(sizes))
    for path, size in zip(files, sizes):
        if at < size:
            break
        at -= size
    if path.is_symlink():
        target = bytearray(os.fsencode(os.readlink(path)))
        target[at] = target[at] ^ flip.bits or ord('x')
        path.unlink()
        os.symlink(bytes(target), path)
        return
    with open(path, 'r+b') as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ flip.bits]))


def judge(outcome, world, dest, flip, believes):
    """Compare the tree of a client that ended with 0 with the source."""
    found = facts_of(dest)
    for name in sorted(world.tree.keys() | found.keys()):
        want, have = world.tree.get(name), found.get(name)
        # A client that compares sizes and times keeps a file with the right size and time.
        if want == have or (believes and name == b'd0003/f000100.bin'):
            continue
        is_content = want is not None and have is not None and want['type'] == have['type'] and want.get('content') != have.get('content')
        outcome['content' if is_content else 'attributes'].append((dest.name, name, want, have))


bench.main(__doc__, [
    ('--flips', dict(type=int, default=2000)),
    ('--seed', dict(type=int, default=1)),
    ('--jobs', dict(type=int, default=2, help='flips at once (default: %(default)s)')),
    ('--rsync', dict(metavar='PATH', default='rsync')),
], run)

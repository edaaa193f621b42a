#!/usr/bin/env python3
"""Random sets of filter rules from the whole grammar. A stock client must see the same names from both daemons.

The rules come from a seeded generator that knows the tree's names, so that most rules match something. Each set is
compared by a listing, or by a pull with deletion, in which the receiver's side of a rule matters too.
"""
import concurrent.futures
import os
import random
import re
import shutil

import bench
import rsync_peers as peers

SEEDS = 500
# Names of folders to ask for. Stock rsync would take a leading name that begins with a dash for an option.
PLAIN = re.compile(rb'[A-Za-z0-9.][A-Za-z0-9.~-]*(/[A-Za-z0-9.~-]+)*')
ELEMENTS = ['a', 'b', 'ab', 'abc', 'a.b', 'foo', 'foo.txt', 'foo.o', 'bar', 'Bar', 'core', 'x~', '.hid', '.git', 'CVS', 'tags', 'sp ace', 'a-b', 'st*r', 'qu?st',
            '[br]', 'ba\\ck', 'z' * 20, '0', '10', '2', 'high\udcff\udcfe', 'caf\u00e9', '#x', ';y', '-d', '+p', 'new\nline', '!b', 'A]', 'é']
CLASSES = ['[a-c]', '[!a-c]', '[^a]', '[]a]', '[!]]', '[a\\-c]', '[[:alpha:]]', '[[:digit:]x]', '[![:upper:]]', '[[:punct:]]', '[a-]', '[[]', '[\\]]', '[[:space:]]', '[b-a]',
           '[^[:alnum:]]', '[x', '[', '[[:nope:]]', '[\\', '[a-', '[!', '[é]', '[\udcff]']


def make(root, rng):
    tree = peers.Tree(root)
    names = set()
    for _ in range(420):
        depth = rng.choice((1, 1, 2, 2, 3, 3, 4, 5))
        names.add('/'.join(rng.choice(ELEMENTS) for _ in range(depth)))
    for name in sorted(names):
        at, path = b'', tree.at(name)
        folders = os.fsencode(name).split(b'/')[:-1]
        # A file in the place of a folder is replaced.
        for folder in folders:
            at = os.path.join(at, folder)
            if os.path.isfile(tree.at(at)) or os.path.islink(tree.at(at)):
                os.unlink(tree.at(at))
            os.makedirs(tree.at(at), exist_ok=True)
        if os.path.isdir(path):
            continue
        kind = rng.random()
        if kind < 0.75:
            tree.file(name, 10)
        elif kind < 0.85:
            tree.symlink(name, rng.choice(ELEMENTS))
        else:
            os.makedirs(path)
    tree.settle()


class Rules:
    """A random set of rules, as words of a command line. With `plain`, only rules that protocols below 29 can express."""

    def __init__(self, rng, files, names, plain=False):
        self.rng, self.files, self.names, self.plain = rng, files, names, plain

    def words(self):
        rng = self.rng
        words = [word for _ in range(rng.choice((1, 1, 2, 3, 5, 9, 20))) for word in self.rule()]
        for option, chance in (('-C', 0.1), ('--no-inc-recursive', 0.2), ('-m', 0 if self.plain else 0.1), ('-l', 0.5), ('-R', 0.05), ('-d', 0.03), ('--cvs-exclude', 0.03)):
            if rng.random() < chance:
                words.append(option)
        return words

    def rule(self):
        rng, choice = self.rng, self.rng.random()
        pattern = self.pattern()
        if choice < 0.25:
            return [f'--exclude={pattern}']
        if choice < 0.42:
            return [f'--include={pattern}']
        if choice < 0.48:
            return [f'--exclude={rng.choice("+-")} {pattern}']
        if choice < 0.50:
            return ['--exclude=!'] if rng.random() < 0.5 else ['--filter=!']
        if choice < 0.55:
            return [self.file()]
        if self.plain:
            return [f'--filter={rng.choice("+-")}{rng.choice(" _")}{pattern}']
        if choice < 0.58:
            return [rng.choice(('--filter=: .void', '--filter=dir-merge,- .void', '--filter=:n- .void', '--filter=:e .nothing', '--filter=:C', '--filter=-C',
                                '--filter=:w+ .void', '-F', '--filter=:s .void', '--filter=:/ .void'))]
        return [f'--filter={self.head()}{rng.choice((" ", "_", " "))}{pattern}']

    def head(self):
        rng = self.rng
        kind = rng.choice(('-', '-', '-', '+', '+', 'exclude', 'include', 'H', 'hide', 'S', 'show', 'P', 'protect', 'R', 'risk'))
        if kind in '+-' or kind in ('exclude', 'include'):
            modifiers = ''.join(letter for letter, chance in (('/', 0.12), ('!', 0.1), ('s', 0.15), ('r', 0.1), ('p', 0.12), ('x', 0.02)) if rng.random() < chance)
        else:
            modifiers = ''.join(letter for letter, chance in (('/', 0.12), ('!', 0.1), ('p', 0.1)) if rng.random() < chance)
        comma = ',' if modifiers and (len(kind) > 1 or rng.random() < 0.4) else ''
        return kind + comma + modifiers

    def pattern(self):
        rng = self.rng
        if rng.random() < 0.3:
            elements = rng.choice(self.names).split('/')
            elements = elements[rng.randrange(len(elements)):] if rng.random() < 0.5 else elements
        else:
            elements = [rng.choice(ELEMENTS) for _ in range(rng.choice((1, 1, 1, 2, 2, 3)))]
        elements = [self.blur(element) if rng.random() < 0.5 else element for element in elements]
        if rng.random() < 0.15:
            elements.insert(rng.randrange(len(elements) + 1), rng.choice(('**', '*', '***', '**')))
        text = '/'.join(elements)
        if rng.random() < 0.25:
            text = '/' + text
        ending = rng.random()
        text += '/' if ending < 0.2 else '/***' if ending < 0.28 else '/**' if ending < 0.34 else '/*' if ending < 0.38 else '//' if ending < 0.39 else ''
        return text if text.strip('/') else 'a'

    def blur(self, element):
        rng, kind = self.rng, self.rng.random()
        if kind < 0.3:
            return element[:rng.randrange(len(element) + 1)] + '*' + element[rng.randrange(len(element) + 1):]
        if kind < 0.5:
            at = rng.randrange(len(element))
            return element[:at] + '?' + element[at + 1:]
        if kind < 0.75:
            at = rng.randrange(len(element))
            return element[:at] + rng.choice(CLASSES) + element[at + 1:]
        if kind < 0.85:
            return ''.join('\\' + letter if rng.random() < 0.3 else letter for letter in element)
        return rng.choice(('*', '**', '?', '*.*', '*.o', '.*', '**a', 'a**', '*\\', '\\*', '\\', '?*', '**/b', 'a**b', '*a*b*'))

    def file(self):
        """Write a file of rules that the client itself reads. Returns the option that names it."""
        rng, number = self.rng, len(os.listdir(self.files))
        path = self.files / f'rules{number}'
        form = rng.choice(('exclude-from', 'include-from', 'merge-', 'merge+', 'merge,C', 'words') + (() if self.plain else ('merge', 'merge')))
        patterns = [self.pattern().replace('\n', 'n') for _ in range(rng.choice((1, 3, 6)))]
        if form == 'words':
            lines = ' '.join(pattern.replace(' ', '?') for pattern in patterns)
        else:
            prefixes = ('- ', '+ ', '') if form.endswith('from') else ('- ', '+ ', 'H ', 'P ', 'exclude ', '-s ', '-! ') if form == 'merge' else ('',)
            lines = ''.join(rng.choice(prefixes) + pattern + '\n' for pattern in patterns) + rng.choice(('', '# comment\n', '\n', '; comment\n'))
        path.write_bytes(os.fsencode(lines))
        option = {'merge': '--filter=. ', 'merge-': '--filter=.- ', 'merge+': '--filter=merge,+ ', 'merge,C': '--filter=.C ', 'words': '--filter=.w- '}
        return f'{option[form]}{path}' if form in option else f'--{form}={path}'


# The options that clients before 2.6.4 know.
OF_OLD = re.compile(r'--(in|ex)clude(-from)?=|--cvs-exclude$|-[ClR]$')


def run(b):
    clients = b.args.rsync or ['rsync']
    root, store, files, old = (b.work / part for part in ('tree', 'store', 'files', 'old'))
    files.mkdir()
    make(root, random.Random(5))
    peers.index(b, root, store)
    make(old, random.Random(6))
    names = sorted(os.fsdecode(name) for name in peers.snapshot(root) if name)
    folders = sorted(os.fsdecode(name) for name, facts in peers.snapshot(root).items() if facts['type'] == 4 and PLAIN.fullmatch(name))
    sets = []
    for seed in range(b.args.first, b.args.first + b.args.sets):
        rng, client = random.Random(seed), clients[seed % len(clients)]
        protocol = min(rng.choice((32, 32, 32, 31, 30, 29, 28, 27)), peers.newest(client))
        is_old = peers.newest(client) < 29
        words = [word for word in Rules(rng, files, names, protocol < 29).words() if not is_old or OF_OLD.match(word)]
        source = '{M}/' if rng.random() < 0.7 else '{M}/' + rng.choice(folders) + rng.choice(('', '/'))
        pulls = rng.random() < 0.25
        how = ['-rt', rng.choice(('--delete', '--delete', '--delete-excluded'))] if pulls else ['-r'] if is_old else ['-r', '--list-only']
        sets.append((seed, client, [*how, *words, f'--protocol={protocol}', source] + ['{D}/'] * pulls, protocol))
    gaps, failures, rows = peers.Gaps(), [], {}
    # No chroot: with -R, a stock daemon that is chrooted to the module does not let `**/` match the beginning of a name.
    with peers.stock(b, root, chroot='no') as stock, peers.second(b, root, store) as judged, concurrent.futures.ThreadPoolExecutor(b.args.jobs) as pool:
        for (seed, client, words, protocol), (bad, found, pulls) in zip(sets, pool.map(lambda one: compare(b, stock, judged, old, gaps, one), sets)):
            row = rows.setdefault(str(pulls[0].code), {'exit': str(pulls[0].code), 'sets': 0, 'same': 0, 'known': 0, 'differ': 0, 'names': 0})
            row['sets'] += 1
            row['names'] += len(pulls[0].out) or len(pulls[0].tree)
            row['differ' if bad else 'known' if found else 'same'] += 1
            if bad:
                failures.append({'seed': seed, 'command': peers.command(pulls[1]), 'differences': [[str(part) for part in difference] for difference in bad[:5]]})
    b.table(f'{len(sets)} sets of rules, {judged.name} compared with stock', list(rows.values()))
    for failure in failures[:b.args.show]:
        print(f'\nseed {failure["seed"]}: {failure["command"]}')
        for facet, path, here, there in failure['differences']:
            print(f'    {facet} {path}: stock {here[:400]}, {judged.name} {there[:400]}')
    b.tables['failures'] = failures
    b.check(f'{len(sets)} sets of rules select the same names', not failures)


def compare(b, stock, judged, old, gaps, one):
    seed, client, words, protocol = one
    results = []
    for server in (stock, judged):
        dest = b.work / f'dest-{seed}-{server.port}'
        if words[-1] == '{D}/':
            shutil.copytree(old, dest, symlinks=True)
        results.append(peers.pull(client, server, words, dest))
        peers.empty(dest)
    found = peers.differences(*results)
    return gaps.unexplained('filters', str(seed), protocol, peers.version_of(client), found), found, results


bench.main(__doc__, [
    ('--rsync', dict(metavar='PATH', action='append', help='a stock client; may be repeated, clients take turns (default: rsync)')),
    ('--sets', dict(type=int, default=SEEDS)),
    ('--first', dict(type=int, default=1, help='the first seed')),
    ('--jobs', dict(type=int, default=2)),
    ('--show', dict(type=int, default=20)),
], run)

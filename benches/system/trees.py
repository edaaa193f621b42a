"""Trees of files for the comparisons: making them, changing them as a publisher does, hashing and comparing them."""
import collections
import hashlib
import os
import pathlib
import random

from bench import must, timed

CHUNK = 1 << 20
STAGING = '.stillmirror'


def make(root, files, size, per_folder=100, seed=1):
    """Make `files` files with incompressible content. `size` is a number of bytes, or (min, max)."""
    rng = random.Random(seed)
    for number in range(files):
        folder = pathlib.Path(root, f'd{number // per_folder:04}')
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / f'f{number:06}.bin', rng.randbytes(size if isinstance(size, int) else rng.randint(*size)))


def make_large(root, files, size):
    """Make `files` files of `size` bytes from the kernel's random generator. Returns their paths."""
    pathlib.Path(root).mkdir(parents=True, exist_ok=True)
    for number in range(files):
        with open(pathlib.Path(root, f'large{number}.bin'), 'wb') as out:
            for _ in range(size // CHUNK):
                out.write(os.urandom(CHUNK))
    return sorted(pathlib.Path(root).iterdir())


def write(path, content):
    with open(path, 'wb') as out:
        out.write(content)


def files_below(root):
    """Yield the relative names of the regular files, except those in a receiver's staging area."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(STAGING)]
        for name in names:
            path = os.path.join(folder, name)
            if not name.startswith(STAGING) and not os.path.islink(path):
                yield os.path.relpath(path, root)


def sha256(path):
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def differences(source, dest):
    """Return one line for each change that stock rsync would still make to `dest`."""
    _, out = must(['rsync', '-naiHc', '--delete', f'{source}/', f'{dest}/'])
    return out.splitlines()


def copy(source, dest):
    must(['cp', '-a', source, dest])


def find_seconds(root):
    """Return the seconds of a walk by `find`, with which the index of an unchanged tree is compared."""
    with open(os.devnull, 'wb') as nowhere:
        return timed(['find', root, '-printf', r'%p %s %T@ %i\n'], stdout=nowhere)[0]


class Publisher:
    """Changes a tree as publishers do. Each method takes the number of changes and returns the relative names changed."""

    def __init__(self, root, seed=1):
        self.root, self.rng, self.made = pathlib.Path(root), random.Random(seed), 0
        self.names = sorted(files_below(root))

    def take(self, count):
        self.rng.shuffle(self.names)
        taken, self.names = self.names[:count], self.names[count:]
        return taken

    def add(self, count, size=(1, 65536)):
        """Add files, every tenth of them in a new folder."""
        fresh = []
        for _ in range(count):
            beside = os.path.dirname(self.rng.choice(self.names)) if self.names else ''
            self.made += 1
            folder = os.path.join(beside, f'new{self.made}') if self.made % 10 == 0 else beside
            (self.root / folder).mkdir(exist_ok=True)
            fresh.append(os.path.join(folder, f'added{self.made}.bin'))
            write(self.root / fresh[-1], self.rng.randbytes(self.rng.randint(*size)))
        self.names += fresh
        return fresh

    def replace(self, count):
        """Replace files by changed copies with rename, as package archives do."""
        return self.change(count, self.replace_one)

    def rewrite(self, count):
        """Overwrite files in place. The inode stays the same, so all hard links of a file change."""
        return self.change(count, self.rewrite_one)

    def change(self, count, one):
        changed = self.take(count)
        for name in changed:
            one(self.root / name)
        self.names += changed
        return changed

    def replace_one(self, path):
        fresh = path.with_name(f'.{path.name}.fresh')
        write(fresh, self.edited(path.read_bytes()))
        fresh.replace(path)

    def rewrite_one(self, path):
        content = self.edited(path.read_bytes())
        with open(path, 'r+b', buffering=0) as out:
            for start in range(0, len(content), 16384):
                out.write(content[start:start + 16384])
            out.truncate()

    def edited(self, content):
        """Return the content with bytes inserted at a random place. Most blocks stay, at another offset."""
        where = self.rng.randint(0, len(content))
        return content[:where] + self.rng.randbytes(self.rng.randint(1, 2000)) + content[where:]

    def remove(self, count):
        removed = self.take(count)
        for name in removed:
            (self.root / name).unlink()
        return removed

    def rename(self, count):
        """Move files to other folders under new names. Returns the old names."""
        for name in (renamed := self.take(count)):
            self.made += 1
            target = os.path.join(os.path.dirname(self.rng.choice(self.names)), f'renamed{self.made}-{os.path.basename(name)}')
            (self.root / name).rename(self.root / target)
            self.names.append(target)
        return renamed


class History:
    """Every content that was published under each name, and the first edition that had it."""

    def __init__(self):
        self.first = collections.defaultdict(dict)
        self.seen, self.edition = {}, 0

    def publish(self, root):
        """Record the tree. Call before the index that makes it public, while nothing changes it. Returns the edition's number."""
        self.edition += 1
        for name in files_below(root):
            path = os.path.join(root, name)
            facts = os.stat(path)
            key = (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
            if self.seen.get(name, (None,))[0] != key:
                self.seen[name] = key, sha256(path)
            self.first[name].setdefault(self.seen[name][1], self.edition)
        return self.edition

    def unpublished(self, dest, edition=None):
        """Return the names in `dest` whose content was not published under that name in any edition up to `edition`."""
        newest = self.edition if edition is None else edition
        return [name for name in files_below(dest)
                if self.first.get(name, {}).get(sha256(os.path.join(dest, name)), newest + 1) > newest]

"""Readers of package repositories over HTTP: a strict checker for every kind, and the real client of each."""
import http.client
import os
import random
import re
import shutil
import subprocess
import time
import urllib.parse

from repositories import sha256


class Bad(Exception):
    """A reader did not find what it followed."""


class Checker:
    """Takes the head, every index by its digest, and after a client's pause some packages by their digests."""

    def __init__(self, address, port, folder, repository, sample, seed):
        self.connection = http.client.HTTPConnection(address, port, timeout=30)
        self.folder, self.repository, self.sample, self.random = folder, repository, sample, random.Random(seed)
        self.head = None

    def read(self):
        """Return what of the tree was read. Raises `Bad`."""
        self.head = None
        self.head = self.get(self.repository.head)
        indices = {name: self.get(path, digest) for path, digest, name in self.repository.indices(self.head)}
        packages = list(self.repository.packages(self.head, indices))
        time.sleep(self.random.uniform(0.05, 0.5))
        for path, digest in self.random.sample(packages, self.sample):
            self.get(path, digest)

    def get(self, path, digest=None):
        self.connection.request('GET', urllib.parse.quote(f'/{self.folder}/{path}'))
        response = self.connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise Bad(response.status, path)
        if digest and sha256(content) != digest:
            raise Bad('digest', path)
        return content


class Apt:
    """`apt-get update`, then `apt-get download`, with a configuration and state of its own."""

    def __init__(self, work, url, repository, seed):
        self.work, self.random = work, random.Random(seed)
        for folder in ('lists/partial', 'cache/archives/partial', 'etc', 'downloads'):
            (work / folder).mkdir(parents=True)
        (work / 'status').touch()
        (work / 'etc/sources.list').write_text(f'deb [signed-by={repository.key}] {url} stable {" ".join(repository.COMPONENTS)}\n')
        config = work / 'apt.conf'
        config.write_text(f'''
Dir::Etc {{ main "/dev/null"; parts "/dev/null"; sourcelist "{work}/etc/sources.list"; sourceparts "/dev/null"; preferencesparts "/dev/null"; }};
Dir::State "{work}"; Dir::State::lists "{work}/lists"; Dir::State::status "{work}/status"; Dir::Cache "{work}/cache";
APT {{ Architecture "amd64"; Architectures "amd64"; Sandbox::User "root"; Update::Error-Mode "any"; }};
Acquire {{ Languages "none"; http::Proxy "DIRECT"; }};
''')
        self.env = os.environ | {'APT_CONFIG': str(config), 'LC_ALL': 'C'}

    def read(self):
        run(['apt-get', '--quiet', '--quiet', 'update'], self.env, self.work)
        lists = ''.join(path.read_text() for path in (self.work / 'lists').glob('*_Packages'))
        names = re.findall('^Package: (.*)', lists, re.M)
        if not names:
            raise Bad('apt has no packages')
        downloads = self.work / 'downloads'
        run(['apt-get', '--quiet', '--quiet', 'download', *self.random.sample(names, 3)], self.env, downloads)
        for path in downloads.iterdir():
            path.unlink()


class Pacman:
    """`pacman --sync --refresh --downloadonly`, with a configuration and state of its own."""

    def __init__(self, work, url, repository, seed):
        self.work, self.random, self.names = work, random.Random(seed), sorted(repository.current)
        for folder in ('db', 'cache'):
            (work / folder).mkdir(parents=True)
        (work / 'pacman.conf').write_text(f'[options]\nArchitecture = x86_64\nSigLevel = Never\n[core]\nServer = {url}/core/os/x86_64\n')

    def read(self):
        folders = ['--config', self.work / 'pacman.conf', '--dbpath', self.work / 'db', '--cachedir', self.work / 'cache', '--logfile', '/dev/null']
        run(['pacman', *folders, '--noconfirm', '--noprogressbar', '-Syw', *self.random.sample(self.names, 3)], os.environ | {'LC_ALL': 'C'}, self.work)
        for path in (self.work / 'cache').iterdir():
            path.unlink()


class Dnf:
    """`dnf install --refresh --downloadonly`, with a configuration and state of its own."""

    def __init__(self, work, url, repository, seed):
        self.work, self.random, self.names = work, random.Random(seed), sorted(repository.current)
        work.mkdir()
        (work / 'dnf.conf').write_text(f'[main]\ngpgcheck=0\ninstallroot={work}/root\nreposdir=/dev/null\nplugins=0\n[bench]\nname=bench\nbaseurl={url}\n')

    def read(self):
        words = ['--config', self.work / 'dnf.conf', '--releasever', '1', '--quiet', '--assumeyes', '--refresh', '--downloadonly', '--downloaddir', self.work / 'downloads']
        run(['dnf', *words, 'install', *self.random.sample(self.names, 3)], os.environ | {'LC_ALL': 'C'}, self.work)
        shutil.rmtree(self.work / 'downloads')


CLIENTS = {'debian': Apt, 'rpm': Dnf, 'arch': Pacman}


def run(argv, env, cwd):
    done = subprocess.run(list(map(str, argv)), env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        raise Bad(f'{argv[0]} exits with {done.returncode}', done.stderr.decode(errors='replace').strip())

"""A slow link: two network namespaces joined by a pair of TUN devices that delay packets.

It needs no queueing discipline in the kernel. Packets keep their segmentation offload and are never lost or reordered,
and the link has no rate limit. The TCP settings are the host's.
"""
import collections
import contextlib
import fcntl
import os
import select
import struct
import subprocess
import sys
import time

SERVER, CLIENT = '192.0.2.1', '192.0.2.2'
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x1, 0x1000, 0x4000
OFFLOAD_CHECKSUM_AND_TSO = 0x1 | 0x2
PACKET = 1 << 17


@contextlib.contextmanager
def delayed(seconds_each_way):
    """Yield (server_prefix, client_prefix): command prefixes that run a command in the namespace of SERVER or CLIENT."""
    names = [f'bench{os.getpid()}{side}' for side in 'sc']
    relay = None
    try:
        for name in names:
            ip('netns', 'add', name)
        relay = subprocess.Popen([sys.executable, __file__, *names, str(seconds_each_way)], stdout=subprocess.PIPE)
        relay.stdout.readline()
        for name, address in zip(names, (SERVER, CLIENT)):
            ip('link', 'set', name, 'netns', name)
            for words in (('addr', 'add', f'{address}/30', 'dev', name),
                          ('link', 'set', name, 'txqueuelen', '20000', 'up'), ('link', 'set', 'lo', 'up')):
                ip('-n', name, *words)
        yield tuple(['ip', 'netns', 'exec', name] for name in names)
    finally:
        if relay:
            relay.terminate()
            relay.wait()
        for name in names:
            subprocess.run(['ip', 'netns', 'del', name], check=False)


def ip(*words):
    subprocess.run(['ip', *words], check=True)


def open_tun(name):
    device = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack('16sH22x', name.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(device, TUNSETVNETHDRSZ, struct.pack('i', 10))
    fcntl.ioctl(device, TUNSETOFFLOAD, OFFLOAD_CHECKSUM_AND_TSO)
    return device


def relay(names, delay):
    devices = [open_tun(name) for name in names]
    print('ready', flush=True)
    other = dict(zip(devices, reversed(devices)))
    queue = collections.deque()
    while True:
        wait = max(0.0, queue[0][0] - time.monotonic()) if queue else None
        for device in select.select(devices, [], [], wait)[0]:
            with contextlib.suppress(BlockingIOError):
                for _ in range(64):
                    packet = os.read(device, PACKET)
                    queue.append((time.monotonic() + delay, other[device], packet))
        while queue and queue[0][0] <= time.monotonic():
            _, device, packet = queue.popleft()
            with contextlib.suppress(OSError):  # the other end is not up yet
                os.write(device, packet)


if __name__ == '__main__':
    relay(sys.argv[1:3], float(sys.argv[3]))

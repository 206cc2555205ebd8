#!/usr/bin/env python3
"""A line between two machines made of network namespaces: it takes its time, has a width, and loses packets.

    line.py PID PID --delay-ms ONE_WAY --mbit WIDTH [--loss PER_CENT]

Each machine gets an interface `line0`; what one sends arrives at the other after waiting for the width and for the delay, or not at all. The loss is the same each time.
Prints "ready", and runs until its standard input ends. Needs /dev/net/tun and the right to use it.
"""

import argparse
import collections
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
# What waits for the width; a line that keeps more makes everybody wait.
QUEUE_BYTES = 4 << 20
MTU = 1500


def tun(name):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


class Way:
    """One direction."""

    def __init__(self, out, delay, rate, loss, seed):
        self.out, self.delay, self.rate, self.loss = out, delay, rate, loss
        self.random = random.Random(seed)
        self.free = 0.0
        self.queue = collections.deque()
        self.waiting = 0

    def take(self, now, packet):
        if self.random.random() < self.loss or self.waiting > QUEUE_BYTES:
            return
        self.free = max(self.free, now) + len(packet) / self.rate
        self.waiting += len(packet)
        self.queue.append((self.free + self.delay, packet))

    def give(self, now):
        queue = self.queue
        while queue and queue[0][0] <= now:
            _, packet = queue.popleft()
            self.waiting -= len(packet)
            try:
                os.write(self.out, packet)
            except OSError:
                pass


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("pids", nargs=2)
    parser.add_argument("--delay-ms", type=float, required=True)
    parser.add_argument("--mbit", type=float, required=True)
    parser.add_argument("--loss", type=float, default=0.0)
    args = parser.parse_args()
    ends = [tun("way0"), tun("way1")]
    for number, pid in enumerate(args.pids):
        subprocess.run(["ip", "link", "set", f"way{number}", "netns", pid, "name", "line0"], check=True)
    delay, rate, loss = args.delay_ms / 1000, args.mbit * 1e6 / 8, args.loss / 100
    ways = {ends[0]: Way(ends[1], delay, rate, loss, 1), ends[1]: Way(ends[0], delay, rate, loss, 2)}
    print("ready", flush=True)
    poll = select.poll()
    for fd in (*ends, sys.stdin.fileno()):
        poll.register(fd, select.POLLIN)
    while True:
        now = time.monotonic()
        due = [way.queue[0][0] for way in ways.values() if way.queue]
        wait = max(0.0, min(due) - now) * 1000 if due else None
        for fd, _ in poll.poll(wait):
            if fd == sys.stdin.fileno():
                if not os.read(fd, 1000):
                    return
                continue
            way, now = ways[fd], time.monotonic()
            for _ in range(64):
                try:
                    packet = os.read(fd, MTU + 100)
                except OSError:
                    break
                way.take(now, packet)
        now = time.monotonic()
        for way in ways.values():
            way.give(now)


main()

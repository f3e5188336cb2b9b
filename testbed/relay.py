#!/usr/bin/env python3
"""relay.py: a line between two programs that is as slow, late or broken as a test wants it.

  relay.py LISTEN TARGET [--delay-ms N] [--rate-bit-s N] [--control SOCKET] [--mode MODE]

LISTEN and TARGET are HOST:PORT, [IPV6]:PORT or a path (Unix socket); port 0 takes a free one. Says one line on stdout when it listens:
"listening on HOST:PORT". Every byte reaches the other side after the delay, each way; the rate, each way, is shared by all
connections. It reads on only while less than two delays' worth of the line's bytes (at least 256 KiB) are under way: a sender that is too fast is
held back as by a real line.

Modes, at the start or by the control socket (one command a line, one line of JSON back):
  forward    as a line does (default)
  freeze     nothing more goes through, either way; nobody is told; 'forward' lets it all go on: a partition (but that new
             connections are still accepted, and wait)
  refuse     new connections are refused (it stops listening); those that exist go on
  mute       new connections are accepted and never answered; those that exist go on
  close      all connections are closed; the mode stays as it was
  reset      the same, with a reset
  delay N    delay in milliseconds from now on;  rate N: bits per second from now on, 0 without limit
  stats      counters; every command answers with them
It ends on SIGTERM. Knows TCP and Unix sockets; knows no protocol above them.
"""

import argparse
import asyncio
import json
import signal
import socket
import struct
import sys
from collections import deque

CHUNK_BYTES_MAX = 64 * 1024
CHUNK_BYTES_MIN = 1500
CHUNK_S = 0.01  # of a slow line's time
UNDER_WAY_BYTES_MIN = 256 * 1024


def endpoint(text):
    """'127.0.0.1:80', '[::1]:80' or a path, as (host, port) or a string."""
    if "/" in text:
        return text
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is neither HOST:PORT nor a path with a slash")
    return host.strip("[]"), int(port)


class Line:
    """What the connections share: how the line is now, and what went through it."""

    def __init__(self, delay_ms, rate_bit_s, mode):
        self.delay_s = delay_ms / 1000
        self.rate_byte_s = rate_bit_s / 8
        self.mode = mode
        self.thawed = asyncio.Event()
        if mode != "freeze":
            self.thawed.set()
        self.open = set()
        self.free_at = {"to_target_bytes": 0.0, "from_target_bytes": 0.0}  # when each way has sent all that was given to it
        self.stats = {"accepted": 0, "refused_by_target": 0, "muted": 0, "to_target_bytes": 0, "from_target_bytes": 0}

    def state(self):
        known = {"mode": self.mode, "delay_ms": round(self.delay_s * 1000), "rate_bit_s": round(self.rate_byte_s * 8), "open": len(self.open)}
        return known | self.stats

    def under_way_bytes_max(self):
        return max(UNDER_WAY_BYTES_MIN, int(2 * self.delay_s * self.rate_byte_s))

    def chunk_bytes(self):
        if not self.rate_byte_s:
            return CHUNK_BYTES_MAX
        return min(CHUNK_BYTES_MAX, max(CHUNK_BYTES_MIN, int(self.rate_byte_s * CHUNK_S)))

    def arrival(self, way, length, now):
        """When that many bytes arrive that are given to a way now."""
        self.free_at[way] = max(self.free_at[way], now) + (length / self.rate_byte_s if self.rate_byte_s else 0)
        return self.free_at[way] + self.delay_s


class Way:
    """One direction of one connection: a queue of bytes, each with the time at which it arrives."""

    def __init__(self, line, reader, writer, counter):
        self.line, self.reader, self.writer, self.counter = line, reader, writer, counter
        self.queue = deque()
        self.queued_bytes = 0
        self.changed = asyncio.Event()

    async def take_in(self):
        clock = asyncio.get_running_loop().time
        while True:
            while self.queued_bytes >= self.line.under_way_bytes_max():
                self.changed.clear()
                await self.changed.wait()
            data = await self.reader.read(self.line.chunk_bytes())
            self.queue.append((self.line.arrival(self.counter, len(data), clock()), data))
            self.queued_bytes += len(data)
            self.changed.set()
            if not data:
                return

    async def give_out(self):
        clock = asyncio.get_running_loop().time
        while True:
            while not self.queue:
                self.changed.clear()
                await self.changed.wait()
            arrives_at, data = self.queue[0]
            await asyncio.sleep(max(0, arrives_at - clock()))
            await self.line.thawed.wait()
            self.queue.popleft()
            self.queued_bytes -= len(data)
            self.changed.set()
            if not data:
                if self.writer.can_write_eof():
                    self.writer.write_eof()
                return
            self.writer.write(data)
            await self.writer.drain()
            self.line.stats[self.counter] += len(data)


class Relay:
    def __init__(self, line, listen, target):
        self.line, self.listen, self.target = line, listen, target
        self.server = None

    async def start(self):
        if isinstance(self.listen, str):
            self.server = await asyncio.start_unix_server(self.accepted, self.listen)
        else:
            self.server = await asyncio.start_server(self.accepted, *self.listen, reuse_address=True)
            self.listen = self.server.sockets[0].getsockname()[:2]  # the same port again after a refusal

    async def stop(self):
        if self.server:
            self.server.close()  # the connections it accepted stay
            self.server = None

    async def accepted(self, reader, writer):
        self.line.stats["accepted"] += 1
        self.line.open.add(writer)
        try:
            await self.connection(reader, writer)
        except OSError:
            pass  # a side broke off; the other one hears it below
        except asyncio.CancelledError:
            pass  # the relay ends; asyncio's streams would print it
        finally:
            self.line.open.discard(writer)
            writer.close()

    async def connection(self, reader, writer):
        if self.line.mode == "mute":
            self.line.stats["muted"] += 1
            while await reader.read(CHUNK_BYTES_MAX):
                pass
            return
        await asyncio.sleep(self.line.delay_s)
        await self.line.thawed.wait()
        try:
            far_reader, far_writer = await connect(self.target)
        except OSError:
            self.line.stats["refused_by_target"] += 1
            abort(writer)
            return
        self.line.open.add(far_writer)
        try:
            ways = [Way(self.line, reader, far_writer, "to_target_bytes"), Way(self.line, far_reader, writer, "from_target_bytes")]
            tasks = [asyncio.create_task(part) for way in ways for part in (way.take_in(), way.give_out())]
            try:
                # A side that closes its half leaves the other half open; one that breaks off ends both.
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        finally:
            self.line.open.discard(far_writer)
            far_writer.close()

    async def command(self, words):
        line, name = self.line, words[0] if words else ""
        if name in ("forward", "freeze", "refuse", "mute") and len(words) == 1:
            line.mode = name
            if name == "freeze":
                line.thawed.clear()
            else:
                line.thawed.set()
            if name == "refuse":
                await self.stop()
            elif not self.server:
                await self.start()
        elif name in ("close", "reset") and len(words) == 1:
            for writer in list(line.open):
                if name == "reset":
                    abort(writer)
                else:
                    writer.close()
        elif name in ("delay", "rate") and len(words) == 2 and words[1].isdigit():
            if name == "delay":
                line.delay_s = int(words[1]) / 1000
            else:
                line.rate_byte_s = int(words[1]) / 8
        elif words != ["stats"]:
            return {"error": f"unknown command '{' '.join(words)}'"}
        return line.state()

    async def control(self, reader, writer):
        try:
            while text := await reader.readline():
                writer.write(json.dumps(await self.command(text.decode().split())).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            pass  # whoever asked did not wait for the answer
        finally:
            writer.close()


async def connect(target):
    if isinstance(target, str):
        return await asyncio.open_unix_connection(target)
    return await asyncio.open_connection(*target)


def abort(writer):
    """Closes with a reset where the protocol has one."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("listen", metavar="LISTEN", type=endpoint)
    parser.add_argument("target", metavar="TARGET", type=endpoint)
    parser.add_argument("--delay-ms", type=int, default=0)
    parser.add_argument("--rate-bit-s", type=int, default=0)
    parser.add_argument("--control", metavar="SOCKET")
    parser.add_argument("--mode", choices=["forward", "freeze", "refuse", "mute"], default="forward")
    args = parser.parse_args()
    relay = Relay(Line(args.delay_ms, args.rate_bit_s, args.mode), args.listen, args.target)
    await relay.start()
    where = relay.listen if isinstance(relay.listen, str) else "%s:%d" % (f"[{relay.listen[0]}]" if ":" in relay.listen[0] else relay.listen[0], relay.listen[1])
    if args.mode == "refuse":
        await relay.stop()
    if args.control:
        await asyncio.start_unix_server(relay.control, args.control)
    print(f"listening on {where}", flush=True)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
    # The loop's end cancels what is under way; the peers hear a reset.
    for writer in list(relay.line.open):
        abort(writer)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except OSError as error:
        sys.exit(f"relay.py: {error}")

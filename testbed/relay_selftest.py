#!/usr/bin/env python3
"""relay_selftest.py: is the relay the line that it is told to be? Prints one line per check, exit 1 if any failed.

Knows relay.py by its command line and its control socket alone.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

RELAY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "relay.py")
failed = 0


def check(what, held, seen):
    global failed
    print(f"  {'ok     ' if held else 'FAILED '} {what}: {seen}")
    failed += not held


class Echo:
    """A server on loopback that sends back what it gets, half-closing as its peer does."""

    def __init__(self, family=socket.AF_INET, host="127.0.0.1"):
        self.socket = socket.socket(family)
        self.socket.bind((host, 0))
        self.socket.listen()
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            peer, _ = self.socket.accept()
            threading.Thread(target=self.echo, args=(peer,), daemon=True).start()

    @staticmethod
    def echo(peer):
        try:
            while data := peer.recv(65536):
                peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        peer.close()


class Relay:
    def __init__(self, folder, target, *options, listen="127.0.0.1:0"):
        self.control_path = os.path.join(folder, "control")
        if os.path.exists(self.control_path):
            os.unlink(self.control_path)
        command = [sys.executable, RELAY, listen, target, "--control", self.control_path, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.address = self.process.stdout.readline().split()[-1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)
        self.process.stdout.close()

    def tell(self, command):
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(self.control_path)
            control.sendall(command.encode() + b"\n")
            return json.loads(control.makefile().readline())

    def dial(self, timeout_s=5):
        if "/" in self.address:
            peer = socket.socket(socket.AF_UNIX)
            peer.settimeout(timeout_s)
            peer.connect(self.address)
            return peer
        host, _, port = self.address.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s)


def receive(peer, length):
    got = b""
    while len(got) < length:
        data = peer.recv(65536)
        if not data:
            break
        got += data
    return got


def round_trip(peer, data):
    begun = time.monotonic()
    peer.sendall(data)
    same = receive(peer, len(data)) == data
    return same, time.monotonic() - begun


def answer(peer, data=b"?", timeout_s=1.0):
    """What came back: the bytes, 'nothing', 'closed' or 'reset'."""
    peer.settimeout(timeout_s)
    try:
        peer.sendall(data)
        got = peer.recv(65536)
        return got.decode() if got else "closed"
    except socket.timeout:
        return "nothing"
    except (ConnectionResetError, BrokenPipeError):
        return "reset"


def plain(folder):
    echo = Echo()
    with Relay(folder, f"127.0.0.1:{echo.port}") as relay:
        data = os.urandom(8 << 20)
        peer = relay.dial()
        threading.Thread(target=lambda: (peer.sendall(data), peer.shutdown(socket.SHUT_WR)), daemon=True).start()
        same = receive(peer, len(data) + 1) == data
        check("8 MiB come back as they were sent, and the half-close with them", same, same)
        stats = relay.tell("stats")
        check("it counts bytes", stats["to_target_bytes"] == stats["from_target_bytes"] == len(data), stats)
        check("an unknown command is refused", "error" in relay.tell("thaw now"), relay.tell("thaw now"))
    with Relay(folder, f"127.0.0.1:{echo.port}", listen=os.path.join(folder, "unix")) as relay:
        check("it listens on a path too", round_trip(relay.dial(), b"x")[0], relay.address)
    echo6 = Echo(socket.AF_INET6, "::1")
    with Relay(folder, f"[::1]:{echo6.port}", listen="[::1]:0") as relay:
        check("and speaks IPv6", round_trip(relay.dial(), b"x")[0], relay.address)


def slow(folder):
    echo = Echo()
    with Relay(folder, f"127.0.0.1:{echo.port}", "--delay-ms", "100") as relay:
        peer = relay.dial()
        round_trip(peer, b"x")
        times = sorted(round_trip(peer, b"x")[1] for _ in range(5))
        check("a delay of 100 ms each way is a round trip of 200 ms", 0.2 <= times[0] and times[2] < 0.25, [f"{t * 1000:.0f} ms" for t in times])
        same, took = round_trip(peer, os.urandom(200_000))
        check("a delayed line is not a narrow one", same and took < 1, f"200 kB and back in {took:.2f} s")
        relay.tell("delay 0")
        check("the delay can be taken away", round_trip(peer, b"x")[1] < 0.1, relay.tell("stats")["delay_ms"])
    with Relay(folder, f"127.0.0.1:{echo.port}", "--delay-ms", "300", "--rate-bit-s", "1000000") as relay:
        first, second = relay.dial(), relay.dial()
        round_trip(first, b"x")
        data = os.urandom(125_000)  # one second of the line
        begun = time.monotonic()
        second.sendall(data[:62_500])
        first.sendall(data[62_500:])
        got = receive(second, 62_500) + receive(first, 62_500)
        took = time.monotonic() - begun
        check("1 Mbit/s and 300 ms: a second's worth of bytes on two connections, and back", got == data and 1.6 <= took < 2.5, f"{took:.2f} s")


def broken(folder):
    echo = Echo()
    with Relay(folder, f"127.0.0.1:{echo.port}") as relay:
        peer = relay.dial()
        round_trip(peer, b"x")
        relay.tell("freeze")
        check("a frozen line swallows, and tells nobody", answer(peer, b"held") == "nothing", relay.tell("stats")["mode"])
        late = relay.dial()
        check("a new connection through it waits too", answer(late, b"late") == "nothing", "nothing")
        relay.tell("forward")
        peer.settimeout(5)
        late.settimeout(5)
        check("what was under way arrives when it mends", (peer.recv(9), late.recv(9)) == (b"held", b"late"), "held, late")

        relay.tell("mute")
        silent = relay.dial()
        check("a mute line accepts and never answers", answer(silent) == "nothing", relay.tell("stats")["muted"])
        check("and leaves alone what was there", answer(peer) == "?", "?")

        relay.tell("refuse")
        try:
            relay.dial()
            refused = "accepted"
        except ConnectionRefusedError:
            refused = "refused"
        check("a refusing line refuses", refused == "refused", refused)
        check("and leaves alone what was there", answer(peer) == "?", "?")
        relay.tell("forward")
        check("it listens again, on the same port", answer(relay.dial()) == "?", relay.address)

        relay.tell("close")
        seen = answer(peer, b"")
        check("a closed connection is closed", seen == "closed", seen)
        peer = relay.dial()
        round_trip(peer, b"x")
        relay.tell("reset")
        seen = answer(peer)
        check("a reset one is reset", seen == "reset", seen)
        time.sleep(0.2)
        check("none is left open", relay.tell("stats")["open"] == 0, relay.tell("stats")["open"])
    with Relay(folder, "127.0.0.1:1") as relay:
        try:
            seen = answer(relay.dial())
        except ConnectionResetError:  # as early as this
            seen = "reset"
        check("a target that refuses is passed on", seen in ("reset", "closed"), seen)
    with Relay(folder, f"127.0.0.1:{echo.port}", "--mode", "mute") as relay:
        seen = answer(relay.dial())
        check("it can begin in a mode", seen == "nothing", seen)


with tempfile.TemporaryDirectory() as folder:
    plain(folder)
    slow(folder)
    broken(folder)
sys.exit(1 if failed else 0)

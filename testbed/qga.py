#!/usr/bin/env python3
"""qga.py SOCKET COMMAND [JSON-ARGUMENTS] [-- COMMAND ...]: asks a guest agent, prints each answer as one line of JSON.

For tests only: an independent peer. Knows the guest agent's protocol; knows nothing of Lull. Exit 1 on an error answer.
The agent serves one client at a time: the connection lasts for this run alone.
"""
import json
import random
import socket
import sys


class Agent:
    """One connection to a guest agent's socket, synchronised."""

    def __init__(self, path, timeout_s=30):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout_s)
        self.socket.connect(path)
        self.lines = self.socket.makefile("rb")
        sync_id = random.getrandbits(31)
        # 0xff makes the agent drop whatever an earlier client left half-sent.
        self.send(b"\xff", {"execute": "guest-sync-delimited", "arguments": {"id": sync_id}})
        while True:
            line = self.lines.readline()
            if not line:
                raise ConnectionError(f"{path}: closed while synchronising")
            try:
                if json.loads(line.split(b"\xff")[-1]).get("return") == sync_id:
                    return
            except ValueError:
                continue

    def send(self, prefix, request):
        self.socket.sendall(prefix + json.dumps(request).encode() + b"\n")

    def ask(self, command, arguments=None):
        self.send(b"", {"execute": command, **({"arguments": arguments} if arguments else {})})
        return json.loads(self.lines.readline())


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    agent, words, failed = Agent(sys.argv[1]), sys.argv[2:], False
    while words:
        end = words.index("--") if "--" in words else len(words)
        command, rest, words = words[0], words[1:end], words[end + 1:]
        answer = agent.ask(command, json.loads(rest[0]) if rest else None)
        failed |= "error" in answer
        print(json.dumps(answer.get("return", answer)))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

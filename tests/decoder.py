#!/usr/bin/env python3
"""Opens the vectors of Kith's formats, by another road.

Written from `protocol/spec/*.md` alone, without a look at the Rust code, in plain Python 3 without any package: so what two programs agree on here stands in the
spec, and not only in one of them. Everything is checked: that good bytes open to what they should hold, and that bad bytes are refused with the reason
stated.

    python3 tests/decoder.py [FOLDER WITH VECTORS] [TOPIC...]

Ends with 0 if all agrees; says what was skipped, and why, on lines that begin with SKIPPED.
"""

import functools
import hashlib
import hmac
import json
import os
import struct
import sys


# --- BLAKE3 ---------------------------------------------------------------------------------------------------------------------------------

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, PARENT, ROOT, KEYED_HASH, DERIVE_CONTEXT, DERIVE_MATERIAL = 1, 2, 4, 8, 16, 32, 64
MASK = 0xFFFFFFFF


def _schedules():
    order, orders = list(range(16)), []
    for _ in range(7):
        orders.append(tuple(order))
        order = [order[place] for place in PERMUTATION]
    return orders


SCHEDULES = _schedules()
MIXES = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15), (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def _unrolled(name, arguments, begin, rounds, end):
    """A function without loops or lists inside, which Python runs some three times faster."""
    lines = [f"def {name}({arguments}):", *begin]
    for mixes, (r1, r2, r3, r4), rotates_left in rounds:
        for (a, b, c, d), (x, y) in mixes:
            for target, source, other, by, word in ((a, b, d, r1, x), (c, d, b, r2, ""), (a, b, d, r3, y), (c, d, b, r4, "")):
                lines.append(f"v{target} = v{target} + v{source}{word} & 0xFFFFFFFF")
                left = by if rotates_left else 32 - by
                lines.append(f"v{other} ^= v{target}")
                lines.append(f"v{other} = v{other} << {left} & 0xFFFFFFFF | v{other} >> {32 - left}")
    scope = {}
    exec("\n    ".join(lines + end), scope)
    return scope[name]


blake3_compress = _unrolled(
    "blake3_compress",
    "cv, words, counter, length, flags",
    [", ".join(f"v{i}" for i in range(8)) + ", = cv", ", ".join(f"m{i}" for i in range(16)) + ", = words"]
    + [f"v{8 + i} = {IV[i]}" for i in range(4)]
    + ["v12, v13, v14, v15 = counter & 0xFFFFFFFF, counter >> 32, length, flags"],
    [
        ([(mix, (f" + m{schedule[2 * i]}", f" + m{schedule[2 * i + 1]}")) for i, mix in enumerate(MIXES)], (16, 12, 8, 7), False)
        for schedule in SCHEDULES
    ],
    ["return (" + ", ".join([f"v{i} ^ v{i + 8}" for i in range(8)] + [f"v{i + 8} ^ cv[{i}]" for i in range(8)]) + ")"],
)


def _words(block):
    return struct.unpack("<16I", block.ljust(64, b"\0"))


class _Node:
    """What a chunk or parent is about to be compressed from; the root decides the last flags."""

    def __init__(self, cv, words, counter, length, flags):
        self.cv, self.words, self.counter, self.length, self.flags = cv, words, counter, length, flags

    def chain(self):
        return blake3_compress(self.cv, self.words, self.counter, self.length, self.flags)[:8]

    def output(self, length):
        out = b""
        count = 0
        while len(out) < length:
            out += struct.pack("<16I", *blake3_compress(self.cv, self.words, count, self.length, self.flags | ROOT))
            count += 1
        return out[:length]


def _chunk_node(data, counter, key, flags):
    blocks = [data[i:i + 64] for i in range(0, len(data), 64)] or [b""]
    cv = key
    for number, block in enumerate(blocks[:-1]):
        start = CHUNK_START if number == 0 else 0
        cv = blake3_compress(cv, _words(block), counter, 64, flags | start)[:8]
    last = (CHUNK_START if len(blocks) == 1 else 0) | CHUNK_END
    return _Node(cv, _words(blocks[-1]), counter, len(blocks[-1]), flags | last)


def _tree_node(data, counter, key, flags):
    if len(data) <= 1024:
        return _chunk_node(data, counter, key, flags)
    left = 1024
    while left * 2 < len(data):
        left *= 2
    one = _tree_node(data[:left], counter, key, flags).chain()
    two = _tree_node(data[left:], counter + left // 1024, key, flags).chain()
    return _Node(key, one + two, 0, 64, flags | PARENT)


def blake3(data, length=32):
    return _tree_node(bytes(data), 0, IV, 0).output(length)


def blake3_keyed(key, data, length=32):
    return _tree_node(bytes(data), 0, struct.unpack("<8I", key), KEYED_HASH).output(length)


def derive(domain, material, length=32):
    context = _tree_node(domain.encode(), 0, IV, DERIVE_CONTEXT).output(32)
    return _tree_node(bytes(material), 0, struct.unpack("<8I", context), DERIVE_MATERIAL).output(length)


# --- ChaCha20, Poly1305 and what is made of them --------------------------------------------------------------------------------------------

CHACHA = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)


_chacha_rounds = _unrolled(
    "_chacha_rounds",
    "state",
    [", ".join(f"v{i}" for i in range(16)) + ", = state"],
    [([(mix, ("", "")) for mix in MIXES], (16, 12, 8, 7), True)] * 10,
    ["return [" + ", ".join(f"v{i}" for i in range(16)) + "]"],
)


def _chacha_block(key, counter, nonce):
    state = CHACHA + struct.unpack("<8I", key) + (counter,) + struct.unpack("<3I", nonce)
    return struct.pack("<16I", *((a + b) & MASK for a, b in zip(_chacha_rounds(state), state)))


def chacha20(key, nonce, data, counter=1):
    out = bytearray()
    for start in range(0, len(data), 64):
        stream = _chacha_block(key, counter + start // 64, nonce)
        out += bytes(a ^ b for a, b in zip(data[start:start + 64], stream))
    return bytes(out)


def _poly1305(key, message):
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    s = int.from_bytes(key[16:], "little")
    total, prime = 0, (1 << 130) - 5
    for start in range(0, len(message), 16):
        total = (total + int.from_bytes(message[start:start + 16] + b"\1", "little")) * r % prime
    return ((total + s) % (1 << 128)).to_bytes(16, "little")


def _pad16(data):
    return data + bytes(-len(data) % 16)


def _aead_tag(key, nonce, aad, ciphertext):
    message = _pad16(aad) + _pad16(ciphertext) + struct.pack("<QQ", len(aad), len(ciphertext))
    return _poly1305(_chacha_block(key, 0, nonce)[:32], message)


def chacha20poly1305_open(key, nonce, aad, sealed):
    """The plaintext, or None if it is not authentic."""
    if len(sealed) < 16:
        return None
    ciphertext, tag = sealed[:-16], sealed[-16:]
    if not hmac.compare_digest(_aead_tag(key, nonce, aad, ciphertext), tag):
        return None
    return chacha20(key, nonce, ciphertext)


def chacha20poly1305_seal(key, nonce, aad, plaintext):
    ciphertext = chacha20(key, nonce, plaintext)
    return ciphertext + _aead_tag(key, nonce, aad, ciphertext)


def hchacha20(key, nonce):
    v = _chacha_rounds(CHACHA + struct.unpack("<8I", key) + struct.unpack("<4I", nonce))
    return struct.pack("<8I", *(v[:4] + v[12:]))


def xchacha20poly1305_open(key, nonce, aad, sealed):
    return chacha20poly1305_open(hchacha20(key, nonce[:16]), bytes(4) + nonce[16:], aad, sealed)


# --- Curve25519: X25519, Ed25519 ------------------------------------------------------------------------------------------------------------

P = (1 << 255) - 19
ORDER = (1 << 252) + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
SQRT_M1 = pow(2, (P - 1) // 4, P)
NEUTRAL = (0, 1, 1, 0)


def x25519(secret, point):
    k = int.from_bytes(secret, "little") & ~7 & ((1 << 255) - 1) | 1 << 254
    u = int.from_bytes(point, "little") & ((1 << 255) - 1)
    x2, z2, x3, z3, swap = 1, 0, u, 1, 0
    for place in reversed(range(255)):
        bit = k >> place & 1
        if bit != swap:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % P, b * b % P, d * a % P, c * b % P
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % P, u * (da - cb) ** 2 % P
        x2, z2 = aa * bb % P, e * (aa + 121665 * e) % P
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


def x25519_public(secret):
    return x25519(secret, (9).to_bytes(32, "little"))


def _add(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def _multiply(scalar, point):
    result = NEUTRAL
    while scalar:
        if scalar & 1:
            result = _add(result, point)
        point = _add(point, point)
        scalar >>= 1
    return result


def _same(p, q):
    return (p[0] * q[2] - q[0] * p[2]) % P == 0 and (p[1] * q[2] - q[1] * p[2]) % P == 0


def _compress(point):
    inverse = pow(point[2], P - 2, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _decompress(encoded):
    """The point of a canonical encoding, or None."""
    y = int.from_bytes(encoded, "little")
    sign, y = y >> 255, y & ((1 << 255) - 1)
    if y >= P:
        return None
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    if v * x * x % P == (-u) % P:
        x = x * SQRT_M1 % P
    elif v * x * x % P != u:
        return None
    if x == 0 and sign:
        return None
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


_base_y = 4 * pow(5, P - 2, P) % P
BASE = _decompress(_base_y.to_bytes(32, "little"))


def ed25519_public(seed):
    digest = hashlib.sha512(seed).digest()
    scalar = int.from_bytes(digest[:32], "little") & ~7 & ((1 << 254) - 1) | 1 << 254
    return _compress(_multiply(scalar, BASE))


def ed25519_verify(public, message, signature):
    """Strict: canonical encodings, no small-order key or nonce point, no cofactor."""
    if len(public) != 32 or len(signature) != 64:
        return False
    s = int.from_bytes(signature[32:], "little")
    a, r = _decompress(public), _decompress(signature[:32])
    if s >= ORDER or a is None or r is None:
        return False
    if _same(_multiply(8, a), NEUTRAL) or _same(_multiply(8, r), NEUTRAL):
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % ORDER
    return _same(_multiply(s, BASE), _add(r, _multiply(k, a)))


def signature_counts(public, domain, message, signature):
    """`keys.md`, "Signatures"."""
    return ed25519_verify(public, domain.encode() + b"\0" + message, signature)


# --- HKDF, HPKE base mode -------------------------------------------------------------------------------------------------------------------

def hkdf_extract(hash_name, salt, material):
    salt = salt or bytes(hashlib.new(hash_name).digest_size)
    return hmac.new(salt, material, hash_name).digest()


def hkdf_expand(hash_name, key, info, length):
    out, block, count = b"", b"", 0
    while len(out) < length:
        count += 1
        block = hmac.new(key, block + info + bytes([count]), hash_name).digest()
        out += block
    return out[:length]


def _labeled(suite, label):
    return b"HPKE-v1" + suite + label


def _labeled_extract(suite, salt, label, material):
    return hkdf_extract("sha256", salt, _labeled(suite, label) + material)


def _labeled_expand(suite, key, label, info, length):
    return hkdf_expand("sha256", key, struct.pack(">H", length) + _labeled(suite, label) + info, length)


def hpke_open(secret, info, aad, envelope):
    """`keys.md`, "Envelopes": RFC 9180, base mode, one message. The plaintext, or None."""
    if len(envelope) < 48:
        return None
    encapsulated, sealed = envelope[:32], envelope[32:]
    kem = b"KEM" + struct.pack(">H", 0x0020)
    shared = x25519(secret, encapsulated)
    if shared == bytes(32):
        return None
    extracted = _labeled_extract(kem, b"", b"eae_prk", shared)
    shared = _labeled_expand(kem, extracted, b"shared_secret", encapsulated + x25519_public(secret), 32)
    suite = b"HPKE" + struct.pack(">HHH", 0x0020, 0x0001, 0x0003)
    context = b"\0" + _labeled_extract(suite, b"", b"psk_id_hash", b"") + _labeled_extract(suite, b"", b"info_hash", info)
    schedule = _labeled_extract(suite, shared, b"secret", b"")
    key = _labeled_expand(suite, schedule, b"key", context, 32)
    nonce = _labeled_expand(suite, schedule, b"base_nonce", context, 12)
    return chacha20poly1305_open(key, nonce, aad, sealed)


def hpke_ephemeral(material):
    """RFC 9180, 7.1.3, DeriveKeyPair for X25519: the encapsulated key that follows from this input keying material."""
    kem = b"KEM" + struct.pack(">H", 0x0020)
    return x25519_public(_labeled_expand(kem, _labeled_extract(kem, b"", b"dkp_prk", material), b"sk", b"", 32))


# --- The above against what their own standards state ---------------------------------------------------------------------------------------

def check_primitives():
    def hexed(value):
        return value.hex()

    pattern = bytes(i % 251 for i in range(5000))
    expect(hexed(blake3(b"")), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262", "BLAKE3 of nothing")
    expect(hexed(blake3(pattern[:1])), "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213", "BLAKE3 of one byte")
    expect(hexed(blake3(pattern[:1025])), "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444", "BLAKE3 of 1025 bytes")
    expect(hexed(blake3(pattern[:3073])), "7124b49501012f81cc7f11ca069ec9226cecb8a2c850cfe644e327d22d3e1cd3", "BLAKE3 of 3073 bytes")
    key = b"whats the Elvish word for friend"
    expect(hexed(blake3_keyed(key, pattern[:1])), "6d7878dfff2f485635d39013278ae14f1454b8c0a3a2d34bc1ab38228a80c95b", "keyed BLAKE3")
    context = "BLAKE3 2019-12-27 16:29:52 test vectors context"
    expect(hexed(derive(context, b"")), "2cc39783c223154fea8dfb7c1b1660f2ac2dcbd1c1de8277b0b0dd39b7e50d7d", "BLAKE3 derive_key")

    # RFC 8439, 2.8.2; draft-irtf-cfrg-xchacha, A.3.1.
    text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it."
    key, aad = bytes(range(0x80, 0xA0)), bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    sealed = chacha20poly1305_seal(key, bytes.fromhex("070000004041424344454647"), aad, text)
    expect(hexed(sealed[-16:]), "1ae10b594f09e26a7e902ecbd0600691", "ChaCha20-Poly1305 tag")
    expect(chacha20poly1305_open(key, bytes.fromhex("070000004041424344454647"), aad, sealed), text, "ChaCha20-Poly1305")
    nonce = bytes(range(0x40, 0x58))
    sealed = chacha20poly1305_seal(hchacha20(key, nonce[:16]), bytes(4) + nonce[16:], aad, text)
    expect(hexed(sealed[-16:]), "c0875924c1c7987947deafd8780acf49", "XChaCha20-Poly1305 tag")
    expect(xchacha20poly1305_open(key, nonce, aad, sealed), text, "XChaCha20-Poly1305")

    # RFC 7748, 5.2, one iteration; RFC 8032, 7.1, test 2.
    nine = (9).to_bytes(32, "little")
    expect(hexed(x25519(nine, nine)), "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079", "X25519")
    seed = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    public = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    signature = bytes.fromhex("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
                              "387b2eaeb4302aeeb00d291612bb0c00")
    expect(ed25519_public(seed), public, "Ed25519 public key")
    expect(ed25519_verify(public, b"\x72", signature), True, "Ed25519 signature")
    expect(ed25519_verify(public, b"\x73", signature), False, "Ed25519 signature of another message")
    high = signature[:32] + (int.from_bytes(signature[32:], "little") + ORDER).to_bytes(32, "little")
    expect(ed25519_verify(public, b"\x72", high), False, "Ed25519 signature that is not canonical")
    neutral = (1).to_bytes(32, "little")
    expect(ed25519_verify(neutral, b"", neutral + bytes(32)), False, "Ed25519 key of small order")


# --- What is expected -----------------------------------------------------------------------------------------------------------------------

class Refused(Exception):
    """Bytes that a decoder refuses, in the word the vectors use."""


class Skipped(Exception):
    """Something this decoder cannot check, and why."""


class Elsewhere(Exception):
    """Not a format but what a machine makes of it: no matter of this decoder."""


PROBLEMS = []
SKIPS = []
COUNTS = {}


def expect(found, wanted, what):
    if found != wanted:
        PROBLEMS.append(f"{what}: found {_shown(found)}, expected {_shown(wanted)}")


def _shown(value):
    text = value.hex() if isinstance(value, bytes) else repr(value)
    return text if len(text) < 200 else text[:200] + "..."


def refuse_if(condition, word):
    if condition:
        raise Refused(word)


class Reader:
    """Takes bytes from the front; what is too short is refused with one word."""

    def __init__(self, data, short):
        self.data, self.place, self.short = data, 0, short

    def take(self, count):
        refuse_if(self.left() < count, self.short)
        self.place += count
        return self.data[self.place - count:self.place]

    def number(self, size):
        return int.from_bytes(self.take(size), "little")

    def left(self):
        return len(self.data) - self.place


# --- ids.md, keys.md ------------------------------------------------------------------------------------------------------------------------

BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def base32(data):
    bits = int.from_bytes(data, "big") << (-len(data) * 8) % 5
    count = (len(data) * 8 + 4) // 5
    return "".join(BASE32[bits >> 5 * (count - 1 - i) & 31] for i in range(count))


def cid_of_digest(digest):
    """`ids.md`, "CID"."""
    return "b" + base32(bytes.fromhex("01551e20") + digest)


def device_name(public):
    """`ids.md`, "Device"."""
    data = bytes.fromhex("002408011220") + public
    number, text = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = BASE58[digit] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text


def check_keys():
    """`keys.md`, "Words": the values stated on that page."""
    words = "abandon " * 23 + "art"
    seed = hashlib.pbkdf2_hmac("sha512", words.encode(), b"mnemonic", 2048)
    prk = hkdf_extract("sha3_256", b"", seed)
    root = hkdf_expand("sha3_256", prk, b"kith root signing 1", 32)
    recovery = hkdf_expand("sha3_256", prk, b"kith root recovery 1", 32)
    expect(ed25519_public(root).hex(), "62a57d28b9a5baa448aa0ebfc8c831758313ed0ae65c7843707f8b2279d836a1", "root key of the words")
    expect(x25519_public(recovery).hex(), "c6170419fb678eb12895664ece4f406120fb723bebf1292d7546d0b79f926940", "recovery key")


# --- chunk.md -------------------------------------------------------------------------------------------------------------------------------

def gear_table(secret):
    """`chunk.md`, "Gear table"."""
    stream = blake3_keyed(derive("kith gear 1", secret), b"", 2048)
    return struct.unpack("<256Q", stream)


def cut(data, gear, least, mean, most):
    """`chunk.md`, "Boundaries": the lengths of the chunks."""
    bits = mean.bit_length() - 1
    small, large = 64 - (bits + 2), 64 - (bits - 2)
    lengths, start = [], 0
    while start < len(data):
        left = len(data) - start
        length = min(left, most)
        # The hash looks at the last 64 bytes: older ones are shifted out of its 64 bits.
        value = 0
        for place in range(max(0, least - 64), min(left, most)):
            value = ((value << 1) + gear[data[start + place]]) & 0xFFFFFFFFFFFFFFFF
            count = place + 1
            if count >= least and value >> (small if count <= mean else large) == 0:
                length = count
                break
        lengths.append(length)
        start += length
    return lengths


def vector_input(vector):
    """The input of a vector."""
    if "input_byte" in vector:
        return bytes([vector["input_byte"]]) * vector["input_len"]
    if vector["input_len"] == 0:
        return b""
    return noise(bytes.fromhex(vector["input_noise"]), vector["input_len"])


@functools.lru_cache
def noise(name, length):
    """What `input_noise` stands for: the output stream of BLAKE3 over the name."""
    return blake3(name, length)


def check_chunk(vector):
    gear = gear_table(bytes.fromhex(vector["secret"]))
    expect(str(gear[0]), str(vector["gear_first"]), "first gear")
    expect(str(gear[255]), str(vector["gear_last"]), "last gear")
    data = vector_input(vector)
    expect(cut(data, gear, vector["min"], vector["mean"], vector["max"]), vector["lengths"], "lengths")


# --- zstd (RFC 8878) ------------------------------------------------------------------------------------------------------------------------

LITERAL_LENGTHS = [(n, 0) for n in range(16)] + [(16, 1), (18, 1), (20, 1), (22, 1), (24, 2), (28, 2), (32, 3), (40, 3), (48, 4), (64, 6)]
LITERAL_LENGTHS += [(1 << n, n) for n in range(7, 17)]
MATCH_LENGTHS = [(n, 0) for n in range(3, 35)] + [(35, 1), (37, 1), (39, 1), (41, 1), (43, 2), (47, 2), (51, 3), (59, 3), (67, 4), (83, 4), (99, 5)]
MATCH_LENGTHS += [((1 << n) + 3, n) for n in range(7, 17)]
USUAL_LITERALS = (6, [4, 3] + [2] * 11 + [1] * 3 + [2] * 9 + [3, 2] + [1] * 5 + [-1] * 4)
USUAL_MATCHES = (6, [1, 4, 3] + [2] * 6 + [1] * 37 + [-1] * 7)
USUAL_OFFSETS = (5, [1] * 6 + [2] * 3 + [1] * 15 + [-1] * 5)


class _Backwards:
    """A bit stream read from its end, where the highest bit set is a mark; beyond its beginning are zeros."""

    def __init__(self, data):
        refuse_if(not data or data[-1] == 0, "malformed")
        self.value = int.from_bytes(data, "little")
        self.left = self.value.bit_length() - 1

    def peek(self, count):
        shift = self.left - count
        return (self.value >> shift if shift >= 0 else self.value << -shift) & ((1 << count) - 1)

    def take(self, count):
        bits = self.peek(count)
        self.left -= count
        return bits


def _read_distribution(data, most):
    """An FSE table description: accuracy, probabilities, and how many bytes it took."""
    value, place = int.from_bytes(data[:64], "little"), 4
    accuracy = (value & 15) + 5
    refuse_if(accuracy > most, "malformed")
    left, found = 1 << accuracy, []
    while left > 0:
        width = (left + 1).bit_length()
        bits, low = value >> place & ((1 << width) - 1), (1 << width - 1) - 1
        spare = (1 << width) - 2 - left
        if bits & low < spare:
            bits, width = bits & low, width - 1
        elif bits > low:
            bits -= spare
        place += width
        found.append(bits - 1)
        left -= abs(bits - 1)
        while bits == 1:
            more = value >> place & 3
            place += 2
            found += [0] * more
            if more < 3:
                break
    refuse_if(left or (place + 7) // 8 > len(data), "malformed")
    return accuracy, found, (place + 7) // 8


def _fse_table(accuracy, probabilities):
    """Per state: symbol, bits to read, base of the next state."""
    size, states = 1 << accuracy, [0] * (1 << accuracy)
    high = size
    for symbol, probability in enumerate(probabilities):
        if probability == -1:
            high -= 1
            states[high] = symbol
    place = 0
    for symbol, probability in enumerate(probabilities):
        for _ in range(max(0, probability)):
            states[place] = symbol
            while True:
                place = (place + (size >> 1) + (size >> 3) + 3) % size
                if place < high:
                    break
    nexts, table = [abs(probability) for probability in probabilities], []
    for symbol in states:
        width = accuracy - nexts[symbol].bit_length() + 1
        table.append((symbol, width, (nexts[symbol] << width) - size))
        nexts[symbol] += 1
    return accuracy, table


def _huffman_table(data):
    """Bits of the longest code, per value of that many bits (symbol, bits of its code), and how many bytes the description took."""
    head = data[0]
    if head >= 128:
        count = head - 127
        weights = [data[1 + i // 2] >> (4, 0)[i % 2] & 15 for i in range(count)]
        used = 1 + (count + 1) // 2
    else:
        used, weights = 1 + head, []
        accuracy, probabilities, read = _read_distribution(data[1:used], 6)
        table = _fse_table(accuracy, probabilities)[1]
        stream = _Backwards(data[1 + read:used])
        states = [stream.take(accuracy), stream.take(accuracy)]
        while True:
            symbol, width, base = table[states[0]]
            weights.append(symbol)
            if stream.left < width:
                weights.append(table[states[1]][0])
                break
            states = [states[1], base + stream.take(width)]
    total = sum(1 << weight - 1 for weight in weights if weight)
    longest = total.bit_length()
    rest = (1 << longest) - total
    refuse_if(not total or rest & rest - 1, "malformed")
    weights.append(rest.bit_length())
    codes = []
    for weight in range(1, longest + 1):
        for symbol, its in enumerate(weights):
            if its == weight:
                codes += [(symbol, longest + 1 - weight)] * (1 << weight - 1)
    return longest, codes, used


def _huffman_stream(data, table, count):
    longest, codes = table
    stream, out = _Backwards(data), bytearray()
    while len(out) < count:
        symbol, width = codes[stream.peek(longest)]
        out.append(symbol)
        stream.left -= width
    refuse_if(stream.left != 0, "malformed")
    return bytes(out)


class _Unpacker:
    """What one frame's blocks hand on to each other."""

    def __init__(self):
        self.out, self.huffman, self.repeats = bytearray(), None, [1, 4, 8]
        self.tables = [None, None, None]

    def literals(self, reader):
        kind, form = reader.data[reader.place] & 3, reader.data[reader.place] >> 2 & 3
        if kind < 2:
            size = reader.number(1) >> 3 if form % 2 == 0 else reader.number(2 if form == 1 else 3) >> 4
            return reader.take(size) if kind == 0 else reader.take(1) * size
        width = (10, 10, 14, 18)[form]
        head = reader.number((3, 3, 4, 5)[form]) >> 4
        size, packed = head & ((1 << width) - 1), reader.take(head >> width)
        if kind == 2:
            longest, codes, used = _huffman_table(packed)
            self.huffman, packed = (longest, codes), packed[used:]
        refuse_if(self.huffman is None, "malformed")
        if form == 0:
            return _huffman_stream(packed, self.huffman, size)
        parts, rest = struct.unpack("<3H", packed[:6]), packed[6:]
        each, out = (size + 3) // 4, b""
        for part in parts:
            out, rest = out + _huffman_stream(rest[:part], self.huffman, each), rest[part:]
        return out + _huffman_stream(rest, self.huffman, size - 3 * each)

    def block(self, data):
        reader = Reader(data, "malformed")
        literals = Reader(self.literals(reader), "malformed")
        count = reader.number(1)
        if count > 127:
            count = (count - 128 << 8) + reader.number(1) if count < 255 else reader.number(2) + 0x7F00
        if count:
            modes = reader.number(1)
            kinds = ((6, USUAL_LITERALS, 9), (4, USUAL_OFFSETS, 8), (2, USUAL_MATCHES, 9))
            for place, (shift, usual, most) in enumerate(kinds):
                mode = modes >> shift & 3
                if mode == 0:
                    self.tables[place] = _fse_table(*usual)
                elif mode == 1:
                    self.tables[place] = (0, [(reader.number(1), 0, 0)])
                elif mode == 2:
                    accuracy, probabilities, used = _read_distribution(data[reader.place:], most)
                    reader.take(used)
                    self.tables[place] = _fse_table(accuracy, probabilities)
            stream = _Backwards(reader.take(reader.left()))
            states = [stream.take(table[0]) for table in self.tables]
            for number in range(count):
                literal, offset, match = (table[1][state][0] for table, state in zip(self.tables, states))
                value = (1 << offset) + stream.take(offset)
                length = MATCH_LENGTHS[match][0] + stream.take(MATCH_LENGTHS[match][1])
                ahead = LITERAL_LENGTHS[literal][0] + stream.take(LITERAL_LENGTHS[literal][1])
                if number + 1 < count:
                    for place in (0, 2, 1):
                        _, width, base = self.tables[place][1][states[place]]
                        states[place] = base + stream.take(width)
                self.out += literals.take(ahead)
                self.copy(self.distance(value, ahead), length)
            refuse_if(stream.left != 0, "malformed")
        self.out += literals.take(literals.left())

    def distance(self, value, ahead):
        if value > 3:
            self.repeats = [value - 3] + self.repeats[:2]
            return value - 3
        which = value - 1 + (ahead == 0)
        found = self.repeats[which] if which < 3 else self.repeats[0] - 1
        if which:
            self.repeats = [found] + [old for place, old in enumerate(self.repeats) if place != min(which, 2)]
        return found

    def copy(self, distance, length):
        refuse_if(not 0 < distance <= len(self.out) or len(self.out) + length > DATA_MAX, "malformed")
        for _ in range(length):
            self.out.append(self.out[-distance])


def unzstd(data):
    """The content of one frame that `zstd_frame` has found sound."""
    reader = Reader(data, "malformed")
    descriptor = reader.take(5)[4]
    single = descriptor >> 5 & 1
    reader.take((0, 1, 2, 4)[descriptor & 3] + (not single) + (single, 2, 4, 8)[descriptor >> 6])
    unpacker, last = _Unpacker(), 0
    while not last:
        head = reader.number(3)
        last, kind, size = head & 1, head >> 1 & 3, head >> 3
        if kind == 0:
            unpacker.out += reader.take(size)
        elif kind == 1:
            refuse_if(len(unpacker.out) + size > DATA_MAX, "malformed")
            unpacker.out += reader.take(1) * size
        else:
            unpacker.block(reader.take(size))
    return bytes(unpacker.out)


# --- seal.md --------------------------------------------------------------------------------------------------------------------------------

DATA_MAX = 1048570
KINDS = {0: "chunk", 1: "manifest", 2: "listing"}


def padme(length):
    """`seal.md`, "Padding"."""
    if length < 2:
        return length
    e = length.bit_length() - 1
    s = e.bit_length()
    unit = 1 << max(0, e - s)
    return (length + unit - 1) // unit * unit


def looks_random(data):
    """`seal.md`, "Codec", 2."""
    if len(data) <= 4096:
        sample = data
    else:
        step = (len(data) - 256) // 15
        sample = b"".join(data[i * step:i * step + 256] for i in range(16))
    counts = [0] * 256
    for byte in sample:
        counts[byte] += 1
    n = len(sample)
    return 512 * sum(c * (c - 1) for c in counts) < 3 * n * (n - 1)


def zstd_frame(data):
    """Where one zstd frame (RFC 8878) ends, and the content size it states (or None)."""
    reader = Reader(data, "malformed")
    refuse_if(reader.number(4) != 0xFD2FB528, "malformed")
    descriptor = reader.number(1)
    refuse_if(descriptor & 8, "malformed")
    single = descriptor >> 5 & 1
    if not single:
        reader.take(1)
    reader.take((0, 1, 2, 4)[descriptor & 3])
    size_bytes = (single, 2, 4, 8)[descriptor >> 6]
    size = reader.number(size_bytes) + (256 if size_bytes == 2 else 0) if size_bytes else None
    while True:
        header = reader.number(3)
        kind = header >> 1 & 3
        refuse_if(kind == 3, "malformed")
        reader.take(1 if kind == 1 else header >> 3)
        if header & 1:
            break
    if descriptor & 4:
        reader.take(4)
    return reader.place, size


def open_block(digest, block, key, secrets):
    """`seal.md`, "Opening": kind, codec, data."""
    refuse_if(blake3(block) != digest or len(block) > 1048593, "wrong bytes")
    refuse_if(len(block) > 0 and block[0] != 1, "unknown suite")
    refuse_if(len(block) < 23, "malformed")
    plain = chacha20poly1305_open(key, bytes(12), block[:1], block[1:])
    refuse_if(plain is None, "not authentic")
    known = any(blake3_keyed(secret, block[:1] + plain) == key for secret in secrets)
    refuse_if(not known, "unknown secret")
    reader = Reader(plain, "malformed")
    kind, codec, length = reader.number(1), reader.number(1), reader.number(4)
    refuse_if(kind not in KINDS or codec > 1, "malformed")
    refuse_if(padme(6 + length) != len(plain), "malformed")
    data = reader.take(length)
    refuse_if(reader.take(reader.left()).strip(b"\0"), "malformed")
    if codec == 1:
        refuse_if(kind == 1, "malformed")
        end, size = zstd_frame(data)
        refuse_if(end != len(data) or size is None, "malformed")
        refuse_if(size < 128 or size > DATA_MAX or length > size - size // 16, "malformed")
        data = unzstd(data)
        refuse_if(len(data) != size, "malformed")
    return kind, codec, data


def seal_stored(kind, data, secret):
    """`seal.md`, "Block", without packing: block and key."""
    plain = struct.pack("<BBI", kind, 0, len(data)) + data
    plain += bytes(padme(len(plain)) - len(plain))
    key = blake3_keyed(secret, b"\1" + plain)
    return b"\1" + chacha20poly1305_seal(key, bytes(12), b"\1", plain), key


def check_seal(vector):
    if "padded" in vector:
        expect(padme(vector["length"]), vector["padded"], "padded length")
        return
    block, key = bytes.fromhex(vector["block"]), bytes.fromhex(vector["key"])
    secrets = [bytes.fromhex(secret) for secret in vector["secrets"]]
    digest = digest_of_cid(vector["cid"])
    if vector["expect"] != "ok":
        open_block(digest, block, key, secrets)
        return
    data = bytes.fromhex(vector["data"])
    if vector["codec"] == 0:
        expect(open_block(digest, block, key, secrets), (vector["kind"], 0, data), "opened")
        sealed = [seal_stored(vector["kind"], data, secret) for secret in secrets]
        expect((block, key) in sealed, True, "sealed again")
    else:
        expect(vector["kind"] != 1 and len(data) >= 128 and not looks_random(data), True, "worth packing")
        expect(open_block(digest, block, key, secrets), (vector["kind"], 1, data), "opened")


def digest_of_cid(text):
    """The digest of a CID of ours."""
    bits = 0
    for letter in text[1:]:
        bits = bits << 5 | BASE32.index(letter)
    count = len(text[1:]) * 5
    data = (bits >> count % 8).to_bytes(count // 8, "big")
    refuse_if(text[0] != "b" or data[:4].hex() != "01551e20" or len(data) != 36, "not a CID of ours")
    expect(cid_of_digest(data[4:]), text, "CID written again")
    return data[4:]


# --- manifest.md ----------------------------------------------------------------------------------------------------------------------------

FAN_OUT = 1024


def decode_manifest(data):
    """`manifest.md`, "Manifest": level, total, children as (digest, key, length)."""
    refuse_if(not data, "count")
    refuse_if(data[0] != 1, "version")
    reader = Reader(data[1:], "count")
    level = reader.number(1)
    refuse_if(not 1 <= level <= 4, "level")
    total, count = reader.number(8), reader.number(4)
    refuse_if(not 1 <= count <= FAN_OUT or reader.left() != 72 * count, "count")
    children = [(reader.take(32), reader.take(32), reader.number(8)) for _ in range(count)]
    most = DATA_MAX * FAN_OUT ** (level - 1)
    refuse_if(any(not 1 <= length <= most for _, _, length in children), "length")
    refuse_if(sum(length for _, _, length in children) != total, "total")
    return level, total, children


def encode_manifest(level, children):
    body = b"".join(digest + key + struct.pack("<Q", length) for digest, key, length in children)
    return struct.pack("<BBQI", 1, level, sum(child[2] for child in children), len(children)) + body


def check_manifest(vector):
    level, total, children = decode_manifest(bytes.fromhex(vector["manifest"]))
    wanted = [(bytes.fromhex(child["digest"]), bytes.fromhex(child["key"]), child["len"]) for child in vector["children"]]
    expect((level, total, children), (vector["level"], vector["total"], wanted), "manifest")
    expect(encode_manifest(level, wanted).hex(), vector["manifest"], "manifest written again")


def read_object(link, blocks, secrets):
    """`manifest.md`, "Reading": the kind of the leaves, and the bytes."""
    digest, key, size = link[:32], link[32:64], int.from_bytes(link[64:], "little")
    kinds, out = set(), []

    def leaf(kind, data, length):
        refuse_if(len(data) != length, "malformed")
        kinds.add(kind)
        refuse_if(len(kinds) > 1, "malformed")
        out.append(data)

    def below(level, children, is_last):
        for place, (child_digest, child_key, length) in enumerate(children):
            kind, _, data = open_block(child_digest, blocks[child_digest], child_key, secrets)
            last = is_last and place == len(children) - 1
            if level == 1:
                refuse_if(kind == 1, "malformed")
                leaf(kind, data, length)
            else:
                refuse_if(kind != 1, "malformed")
                try:
                    child_level, total, grandchildren = decode_manifest(data)
                except Refused:
                    raise Refused("malformed") from None
                refuse_if(child_level != level - 1 or total != length, "malformed")
                refuse_if(not last and len(grandchildren) != FAN_OUT, "malformed")
                below(child_level, grandchildren, last)

    kind, _, data = open_block(digest, blocks[digest], key, secrets)
    if kind != 1:
        leaf(kind, data, size)
    else:
        try:
            level, total, children = decode_manifest(data)
        except Refused:
            raise Refused("malformed") from None
        refuse_if(total != size or len(children) < 2, "malformed")
        below(level, children, True)
    return kinds.pop(), b"".join(out)


def write_object(kind, data, secret, least, mean, most):
    """`manifest.md`, "Shape": the link, and the blocks in the order they are handed out. The inputs are noise, which no packing makes shorter."""
    order = []

    def sealed(kind, data):
        block, key = seal_stored(kind, data, secret)
        digest = blake3(block)
        order.append(digest)
        return digest, key, block

    # One open group for each level; a full one is written as soon as one more child comes.
    groups = []

    def close(level):
        children = groups[level]
        groups[level] = []
        digest, key, _ = sealed(1, encode_manifest(level + 1, children))
        return digest, key, sum(child[2] for child in children)

    def push(level, child):
        if level == len(groups):
            groups.append([])
        if len(groups[level]) == FAN_OUT:
            push(level + 1, close(level))
        groups[level].append(child)

    gear = gear_table(secret)
    start, chunks = 0, []
    for length in cut(data, gear, least, mean, most) or [0]:
        digest, key, _ = sealed(kind, data[start:start + length])
        chunks.append((digest, key, length))
        if len(data):
            push(0, chunks[-1])
        start += length
    root = chunks[0]
    if len(chunks) > 1:
        level = 0
        while True:
            root = close(level)
            if level + 1 == len(groups):
                break
            push(level + 1, root)
            level += 1
            if level + 1 == len(groups) and len(groups[level]) == 1:
                root = groups[level][0]
                break
    return root[0] + root[1] + struct.pack("<Q", len(data)), order


def check_object(vector):
    secret = bytes.fromhex(vector["secret"])
    if "sealed" in vector:
        blocks = {blake3(bytes.fromhex(block)): bytes.fromhex(block) for block in vector["sealed"]}
        read_object(bytes.fromhex(vector["link"]), blocks, [secret])
        return
    link = bytes.fromhex(vector["link"])
    expect(cid_of_digest(link[:32]), vector["cid"], "CID of the link")
    expect(int.from_bytes(link[64:], "little"), vector["input_len"], "size of the link")
    data = vector_input(vector)
    found, order = write_object(vector["kind"], data, secret, vector["min"], vector["mean"], vector["max"])
    expect(found, link, "link")
    expect(len(order), vector["blocks"], "number of blocks")
    expect(blake3(b"".join(order)).hex(), vector["digests_hash"], "digests of all blocks")


# --- tree.md --------------------------------------------------------------------------------------------------------------------------------

def decode_listing(data):
    """`tree.md`, "Listing"."""
    refuse_if(len(data) > 256 << 20, "too long")
    refuse_if(not data, "count")
    refuse_if(data[0] != 1, "version")
    reader = Reader(data[1:], "count")
    entries = []
    for _ in range(reader.number(4)):
        name = reader.take(reader.number(1))
        refuse_if(name in (b"", b".", b"..") or b"/" in name or b"\0" in name, "name")
        refuse_if(entries and name <= entries[-1]["name"], "order")
        kind, mode, mtime = reader.number(1), reader.number(4), reader.number(8)
        refuse_if(kind > 2 or mode > 0o7777, "kind")
        entries.append({"name": name, "kind": kind, "mode": mode, "mtime_ms": mtime, "digest": reader.take(32), "key": reader.take(32),
                        "size": reader.number(8)})
    refuse_if(reader.left(), "count")
    return entries


def check_tree(vector):
    entries = decode_listing(bytes.fromhex(vector["listing"]))
    for entry in entries:
        for field in ("name", "digest", "key"):
            entry[field] = entry[field].hex()
    expect(entries, vector["entries"], "listing")
    written = struct.pack("<BI", 1, len(entries))
    for entry in vector["entries"]:
        name = bytes.fromhex(entry["name"])
        written += bytes([len(name)]) + name + struct.pack("<BIQ", entry["kind"], entry["mode"], entry["mtime_ms"])
        written += bytes.fromhex(entry["digest"] + entry["key"]) + struct.pack("<Q", entry["size"])
    expect(written.hex(), vector["listing"], "listing written again")


# --- pack.md --------------------------------------------------------------------------------------------------------------------------------

PACK_MAX, BLOCK_MAX, PACK_BLOCKS_MAX, CID_MAX = 64 << 20, 4 << 20, 65536, 128
OURS = bytes.fromhex("01551e20")


def varint(reader):
    """An unsigned varint in its shortest form."""
    value, shift = 0, 0
    while True:
        byte = reader.number(1)
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            refuse_if(byte == 0 and shift > 7 or shift > 63, reader.short)
            return value


def check_binary_cid(cid, word):
    """A binary CID in its shortest form, that says which hash it holds: (hash function, digest)."""
    refuse_if(not 0 < len(cid) <= CID_MAX, word)
    reader = Reader(cid, word)
    if cid[:2] == b"\x12\x20":
        reader.take(2)
        function, length = 0x12, 32
    else:
        refuse_if(varint(reader) != 1, word)
        varint(reader)
        function, length = varint(reader), varint(reader)
    digest = reader.take(length)
    refuse_if(reader.left() or cid[:4] == OURS and length == 32, word)
    return function, digest


def names_block(cid, block):
    """Whether the block has the hash in its CID; only BLAKE3-256 and SHA2-256 are computed."""
    if cid[:4] == OURS and len(cid) == 36:
        return blake3(block) == cid[4:]
    function, digest = check_binary_cid(cid, "a CID that was read before")
    return function == 0x12 and hashlib.sha256(block).digest() == digest or function == 0x1E and blake3(block) == digest


def read_pack(data):
    """`pack.md`, "Reading": id, suite, class, space, blocks as (CID, offset of the block, block)."""
    refuse_if(not 116 <= len(data) <= PACK_MAX, "not the length of a pack")
    end = len(data) - 52
    count, index_offset = struct.unpack("<IQ", data[end:end + 12])
    bad_trailer = data[-8:] != b"kithpend" or not 1 <= count <= PACK_BLOCKS_MAX or not 64 <= index_offset <= end
    refuse_if(bad_trailer, "bad pack trailer")

    suite, kind = data[9], data[10]
    good_header = data[:8] == b"kithpack" and data[8] == 1 and 1 <= kind <= 7 and (suite == 0) == (kind == 4) and data[11] == 0
    refuse_if(not good_header or data[44:64] != bytes(20), "bad pack header")

    index = data[index_offset:end]
    refuse_if(derive("kith pack index 1", index) != data[end + 12:end + 44], "bad pack index")
    reader, items = Reader(index, "bad pack index"), []
    for _ in range(count):
        start = reader.place
        cid_kind = reader.number(1)
        refuse_if(cid_kind not in (1, 255), "bad pack index")
        if cid_kind == 1:
            cid = OURS + reader.take(32)
        else:
            cid = reader.take(reader.number(1))
            check_binary_cid(cid, "bad pack index")
        written = index[start:reader.place]
        refuse_if(items and written <= items[-1][0], "bad pack index")
        items.append((written, cid, reader.number(4)))
    refuse_if(reader.left(), "bad pack index")

    blocks, place = [], 64
    in_order = sorted(items, key=lambda item: item[2])
    for number, (written, cid, offset) in enumerate(in_order):
        behind = in_order[number + 1][2] if number + 1 < count else index_offset
        head = 4 + len(written)
        refuse_if(offset != place or not head <= behind - offset <= head + BLOCK_MAX, "bad pack index")
        blocks.append((written, cid, offset, offset + head, behind))
        place = behind
    refuse_if(place != index_offset, "bad pack index")

    for written, _, offset, start, behind in blocks:
        head = struct.pack("<I", behind - start) + written
        refuse_if(data[offset:start] != head, f"bad pack record at {offset}")
    for _, cid, _, start, behind in blocks:
        refuse_if(not names_block(cid, data[start:behind]), f"block at {start} of the pack does not match its name")
    found = [(cid, start, data[start:behind]) for _, cid, _, start, behind in blocks]
    return blake3(data), suite, kind, data[12:44], found


def check_pack(vector):
    pack_id, suite, kind, space, blocks = read_pack(bytes.fromhex(vector["pack"]))
    expect((pack_id.hex(), suite, kind, space.hex()), (vector["id"], vector["suite"], vector["class"], vector["space"]), "header")
    found = [{"cid": cid.hex(), "offset": start, "len": len(block), "block": block.hex()} for cid, start, block in blocks]
    expect(found, sorted(vector["blocks"], key=lambda block: block["offset"]), "blocks")


# --- log.md ---------------------------------------------------------------------------------------------------------------------------------

LOG_BEGINNING = b"kithlog\n\1" + bytes(7)
FRAME = bytes.fromhex("f16b6c1f")


def log_head(data, place):
    """The length a sound head at that place states, or None."""
    head = data[place:place + 48]
    if len(head) < 48 or head[:4] != FRAME:
        return None
    length = int.from_bytes(head[4:8], "little")
    check = derive("kith log position 1", struct.pack("<QI", place, length))[:8]
    return length if length <= 4 << 20 and head[8:16] == check else None


def log_frame(data, place):
    """The record of a sound frame at that place, or None."""
    length = log_head(data, place)
    if length is None or place + 48 + length > len(data):
        return None
    record = data[place + 48:place + 48 + length]
    return record if derive("kith log record 1", record) == data[place + 16:place + 48] else None


def open_log(data):
    """`log.md`, "Opening": records, damaged ranges, bytes cut off at the end, length afterwards."""
    if len(data) <= 16 and all(byte in (0, LOG_BEGINNING[place]) for place, byte in enumerate(data)):
        return [], [], 0, 16
    records, damaged, place, sound_end = [], [], 16, 16
    if data[:16] != LOG_BEGINNING:
        place = sound_end = 0
    while place < len(data):
        record = log_frame(data, place)
        if record is None:
            length = log_head(data, place)
            behind = place + 48 + length if length is not None else None
            if behind is None or log_frame(data, behind) is None:
                behind = data.find(FRAME, place + 1)
                while behind >= 0 and log_frame(data, behind) is None:
                    behind = data.find(FRAME, behind + 1)
            if behind < 0:
                break
            place = behind
            continue
        if place > sound_end:
            damaged.append([sound_end, place])
        records.append(record)
        place += 48 + len(record)
        sound_end = place
    refuse_if(sound_end == 0, "log is not a log of version 1")
    return records, damaged, len(data) - sound_end, sound_end


def check_log(vector):
    records, damaged, torn, length = open_log(bytes.fromhex(vector["log"]))
    expect([record.hex() for record in records], vector["records"], "records")
    expect((damaged, torn, length), (vector["damaged"], vector["torn_bytes"], vector["len_after"]), "what was mended")


# --- gossip.md: the digest ------------------------------------------------------------------------------------------------------------------

def digest_node(keys, kind, generation):
    """`gossip.md`, "Digest tree": the hash of the node over sorted keys, each as 80 nibbles."""
    length = 0
    if len(keys) == 1:
        length = 80
    elif keys:
        while keys[0][length] == keys[-1][length]:
            length += 1
    path = keys[0][:length] if keys else ""
    below = b""
    if len(keys) > 1:
        for nibble in "0123456789abcdef":
            part = [key for key in keys if key[length] == nibble]
            if part:
                below += digest_node(part, kind, generation)
    packed = bytes.fromhex(path + "0" * (length % 2))
    return derive("kith digest 1", struct.pack("<BIQB", kind, generation, len(keys), length) + packed + below)


def check_digest(vector):
    if "message" in vector:
        raise Elsewhere
    root = digest_node(sorted(vector["keys"]), vector["kind"], vector["generation"])
    expect((root.hex(), len(vector["keys"])), (vector["root"], vector["count"]), "root")


# --- names.md: versions ---------------------------------------------------------------------------------------------------------------------

def decode_version(data):
    """`names.md`, "Version"."""
    reader = Reader(data, "malformed")
    refuse_if(reader.number(2) != 1, "malformed")
    refuse_if(reader.number(4) != reader.left(), "malformed")
    flags, inode, parent = reader.number(1), reader.take(16), reader.take(16)
    kind, deleted, linked = flags & 3, bool(flags & 4), bool(flags & 8)
    mode, mtime, name = reader.number(4), reader.number(8), reader.take(reader.number(1))
    refuse_if(flags > 15 or kind == 3 or inode in (bytes(16), parent) or mode > 0o7777, "malformed")
    refuse_if(name in (b"", b".", b"..") or b"/" in name or b"\0" in name, "malformed")
    replaces = [(reader.take(32), reader.number(4)) for _ in range(reader.number(1))]
    refuse_if(any(one >= two for one, two in zip(replaces, replaces[1:])), "malformed")
    link = reader.take(72) if linked else None
    refuse_if(reader.left() or linked and deleted or not linked and not deleted and kind != 1, "malformed")
    return {"kind": kind, "deleted": deleted, "inode": inode.hex(), "parent": parent.hex(), "mode": mode, "mtime_ms": mtime,
            "name": name.hex(), "replaces": [{"entry": entry.hex(), "index": index} for entry, index in replaces], "link": link and link.hex()}


def check_names(vector):
    if "record" not in vector:
        raise Elsewhere
    expect(decode_version(bytes.fromhex(vector["record"])), vector["fields"], "version")


# --- pairing.md -----------------------------------------------------------------------------------------------------------------------------

def read_address(data):
    text = data.decode("latin-1")
    refuse_if(not text.startswith("/") or any(not 32 < ord(letter) < 127 for letter in text), "malformed")
    return text


def decode_ticket(text):
    """`pairing.md`, "Ticket"."""
    text = "".join(text.split()).lower()
    refuse_if(not text.startswith("kith"), "no ticket")
    refuse_if(text[4:5] != "1", "newer" if text[4:5].isdigit() else "no ticket")
    bits, count = 0, len(text[5:]) * 5
    for letter in text[5:]:
        refuse_if(letter not in BASE32, "mistyped")
        bits = bits << 5 | BASE32.index(letter)
    refuse_if(bits & ((1 << count % 8) - 1) or count % 8 > 4, "mistyped")
    data = (bits >> count % 8).to_bytes(count // 8, "big")
    body, checksum = data[:-4], data[-4:]
    refuse_if(derive("kith ticket checksum 1", body)[:4] != checksum, "mistyped")
    refuse_if(body[:1] != b"\1", "newer")
    reader = Reader(body[1:], "malformed")
    ticket = {"mesh": reader.take(32), "secret": reader.take(16), "door": reader.take(32), "role": reader.number(1), "expiry": reader.number(8)}
    count = reader.number(1)
    refuse_if(not 1 <= count <= 8 or ticket["role"] not in (1, 2), "malformed")
    addresses = []
    for _ in range(count):
        length = reader.number(1)
        refuse_if(not 1 <= length <= 128, "malformed")
        addresses.append(read_address(reader.take(length)))
    refuse_if(reader.left() or len(set(addresses)) != count, "malformed")
    ticket["addresses"], ticket["id"] = addresses, derive("kith ticket id 1", ticket["secret"])
    ticket["proof_key"] = derive("kith pairing proof key 1", ticket["secret"] + ticket["mesh"] + bytes([ticket["role"]]))
    return ticket


def take_in(transcript, data):
    """`pairing.md`, "Transcript"."""
    return derive("kith pairing transcript 1", transcript + data)


def transcript_start(door, newcomer):
    return derive("kith pairing start 1", struct.pack("<H", len(door)) + door + struct.pack("<H", len(newcomer)) + newcomer)


def check_proof(proof_key, device, occasion, letter, transcript, body, proof):
    """`pairing.md`, "Proof": MAC before signature."""
    signature, mac = proof[:64], proof[64:]
    refuse_if(len(proof) != 96, "refused")
    refuse_if(blake3_keyed(proof_key, letter + take_in(transcript, body + signature)) != mac, "refused")
    refuse_if(not signature_counts(device, f"kith pairing proof {occasion} 1", take_in(transcript, body), signature), "refused")


def read_opening(message, kind):
    """Nonce, device key, agreement key, name or genesis, the opening as bytes, the proof."""
    refuse_if(message[:1] != bytes([kind]), "refused")
    reader = Reader(message[1:], "refused")
    fields = [reader.take(32), reader.take(32), reader.take(32), reader.take(reader.number(2))]
    return fields, message[1:1 + reader.place], reader.take(reader.left())


def check_message_3(proof_key, transcript, commitment, message):
    fields, opening, proof = read_opening(message, 0x13)
    check_proof(proof_key, fields[1], "newcomer", b"J", transcript, b"\x13" + opening, proof)
    refuse_if(derive("kith pairing commit newcomer 1", opening) != commitment, "refused")
    return fields, opening


def read_guide(reader):
    """`pairing.md`, "Guide"."""
    heads = [reader.take(32) for _ in range(reader.number(2))]
    refuse_if(len(heads) > 1024 or heads != sorted(set(heads)), "malformed")
    devices = {}
    for _ in range(reader.number(2)):
        device = reader.take(32)
        refuse_if(devices and device <= max(devices), "malformed")
        devices[device] = [read_address(reader.take(reader.number(2))) for _ in range(reader.number(1))]
        refuse_if(not 1 <= len(devices[device]) <= 16 or len(set(devices[device])) != len(devices[device]), "malformed")
    refuse_if(len(devices) > 256, "malformed")
    return heads, devices, read_admission(reader)


def read_admission(reader):
    count = reader.number(4)
    refuse_if(not 1 <= count <= 1 << 18, "malformed")
    entries = []
    for _ in range(count):
        length = reader.number(4)
        refuse_if(not 1 <= length <= (1 << 20) + (1 << 14), "malformed")
        entries.append(reader.take(length))
    refuse_if(reader.left(), "malformed")
    return entries


def read_welcome(data):
    reader = Reader(data, "malformed")
    epoch = reader.take(32)
    envelopes = [reader.take(reader.number(2)) for _ in range(2)]
    return epoch, envelopes, read_guide(reader)


def join_frames(frames, kind):
    """`pairing.md`, "Long messages"."""
    content = b""
    for place, frame in enumerate(frames):
        refuse_if(frame[0] != kind or frame[1] != (place == len(frames) - 1), "malformed")
        content += frame[2:]
    return content


def check_handshake(vector):
    raw = {key: bytes.fromhex(value) if isinstance(value, str) and key not in ("code", "name", "newcomer_name", "ticket", "what", "expect") else value
           for key, value in vector.items()}
    messages = [bytes.fromhex(message) for message in vector["messages"]]
    ticket = decode_ticket(vector["ticket"])
    key = ticket["proof_key"]
    expect(key, raw["proof_key"], "proof key")
    t0 = transcript_start(raw["door_peer"], raw["newcomer_peer"])
    expect(t0, raw["transcript_start"], "T0")
    expect(messages[0][:2] + ticket["id"], messages[0][:34], "message 1")
    commitment, t1 = messages[0][34:], take_in(t0, messages[0])
    t2 = take_in(t1, messages[1])
    newcomer, opening_j = check_message_3(key, t2, commitment, messages[2])
    t3 = take_in(t2, messages[2])
    admitter, opening_m, proof = read_opening(messages[3], 0x14)
    check_proof(key, admitter[1], "admitter", b"M", t3, b"\x14" + opening_m, proof)
    expect(derive("kith pairing commit admitter 1", opening_m), messages[1][1:], "C_M")
    expect(derive("kith genesis 1", admitter[3]), ticket["mesh"], "genesis")
    t4 = take_in(t3, messages[3])
    expect((t2, t3, t4), (raw["transcript_2"], raw["transcript_3"], raw["transcript_4"]), "T2, T3, T4")
    code = int.from_bytes(derive("kith pairing code 1", t2 + opening_j + opening_m)[:8], "little") % 1000000
    expect(f"{code // 1000:03} {code % 1000:03}", vector["code"], "code")
    expect((newcomer[3].decode(), admitter[3]), (vector["newcomer_name"], raw["genesis"]), "name and genesis")
    for side, who in ((newcomer, "newcomer"), (admitter, "admitter")):
        expect(side[1], ed25519_public(raw[f"{who}_ed25519_seed"]), f"device key of the {who}")
        expect(side[2], x25519_public(raw[f"{who}_x25519_secret"]), f"agreement key of the {who}")

    content = join_frames([message for message in messages[4:] if message[0] == 0x15], 0x15)
    welcome, proof = content[:-96], content[-96:]
    t4_5 = take_in(t4, b"\x15")
    check_proof(key, admitter[1], "welcome", b"W", t4_5, welcome, proof)
    t5 = take_in(t4_5, content)
    expect(t5, raw["transcript_5"], "T5")
    epoch, envelopes, _ = read_welcome(welcome)
    info = b"kith pairing parts 1" + ticket["mesh"] + epoch + admitter[1] + newcomer[1] + t4
    expect((epoch, info), (raw["epoch"], raw["parts_info"]), "epoch and info of the parts")
    for place, part in enumerate(("holder_part", "member_part")):
        found = hpke_open(raw["newcomer_x25519_secret"], info, bytes([place + 1]), envelopes[place]) if envelopes[place] else None
        expect(found, raw[part], part)
    last = messages[-1]
    expect(last[:1] == b"\x16" and signature_counts(newcomer[1], "kith pairing received 1", t5, last[1:]), True, "message 6")

    again = raw["again"]
    expect(again[:2] + ticket["id"] + t3, again[:66], "again")
    check_proof(key, newcomer[1], "again", b"A", transcript_start(raw["door_peer"], raw["again_newcomer_peer"]), again[:66], again[66:])
    check_book(raw["book_after"])
    return key, t2, commitment


def check_words(vector):
    messages = [bytes.fromhex(message) for message in vector["messages"]]
    transcript = transcript_start(bytes.fromhex(vector["door_peer"]), bytes.fromhex(vector["newcomer_peer"]))
    for message in messages[:2]:
        transcript = take_in(transcript, message)
    root = ed25519_public(bytes.fromhex(vector["root_ed25519_seed"]))
    check_root_proof(transcript, root, messages[2])
    expect(messages[2][1:33].hex(), vector["mesh"], "mesh")
    guide = join_frames([message for message in messages if message[0] == 0x24], 0x24)
    heads, devices, entries = read_guide(Reader(guide, "malformed"))
    found = [head.hex() for head in heads], {device.hex(): known for device, known in devices.items()}, [entry.hex() for entry in entries]
    expect(found, (vector["frontier"], vector["addresses"], vector["entries"]), "guide")
    admission = join_frames([message for message in messages if message[0] == 0x25], 0x25)
    expect([entry.hex() for entry in read_admission(Reader(admission, "malformed"))], vector["admission"], "admission")
    expect(messages[-1], b"\x26", "words 6")
    return transcript, root


def check_root_proof(transcript, root, message):
    refuse_if(len(message) != 97 or message[0] != 0x23, "refused")
    refuse_if(not signature_counts(root, "kith words proof 1", take_in(transcript, message[:33]), message[33:]), "refused")


def check_book(data):
    """`pairing.md`, "Ticket book"."""
    refuse_if(len(data) < 34 or derive("kith ticket book 1", data[:-32]) != data[-32:], "damaged")
    reader = Reader(data[:-32], "damaged")
    refuse_if(reader.number(1) != 1, "damaged")
    last = b""
    for _ in range(reader.number(1)):
        ticket, _, role, stage, _ = reader.take(32), reader.take(32), reader.number(1), reader.number(1), reader.number(8)
        refuse_if(ticket <= last or role not in (1, 2) or not 1 <= stage <= 4, "damaged")
        last = ticket
        if stage >= 2:
            reader.take(64)
            reader.take(reader.number(1))
            reader.take(32)
            refuse_if(reader.number(4) >= 1000000, "damaged")
            length = reader.number(2)
            refuse_if(length > 2048, "damaged")
            reader.take(length)
    refuse_if(reader.left(), "damaged")


def check_first_message(data):
    reader = Reader(data, "malformed")
    kind = reader.number(1)
    refuse_if(kind not in (1, 2, 3) or reader.number(1) != 1, "malformed")
    reader.take({1: 64, 2: 32, 3: 160}[kind])
    refuse_if(reader.left(), "malformed")


HANDSHAKES = []
WAYS_BY_WORDS = []


def check_pairing(vector):
    what = vector["what"]
    if what == "ticket":
        ticket = decode_ticket(vector["text"])
        for key in ("mesh", "secret", "door", "id", "role", "expiry", "addresses"):
            found = ticket[key].hex() if isinstance(ticket[key], bytes) else ticket[key]
            expect(found, vector[key], key)
    elif what == "ticket handshake":
        HANDSHAKES.append(check_handshake(vector))
    elif what.startswith("message 3"):
        check_message_3(*HANDSHAKES[0], bytes.fromhex(vector["message"]))
    elif what == "words":
        WAYS_BY_WORDS.append(check_words(vector))
    elif what.startswith("root proof"):
        check_root_proof(*WAYS_BY_WORDS[0], bytes.fromhex(vector["message"]))
    else:
        data = bytes.fromhex(vector["bytes"])
        {"first message": check_first_message, "welcome": read_welcome, "book": check_book,
         "guide": lambda data: read_guide(Reader(data, "malformed")),
         "admission": lambda data: read_admission(Reader(data, "malformed"))}[what](data)


# --- chain.md -------------------------------------------------------------------------------------------------------------------------------

SEALS = {0: "open", 1: "holder key", 2: "change key"}


def decode_header(reader):
    """`chain.md`, "Header"."""
    unknown, form = "header of an unknown version or kind", "header is not in canonical form"
    version, suite, flags, reserved = reader.take(4)
    header = {"space": reader.take(32)}
    document, depth, reserved_too, prefix, generation = (reader.number(size) for size in (1, 1, 2, 4, 4))
    refuse_if(version != 1 or suite != 1 or document not in (1, 2, 3) or depth or prefix or generation, unknown)
    refuse_if(flags or reserved or reserved_too, form)
    header.update(document=document, author=reader.take(32), nonce=reader.take(16), seq=reader.number(8), previous=reader.take(32))
    header.update(stamp=reader.number(8), epoch=reader.take(32), payload_length=reader.number(4), payload_root=reader.take(32))
    refuse_if((header["previous"] == bytes(32)) != (header["seq"] == 0) or header["payload_length"] > 1 << 20, form)
    for name, most in (("access_heads", 16), ("dependencies", 64)):
        count = reader.number(1)
        refuse_if(count > most, form)
        header[name] = [reader.take(32) for _ in range(count)]
        refuse_if(header[name] != sorted(set(header[name])) or bytes(32) in header[name], form)
    refuse_if(header["previous"] in header["dependencies"], form)
    genesis = document == 1 and header["seq"] == 0 and not header["dependencies"]
    refuse_if(not header["access_heads"] and not genesis, form)
    return header


def payload_parts(payload):
    """`chain.md`, "Payload": (seal kind, bytes) of each part."""
    word = "payload is not the one its header names"
    reader = Reader(payload, word)
    count = reader.number(2)
    refuse_if(not 1 <= count <= 8, word)
    parts = []
    for _ in range(count):
        seal, length = reader.number(1), reader.number(4)
        refuse_if(seal not in SEALS or length > reader.left(), word)
        parts.append((seal, reader.take(length)))
    refuse_if(reader.left(), word)
    return parts


def payload_root(parts):
    listed = b"".join(struct.pack("<BI", seal, len(data)) + blake3(data) for seal, data in parts)
    return derive("kith payload 1", struct.pack("<H", len(parts)) + listed)


def open_part(header_bytes, parts, place, keys):
    """`chain.md`, "Sealed parts": codec and body."""
    seal, data = parts[place]
    if seal:
        domain = {1: "kith holder seal 1", 2: "kith change seal 1"}[seal]
        aad = header_bytes[:176] + bytes(36) + header_bytes[212:] + struct.pack("<HH", place, len(parts))
        data = xchacha20poly1305_open(derive(domain, keys[seal]), data[:24], aad, data[24:]) if len(data) >= 40 else None
        refuse_if(data is None, "part does not open")
    reader = Reader(data, "part is malformed")
    codec, length = reader.number(1), reader.number(4)
    refuse_if(codec not in (1, 2) or len(data) != (padme(5 + length) if seal else 5 + length), "part is malformed")
    body = reader.take(length)
    refuse_if(reader.take(reader.left()).strip(b"\0"), "part is malformed")
    return codec, body


def record_list(data):
    """`chain.md`, "Record list"."""
    reader, records = Reader(data, "record list is malformed"), []
    while reader.left():
        kind, length = reader.number(2), reader.number(4)
        records.append((kind, reader.take(length)))
    return records


def decode_entry(data):
    """`chain.md`, "Entry": id, header, its bytes, parts (or None without a payload)."""
    reader = Reader(data, "header is cut short")
    header = decode_header(reader)
    header_bytes = data[:reader.place]
    entry_id = derive("kith entry id 1", header_bytes)
    reader.short = "entry is malformed"
    refuse_if(reader.number(2) != 64, "entry is malformed")
    signature, follows = reader.take(64), reader.number(1)
    refuse_if(follows > 1 or not follows and reader.left(), "entry is malformed")
    parts = None
    if follows:
        payload = reader.take(reader.left())
        refuse_if(len(payload) != header["payload_length"], "payload is not the one its header names")
        parts = payload_parts(payload)
        refuse_if(payload_root(parts) != header["payload_root"], "payload is not the one its header names")
    refuse_if(not signature_counts(header["author"], "kith entry 1", entry_id, signature), "signature does not hold")
    return entry_id, header, header_bytes, parts


def check_chain(vector):
    keys = {seal: bytes.fromhex(vector.get(name) or "00" * 32) for seal, name in ((1, "holder_key"), (2, "change_key"))}
    entry_id, header, header_bytes, parts = decode_entry(bytes.fromhex(vector["entry"]))
    opened = []
    for place in range(len(parts or [])):
        seal, _ = parts[place]
        if seal and not vector.get({1: "holder_key", 2: "change_key"}[seal]):
            continue
        codec, body = open_part(header_bytes, parts, place, keys)
        records = record_list(body) if codec == 2 else []
        for kind, record in records:
            if kind == 1 and header["document"] == 1:
                expect(derive("kith genesis 1", record), header["space"], "space")
        if codec == 1:
            change = read_change(body)
            expect((change["nonce"], change["entry_seq"]), (header["nonce"], header["seq"]), "place of the change")
            expect(build_change(**change), body, "change written again")
        shown = [{"type": kind, "body": record.hex()} for kind, record in records]
        opened.append({"seal": SEALS[seal], "codec": codec, "body": body.hex(), "records": shown})
    found = {"id": entry_id, **{name: header[name] for name in ("author", "space", "payload_root")}}
    for name, value in found.items():
        expect(value.hex(), vector[name], name)
    expect(opened, vector["parts"], "parts")


# --- documents.md: changes ------------------------------------------------------------------------------------------------------------------

def leb(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def signed_leb(value):
    out = b""
    while not -64 <= value < 64:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value & 127])


def read_leb(reader):
    value, shift = 0, 0
    while True:
        byte = reader.number(1)
        value |= (byte & 127) << shift
        shift += 7
        refuse_if(shift > 63, "misfit")
        if byte < 128:
            return value


def read_signed_leb(reader):
    start = reader.place
    value = read_leb(reader)
    bits = 7 * (reader.place - start)
    return value - (1 << bits) if value >> bits - 1 else value


def runs(values):
    """`documents.md`, "Changes": equal values in a row once, others as they are."""
    groups = []
    for value in values:
        if groups and groups[-1][0] == value:
            groups[-1][1] += 1
        else:
            groups.append([value, 1])
    out, alone = b"", []
    for value, count in groups + [[None, 2]]:
        if count == 1:
            alone.append(value)
            continue
        if alone:
            out, alone = out + signed_leb(-len(alone)) + b"".join(map(leb, alone)), []
        if value is not None:
            out += signed_leb(count) + leb(value)
    return out


def build_change(nonce, entry_seq, seq, start_op, dependencies, records):
    """The one change of these records in this place."""
    count = len(records)
    texts = [(nonce + struct.pack(">QI", entry_seq, place)).hex().encode() for place in range(count)]
    columns = {
        0x15: signed_leb(-count) + b"".join(leb(len(text)) + text for text in texts),
        0x34: leb(count),
        0x42: runs([1] * count),
        0x56: runs([16 * len(record) + 7 for record in records]),
        0x57: b"".join(records),
        0x70: runs([0] * count),
    }
    rest = leb(len(dependencies)) + b"".join(sorted(dependencies)) + leb(16) + nonce + leb(seq) + leb(start_op)
    rest += signed_leb(0) + leb(0) + leb(0) + leb(len(columns))
    rest += b"".join(leb(column) + leb(len(data)) for column, data in columns.items()) + b"".join(columns.values())
    chunk = b"\1" + leb(len(rest)) + rest
    return bytes.fromhex("856f4a83") + hashlib.sha256(chunk).digest()[:4] + chunk


def read_change(data):
    """What a change says of itself; only records are taken from it, the rest has to follow from the entry."""
    reader = Reader(data, "misfit")
    reader.take(8)
    refuse_if(reader.number(1) != 1, "misfit")
    read_leb(reader)
    dependencies = [reader.take(32) for _ in range(min(read_leb(reader), 1000))]
    nonce = reader.take(read_leb(reader))
    seq, start_op = read_leb(reader), read_leb(reader)
    read_signed_leb(reader)
    reader.take(read_leb(reader))
    refuse_if(read_leb(reader) or read_leb(reader) != 6, "misfit")
    lengths = [(read_leb(reader), read_leb(reader)) for _ in range(6)]
    columns = {column: reader.take(length) for column, length in lengths}
    refuse_if(reader.left() or not {0x15, 0x56, 0x57} <= set(columns), "misfit")
    types, values, records = Reader(columns[0x56], "misfit"), Reader(columns[0x57], "misfit"), []
    while types.left():
        count = read_signed_leb(types)
        refuse_if(abs(count) > 10000, "misfit")
        for kind in [read_leb(types)] * count if count > 0 else [read_leb(types) for _ in range(-count)]:
            refuse_if(kind % 16 != 7 or not 1 <= kind // 16 <= 65536, "misfit")
            records.append(values.take(kind // 16))
    refuse_if(values.left() or not 1 <= len(records) <= 10000, "misfit")
    first_key = Reader(columns[0x15], "misfit")
    read_signed_leb(first_key)
    text = first_key.take(read_leb(first_key))
    refuse_if(len(text) != 56, "misfit")
    entry_seq = int(text[32:48], 16)
    return {"nonce": nonce, "entry_seq": entry_seq, "seq": seq, "start_op": start_op, "dependencies": dependencies, "records": records}


def check_hostile(vector):
    """`documents.md`, "What a change must be"."""
    data = bytes.fromhex(vector["change"])
    records = read_change(data)["records"]
    refuse_if(vector["start_op"] + len(records) - 1 > 1 << 31, "misfit")
    dependencies = [bytes.fromhex(change) for change in vector["dependencies"]]
    place = bytes.fromhex(vector["nonce"]), vector["entry_seq"], vector["seq"], vector["start_op"], dependencies
    refuse_if(build_change(*place, records) != data, "misfit")
    expect([record.hex() for record in records], vector["records"], "records")


# --- epoch.md -------------------------------------------------------------------------------------------------------------------------------

def check_epoch(vector):
    body, space = bytes.fromhex(vector["body"]), bytes.fromhex(vector.get("space", ""))
    reader = Reader(body, "malformed")
    if vector["kind"] == "epoch":
        holder, member, count = reader.take(32), reader.take(32), reader.number(1)
        refuse_if(count > 16, "malformed")
        parents = [reader.take(32) for _ in range(count)]
        refuse_if(reader.left() or parents != sorted(set(parents)), "malformed")
        expect(derive("kith epoch 1", space + body).hex(), vector["id"], "id")
        expect(derive("kith holder part 1", bytes.fromhex(vector["holder_part"])), holder, "commitment to the holder part")
        expect(derive("kith member part 1", bytes.fromhex(vector["member_part"])), member, "commitment to the member part")
        return
    one, other, part = reader.take(32), reader.take(32), reader.take(1)
    refuse_if(part not in (b"\1", b"\2"), "malformed")
    sealed = reader.take(104 if vector["kind"] == "link" else 112)
    refuse_if(reader.left(), "malformed")
    bound = space + one + other + part
    if vector["kind"] == "link":
        found = xchacha20poly1305_open(derive("kith link 1", bytes.fromhex(vector["key"])), sealed[:24], bound, sealed[24:])
    else:
        expect(other.hex(), vector["recipient"], "recipient")
        expect(x25519_public(bytes.fromhex(vector["secret"])), other, "public key of the recipient")
        found = hpke_open(bytes.fromhex(vector["secret"]), b"kith envelope 1" + bound, b"", sealed)
    refuse_if(found is None, "does not open")
    expect(found.hex(), vector["opens_to"], "opened")
    if vector["kind"] == "envelope":
        # One plaintext, one ephemeral key: all that is left of HPKE follows from them.
        seed = derive("kith envelope seed 1", found + one + other + part)
        material = blake3_keyed(derive("kith rng 1", seed), bytes(8), 64)[32:]
        refuse_if(hpke_ephemeral(material) != sealed[:32], "is not the one that its part makes")


# --- car.md, backup.md ----------------------------------------------------------------------------------------------------------------------

CAR_HEADER_MAX, CAR_SECTION_MAX, CAR_TRIES = 1 << 20, 8 << 20, 1024
CAR_PRAGMA = bytes.fromhex("0aa16776657273696f6e02")


def leb_at(data, place):
    """A varint at that place, in its shortest form and at most nine bytes long: (number, place behind it), or nothing."""
    value = 0
    for count in range(9):
        if place + count >= len(data):
            return None
        byte = data[place + count]
        value |= (byte & 127) << 7 * count
        if byte < 128:
            return (value, place + count + 1) if byte or not count else None
    return None


class Cbor:
    """DAG-CBOR in its one form."""

    def __init__(self, data, word):
        self.reader, self.word = Reader(data, word), word

    def head(self, major):
        first = self.reader.take(1)[0]
        refuse_if(first >> 5 != major, self.word)
        low = first & 31
        if low < 24:
            return low
        refuse_if(low > 27, self.word)
        size = 1 << low - 24
        value = int.from_bytes(self.reader.take(size), "big")
        refuse_if(value < (24, 1 << 8, 1 << 16, 1 << 32)[low - 24], self.word)
        return value

    def bytes(self, major=2):
        return self.reader.take(self.head(major))

    def key(self, name):
        refuse_if(self.bytes(3) != name, self.word)

    def link(self):
        refuse_if(self.head(6) != 42, self.word)
        cid = self.bytes()
        refuse_if(cid[:1] != b"\0", self.word)
        _cid_at(cid, 1, len(cid), self.word)
        return cid[1:]

    def links(self):
        return [self.link() for _ in range(self.head(4))]

    def end(self):
        refuse_if(self.reader.left(), self.word)


def _cid_at(data, place, end, word=None):
    """The CID at that place: (CID, place behind it), or nothing. With a word, it has to fill all up to the end."""
    found = None
    if data[place:place + 2] == b"\x12\x20":
        found = place + 34
    else:
        numbers, at = [], place
        while len(numbers) < 4:
            read = leb_at(data, at)
            if not read:
                break
            numbers.append(read[0])
            at = read[1]
        if len(numbers) == 4 and numbers[0] == 1 and numbers[3] <= 64:
            found = at + numbers[3]
    if found is not None and (found > end or found - place > CID_MAX):
        found = None
    refuse_if(word and found != end, word)
    return None if found is None else (data[place:found], found)


def car_header(data):
    """Roots, version, where the sections begin and end."""
    version, place, end = 1, 0, None
    if data.startswith(CAR_PRAGMA):
        reader = Reader(data[11:], "header")
        reader.take(16)
        offset, size = reader.number(8), reader.number(8)
        reader.take(8)
        refuse_if(offset < 51 or offset + size >= 1 << 64, "header")
        version, place, end = 2, offset, offset + size
        data = data[:end]
    read = leb_at(data, place)
    refuse_if(not read or not 0 < read[0] <= CAR_HEADER_MAX or read[1] + read[0] > len(data), "header")
    cbor = Cbor(data[read[1]:read[1] + read[0]], "header")
    refuse_if(cbor.head(5) != 2, "header")
    cbor.key(b"roots")
    roots = cbor.links()
    cbor.key(b"version")
    refuse_if(cbor.head(0) != 1, "header")
    cbor.end()
    return roots, version, read[1] + read[0], end


def car_section(data, place):
    """("sound", CID, where the block begins, end), ("altered", end), or nothing."""
    read = leb_at(data, place)
    if not read or not 2 <= read[0] <= CAR_SECTION_MAX or read[1] + read[0] > len(data):
        return None
    end = read[1] + read[0]
    found = _cid_at(data, read[1], end)
    if not found:
        return None
    cid, begin = found
    block = data[begin:end]
    identity = cid[:1] == b"\1" and cid[2:3] == b"\0"
    sound = cid[4:] == block if identity else names_block(cid, block)
    return ("sound", cid, begin, end) if sound else ("altered", end)


def car_likely(data, place):
    read = leb_at(data, place)
    if not read or not 34 <= read[0] <= CAR_SECTION_MAX or read[1] + 4 > len(data):
        return False
    head = data[read[1]:read[1] + 4]
    return head[:2] == b"\x12\x20" or head[0] == 1 and head[1] in (0x55, 0x70, 0x71) and head[2] in (0x1E, 0x12) and head[3] == 0x20


def read_car(data):
    """`car.md`, "What is read": roots, version, blocks, damaged places."""
    roots, version, place, stated = car_header(data)
    whole = data if stated is None else data[:stated]
    blocks, damaged, tries = [], [], 0
    while place < len(whole):
        section = car_section(whole, place)
        if section and section[0] == "sound":
            blocks.append((section[1], section[2], section[3] - section[2]))
            place = section[3]
            continue
        if section:
            end = section[1]
            read = leb_at(whole, end)
            follows = read and 2 <= read[0] <= CAR_SECTION_MAX and (whole[read[1]:read[1] + 2] == b"\x12\x20" or whole[read[1]:read[1] + 1] == b"\1")
            if end == len(whole) or follows:
                damaged.append([place, end])
                place = end
                continue
        start, place = place, place + 1
        while place < len(whole):
            if car_likely(whole, place) and tries < CAR_TRIES:
                section = car_section(whole, place)
                if section and section[0] == "sound":
                    break
                tries += 1
            place += 1
        damaged.append([start, place])
    if stated is not None and place < stated:
        damaged.append([place, stated])
    return roots, version, blocks, damaged


def check_car(vector):
    roots, version, blocks, damaged = read_car(bytes.fromhex(vector["car"]))
    expect([root.hex() for root in roots], vector["roots"], "roots")
    expect(version, vector["version"], "version")
    found = [{"cid": cid.hex(), "offset": offset, "len": length} for cid, offset, length in blocks]
    expect(found, vector["blocks"], "blocks")
    expect(damaged, vector["damaged"], "damaged")


NODE_CID = bytes.fromhex("01711e20")


def check_backup(vector):
    if "list" in vector:
        cbor = Cbor(bytes.fromhex(vector["list"]), "refused")
        links = cbor.links()
        cbor.end()
        refuse_if(not 1 <= len(links) <= 8192 or any(link[:4] != OURS for link in links), "refused")
        expect([link.hex() for link in links], vector["cids"], "links")
        return
    record = bytes.fromhex(vector["record"])
    cbor = Cbor(record, "refused")
    refuse_if(cbor.head(5) != 6, "refused")
    cbor.key(b"kith")
    refuse_if(cbor.head(0) != 1, "refused")
    cbor.key(b"epoch")
    epoch = cbor.bytes()
    cbor.key(b"space")
    space = cbor.bytes()
    cbor.key(b"blocks")
    blocks = cbor.links()
    cbor.key(b"sealed")
    sealed = cbor.bytes()
    cbor.key(b"entries")
    entries = cbor.links()
    cbor.end()
    lists = blocks + entries
    refuse_if(len(space) != 32 or (len(epoch), len(sealed)) not in ((0, 0), (32, 112)) or any(cid[:4] != NODE_CID for cid in lists), "refused")
    expect((NODE_CID + blake3(record)).hex(), vector["cid"], "CID")
    expect([cid.hex() for cid in blocks], vector["blocks"], "blocks")
    expect([cid.hex() for cid in entries], vector["entries"], "entries")
    expect(space.hex(), vector["space"], "space")
    if sealed:
        expect(epoch.hex(), vector["epoch"], "epoch")
        key = derive("kith backup 1", bytes.fromhex(vector["change_key"]))
        link = xchacha20poly1305_open(key, sealed[:24], space + epoch, sealed[24:])
        expect((link or b"").hex(), vector["link"], "link")


# --- record.md ------------------------------------------------------------------------------------------------------------------------------

def check_record(vector):
    if vector["kind"] == "key":
        expect(derive("kith dht key 1", bytes.fromhex(vector["blinding"]) + bytes.fromhex(vector["subject"])).hex(), vector["key"], "key")
        return
    record = bytes.fromhex(vector["record"])
    refuse_if(not 64 < len(record) <= 4202, "malformed")
    said, signature = record[:-64], record[-64:]
    reader = Reader(said, "malformed")
    refuse_if(reader.take(1) != b"\1", "unknown version")
    device, _, count = reader.take(32), reader.take(8), reader.number(1)
    refuse_if(not 1 <= count <= 16, "malformed")
    addresses = []
    for _ in range(count):
        length = reader.number(1)
        refuse_if(length == 0, "malformed")
        try:
            addresses.append(reader.take(length).decode())
        except UnicodeDecodeError:
            refuse_if(True, "malformed")
    refuse_if(reader.left(), "malformed")
    refuse_if(not signature_counts(device, "kith address 1", said, signature), "not signed by its device")
    expect(device.hex(), vector["device"], "device")
    expect(addresses, vector["addresses"], "addresses")


# --- Where packs are to be kept (documents.md, "Catalogue") ---------------------------------------------------------------------------------


def check_arrangement(vector):
    reader = Reader(bytes.fromhex(vector["record"]), "malformed")
    kind, length = reader.number(2), reader.number(4)
    refuse_if(length != reader.left(), "malformed")

    def label():
        try:
            text = reader.take(reader.number(1)).decode()
        except UnicodeDecodeError:
            refuse_if(True, "malformed")
        refuse_if(not all(letter.isalnum() or letter in "-_." for letter in text), "malformed")
        return text

    if kind == 8:
        how, first, second, least, count = (reader.number(1) for _ in range(5))
        sound = {0: first == second == 0, 1: first > 0 and second == 0, 2: first > 0 and second > 0}
        refuse_if(not sound.get(how) or least == 0 or count > 16, "malformed")
        sites = [label() for _ in range(count)]
        refuse_if("" in sites or any(one.encode() >= two.encode() for one, two in zip(sites, sites[1:])), "malformed")
    elif kind == 9:
        reader.take(32 + 8 + 4)
        label()
    elif kind == 10:
        reader.take(32)
        refuse_if(reader.number(1) > 2, "malformed")
    elif kind == 3:
        names, needed, spare = [reader.take(32)], reader.number(1), reader.number(1)
        sizes = []
        for _ in range(needed):
            names.append(reader.take(32))
            sizes.append((reader.number(4), reader.number(4)))
        names += [reader.take(32) for _ in range(spare)]
        devices = {reader.take(32) for _ in range(needed + spare)}
        refuse_if(needed < 1 or spare < 1 or needed + spare > 64, "malformed")
        refuse_if(len(set(names)) != len(names) or len(devices) != needed + spare, "malformed")
        blocks, longest = sum(count for _, count in sizes), max(length for length, _ in sizes)
        refuse_if(blocks > PACK_BLOCKS_MAX or any(count < 1 or length < 116 + 74 * count for length, count in sizes), "malformed")
        longest += longest % 2
        parity = 116 + 36 + 40 * needed + 36 * blocks + longest + 74 * (1 + -(-longest // (1 << 20)))
        refuse_if(max(parity, longest) > PACK_MAX, "malformed")
    refuse_if(reader.left(), "malformed")


# --- Holdings (holdings.md) -----------------------------------------------------------------------------------------------------------------


def holdings_root(tags):
    tags = sorted(tags)
    depth = next(d for d in range(13) if 2 << 2 * d >= len(tags) or d == 12)
    buckets = [[] for _ in range(1 << depth)]
    for tag in tags:
        buckets[tag >> 64 - depth if depth else 0].append(tag)
    hashes = [blake3(b"".join(tag.to_bytes(8, "little") for tag in bucket), 16) for bucket in buckets]
    return depth, hashes, derive("kith holdings root 1", b"".join(hashes))


def holdings_head(reader, space):
    refuse_if(reader.left() < 145, "malformed: ends too early")
    said = reader.take(81)
    depth = said[44]
    stamp, count, reserved = (int.from_bytes(said[at:end], "little") for at, end in ((32, 40), (40, 44), (45, 49)))
    refuse_if(stamp >= 1 << 62 or count > 1 << 22 or depth > 12 or reserved, "malformed: head out of range")
    return depth, signature_counts(said[:32], "kith holdings 1", space + said, reader.take(64))


def check_holdings(vector):
    if vector["kind"] == "set":
        depth, _, root = holdings_root(int(tag, 16) for tag in vector["tags"])
        expect((depth, root.hex()), (vector["depth"], vector["root"]), "depth and root")
        return
    reader, space, signed = Reader(bytes.fromhex(vector["bytes"]), "malformed: ends too early"), bytes.fromhex(vector["space"]), None
    kind = reader.number(1)
    if kind == 1:
        reader.take(16)
    elif kind == 2:
        stamps = [(reader.take(32), reader.number(8)) for _ in range(reader.number(4))]
        wrong = any(one >= two for (one, _), (two, _) in zip(stamps, stamps[1:])) or any(stamp >= 1 << 62 for _, stamp in stamps)
        refuse_if(wrong, "malformed: stamps not in order or out of range")
    elif kind == 3:
        _, signed = holdings_head(reader, space)
    elif kind == 4:
        reader.take(32)
        depth, count = reader.number(1), reader.number(4)
        refuse_if(depth > 12 or count not in (0, 1 << depth), "malformed: not as many buckets as there are")
        reader.take(16 * count + 2)
    elif kind == 5:
        depth, signed = holdings_head(reader, space)
        following, last = reader.number(2), -1
        for _ in range(reader.number(2)):
            at = reader.number(2)
            refuse_if(at <= last or at >= 1 << depth, "malformed: buckets not in order")
            last = at
            tags = [reader.number(8) for _ in range(reader.number(4))]
            refuse_if(any(one >= two for one, two in zip(tags, tags[1:])), "malformed: tags not in order")
        refuse_if(following != 0xFFFF and not 0 <= last < following < 1 << depth, "malformed: goes on where it has been")
    else:
        refuse_if(True, "malformed: message of no known kind")
    refuse_if(reader.left(), "malformed: trailing bytes")
    expect(signed, vector["signed"], "signed")


# --- Placement (placement.md) ---------------------------------------------------------------------------------------------------------------

M64 = (1 << 64) - 1


def splitmix(x):
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & M64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & M64
    return x ^ x >> 31


def minus_log2(chance):
    chance |= 1
    zeros = 64 - chance.bit_length()
    mantissa, bits = chance << zeros, 0
    for _ in range(24):
        square = mantissa * mantissa
        two = square >> 127
        mantissa, bits = square >> 63 + two, bits << 1 | two
    return max((zeros + 1 << 24) - bits, 1)


def placed(pack, holders, pieces, sites):
    scored = []
    for device, site, capacity in holders:
        if capacity > 0 and (sites is None or site in sites):
            seed = int.from_bytes(derive("kith placement 1", device)[:8], "little")
            chance = splitmix(int.from_bytes(pack[:8], "little") ^ seed)
            rate = M64 // max(capacity >> 20, 1)
            scored.append((min(minus_log2(chance) * rate >> 30, M64), device, site))
    rounds, order = {}, []
    for score, device, site in sorted(scored):
        rounds[site] = rounds.get(site, 0) + 1
        order.append((rounds[site], score, device))
    return [device.hex() for _, _, device in sorted(order)[:pieces]]


def check_placement(vector):
    holders = [(bytes.fromhex(holder["device"]), holder["site"], holder["capacity"]) for holder in vector["holders"]]
    for pack in vector["packs"]:
        expect(placed(bytes.fromhex(pack["pack"]), holders, vector["pieces"], vector.get("sites")), pack["placed"], "placed")


# --- Promises (promises.md) -----------------------------------------------------------------------------------------------------------------


def check_promises(vector):
    if vector["kind"] == "proof":
        pack = bytes(n % 251 for n in range(vector["len"]))
        said = b"".join(bytes.fromhex(vector[part]) for part in ("nonce", "holder", "asker"))
        expect(blake3_keyed(derive("kith promise 1", said), pack).hex(), vector["proof"], "proof")
    elif vector["kind"] == "blocks":
        said = b"".join(bytes.fromhex(vector[part]) for part in ("nonce", "holder", "asker"))
        blocks = [bytes.fromhex(block) for block in vector["blocks"]]
        framed = b"".join(len(block).to_bytes(4, "little") + block for block in blocks)
        expect(blake3_keyed(derive("kith promise blocks 1", said), framed).hex(), vector["proof"], "proof of blocks")
    elif vector["kind"] == "rank":
        rank = derive("kith promise rank 1", bytes.fromhex(vector["pack"] + vector["device"]))
        expect(rank.hex(), vector["rank"], "rank")
    elif vector["kind"] == "record":
        expect(vector["pack"] + vector["until"].to_bytes(8, "little").hex(), vector["record"], "record")
    else:
        reader = Reader(bytes.fromhex(vector["bytes"]), "malformed: ends too early")
        kind, _ = reader.number(1), reader.take(16)
        if kind in (1, 2):
            reader.take(32)
        elif kind == 3:
            refuse_if(not 1 <= reader.number(1) <= 5, "malformed: no such reason")
        elif kind == 4:
            count = reader.number(4)
            refuse_if(not 1 <= count <= 16384, "malformed: too many blocks, or none")
            reader.take(32 * count)
        elif kind == 5:
            reader.take(32)
            refuse_if(not 1 <= reader.left() <= 2048, "malformed: too many blocks, or none")
            reader.take(reader.left())
        else:
            refuse_if(True, "malformed: message of no known kind")
        refuse_if(reader.left(), "malformed: trailing bytes")


# --- Erasure coding (erasure.md): how a pack is cut; parity is the library's, and pinned by its names -------------------------------------


def make_pack(kind, space, blocks):
    """`pack.md`, "Layout", for blocks of ours."""
    data = b"kithpack" + bytes([1, 1, kind, 0]) + space + bytes(20)
    items = []
    for block in blocks:
        name = b"\x01" + blake3(block)
        items.append(name + struct.pack("<I", len(data)))
        data += struct.pack("<I", len(block)) + name + block
    index, offset = b"".join(sorted(items)), len(data)
    return data + index + struct.pack("<IQ", len(blocks), offset) + derive("kith pack index 1", index) + b"kithpend"


def read_table(data):
    """`erasure.md`, "Parity shards"."""
    reader = Reader(data, "malformed")
    version, needed, spare, parity = (reader.number(1) for _ in range(4))
    refuse_if(version != 1 or needed < 1 or parity >= spare or needed + spare > 64, "malformed")
    pack = reader.take(32)
    shards = [(reader.take(32), reader.number(4), reader.number(4)) for _ in range(needed)]
    lens = []
    while reader.left():
        reader.take(32)
        lens.append(reader.number(4))
    refuse_if(len(lens) > PACK_BLOCKS_MAX, "malformed")
    for _, length, count in shards:
        own, lens = lens[:count], lens[count:]
        refuse_if(count < 1 or len(own) != count or length != 116 + sum(74 + block for block in own) or length > PACK_MAX, "malformed")
    refuse_if(lens, "malformed")
    return pack, shards, spare, parity


def check_erasure(vector):
    if vector["kind"] == "table":
        read_table(bytes.fromhex(vector["bytes"]))
        return
    needed, spare, space = vector["needed"], vector["spare"], bytes.fromhex(vector["space"])
    name, lens = vector["name"], vector["block_lens"]
    blocks = [blake3(f"{name} {n}".encode(), length) for n, length in enumerate(lens)]
    pack = make_pack(vector["class"], space, blocks)
    expect(blake3(pack).hex(), vector["pack"], "name of the pack")
    total, begin, runs = sum(37 + length for length in lens), 0, [[] for _ in range(needed)]
    for block in blocks:
        end = begin + 37 + len(block)
        runs[(begin + end) * needed // (2 * total)].append(block)
        begin = end
    refuse_if([] in runs, "the pack is not coded: one of its shards would be empty")
    shards = [make_pack(vector["class"], space, run) for run in runs]
    data = [{"name": blake3(shard).hex(), "len": len(shard), "blocks": len(run)} for shard, run in zip(shards, runs)]
    expect(data, vector["data"], "data shards")
    longest = max(map(len, shards))
    longest += longest % 2
    heads = b"".join(blake3(shard) + struct.pack("<II", len(shard), len(run)) for shard, run in zip(shards, runs))
    listed = b"".join(blake3(block) + struct.pack("<I", len(block)) for block in blocks)
    tables = [bytes([1, needed, spare, parity]) + blake3(pack) + heads + listed for parity in range(spare)]
    for parity, table in enumerate(tables):
        expect(read_table(table)[2:], (spare, parity), "table")
    expect([blake3(table).hex() for table in tables], vector["tables"], "tables")
    pieces = -(-longest // (1 << 20))
    expect(116 + len(tables[0]) + longest + 74 * (1 + pieces), vector["parity_len"], "length of the parity shards")
    expect(len(vector["parity"]), spare, "number of parity shards")


# --- All of it ------------------------------------------------------------------------------------------------------------------------------

TOPICS = {"seal": check_seal, "chunk": check_chunk, "manifest": check_manifest, "object": check_object, "tree": check_tree, "pack": check_pack, "log": check_log,
          "digest": check_digest, "names": check_names, "pairing": check_pairing,
          "chain": check_chain, "hostile": check_hostile, "epoch": check_epoch,
          "car": check_car, "backup": check_backup, "record": check_record, "arrangement": check_arrangement, "holdings": check_holdings, "promises": check_promises, "placement": check_placement, "erasure": check_erasure}
# Topics whose pages do not state the words for what is refused: any refusal will do.
WORDLESS = {"digest", "names", "pairing"}
# Vectors of what this decoder does not read: tested where it lives.
ELSEWHERE = {"bitswap"}


def check_topic(folder, topic):
    with open(os.path.join(folder, topic + ".json"), encoding="utf-8") as file:
        vectors = json.load(file)
    for vector in vectors:
        name = f"{topic}: {vector['name']}"
        before = len(PROBLEMS)
        try:
            TOPICS[topic](vector)
            outcome = "ok"
        except Refused as refused:
            outcome = vector["expect"] if topic in WORDLESS and vector["expect"] != "ok" else str(refused)
        except Elsewhere:
            continue
        except Skipped as skipped:
            SKIPS.append(f"SKIPPED {name}: {skipped}")
            continue
        except Exception as error:  # A decoder that stumbles over bytes is wrong about them.
            outcome = f"{type(error).__name__}: {error}"
        expect(outcome, vector["expect"], "outcome")
        PROBLEMS[before:] = [f"{name}: {problem}" for problem in PROBLEMS[before:]]
        COUNTS[topic] = COUNTS.get(topic, 0) + 1


def main(arguments):
    folder = arguments[0] if arguments else os.path.join(os.path.dirname(os.path.abspath(__file__)), "vectors")
    topics = arguments[1:] or sorted(name[:-5] for name in os.listdir(folder) if name.endswith(".json"))
    check_primitives()
    check_keys()
    for topic in topics:
        if topic in TOPICS:
            check_topic(folder, topic)
        elif topic not in ELSEWHERE:
            SKIPS.append(f"SKIPPED {topic}.json: this decoder does not know the topic")
    for line in SKIPS:
        print(line)
    for problem in PROBLEMS:
        print("WRONG", problem)
    print(", ".join(f"{topic} {count}" for topic, count in COUNTS.items()), "vectors opened;", f"{len(PROBLEMS)} wrong, {len(SKIPS)} skipped")
    return 1 if PROBLEMS or not COUNTS else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

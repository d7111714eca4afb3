"""Reads a Lockgate backup by docs/backup-format.md alone, with nothing but Python's standard library.

Exists to prove that the document is enough; slow, and its arithmetic takes different times for different secrets: not for
use. `python3 reader.py FILE [KEYFILE]` prints what it read as JSON. It does not read Zstandard nor passphrases (neither is in the
standard library), and says so. The Rust tests run it on a file that needs neither.
"""

import base64
import hashlib
import hmac
import json
import struct
import sys

MAGIC = bytes.fromhex("894c47420d0a1a0a")
MAX_HEADER, MAX_KEY, MAX_VALUE, MAX_CHUNK, MAX_STORED = 65536, 4096, 4194304, 4259840, 4259856


def need(condition, why):
    if not condition:
        sys.exit("refused: " + why)


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


# RFC 5869
def hkdf(salt, secret, info):
    prk = hmac.new(salt, secret, "sha256").digest()
    return hmac.new(prk, info + b"\x01", "sha256").digest()


# RFC 7748, section 5
P = 2**255 - 19


def x25519(scalar, point):
    k = int.from_bytes(scalar, "little")
    k = k & ~7 & ~(128 << 8 * 31) | (64 << 8 * 31)
    u = int.from_bytes(point, "little") & (2**255 - 1)
    x2, z2, x3, z3, swap = 1, 0, u, 1, 0
    for t in reversed(range(255)):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a, b * b, d * a, c * b
        e = aa - bb
        x3, z3 = pow(da + cb, 2, P), u * pow(da - cb, 2, P) % P
        x2, z2 = aa * bb % P, e * (aa + 121665 * e) % P
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


# RFC 8439
def chacha20(key, nonce, counter, data):
    out = bytearray()
    for start in range(0, len(data), 64):
        state = list(struct.unpack("<16I", b"expand 32-byte k" + key + struct.pack("<I", counter + start // 64) + nonce))
        w = state[:]
        for _ in range(10):
            for a, b, c, d in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15), (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
                wa, wb, wc, wd = w[a], w[b], w[c], w[d]
                wa = wa + wb & 0xFFFFFFFF; wd ^= wa; wd = (wd << 16 | wd >> 16) & 0xFFFFFFFF
                wc = wc + wd & 0xFFFFFFFF; wb ^= wc; wb = (wb << 12 | wb >> 20) & 0xFFFFFFFF
                wa = wa + wb & 0xFFFFFFFF; wd ^= wa; wd = (wd << 8 | wd >> 24) & 0xFFFFFFFF
                wc = wc + wd & 0xFFFFFFFF; wb ^= wc; wb = (wb << 7 | wb >> 25) & 0xFFFFFFFF
                w[a], w[b], w[c], w[d] = wa, wb, wc, wd
        block = struct.pack("<16I", *(x + y & 0xFFFFFFFF for x, y in zip(w, state)))
        out += bytes(x ^ y for x, y in zip(data[start : start + 64], block))
    return bytes(out)


def open_box(key, nonce, bound, box):
    """The plain bytes, or None."""
    text, tag = box[:-16], box[-16:]
    pad = lambda data: data + bytes(-len(data) % 16)
    auth = pad(bound) + pad(text) + struct.pack("<QQ", len(bound), len(text))
    one_time = chacha20(key, nonce, 0, bytes(32))
    r = int.from_bytes(one_time[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for start in range(0, len(auth), 16):
        total = (total + int.from_bytes(auth[start : start + 16] + b"\x01", "little")) * r % (2**130 - 5)
    ours = (total + int.from_bytes(one_time[16:], "little")) % 2**128
    return chacha20(key, nonce, 1, text) if ours.to_bytes(16, "little") == tag else None


# RFC 8032, section 5.1
Q = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P


def add(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def multiply(scalar, point):
    result = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point, scalar = add(point, point), scalar >> 1
    return result


def decompress(text):
    y = int.from_bytes(text, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    need(y < P, "a point that is none")
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    need((x * x - square) % P == 0, "a point that is none")
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


def signed(public, message, signature):
    a, r, s = decompress(public), decompress(signature[:32]), int.from_bytes(signature[32:], "little")
    need(s < Q, "a signature that is none")
    h = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % Q
    gy = 4 * pow(5, P - 2, P) % P
    left, right = multiply(s, decompress(gy.to_bytes(32, "little"))), add(r, multiply(h, a))
    return (left[0] * right[2] - right[0] * left[2]) % P == 0 and (left[1] * right[2] - right[1] * left[2]) % P == 0


def private_keys(path):
    """Bech32 without looking at the checksum: a wrong key opens nothing."""
    for line in open(path).read().split():
        if line.startswith("AGE-SECRET-KEY-1"):
            groups = ["QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L".index(c) for c in line[16:-6]]
            bits = "".join(f"{group:05b}" for group in groups)
            yield int(bits[:256], 2).to_bytes(32, "big")


def unwrap(encryption, keys):
    base = (9).to_bytes(32, "little")
    for stanza in encryption["recipients"]:
        for key in keys:
            share, public = bytes.fromhex(stanza["share"]), x25519(key, base)
            shared = x25519(key, share)
            need(any(shared), "a shared secret of zeros")
            under = hkdf(share + public, shared, b"lockgate backup v1 x25519")
            found = open_box(under, bytes(12), b"", bytes.fromhex(stanza["key"]))
            if found:
                return found
    sys.exit("refused: no key opens it")


class File:
    def __init__(self, path):
        self.bytes, self.at = open(path, "rb").read(), 0

    def take(self, count):
        need(self.at + count <= len(self.bytes), f"cut off at byte {len(self.bytes)}")
        self.at += count
        return self.bytes[self.at - count : self.at]

    def number(self, count):
        return int.from_bytes(self.take(count), "big")


def front(file):
    need(file.take(8) == MAGIC, "not a backup")
    version, length = file.number(2), file.number(4)
    need(length <= MAX_HEADER, "the header is too large")
    header = file.take(length)
    digest = sha256(file.bytes[: file.at])
    need(file.take(32) == digest, "the header is damaged")
    header = json.loads(header)
    need(version == 1 and not header.get("requires"), "newer, use " + header["product"])
    return header, digest


def chunks(file, header, digest, key):
    tag, chain, number, kind = bytes.fromhex(header["file"])[:8], digest, 0, None
    while kind != 4:
        head = file.take(18)
        length = file.number(4)
        need(length <= MAX_STORED, f"chunk {number} is too large")
        head, payload = head + length.to_bytes(4, "big"), file.take(length)
        check = sha256(head, payload)
        need(file.take(32) == check, f"chunk {number} is damaged")
        need(head[2:10] == tag, f"chunk {number} is of another file")
        need(int.from_bytes(head[10:18], "big") == number, f"chunk {number} is out of order")
        kind, flags, before = head[0], head[1], chain
        chain = sha256(chain, check)
        if kind == 4:
            need(flags == 0, "newer")
            need(signed(bytes.fromhex(header["signer"]), b"lockgate backup v1 seal\0" + before, payload), "the signature does not hold")
            need(file.at == len(file.bytes), "bytes after the end")
            return
        if key:
            payload = open_box(key, bytes(4) + number.to_bytes(8, "big"), digest + head, payload)
            need(payload is not None, f"chunk {number} does not decrypt")
        if kind < 128:
            need(flags == 0, "compressed: Python's standard library has no Zstandard")
            need(kind in (1, 2, 3), "newer")
            yield kind, payload
        number += 1


def records(payload):
    at = 0
    while at < len(payload):
        key_length, value_length = struct.unpack_from(">HI", payload, at)
        need(1 <= key_length <= MAX_KEY and value_length <= MAX_VALUE, "a record is too large")
        at += 6
        key, value = payload[at : at + key_length], payload[at + key_length : at + key_length + value_length]
        at += key_length + value_length
        need(at <= len(payload), "a record is cut off")
        yield key, value


def main(path, key_path=None):
    file = File(path)
    header, digest = front(file)
    encryption, key = header["encryption"], None
    if encryption["type"] != "none":
        need(encryption["type"] == "x25519", "this reader knows no " + encryption["type"])
        file_key, file_id = unwrap(encryption, list(private_keys(key_path))), bytes.fromhex(header["file"])
        need(hkdf(file_id, file_key, b"lockgate backup v1 commit").hex() == encryption["commit"], "wrong key")
        key = hkdf(file_id, file_key, b"lockgate backup v1 chunks")
    parts = list(chunks(file, header, digest, key))
    kinds = [kind for kind, _ in parts]
    need(kinds == [1] + [2] * (len(kinds) - 2) + [3], "sections in the wrong order")
    manifest, summary = json.loads(parts[0][1]), json.loads(parts[-1][1])
    bodies = [payload for kind, payload in parts if kind == 2]
    found = [record for payload in bodies for record in records(payload)]
    need(all(one[0] < other[0] for one, other in zip(found, found[1:])), "keys do not grow")
    counted = {}
    for name, _ in found:
        kind = b"/".join(name.split(b"/")[: 2 if name.count(b"/") > 1 else 1]).decode("ascii")
        counted[kind] = counted.get(kind, 0) + 1
    size = sum(len(name) + len(value) for name, value in found)
    ours = {"records": len(found), "bytes": size, "kinds": counted, "content": sha256(*bodies).hex()}
    need(summary == ours, f"the summary says {summary}, here are {ours}")
    ssh = struct.pack(">I", 11) + b"ssh-ed25519" + struct.pack(">I", 32) + bytes.fromhex(header["signer"])
    fingerprint = "SHA256:" + base64.b64encode(sha256(ssh)).decode().rstrip("=")
    print(json.dumps({
        "cluster": header["cluster"], "file": header["file"], "signer": fingerprint, "manifest": manifest, "summary": summary,
        "records": [[name.hex(), value.hex()] for name, value in found],
    }))


main(*sys.argv[1:])

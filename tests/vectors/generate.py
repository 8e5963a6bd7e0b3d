#!/usr/bin/env python3
"""Writes wire.json: the packet formats of src/proto/wire, made without the Rust code.

Needs the packages blake3 and cryptography. Run it only when a format changes; the files are what is tested.
"""

import ipaddress
import json
import pathlib
import struct

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

HERE = pathlib.Path(__file__).parent


def derive(context, material, length=32):
    return blake3(material, derive_key_context=context).digest(length)


def xor(a, b):
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def sequence(length, start=0):
    return bytes((start + i) % 256 for i in range(length))


class Identity:
    def __init__(self, seed):
        self.seed = seed
        self.signing = Ed25519PrivateKey.from_private_bytes(seed)
        self.node_id = self.signing.public_key().public_bytes_raw()
        secret = X25519PrivateKey.from_private_bytes(derive("auramesh v1 x25519 static", seed))
        self.x25519 = secret.public_key().public_bytes_raw()


ALICE, BOB = Identity(bytes(32)), Identity(bytes([0x42]) * 32)
OPEN, CLOSED = bytes(32), sequence(32, 100)


def recipient_key(node_id, network):
    material = node_id + network
    return derive("auramesh v1 mask", material), derive("auramesh v1 mac1", material)


def cookie_reply_key(key, mac1):
    keys = derive("auramesh v1 cookie reply", key[1] + mac1, 64)
    return keys[:32], keys[32:]


def close(key, kind, cookie, filler, body):
    mask, mac = key
    first = bytes([0xC0 | kind])
    mac1 = blake3(first + body, key=mac).digest(16)
    mac2 = filler if cookie is None else blake3(first + mac1 + body, key=cookie + bytes(16)).digest(16)
    stream = blake3(mac1, key=mask).digest(1 + len(body))
    return bytes([first[0] ^ stream[0] & 0x3F]) + mac1 + mac2 + xor(body, stream[1:])


def envelopes():
    cases = [
        (ALICE, OPEN, 1, None, sequence(0)),
        (ALICE, OPEN, 1, sequence(16, 7), sequence(1)),
        (BOB, OPEN, 2, None, sequence(63)),
        (BOB, CLOSED, 3, None, sequence(64)),
        (BOB, CLOSED, 4, sequence(16, 9), sequence(300)),
        (ALICE, OPEN, 4, None, sequence(1232 - 33)),
    ]
    for identity, network, kind, cookie, body in cases:
        filler = sequence(16, 200)
        yield {
            "recipient": identity.node_id.hex(),
            "network_secret": network.hex(),
            "kind": kind,
            "cookie": cookie and cookie.hex(),
            "filler": filler.hex(),
            "body": body.hex(),
            "packet": close(recipient_key(identity.node_id, network), kind, cookie, filler, body).hex(),
        }


def cookie_replies():
    for identity, network in [(ALICE, OPEN), (BOB, CLOSED)]:
        mac1, cookie, padding, filler = sequence(16, 1), sequence(16, 2), sequence(16, 3), sequence(16, 4)
        key = cookie_reply_key(recipient_key(identity.node_id, network), mac1)
        yield {
            "recipient": identity.node_id.hex(),
            "network_secret": network.hex(),
            "answered_mac1": mac1.hex(),
            "cookie": cookie.hex(),
            "padding": padding.hex(),
            "filler": filler.hex(),
            "packet": close(key, 3, None, filler, cookie + padding).hex(),
        }


def session_headers():
    for identity, network, kind, epoch, partial, slice_, index, counter in [
        (ALICE, OPEN, 0, False, False, (0, 1), 0, 0),
        (ALICE, OPEN, 0, True, True, (0, 1), 0x01020304, 1),
        (BOB, CLOSED, 1, False, False, (0, 1), 0xFFFFFFFF, 2**56 - 1),
        (BOB, OPEN, 1, True, False, (0, 1), 7, 2**64 - 1),
        (ALICE, CLOSED, 2, True, False, (0, 1), 8, 2**32),
        (BOB, OPEN, 3, False, False, (63, 64), 9, 2**33),
    ]:
        sealed = sequence(48, counter % 251)
        header = struct.pack(">BBBBIQ", 0x40 | kind, epoch | partial << 1, *slice_, index, counter)
        key = derive("auramesh v1 header mask", recipient_key(identity.node_id, network)[0])[:16]
        mask = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(sealed[:16])
        masked = xor(header, bytes([mask[0] & 0x3F]) + mask[1:])
        yield {
            "recipient": identity.node_id.hex(),
            "network_secret": network.hex(),
            "kind": kind,
            "epoch": epoch,
            "partial": partial,
            "slice": slice_[0],
            "slices": slice_[1],
            "receiver_index": index,
            "counter": counter,
            "sealed": sealed.hex(),
            "header": header.hex(),
            "packet": (masked + sealed).hex(),
        }


def endpoint(ip, port):
    ip = ipaddress.ip_address(ip)
    return bytes([ip.version]) + ip.packed + struct.pack(">H", port)


def text(ip, port):
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


V4, V6 = ("192.0.2.1", 5747), ("2001:db8::1", 65535)


def record(identity, number, issued, ttl, capabilities, endpoints):
    out = struct.pack(">BBQIH", 1, 0, number, issued, ttl) + identity.node_id + identity.x25519
    out += struct.pack(">H", capabilities)
    for value in (endpoint(*e) for e in endpoints):
        out += bytes([1, len(value)]) + value
    return out + identity.signing.sign(b"auramesh v1 node record" + out)


def records():
    for identity, number, issued, ttl, capabilities, endpoints in [
        (ALICE, 0, 0, 0, 0, []),
        (ALICE, 1, 1_800_000_000, 3600, 1, [V4]),
        (BOB, 2**64 - 1, 2**32 - 1, 7200, 0xFFFF, [V6, V4, V6, V4, V6, V6]),
    ]:
        yield {
            "seed": identity.seed.hex(),
            "sequence": number,
            "issued_s": issued,
            "ttl_s": ttl,
            "capabilities": capabilities,
            "endpoints": [text(*e) for e in endpoints],
            "bytes": record(identity, number, issued, ttl, capabilities, endpoints).hex(),
        }


def sealed_headers():
    for hop_limit, message, timestamp in [(1, 1, 1_800_000_000_123), (255, 2, 2**64 - 1)]:
        ephemeral = sequence(32, message)
        header = struct.pack(">BBBBQ", 1, 0, hop_limit, message, timestamp)
        yield {
            "hop_limit": hop_limit,
            "message": message,
            "timestamp_ms": timestamp,
            "sender": ALICE.node_id.hex(),
            "recipient": BOB.node_id.hex(),
            "ephemeral": ephemeral.hex(),
            "header": (header + ALICE.node_id + BOB.node_id + ephemeral).hex(),
        }


def control():
    number, target, blob = 2**63 + 5, sequence(32, 9), sequence(146, 50)
    request = struct.pack(">Q", number)
    contacts = [(BOB.node_id, BOB.x25519, V4), (ALICE.node_id, ALICE.x25519, V6)]
    packed = b"".join(node_id + x25519 + endpoint(*e) for node_id, x25519, e in contacts)
    told = [{"node_id": n.hex(), "x25519": x.hex(), "endpoint": text(*e)} for n, x, e in contacts]

    def message(kind, value, **fields):
        return fields | {"type": kind, "bytes": (struct.pack(">BH", kind, len(value)) + value).hex()}

    yield message(1, request, nonce=number)
    yield message(2, request + endpoint(*V6), nonce=number, observed=text(*V6))
    yield message(2, request + endpoint(*V4), nonce=number, observed=text(*V4))
    yield message(3, blob, record=blob.hex())
    for reason in (1, 2):
        yield message(4, bytes([reason]), reason=reason)
    for want in (1, 2):
        yield message(16, request + bytes([want]) + target, request=number, want=want, target=target.hex())
    found = request + struct.pack(">H", len(blob)) + blob + packed
    yield message(17, found, request=number, record=blob.hex(), contacts=told)
    yield message(17, request + bytes(2), request=number, record=None, contacts=[])
    yield message(18, request + blob, request=number, record=blob.hex())
    for outcome in range(4):
        yield message(19, request + bytes([outcome]), request=number, outcome=outcome)


def main():
    vectors = {
        "about": "The packet formats of version 1, made by generate.py, independently of the Rust code. "
        "Bytes are hexadecimal.",
        "envelope": list(envelopes()),
        "cookie_reply": list(cookie_replies()),
        "session_header": list(session_headers()),
        "record": list(records()),
        "sealed_header": list(sealed_headers()),
        "control": list(control()),
    }
    (HERE / "wire.json").write_text(json.dumps(vectors, indent=1) + "\n")


main()

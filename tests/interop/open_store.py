#!/usr/bin/env python3
"""Opens a wastore vault over whatsapp-rust's SQLite schema: a second implementation of the format, from docs/format.md.

    open_store.py DATABASE --key HEX [--message CHAT SENDER ID] [--base-key ADDRESS ID HEX]
    open_store.py DATABASE --passphrase TEXT ...            (needs the package argon2-cffi)
    open_store.py DATABASE --key HEX --context TEXT ...     (refuses a vault that is bound to another context)

Prints every record of account 1 as JSON: kind, original key, payload. Fails if any byte does not verify. With raw keys it
needs only Python's standard library. It is slow and not constant-time, so use it only in tests.
"""
import argparse, base64, hashlib, hmac, json, sqlite3, struct

# --- primitives -------------------------------------------------------------------------------------------------------

def rotl(x, n): return ((x << n) & 0xFFFFFFFF) | (x >> (32 - n))

def chacha_rounds(s):
    for _ in range(10):
        for a, b, c, d in ((0,4,8,12),(1,5,9,13),(2,6,10,14),(3,7,11,15),(0,5,10,15),(1,6,11,12),(2,7,8,13),(3,4,9,14)):
            s[a] = (s[a] + s[b]) & 0xFFFFFFFF; s[d] = rotl(s[d] ^ s[a], 16)
            s[c] = (s[c] + s[d]) & 0xFFFFFFFF; s[b] = rotl(s[b] ^ s[c], 12)
            s[a] = (s[a] + s[b]) & 0xFFFFFFFF; s[d] = rotl(s[d] ^ s[a], 8)
            s[c] = (s[c] + s[d]) & 0xFFFFFFFF; s[b] = rotl(s[b] ^ s[c], 7)
    return s

SIGMA = struct.unpack("<4I", b"expand 32-byte k")

def hchacha20(key, nonce16):
    s = chacha_rounds(list(SIGMA + struct.unpack("<8I", key) + struct.unpack("<4I", nonce16)))
    return struct.pack("<8I", *s[:4], *s[12:])

def chacha20_block(key, counter, nonce12):
    start = list(SIGMA + struct.unpack("<8I", key) + (counter,) + struct.unpack("<3I", nonce12))
    return struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(chacha_rounds(start[:]), start)))

def poly1305(key, message):
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for i in range(0, len(message), 16):
        total = (total + int.from_bytes(message[i:i+16] + b"\x01", "little")) * r % ((1 << 130) - 5)
    return ((total + int.from_bytes(key[16:], "little")) & ((1 << 128) - 1)).to_bytes(16, "little")

def xchacha20_poly1305_open(key, nonce, aad, sealed):
    key, nonce, body, tag = hchacha20(key, nonce[:16]), bytes(4) + nonce[16:], sealed[:-16], sealed[-16:]
    pad = lambda data: data + bytes(-len(data) % 16)
    mac = poly1305(chacha20_block(key, 0, nonce)[:32], pad(aad) + pad(body) + struct.pack("<QQ", len(aad), len(body)))
    assert hmac.compare_digest(mac, tag), "an AEAD tag does not fit"
    stream = b"".join(chacha20_block(key, 1 + i, nonce) for i in range((len(body) + 63) // 64))
    return bytes(a ^ b for a, b in zip(body, stream))

def xtime(a): return ((a << 1) ^ (0x1B if a & 0x80 else 0)) & 0xFF

def make_sbox():
    p, q, sbox = 1, 1, [0] * 256
    while True:
        p ^= xtime(p)
        for shift in (1, 2, 4): q ^= (q << shift) & 0xFF
        if q & 0x80: q ^= 0x09
        r = lambda n: ((q << n) | (q >> (8 - n))) & 0xFF
        sbox[p] = q ^ r(1) ^ r(2) ^ r(3) ^ r(4) ^ 0x63
        if p == 1: break
    sbox[0] = 0x63
    return sbox

SBOX = make_sbox()

def aes256(key):
    words, rcon = [list(key[i:i+4]) for i in range(0, 32, 4)], 1
    for i in range(8, 60):
        t = list(words[-1])
        if i % 8 == 0:
            t = [SBOX[b] for b in t[1:] + t[:1]]; t[0] ^= rcon; rcon = xtime(rcon)
        elif i % 8 == 4:
            t = [SBOX[b] for b in t]
        words.append([a ^ b for a, b in zip(words[i - 8], t)])
    keys = [sum(words[4*r:4*r+4], []) for r in range(15)]
    def encrypt(block):
        s = [a ^ b for a, b in zip(block, keys[0])]
        for r in range(1, 15):
            s = [SBOX[s[(i + 4 * (i % 4)) % 16]] for i in range(16)]
            if r < 14:
                mixed = []
                for c in range(0, 16, 4):
                    col = s[c:c+4]; every = col[0] ^ col[1] ^ col[2] ^ col[3]
                    mixed += [col[i] ^ every ^ xtime(col[i] ^ col[(i + 1) % 4]) for i in range(4)]
                s = mixed
            s = [a ^ b for a, b in zip(s, keys[r])]
        return bytes(s)
    return encrypt

def xor(a, b): return bytes(x ^ y for x, y in zip(a, b))

def double(block):
    n = int.from_bytes(block, "big") << 1
    return ((n ^ (0x87 if n >> 128 else 0)) & ((1 << 128) - 1)).to_bytes(16, "big")

def cmac(encrypt, message):
    k1 = double(encrypt(bytes(16)))
    whole = len(message) and len(message) % 16 == 0
    last_at = max(0, (len(message) - 1) // 16 * 16)
    last = xor(message[last_at:], k1) if whole else xor((message[last_at:] + b"\x80").ljust(16, b"\0"), double(k1))
    state = bytes(16)
    for i in range(0, last_at, 16): state = encrypt(xor(state, message[i:i+16]))
    return encrypt(xor(state, last))

def aes_siv_open(key64, ad, sealed):
    mac, ctr = aes256(key64[:32]), aes256(key64[32:])
    siv, body = sealed[:16], sealed[16:]
    q = bytearray(siv); q[8] &= 0x7F; q[12] &= 0x7F
    q = int.from_bytes(q, "big")
    stream = b"".join(ctr(((q + i) % (1 << 128)).to_bytes(16, "big")) for i in range((len(body) + 15) // 16))
    plain = xor(body, stream)
    d = xor(double(cmac(mac, bytes(16))), cmac(mac, ad))
    expected = cmac(mac, plain[:-16] + xor(plain[-16:], d))
    assert hmac.compare_digest(expected, siv), "a SIV does not fit"
    return plain

MASK = (1 << 64) - 1

def threefish256_decrypt(key, tweak, block):
    k = list(struct.unpack("<4Q", key)); k.append(0x1BD11BDAA9FC1A22 ^ k[0] ^ k[1] ^ k[2] ^ k[3])
    t = list(struct.unpack("<2Q", tweak)); t.append(t[0] ^ t[1])
    def subkey(s): return [k[s % 5], (k[(s+1) % 5] + t[s % 3]) & MASK, (k[(s+2) % 5] + t[(s+1) % 3]) & MASK, (k[(s+3) % 5] + s) & MASK]
    rotations = ((14,16),(52,57),(23,40),(5,37),(25,33),(46,12),(58,22),(32,32))
    v = [(a - b) & MASK for a, b in zip(struct.unpack("<4Q", block), subkey(18))]
    for d in reversed(range(72)):
        v = [v[0], v[3], v[2], v[1]]
        for j in (0, 1):
            x, y, r = v[2*j], v[2*j+1], rotations[d % 8][j]
            y ^= x; y = ((y >> r) | (y << (64 - r))) & MASK
            v[2*j], v[2*j+1] = (x - y) & MASK, y
        if d % 4 == 0: v = [(a - b) & MASK for a, b in zip(v, subkey(d // 4))]
    return struct.pack("<4Q", *v)

def hmac256(key, message): return hmac.new(key, message, hashlib.sha256).digest()

# --- the format -------------------------------------------------------------------------------------------------------

def hk(store_id, ikm, label, context=b"", length=32):
    prk, out, block = hmac256(store_id, ikm), b"", b""
    info = b"wastore/v1/" + label + b"\0" + context
    while len(out) < length:
        block = hmac256(prk, block + info + bytes([len(out) // 32 + 1]))
        out += block
    return out[:length]

def parts(domain, *items):
    return bytes([domain, len(items)]) + b"".join(struct.pack("<H", len(i)) + i for i in items)

def base32(data): return base64.b32encode(data).decode().rstrip("=").lower()
def unbase32(text): return base64.b32decode(text.upper() + "=" * (-len(text) % 8))
def unbase64(text): return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

class Vault:
    def __init__(self, header, key, passphrase, context):
        assert header[:8] == b"\x89wastore" and struct.unpack_from("<HHI", header, 8) == (1, 1, len(header))
        assert hashlib.sha256(header[:-48]).digest()[:16] == header[-48:-32], "the header checksum does not fit"
        self.store_id, self.generation = header[16:32], struct.unpack_from("<Q", header, 32)[0]
        slots, data_keys, lookup_keys, _ = header[60:64]
        at, vault_key = 64, None
        for _ in range(slots):
            start, kind = at, header[at + 1]
            at += 3 + header[at + 2]
            cost = None
            if kind == 1: cost, at = struct.unpack_from("<3I", header, at), at + 12
            if kind == 3: at += 2 + struct.unpack_from("<H", header, at)[0]
            salt, at = header[at:at+32], at + 32
            public = header[start:at]
            commitment, nonce, wrapped, at = header[at:at+32], header[at+32:at+56], header[at+56:at+104], at + 104
            prk = None
            if kind == 2: prk = key
            if kind == 1 and passphrase is not None:
                from argon2.low_level import Type, hash_secret_raw
                prk = hash_secret_raw(passphrase, salt, cost[1], cost[0], cost[2], 32, Type.ID)
            if prk is None: continue
            derived = hk(self.store_id, prk, b"slot", public, 64)
            if derived[32:] == commitment:
                aad = b"wastore/v1/slot-wrap\0" + self.store_id + public + commitment
                vault_key = xchacha20_poly1305_open(derived[:32], nonce, aad, wrapped)
        assert vault_key, "no slot opens with this secret"
        assert hmac256(hk(self.store_id, vault_key, b"header-mac"), header[:-32]) == header[-32:], "header MAC"
        wrap = hk(self.store_id, vault_key, b"key-wrap")
        self.epochs = {}
        for _ in range(data_keys):
            epoch = struct.unpack_from("<I", header, at)[0]
            aad = b"wastore/v1/dk\0" + self.store_id + struct.pack("<I", epoch)
            self.epochs[epoch] = xchacha20_poly1305_open(wrap, header[at+13:at+37], aad, header[at+37:at+85])
            at += 85
        lookup = xchacha20_poly1305_open(wrap, header[at:at+24], b"wastore/v1/lk\0" + self.store_id, header[at+24:at+72])
        self.check_extensions(header[at+72:-48], context)
        self.token_key = hk(self.store_id, lookup, b"token")
        self.siv_key = hk(self.store_id, lookup, b"siv", length=64)
        self.block_key = hk(self.store_id, lookup, b"block")

    def check_extensions(self, data, context):
        assert struct.unpack_from("<H", data)[0] == len(data) - 2, "the extensions have another length"
        at, bound = 2, None
        while at < len(data):
            kind, length = struct.unpack_from("<HH", data, at)
            value, at = data[at+4:at+4+length], at + 4 + length
            if kind == 3 | 1 << 15: bound = value
            else: assert not kind >> 15, "an extension that has to be understood"
        expected = context and hashlib.sha256(b"wastore/v1/context\0" + self.store_id + context).digest()
        assert context is None or bound == expected, "the vault is bound to another context"

    def index(self, domain, *items): return hmac256(self.token_key, parts(domain, *items))
    def token(self, domain, *items): return base32(self.index(domain, *items)[:15])

    def address(self, domain, bare, address):
        ends = [address.find(c) for c in (b"@", b":") if c in address]
        if not ends: return self.token(bare, address)
        return self.token(1, address[:min(ends)]) + "@" + self.token(domain, address)

    def name(self, domain, token):
        plain = aes_siv_open(self.siv_key, bytes([domain]), unbase32(token))
        length = struct.unpack_from("<H", plain)[0]
        return plain[2:2+length]

    def open(self, kind, value, *columns):
        assert value[:4] == b"\xe7\x57\x01\x01" and value[5] == kind, "not an envelope of kind %d" % kind
        flags, (epoch, generation) = value[4], struct.unpack_from("<II", value, 6)
        assert generation <= self.generation and flags & ~3 == 0
        key = hk(self.store_id, self.epochs[epoch], b"record", bytes([1, kind]))
        aad = b"wastore/v1/aad\0" + value[:14] + bytes([len(columns)])
        aad += b"".join(struct.pack("<H", len(c)) + c for c in columns)
        body = xchacha20_poly1305_open(key, value[14:38], aad, value[38:])
        if flags & 1: body = body.rstrip(b"\0"); assert body[-1] == 0x80; body = body[:-1]
        original = []
        if flags & 2:
            end, at = 2 + struct.unpack_from("<H", body)[0], 2
            while at < end:
                length = struct.unpack_from("<H", body, at)[0]
                original.append(body[at+2:at+2+length]); at += 2 + length
            body = body[end:]
        return original, body

    def secret(self, block, *names):
        return threefish256_decrypt(hmac256(self.block_key, parts(30, *names)), b"wastore/block/v1", block)

def protobuf(data):
    """The length-delimited fields of a protobuf message, by number."""
    fields, at = {}, 0
    def varint():
        nonlocal at
        n = shift = 0
        while True:
            byte = data[at]; at += 1; n |= (byte & 0x7F) << shift; shift += 7
            if byte < 0x80: return n
    while at < len(data):
        tag = varint()
        if tag & 7 == 2:
            length = varint(); fields.setdefault(tag >> 3, []).append(data[at:at+length]); at += length
        else: varint()
    return fields

def records(vault, db, messages, base_keys):
    def rows(sql): return db.execute(sql + " WHERE device_id = 1")
    for address, value in rows("SELECT address, record FROM sessions"):
        kind = value[5]
        (original,), payload = vault.open(kind, value, address.encode())
        assert address == vault.address(*((2, 4) if kind == 1 else (3, 19)), original)
        yield {1: "session", 2: "identity"}[kind], [original], payload
    for kind, name, sql in ((3, "prekey", "SELECT id, key FROM prekeys"), (4, "signed prekey", "SELECT id, record FROM signed_prekeys")):
        for id, value in rows(sql): yield name, [b"%d" % id], vault.open(kind, value, struct.pack("<I", id))[1]
    for address, value in rows("SELECT address, record FROM sender_keys"):
        if address.startswith("wastorevaultheader"): continue
        (original,), payload = vault.open(5, value, address.encode())
        assert address == vault.token(5, original)
        yield "sender key", [original], payload
    for id, value in rows("SELECT key_id, key_data FROM app_state_keys"):
        fields = protobuf(value)
        yield "sync key", [id], vault.open(6, fields[1][0] + fields[2][0], id)[1]
    for name, value in rows("SELECT name, state_data FROM app_state_versions"):
        entry = protobuf([f for n in protobuf(value).values() for f in n if f[:3] == b"\x0a\x01e"][0])
        (original,), payload = vault.open(7, entry[2][0], name.encode())
        assert name == vault.token(6, original)
        yield "collection version", [original], payload
    for name, index, value in rows("SELECT name, index_mac, value_mac FROM app_state_mutation_macs"):
        (original,), payload = vault.open(8, value, name.encode(), index)
        yield "mutation MAC", [original], payload
    for group, device in rows("SELECT group_jid, device_jid FROM sender_key_devices"):
        yield "sender key device", [vault.name(20, device)], b""
    for lid, pn, value in rows("SELECT lid, phone_number, learning_source FROM lid_pn_mapping"):
        original, payload = vault.open(10, unbase64(value), lid.encode(), pn.encode())
        assert (lid, pn) == (vault.token(9, original[0]), vault.token(10, original[1]))
        yield "LID mapping", original, payload
    for address, id, key in base_keys:
        query = "SELECT base_key FROM base_keys WHERE address = ?"
        (stored,) = db.execute(query, (vault.token(11, address, id),)).fetchone()
        assert stored == vault.index(12, address, id, key)
        yield "base key", [address, id], key
    for user, value in rows("SELECT user_id, phash FROM device_registry"):
        (original,), payload = vault.open(12, unbase64(value), user.encode())
        assert user == vault.token(13, original)
        yield "device list", [original], payload
    for group, value in rows("SELECT group_jid, info FROM group_metadata"):
        (original,), payload = vault.open(13, value, group.encode())
        assert group == vault.token(14, original)
        yield "group metadata", [original], payload
    for jid, value in rows("SELECT jid, token FROM tc_tokens"):
        yield "tc token", [vault.name(21, jid)], vault.open(14, value, jid.encode())[1] if value else b""
    for chat, id, value in rows("SELECT chat_jid, message_id, payload FROM sent_messages"):
        original, payload = vault.open(15, value, chat.encode(), id.encode())
        assert (chat, id) == ("x", vault.token(15, *original))
        yield "sent message", original, payload
    for chat, sender, id, value in rows("SELECT chat, sender, id, message FROM pending_inbound_messages"):
        original, payload = vault.open(16, value, chat.encode(), sender.encode(), id.encode())
        assert (chat, sender, id) == ("x", "x", vault.token(16, *original))
        yield "pending inbound", original, payload
    for names in messages:
        query = "SELECT secret FROM msg_secrets WHERE chat = 'x' AND sender = 'x' AND msg_id = ?"
        (block,) = db.execute(query, (vault.token(17, *names),)).fetchone()
        yield "message secret", names, vault.secret(block, *names)
    for (value,) in db.execute("SELECT edge_routing_info FROM device WHERE id = 1"):
        yield "device", [], vault.open(18, value)[1]

def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("database")
    arguments.add_argument("--key", type=bytes.fromhex)
    arguments.add_argument("--passphrase", type=str.encode)
    arguments.add_argument("--context", type=str.encode)
    arguments.add_argument("--message", nargs=3, action="append", default=[])
    arguments.add_argument("--base-key", nargs=3, action="append", default=[])
    given = arguments.parse_args()
    db = sqlite3.connect("file:%s?mode=ro" % given.database, uri=True)
    headers = [db.execute("SELECT record FROM sender_keys WHERE address = ?", ("wastorevaultheaderv1" + copy,)).fetchone()[0] for copy in "ab"]
    assert headers[0] == headers[1], "the header copies differ"
    vault = Vault(headers[0], given.key, given.passphrase, given.context)
    messages = [[name.encode() for name in names] for names in given.message]
    base_keys = [(a.encode(), i.encode(), bytes.fromhex(k)) for a, i, k in given.base_key]
    for kind, original, payload in records(vault, db, messages, base_keys):
        print(json.dumps({"kind": kind, "key": [part.hex() for part in original], "payload": payload.hex()}))

if __name__ == "__main__":
    main()

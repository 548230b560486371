"""Files that are made to harm: each must be refused, and nothing in it may run.

The files are written byte by byte with the few functions at the top; opcodes are those of the pickle language.
"""

import bz2
import codecs
import copyreg
import io
import lzma
import os
import pickle
import struct
import sys
import threading
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from hf_paraminit.errors import CheckpointError, UnsafeFileError
from hf_paraminit.io.safe_load import read_checkpoint

CHECKPOINTS = Path(__file__).parents[1] / "golden" / "checkpoints"
PROTO = b"\x80\x04"
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def byte_string(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def integer(value: int) -> bytes:
    return b"\x8a\x0c" + value.to_bytes(12, "little", signed=True)


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def integers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


HOOKS = name("collections", "OrderedDict") + b")R"
FLOATS = name("torch", "FloatStorage")


def persistent_storage(
    kind: bytes = FLOATS, key: bytes = text("0"), numel: bytes = integer(2), rest: bytes = b"", tag: str = "storage"
) -> bytes:
    return b"(" + text(tag) + kind + key + text("cpu") + numel + rest + b"tQ"


def legacy_file(
    pickled: bytes = PROTO + persistent_storage(rest=b"N") + b".",
    keys: object = ("0",),
    storages: bytes = struct.pack("<q", 2) + bytes(8),
    magic: int = 0x1950A86A20F9469CFC6C,
    version: int = 1001,
    system: object = SYSTEM,
) -> bytes:
    """The layout of `torch.save` before 1.6, which joblib files contain once per storage; by default 2 zeros."""
    head = pickle.dumps(magic, 2) + pickle.dumps(version, 2) + pickle.dumps(system, 2)
    return head + pickled + pickle.dumps(list(keys) if isinstance(keys, tuple) else keys, 2) + storages


def load_from_bytes(content: bytes) -> bytes:
    return name("torch.storage", "_load_from_bytes") + byte_string(content) + b"\x85R"


def tensor(
    storage: bytes = load_from_bytes(legacy_file()),
    offset: bytes = integer(0),
    size: bytes = integers((2,)),
    stride: bytes = integers((1,)),
    rest: bytes = b"\x89" + HOOKS,
) -> bytes:
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + offset + size + stride + rest + b"tR"


def joblib_file(*entries: bytes) -> bytes:
    """A dictionary in a pickle; entries are keys and values in turn."""
    return PROTO + b"}(" + b"".join(entries) + b"u."


def zip_file(pickled: bytes, entries: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("x/data.pkl", pickled)
        for path, content in (entries or {}).items():
            archive.writestr(path, content)
    return buffer.getvalue()


ZIP_PICKLE = joblib_file(text("a"), tensor(persistent_storage()))
STORAGE_ENTRY = {"x/data/0": bytes(8)}


def in_config(value: bytes) -> bytes:
    state_dict = b"}" + text("a") + tensor() + b"s"
    return joblib_file(text("state_dict"), state_dict, text("config"), b"}" + text("x") + value + b"s")


@pytest.fixture
def refuse(tmp_path: Path) -> Callable[..., None]:
    """Write a file, read it, and demand exactly this error with a readable message."""

    def check(content: bytes, error: type[CheckpointError], match: str | None = None, **options: int) -> None:
        path = tmp_path / "checkpoint.pt"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=match) as info:
            read_checkpoint(path, **options)
        assert type(info.value) is error, info.value
        assert str(path) in str(info.value)
        assert "safetensors" in str(info.value)
        assert len(str(info.value)) < 1000

    return check


@pytest.mark.parametrize(
    "content",
    [
        joblib_file(text("a"), tensor()),
        legacy_file(joblib_file(text("a"), tensor(persistent_storage(rest=b"N")))),
        zip_file(ZIP_PICKLE, STORAGE_ENTRY),
        zip_file(ZIP_PICKLE, {**STORAGE_ENTRY, "x/byteorder": b"little"}),
        in_config(b"K\x01"),
    ],
)
def test_what_the_functions_above_write_is_readable(tmp_path: Path, content: bytes) -> None:
    """Otherwise the refusals below could have another cause than the one they name."""
    (tmp_path / "file").write_bytes(content)
    assert torch.equal(read_checkpoint(tmp_path / "file").state_dict["a"], torch.zeros(2))


# Calls of foreign code.

DANGEROUS_EVENTS = {"pickle.find_class", "os.system", "os.mkdir", "subprocess.Popen", "os.exec", "compile", "exec"}
_recorded: list[str] = []
_is_recording = False
_reading_thread = threading.get_ident()  # test runners have threads of their own, which may import things meanwhile


def _record(event: str, arguments: tuple[object, ...]) -> None:
    if _is_recording and event in DANGEROUS_EVENTS and threading.get_ident() == _reading_thread:
        _recorded.append(event)


sys.addaudithook(_record)  # cannot be removed again, hence the switch


@pytest.fixture
def audited(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The interpreter's own record of unpickling and dangerous calls, for the time of one test."""
    codecs.lookup("cp437")  # imported by zipfile for its first old file name, which would be recorded as code run
    monkeypatch.setattr(sys.modules[__name__], "_reading_thread", threading.get_ident())
    _recorded.clear()
    monkeypatch.setattr(sys.modules[__name__], "_is_recording", True)
    return _recorded


@pytest.mark.parametrize("path", sorted(CHECKPOINTS.glob("malicious_*.pt")), ids=lambda path: path.stem)
def test_recorded_malicious_files(path: Path, audited: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnsafeFileError, match=r"builtins\.print"):
        read_checkpoint(path)
    assert audited == []
    assert capfd.readouterr() == ("", "")


def test_recorded_malicious_files_are_there() -> None:
    assert len(list(CHECKPOINTS.glob("malicious_*.pt"))) == 3


MKDIR = name("os", "mkdir")
PARTIAL = name("functools", "partial")
# Each makes the folder in a stock loader.
PAYLOADS: dict[str, Callable[[str], bytes]] = {
    "GLOBAL": lambda folder: PROTO + MKDIR + text(folder) + b"\x85R.",
    "STACK_GLOBAL": lambda folder: PROTO + text("os") + text("mkdir") + b"\x93" + text(folder) + b"\x85R.",
    "os.system": lambda folder: PROTO + name("os", "system") + text(f"mkdir '{folder}'") + b"\x85R.",
    "eval": lambda folder: (
        b"\x80\x02" + name("__builtin__", "eval") + text(f"__import__('os').mkdir({folder!r})") + b"\x85R."
    ),
    "INST": lambda folder: PROTO + b"(" + text(folder) + b"ios\nmkdir\n.",
    "OBJ": lambda folder: PROTO + b"(" + MKDIR + text(folder) + b"o.",
    "NEWOBJ": lambda folder: PROTO + PARTIAL + MKDIR + text(folder) + b"\x86\x81)R.",
    "NEWOBJ_EX": lambda folder: PROTO + PARTIAL + MKDIR + text(folder) + b"\x86}\x92)R.",
    "BUILD": lambda folder: PROTO + PARTIAL + MKDIR + b"\x85R(" + MKDIR + text(folder) + b"\x85}Ntb)R.",
    "EXT1": lambda folder: PROTO + b"\x82\xf7" + text(folder) + b"\x85R.",
    "EXT2": lambda folder: PROTO + b"\x83\xf7\x00" + text(folder) + b"\x85R.",
    "EXT4": lambda folder: PROTO + b"\x84\xf7\x00\x00\x00" + text(folder) + b"\x85R.",
    "memo": lambda folder: PROTO + MKDIR + b"q\x070h\x07" + text(folder) + b"\x85R.",
    "dropped value": lambda folder: PROTO + b"}" + MKDIR + text(folder) + b"\x85R0.",
}  # fmt: skip

WRAPPINGS: dict[str, Callable[[bytes], bytes]] = {
    "bare": lambda payload: payload,
    "zlib": zlib.compress,
    "xz": lzma.compress,
    "nested": lambda payload: PROTO + load_from_bytes(payload) + b".",
    "nested value": lambda payload: PROTO + load_from_bytes(legacy_file(payload, (), b"")) + b".",
    "nested twice": lambda payload: (
        PROTO + load_from_bytes(legacy_file(PROTO + load_from_bytes(legacy_file(payload)) + b".")) + b"."
    ),
    "legacy": lambda payload: legacy_file(payload, (), b""),
    "zip": lambda payload: zip_file(payload),
}


@pytest.fixture
def extension_code() -> Iterator[None]:
    copyreg.add_extension(os.mkdir.__module__, "mkdir", 0xF7)
    yield
    copyreg.remove_extension(os.mkdir.__module__, "mkdir", 0xF7)


@pytest.mark.usefixtures("extension_code")
@pytest.mark.parametrize("kind", PAYLOADS)
def test_the_payloads_work_in_a_stock_loader(tmp_path: Path, kind: str) -> None:
    pickle.loads(PAYLOADS[kind](str(tmp_path / "made")))
    assert (tmp_path / "made").is_dir()


@pytest.mark.usefixtures("extension_code")
@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("kind", PAYLOADS)
def test_calls_are_refused_and_not_made(tmp_path: Path, kind: str, wrapping: str, audited: list[str]) -> None:
    path, folder = tmp_path / "checkpoint.pt", tmp_path / "made"
    path.write_bytes(WRAPPINGS[wrapping](PAYLOADS[kind](str(folder))))
    audited.clear()
    with pytest.raises(UnsafeFileError):
        read_checkpoint(path)
    assert not folder.exists()
    assert audited == []


def test_the_message_names_the_call(refuse: Callable[..., None]) -> None:
    for kind in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "memo", "dropped value"):
        refuse(PAYLOADS[kind]("x"), UnsafeFileError, r"os\.mkdir")
    refuse(
        PROTO + load_from_bytes(legacy_file(PROTO + load_from_bytes(b"") + b".")) + b".", UnsafeFileError, "_load_from"
    )
    refuse(zip_file(PROTO + load_from_bytes(b"") + b"."), UnsafeFileError, r"torch\.storage\._load_from_bytes")


@pytest.mark.parametrize(
    "pickled",
    [
        FLOATS + integer(2) + b"\x85R",  # a storage class is no function
        text("torch") + b")R",
        HOOKS + b")R",
        b"N)\x81",
        name("_codecs", "encode") + text("x") + text("rot13") + b"\x86R",
        name("__builtin__", "bytes") + integer(1 << 60) + b"\x85R",
        tensor() + b"}" + text("__class__") + b"Nsb",
        HOOKS + b"}" + text("__class__") + b"Nsb",
        name("collections", "OrderedDict") + b"}" + text("build") + b"Nsb",
        b"P0\n",
        b"\x97",
        b"\x98",
    ],
)
def test_whitelisted_names_cannot_be_misused(refuse: Callable[..., None], pickled: bytes) -> None:
    refuse(zip_file(PROTO + pickled + b"."), UnsafeFileError)


def test_class_attributes_of_a_namespace_are_only_text(tmp_path: Path) -> None:
    namespace = name("argparse", "Namespace") + b")\x81}" + text("__class__") + text("os.system") + b"sb"
    (tmp_path / "file").write_bytes(in_config(namespace))
    assert read_checkpoint(tmp_path / "file").config == {"x": {"__class__": "os.system"}}


# Damaged or absurd instructions.


@pytest.mark.parametrize(
    ("pickled", "match"),
    [
        (b"h\x05.", "recalls entry 5"),
        (b"j\xff\xff\xff\xff.", "never set"),
        (b"\x94.", "empty stack"),
        (b"q\x00.", "empty stack"),
        (b".", "unfinished"),
        (b"NN.", "unfinished"),
        (b"(N.", "unfinished"),
        (b"t.", "mark"),
        (b"u.", "mark"),
        (b"R.", "empty stack"),
        (b"N\x87.", "empty stack"),
        (b"}(Nu.", "no value"),
        (b"](NNu.", "not a dict"),
        (b"}Na.", "not a list"),
        (b"b.", "empty stack"),
        (b"}" + (text("k") + b"Ns") * 2 + b".", "twice"),
        (b"}" + b"G" + bytes(8) + b"Ns.", "key of type float"),
        (b"}" + b"))\x86" + b"Ns.", "key of type tuple"),
        (b"}" + b"\x8a\x09" + b"\xff" * 8 + b"\x01Ns.", "key of type int"),
        (b"\x80\x09.", "protocol 9"),
        (b"\xff.", "no pickle instruction"),
        (b"I1\n.", "INT does not occur"),
        (b"\x95" + b"\xff" * 8 + b"N.", "frame of"),
        (b"\x95" + struct.pack("<Q", 500) + b"N.", "truncated"),
        (b"\x8e" + struct.pack("<Q", 1 << 60) + b".", "truncated"),
        (b"B\xff\xff\xff\xff.", "truncated"),
        (b"X\x01\x00\x00\x00\xff.", "UTF-8"),
        (b"X\x03\x00\x00\x00\xed\xa0\x80.", "UTF-8"),
        (b"c" + b"a" * 300 + b"\nb\n.", "name of more than"),
        (b"c\xff\nb\n.", "UTF-8"),
        (b"NN\x93.", "not text"),
        (b"N", "truncated"),
        (name("collections", "OrderedDict") + b"NR.", "without a tuple"),
        (name("collections", "OrderedDict") + b"]\x85R.", "OrderedDict made from"),
        (name("argparse", "Namespace") + b"N\x85\x81.", "Namespace made from"),
        (name("argparse", "Namespace") + b")\x81Nb.", "state of type NoneType"),
        (name("argparse", "Namespace") + b")\x81N}\x86b.", "state of type tuple"),
        (name("_codecs", "encode") + b")R.", "without a text"),
        (name("_codecs", "encode") + text("\u20ac") + text("latin1") + b"\x86R.", "above 255"),
        (name("torch._utils", "_rebuild_parameter") + b"N\x85R.", "a parameter that"),
        (b"N.N.", "unexpected bytes"),
    ],
)
def test_malformed_pickles(refuse: Callable[..., None], pickled: bytes, match: str) -> None:
    refuse(PROTO + pickled, CheckpointError, match)
    refuse(zip_file(PROTO + pickled), CheckpointError, match)


@pytest.mark.parametrize(
    ("pickled", "match"),
    [
        (b"\x8b" + struct.pack("<I", 1 << 30) + b".", "integer of 1,073,741,824 bytes"),
        (b"\x8b\x04\x00\x00\x00aaaa.", "integer of 4 bytes"),
        (b"\x8a\xff" + b"a" * 255 + b".", "integer of 255 bytes"),
        (b"N" * 1_000_001 + b".", "instructions"),
        (text("0") + b"Q.", "persistent id"),
        (persistent_storage(kind=b"N") + b".", "persistent id"),
    ],
)
def test_oversized_pickles_and_outside_references(refuse: Callable[..., None], pickled: bytes, match: str) -> None:
    refuse(PROTO + pickled, UnsafeFileError, match)


# Tensors and storages.


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (1, (2,), (1,)),
        (3, (0,), (1,)),
        (0, (3,), (1,)),
        (0, (2,), (2,)),
        (2**62, (1,), (1,)),
        (0, (2**62,), (1,)),
        (0, (1,) * 3 + (2**62,) * 5, (2**62,) * 8),
        (0, (2**40,), (0,)),  # expands one value
        (0, (2, 2), (0, 1)),  # overlaps to more than the storage has
        (0, (0, 2**50), (1, 1)),
    ],
)
def test_tensors_outside_their_storage(
    refuse: Callable[..., None], offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    record = {"offset": integer(offset), "size": integers(size), "stride": integers(stride)}
    refuse(joblib_file(text("a"), tensor(**record)), UnsafeFileError, "reaches outside its storage")
    refuse(
        zip_file(joblib_file(text("a"), tensor(persistent_storage(), **record)), STORAGE_ENTRY),
        UnsafeFileError,
        "reaches outside its storage",
    )


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"offset": integer(-1)}, "not a count"),
        ({"size": integers((-2,))}, "not a count"),
        ({"stride": integers((-1,))}, "not a count"),
        ({"offset": integer(2**64)}, "not a count"),
        ({"offset": b"\x88"}, "not a count"),
        ({"size": b"N"}, "not tuples"),
        ({"size": integers((2, 1))}, "not tuples of one length"),
        ({"size": integers((1,) * 9), "stride": integers((1,) * 9)}, "up to 8"),
        ({"storage": b"N"}, "over a NoneType"),
        ({"rest": b"\x89"}, "5 values"),
        ({"rest": b"\x89" + HOOKS + b"}"}, "7 values"),
        ({"rest": b"\x89}K\x00Ns"}, "backward hooks"),
    ],
)
def test_malformed_tensors(refuse: Callable[..., None], fields: dict[str, bytes], match: str) -> None:
    refuse(joblib_file(text("a"), tensor(**fields)), CheckpointError, match)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"storages": struct.pack("<q", 3) + bytes(12)}, "3 elements, expected 2"),
        ({"storages": struct.pack("<q", -2) + bytes(8)}, "expected 2"),
        ({"storages": struct.pack("<q", 2) + bytes(7)}, "needs 8 bytes, found 7"),
        ({"storages": struct.pack("<q", 2) + bytes(9)}, "unexpected bytes"),
        ({"storages": b""}, "0 elements"),
        ({"keys": ("1",)}, "do not match"),
        ({"keys": ()}, "do not match"),
        ({"keys": ("0", "0")}, "do not match"),
        ({"keys": {"0": 1}}, "list of storage keys"),
        ({"keys": (0,)}, "list of storage keys"),
        ({"magic": 1}, "magic number"),
        ({"version": 1002}, "version"),
        ({"system": {**SYSTEM, "little_endian": False}}, "big-endian"),
        ({"system": [1]}, "big-endian"),
        ({"pickled": PROTO + b"N.", "keys": (), "storages": b""}, "where the bytes of a storage"),
        ({"pickled": PROTO + persistent_storage(rest=b"(t") + b"."}, "view of another storage"),
        ({"pickled": PROTO + persistent_storage(kind=b"N", rest=b"N") + b"."}, "without class"),
        ({"pickled": PROTO + persistent_storage(key=b"K\x00", rest=b"N") + b"."}, "without class"),
        ({"pickled": PROTO + persistent_storage(numel=b"\x88", rest=b"N") + b"."}, "without class"),
        ({"pickled": PROTO + persistent_storage(numel=integer(-1), rest=b"N") + b"."}, "without class"),
        (
            {
                "pickled": PROTO
                + persistent_storage(rest=b"N")
                + persistent_storage(numel=b"K\x01", rest=b"N")
                + b"\x86."
            },
            "described in two ways",
        ),
    ],
)
def test_malformed_nested_storages(refuse: Callable[..., None], fields: dict[str, object], match: str) -> None:
    nested = tensor(load_from_bytes(legacy_file(**fields)))  # type: ignore[arg-type]
    refuse(joblib_file(text("a"), nested), CheckpointError, match)


@pytest.mark.parametrize("identifier", [b"NQ", text("0") + b"Q", b")Q", persistent_storage(tag="module")])
def test_persistent_ids_other_than_storages(refuse: Callable[..., None], identifier: bytes) -> None:
    refuse(zip_file(PROTO + identifier + b"."), UnsafeFileError, "not a storage")


def test_declared_bytes_beyond_the_limit(refuse: Callable[..., None]) -> None:
    numel = 10_000
    shared = tensor(persistent_storage(numel=integer(numel)), size=integers((numel,))) + b"q\x00"
    entries = [text("a"), shared, *(text(f"k{i}") + b"h\x00" for i in range(500))]
    content = zip_file(joblib_file(*entries), {"x/data/0": bytes(4 * numel)})
    refuse(content, UnsafeFileError, "20,040,000 bytes, more than the limit", max_bytes=10 << 20)


# Bombs.


def test_one_byte_string_loaded_many_times(refuse: Callable[..., None]) -> None:
    numel = 100_000
    storage = struct.pack("<q", numel) + bytes(4 * numel)
    nested = legacy_file(PROTO + persistent_storage(numel=integer(numel), rest=b"N") + b".", storages=storage)
    load = name("torch.storage", "_load_from_bytes")
    first = tensor(load + byte_string(nested) + b"q\x00\x85R")
    entries = [text("a"), first, *(text(f"k{i}") + tensor(load + b"h\x00\x85R") for i in range(2000))]
    refuse(joblib_file(*entries), UnsafeFileError, "but the data have only")


def test_one_text_encoded_many_times(refuse: Callable[..., None]) -> None:
    encode = name("_codecs", "encode")
    first = encode + text("x" * 100_000) + b"q\x00" + text("latin1") + b"q\x01\x86R"
    again = (encode + b"h\x00h\x01\x86R") * 1000
    refuse(PROTO + b"(" + first + again + b"t.", UnsafeFileError, "same text again")


def test_shared_values_do_not_expand(refuse: Callable[..., None]) -> None:
    doubled = text("lol") + b"".join(b"q%ch%c\x86" % (i, i) for i in range(28))
    refuse(in_config(doubled), UnsafeFileError, "expand to more than 100,000 values")


def test_shared_values_as_dictionary_keys(refuse: Callable[..., None]) -> None:
    """Hashing such a tuple would take 2 to the power of 200 steps."""
    key = text("lol") + b"".join(b"q%ch%c\x86" % (i, i) for i in range(200))
    refuse(PROTO + b"}" + key + b"Ns.", CheckpointError, "key of type tuple")


def test_cycles_and_deep_nesting(refuse: Callable[..., None]) -> None:
    refuse(in_config(b"]q\x00h\x00a"), UnsafeFileError, "contain themselves")
    refuse(in_config(b"}q\x00" + text("self") + b"h\x00s"), UnsafeFileError, "contain themselves")
    refuse(in_config(b"N" + b"\x85" * 400_000), UnsafeFileError, "nest deeper than 32")
    refuse(PROTO + b"(" * 400_000 + b".", CheckpointError, "unfinished")


def test_a_cycle_through_the_whole_file(refuse: Callable[..., None]) -> None:
    content = PROTO + b"}q\x00" + text("state_dict") + b"h\x00s."
    refuse(content, CheckpointError, "'state_dict' of its state dict is a dict")


@pytest.mark.parametrize("compress", [zlib.compress, bz2.compress, lzma.compress])
def test_decompression_bombs(refuse: Callable[..., None], compress: Callable[[bytes], bytes]) -> None:
    bomb = compress(bytes(64 << 20))
    tracemalloc.start()
    refuse(bomb, UnsafeFileError, "inflates to more than 4,194,304 bytes", max_bytes=4 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The bomb itself is a file; bz2 and lzma keep tables of up to 12 MiB.
    assert peak < 24 << 20


def test_decompression_bomb_without_a_limit_by_the_caller(
    refuse: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_paraminit.io.containers.ALWAYS_ALLOWED_BYTES", 1 << 20)
    refuse(zlib.compress(bytes(64 << 20)), UnsafeFileError, "inflates to more than")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (zlib.compress(joblib_file(text("a"), tensor()))[:-3], "zlib compression is damaged: .*truncated"),
        (lzma.compress(joblib_file(text("a"), tensor()))[:-20], "xz compression is damaged: .*truncated"),
        (bz2.compress(joblib_file(text("a"), tensor()))[:-5], "bz2 compression is damaged: .*truncated"),
        (zlib.compress(joblib_file(text("a"), tensor())) + b"more", "after the end of the compressed"),
        (zlib.compress(zlib.compress(b"x")), "pickle"),
        (zlib.compress(b""), "truncated"),
        (b"\x78\x9c" + b"\xff" * 20, "zlib compression is damaged"),
        (b"\x5d\x00\x00\x00\xff" + b"\xff" * 8 + bytes(20), "lzma compression is damaged"),  # asks for 4 GiB
    ],
)
def test_damaged_compression(refuse: Callable[..., None], content: bytes, match: str) -> None:
    refuse(content, CheckpointError, match)


# Zip archives.


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("../evil", "one root folder"),
        ("x/../evil", "one root folder"),
        ("x/data/../../evil", "one root folder"),
        ("/etc/passwd", "one root folder"),
        ("x//etc", "one root folder"),
        ("x\\..\\evil", "one root folder"),
        ("x/a\\b", "one root folder"),
        ("y/data/0", "one root folder"),
        ("x", "one root folder"),
        ("x/data/", "one root folder"),
    ],
)
def test_names_that_leave_the_archive(refuse: Callable[..., None], path: str, match: str) -> None:
    refuse(zip_file(ZIP_PICKLE, {**STORAGE_ENTRY, path: b""}), UnsafeFileError, match)


def test_duplicate_entries(refuse: Callable[..., None]) -> None:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")
        for content in (ZIP_PICKLE, PAYLOADS["GLOBAL"]("x")):
            archive.writestr("x/data.pkl", content)
    refuse(buffer.getvalue(), UnsafeFileError, "occurs twice")


GOOD_ZIP = zip_file(ZIP_PICKLE, STORAGE_ENTRY)
END_OF_DIRECTORY = GOOD_ZIP.index(b"PK\x05\x06")


def changed(position: int, replacement: bytes, content: bytes = GOOD_ZIP) -> bytes:
    return content[:position] + replacement + content[position + len(replacement) :]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (zip_file(ZIP_PICKLE, STORAGE_ENTRY, zipfile.ZIP_DEFLATED), "compressed or encrypted"),
        (zip_file(b"N" * (1 << 20), compression=zipfile.ZIP_DEFLATED), "larger than the file|compressed"),
        (changed(GOOD_ZIP.index(ZIP_PICKLE) + 5, b"\x00"), "checksum"),
        (changed(GOOD_ZIP.index(b"x/data/0") + 8, b"\x01"), "checksum"),
        (changed(30, b"y"), "another name in its local header"),
        (changed(0, b"PK\x03\x04" + b"\xff" * 26), "another name|damaged"),
        (zip_file(ZIP_PICKLE, {**STORAGE_ENTRY, "x/byteorder": b"big"}), "byte order is not little"),
        (zip_file(ZIP_PICKLE, {"x/data/1": bytes(8)}), "lacks the storage data/0"),
        (zip_file(ZIP_PICKLE, {"x/data/0": bytes(7)}), "needs 8 bytes, found 7"),
        (zip_file(ZIP_PICKLE, {"x/data/0": bytes(800)}), "needs 8 bytes, found 800"),
        (zip_file(ZIP_PICKLE, {**STORAGE_ENTRY, "x/constants.pkl": b""}), "TorchScript"),
        (GOOD_ZIP[:-1], "does not end like one"),
        (GOOD_ZIP[:100], "does not end like one"),
        (GOOD_ZIP + b"more", "does not end like one"),
        (changed(END_OF_DIRECTORY + 16, b"\xff\xff\xff\x7f"), "damaged local header"),
        (changed(GOOD_ZIP.index(b"PK\x01\x02"), b"PK\x01\x03"), "zip directory is damaged"),
    ],
)
def test_damaged_archives(refuse: Callable[..., None], content: bytes, match: str) -> None:
    error = UnsafeFileError if "larger" in match else CheckpointError
    refuse(content, error, match)


def test_archive_without_a_pickle(refuse: Callable[..., None]) -> None:
    refuse(GOOD_ZIP.replace(b"data.pkl", b"code.pkl"), CheckpointError, "no data.pkl")


def test_overlapping_entries(refuse: Callable[..., None]) -> None:
    """Many names for the same bytes, which the local header cannot have."""
    content = zip_file(ZIP_PICKLE, {"x/data/0": bytes(1 << 16), "x/data/1": b"", "x/data/2": b""})
    directory = content.index(b"PK\x01\x02")
    first = content.index(b"PK\x01\x02", directory + 4)
    sizes_and_offset = content[first + 20 : first + 28], content[first + 42 : first + 46]
    for key in (1, 2):
        entry = content.index(f"x/data/{key}".encode(), directory) - 46
        content = changed(entry + 20, sizes_and_offset[0], content)
        content = changed(entry + 42, sizes_and_offset[1], content)
    refuse(content, UnsafeFileError, "together are larger than the file")


def test_huge_directory(refuse: Callable[..., None]) -> None:
    refuse(changed(END_OF_DIRECTORY + 12, b"\xff\xff\xff\x7f"), UnsafeFileError, "zip directory takes")

"""Damaged and hostile bundles: one sentence and nothing written, or the very run that was exported."""

from __future__ import annotations

import json
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paraknow.errors import InputError
from paraknow.runs import artifacts, bundle, zips
from tests.runs import packed

FLIPS = 1000
COUNTS: Counter[str] = Counter()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a small run."""
    folder = tmp_path_factory.mktemp("good")
    return bundle.export(packed.finished(folder / "runs"), folder / "good.zip")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder that stands for the machine around the runs."""
    folder = tmp_path / "machine"
    (folder / "home").mkdir(parents=True)
    (folder / "home" / "precious.txt").write_text("mine")
    return folder


def refused(file: Path, machine: Path) -> str:
    """The sentence of an import that is refused, after checking that it left nothing behind."""
    before = packed.snapshot(machine)
    with pytest.raises(InputError) as stop:
        bundle.import_(file, machine / "runs")
    assert packed.snapshot(machine) == before
    sentence = str(stop.value)
    assert "\n" not in sentence and len(sentence) < 1000 and sentence.startswith(str(file)), sentence
    return sentence


# -- a thousand damages -----------------------------------------------------------------------------


@st.composite
def damage(draw: Any, size: int = 0, places: tuple[tuple[int, int], ...] = ()) -> Callable[[bytes], bytes]:
    """Single and several flips anywhere or in one part of the file; cuts, doubled and moved pieces."""
    kind = draw(st.sampled_from(["one", "one", "one", "several", "several", "cut", "drop", "double", "zeros"]))
    low, high = draw(st.sampled_from(((0, size), *places)))
    at = st.integers(low, high - 1)
    if kind in ("one", "several"):
        flips = draw(st.lists(st.tuples(at, st.integers(1, 255)), min_size=1, max_size=1 if kind == "one" else 8))

        def flip(data: bytes) -> bytes:
            changed = bytearray(data)
            for place, bits in flips:
                changed[place] ^= bits
            return bytes(changed)

        return flip
    place, length = draw(at), draw(st.integers(1, 60))
    return {
        "cut": lambda data: data[:place],
        "drop": lambda data: data[:place] + data[place + length :],
        "double": lambda data: data[: place + length] + data[place:],
        "zeros": lambda data: data[:place] + bytes(length) + data[place + length :],
    }[kind]


def parts(file: Path) -> tuple[tuple[int, int], ...]:
    """Where bundle.json, the list of entries and the end of a zip file lie."""
    with zipfile.ZipFile(file) as archive:
        start, inside = archive.start_dir, archive.getinfo("bundle.json").header_offset
    size = file.stat().st_size
    return (inside, start), (start, size), (size - 22, size)


def test_a_thousand_damaged_bundles(good: Path, machine: Path) -> None:
    """Cheap content, so that a thousand imports take seconds: a short config, no maps."""

    def small(content: dict[str, bytes]) -> None:
        content["config.yaml"] = yaml.safe_dump(packed.CONFIG).encode()
        del content["locate/maps.safetensors"], content["evaluate/items.parquet"]

    file = packed.repacked(good, machine.parent / "small.zip", small)
    data, broken, root = file.read_bytes(), machine.parent / "broken.zip", machine / "runs"
    first = bundle.import_(file, root).run
    wanted = {k: v for k, v in packed.snapshot(first.folder).items() if k != "imported.json"}
    shutil.rmtree(root)
    before = packed.snapshot(machine)
    COUNTS.clear()

    @settings(
        max_examples=FLIPS, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(damage(len(data), parts(file)))
    def one(change: Callable[[bytes], bytes]) -> None:
        broken.write_bytes(change(data))
        try:
            run = bundle.import_(broken, root).run
        except InputError as error:
            assert "\n" not in str(error)
            COUNTS["refused"] += 1
        else:
            found = {k: v for k, v in packed.snapshot(run.folder).items() if k != "imported.json"}
            assert found == wanted and run.id == first.id
            COUNTS["the same run"] += 1
            shutil.rmtree(root)
        assert packed.snapshot(machine) == before

    one()
    print(dict(COUNTS))  # shown by pytest -rP
    assert sum(COUNTS.values()) >= FLIPS and COUNTS["refused"] > FLIPS // 2 and COUNTS["the same run"] > 0


# -- entries that lead elsewhere --------------------------------------------------------------------


def with_entry(good: Path, target: Path, name: str, **facts: Any) -> Path:
    """The bundle with one more entry of that name (written into the file as it is)."""
    shutil.copyfile(good, target)
    with zipfile.ZipFile(target, "a") as archive:
        info = zipfile.ZipInfo("x" * len(name.encode()))
        info.external_attr = facts.get("mode", stat.S_IFREG | 0o644) << 16
        archive.writestr(info, "content")
    data = target.read_bytes().replace(b"x" * len(name.encode()), name.encode())
    target.write_bytes(data)
    return target


NAMES = {
    "/etc/cron.d/evil": "relative path",
    "../../evil.txt": "leads elsewhere",
    "locate/../../evil": "leads elsewhere",
    "./status.json": "leads elsewhere",
    "a//b/ccc": "leads elsewhere",
    "..\\..\\evil": "relative path",
    "C:\\evil\\x": "relative path",
    "C:/evil/xx": "relative path",
    "status.json:stream": "relative path",
    "evil\x07\x1bname": "control character",
    "status.json\0.txt": "control character",
    "config.yaml": "is there twice",
    "Config.YAML": "differ by case alone",
    "notes.md.txt": "not listed",
    "adapters/x/0/model.bin": "not listed",
    "locate/x.pickle": "not listed",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_elsewhere(name: str, good: Path, machine: Path) -> None:
    assert NAMES[name] in refused(with_entry(good, machine.parent / "bad.zip", name), machine)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFDIR])
def test_links_and_special_files(kind: int, good: Path, machine: Path) -> None:
    file = with_entry(good, machine.parent / "bad.zip", "locate/ties.json", mode=kind | 0o777)
    assert "link or a special file" in refused(file, machine)


def changed_directory(good: Path, target: Path, offset: int, form: str, value: int) -> Path:
    """The bundle with one field of its first central entry changed."""
    data = bytearray(good.read_bytes())
    place = data.index(b"PK\x01\x02") + offset
    struct.pack_into(form, data, place, value)
    target.write_bytes(bytes(data))
    return target


def test_encrypted_unknown_compression_and_sizes(good: Path, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = machine.parent / "bad.zip"
    assert "encrypted" in refused(changed_directory(good, target, 8, "<H", 1), machine)
    assert "stored and deflated" in refused(changed_directory(good, target, 10, "<H", 14), machine)
    assert "100 times its size" in refused(changed_directory(good, target, 24, "<I", 2**31), machine)
    assert "not the size that is listed" in refused(changed_directory(good, target, 24, "<I", 2), machine)
    monkeypatch.setattr(zips, "MAX_TOTAL", 1000)
    assert "unpacks to" in refused(good, machine)
    monkeypatch.setattr(zips, "MAX_ENTRIES", 3)
    assert "at most 3 are accepted" in refused(good, machine)
    monkeypatch.setattr(zips, "MAX_DIRECTORY", 100)
    assert "list of entries is too large" in refused(good, machine)


def test_a_bomb_stops_early(good: Path, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that unpacks to more than it declares, and one that holds very much in very little."""
    bomb = machine.parent / "bomb.zip"
    packed.repacked(good, bomb, lambda content: content.update({"locate/zeros.json": bytes(40 * 2**20)}))
    assert "100 times its size" in refused(bomb, machine)
    monkeypatch.setattr(zips, "CHUNK", 64)
    with zipfile.ZipFile(good) as archive:
        first = archive.infolist()[0]
    lying = changed_directory(good, machine.parent / "lying.zip", 24, "<I", first.file_size - 1)
    assert refused(lying, machine)


def test_entries_that_share_their_content(machine: Path) -> None:
    """Overlapping entries make a small file unpack to very much."""
    body = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = body.compress(bytes(range(256)) * 40) + body.flush()
    size, crc = 256 * 40, zlib.crc32(bytes(range(256)) * 40)
    name = b"config.yaml"
    local = struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, 8, 0, 0, crc, len(raw), size, len(name), 0) + name + raw

    def entry(n: bytes) -> bytes:
        facts = (20, 20, 0, 8, 0, 0, crc, len(raw), size, len(n), 0, 0, 0, 0, 0, 0)
        return struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, *facts) + n

    central = b"".join(entry(name + str(k).encode()) for k in range(50))
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 50, 50, len(central), len(local), 0)
    file = machine.parent / "overlap.zip"
    file.write_bytes(local + central + end)
    assert "share their content" in refused(file, machine) or "Overlapped" in refused(file, machine)


# -- bundle.json and the files it lists -------------------------------------------------------------


def lists(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(content: dict[str, bytes]) -> None:
        about = json.loads(content["bundle.json"])
        change(about)
        content["bundle.json"] = json.dumps(about).encode()

    return apply


LISTED: dict[str, tuple[Callable[[dict[str, bytes]], Any], str]] = {
    "newer": (lists(lambda a: a.update(schema_version=9, paraknow="7.1")), "written by paraknow '7.1'.*schema 9"),
    "no version": (lists(lambda a: a.pop("schema_version")), "schema_version: field required"),
    "version 0": (lists(lambda a: a.update(schema_version=0)), "schema_version 0"),
    "version true": (lists(lambda a: a.update(schema_version=True)), "schema_version"),
    "bad id": (lists(lambda a: a.update(run="../x")), "run: string should match"),
    "hidden id": (lists(lambda a: a.update(run=".x")), "run: string should match"),
    "hash": (lists(lambda a: a["files"][0].update(sha256="0" * 64)), "not the content whose hash"),
    "size": (lists(lambda a: a["files"][0].update(size=1)), "not the size that is listed"),
    "missing": (lambda c: c.pop("evaluate/deltas.json"), "is listed and not there"),
    "no list": (lists(lambda a: a.pop("files")), "lists no files"),
    "no object": (lambda c: c.update({"bundle.json": b"[1]"}), "bundle.json is damaged"),
    "deep": (lambda c: c.update({"bundle.json": b"[" * 100000}), "no valid JSON"),
    "long": (lambda c: c.update({"bundle.json": b" " * (5 * 2**20)}), "larger than 4 MiB"),
    "no bundle": (lambda c: [c.pop(name) for name in ("bundle.json", "config.yaml")], "so it is no bundle"),
}


@pytest.mark.parametrize("case", LISTED)
def test_lists_that_are_not_so(case: str, good: Path, machine: Path) -> None:
    change, sentence = LISTED[case]
    file = packed.repacked(good, machine.parent / "bad.zip", change, honest=False)
    assert re.search(sentence, refused(file, machine))


def config(**changes: Any) -> bytes:
    return yaml.safe_dump({**packed.CONFIG, **changes}).encode()


ITEMS = packed.items()
CONTENT: dict[str, tuple[str, bytes, str]] = {
    "unknown setting": ("config.yaml", config(loocate={}), "unknown key 'loocate'; did you mean 'locate'"),
    "yaml bomb": ("config.yaml", b"a: &a [x,x]\nb: &b [*a,*a]\n" + b"c: [" + b"*b," * 12000 + b"]", "more than 20000"),
    "python": ("config.yaml", b"!!python/object/apply:os.system ['true']", "tag .* is not accepted"),
    "state": ("status.json", b'{"state": "running"}', "has ended"),
    "far future": ("status.json", b'{"state": "done", "created": 1e300}', "created: input should be less"),
    "status list": ("status.json", b"[1]", "status.json is refused: expected a JSON object"),
    "deep": ("status.json", b'{"a":' * 100000, "nested too deeply"),
    "types": ("evaluate/deltas.json", b'{"rows": [{"model": 1, "suite": "", "group": ""}]}', "rows.0.model"),
    "nan": ("evaluate/deltas.json", b'{"rows": [{"model": "a", "suite": "", "group": "", "delta": NaN}]}', "finite"),
    "event": ("events.jsonl", b'{"time": 1, "loss": "x"}\n', "line 1: loss"),
    "event text": ("events.jsonl", b"{oops\n", "line 1: it is not valid JSON"),
    "no parquet": ("locate/layers.parquet", b"PAR1" + bytes(20) + b"PAR1", "layers.parquet is refused"),
    "columns": ("evaluate/items.parquet", packed.parquet(ITEMS.drop(columns="logprob")), "lacks the columns logprob"),
    "kinds": ("evaluate/items.parquet", packed.parquet(ITEMS.assign(correct="x")), "column 'correct' cannot be"),
    "tensors": ("locate/maps.safetensors", struct.pack("<Q", 2**60) + b"{}", "maps.safetensors is refused"),
    "pickle": ("locate/x.pkl", b"\x80\x04.", "is no file that a run has"),
    "page": ("evaluate/index.html", b"<script>", "is no file that a run has"),
    "mark": ("imported.json", b"{}", "is no file that a run has"),
    "lock": (".lock", b"", "is no file that a run has"),
}


@pytest.mark.parametrize("case", CONTENT)
def test_content_that_no_run_has(case: str, good: Path, machine: Path) -> None:
    name, data, sentence = CONTENT[case]
    file = packed.repacked(good, machine.parent / "bad.zip", lambda content: content.update({name: data}))
    assert re.search(sentence, refused(file, machine)), refused(file, machine)


def test_tables_larger_than_memory(good: Path, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "MAX_CELLS", 100)
    many = packed.parquet(pd.concat([ITEMS] * 5))
    file = packed.repacked(good, machine.parent / "b.zip", lambda c: c.update({"evaluate/items.parquet": many}))
    assert "more than 100 values" in refused(file, machine)


def test_no_zip_at_all(machine: Path) -> None:
    for data in (b"", b"PK\x05\x06" + bytes(18), b"not a zip", b"PK\x03\x04" * 1000, b"\x1f\x8b\x08" + bytes(50)):
        file = machine.parent / "x.zip"
        file.write_bytes(data)
        assert refused(file, machine)

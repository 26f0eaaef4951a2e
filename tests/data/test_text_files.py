"""A user's files as documents: what is read, what is left out and counted, what is refused in one line before memory is taken."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from extractor import files
from extractor.data import text_files
from extractor.data.build_corpus import build_corpus
from extractor.data.sources import check_sources, documents
from extractor.data.text_files import LeftOut, content_facts, documents_of
from extractor.errors import SpecError
from extractor.progress import Progress
from extractor.spec.schema import CorpusSpec

LATIN, KANJI = "# café\n".encode("latin-1"), "x = '漢字'\n"


def read(path: Path) -> tuple[list[str], str]:
    left_out = LeftOut()
    return list(documents_of(path, left_out)), str(left_out)


def checked(path: Path) -> None:
    """What a job does: a look when it is made, then all of it."""
    check_sources(CorpusSpec(sources=(str(path),)))
    list(documents(CorpusSpec(), str(path)))


def refused(path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        checked(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(path: Path, *texts: object) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_hidden_files_and_folders_are_left_out_and_named(tmp_path: Path):
    for name in (".git/config", ".git/hooks/a.py", "a/.cache/b.py", ".DS_Store", "a/._x.py", "a/x.py", "b.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    texts, left_out = read(tmp_path)
    assert texts == ["a/x.py", "b.py"]
    assert left_out == "hidden, left out: 4 (.git, .DS_Store, a/.cache, ...)"


def test_a_hidden_folder_that_is_named_is_read(tmp_path: Path):
    (tmp_path / ".texts").mkdir()
    (tmp_path / ".texts" / "a.txt").write_text("one")
    assert read(tmp_path / ".texts") == (["one"], "")


def test_a_byte_order_mark_is_no_text(tmp_path: Path):
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.py").write_bytes(mark + KANJI.encode())
    (tmp_path / "b.jsonl").write_bytes(mark + b'{"text": "one"}\r\n' + mark + b'{"text": "two"}\r\n')  # two files, one after the other
    assert read(tmp_path) == ([KANJI, "one", "two"], "")


def test_files_that_are_not_utf8_are_left_out_of_a_folder_and_counted(tmp_path: Path):
    (tmp_path / "a.py").write_text(KANJI)
    for index in range(4):
        (tmp_path / f"latin{index}.py").write_bytes(b"x = 1\n" * 100 + LATIN)
    assert read(tmp_path) == ([KANJI], "not UTF-8 text, left out: 4 (latin0.py, latin1.py, latin2.py, ...)")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LATIN, "byte 6 is 0xe9, which is not UTF-8; save it as UTF-8"),
        (KANJI.encode("utf-16"), "it is UTF-16 text: save it as UTF-8"),
        ("x = 1\n".encode("utf-16-le"), "it has null bytes: it is no text, or not UTF-8"),  # valid UTF-8, but not the text
        ("x = 1\n".encode("utf-32-be"), "it has null bytes"),
        (gzip.compress(b"x = 1\n"), "it is compressed (gzip): unpack it, or give its folder with --dataset"),
        (b"PAR1\x15\x04", "it is a parquet file: give its folder with --dataset"),
        (b"PK\x03\x04\x14", "it is a zip archive: unpack it"),
        (b"", "the file is empty"),
        (b" \n\t", "the file has only white space"),
    ],
    ids=["latin", "utf16", "utf16 without mark", "utf32", "gzip", "parquet", "zip", "empty", "blank"],
)
def test_a_file_that_is_no_text_is_refused_by_its_reason_and_counted_in_a_folder(tmp_path: Path, content: bytes, said: str):
    (tmp_path / "a.txt").write_bytes(content)
    message = refused(tmp_path / "a.txt")
    assert message.startswith(f"corpus '{tmp_path}/a.txt' holds no text: ")
    assert said in message
    (tmp_path / "b.txt").write_text("one")
    texts, left_out = read(tmp_path)
    assert texts == ["one"]
    assert left_out.endswith("left out: 1 (a.txt)")


def test_a_folder_without_any_text_says_what_it_has(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / ".hidden").write_text("x")
    message = refused(tmp_path)
    assert "holds no text" in message
    assert "--dataset FOLDER reads parquet and compressed files" in message
    assert "hidden, left out: 1 (.hidden); not UTF-8 text, left out: 1 (a.parquet)" in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson"])
def test_rows_without_text_are_left_out_and_counted_by_line(tmp_path: Path, name: str):
    rows(tmp_path / name, "one", None, "", "  ", "two", None)
    texts, left_out = read(tmp_path / name)
    assert texts == ["one", "two"]
    assert left_out == f"rows without text, left out: 4 ({name} line 2, {name} line 3, {name} line 4, ...)"


def test_half_a_surrogate_pair_is_written_as_a_question_mark_and_counted(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "one \\ud800 two"}\n{"text": "\\ud83d\\ude00"}\n')
    assert read(tmp_path / "a.jsonl") == (["one ? two", "😀"], "rows with half a surrogate pair, written as '?': 1 (a.jsonl line 1)")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"[" * 200_000, "line 2: expected a JSON object with a 'text' field"),
        (b'{"text": ' + b"[" * 200_000, "line 2: expected a JSON object"),
        (b'{"text": ["a"]}', "line 2: expected a JSON object with a 'text' field that is a string"),
        (b'{"text": 3}', "line 2: expected a JSON object with a 'text' field that is a string"),
        (b'{"content": "x", "id": 4}', "field that is a string; it has content, id"),
        (b'{"text": "caf\xe9"}', "line 2: not UTF-8 (column 14 is byte 0xe9); save the file as UTF-8"),
        (b'{"text": "cut in the mid', "line 2: expected a JSON object"),
        (b"9" * 5000, "line 2: expected a JSON object"),
    ],
    ids=["deep", "deep value", "list", "number", "field", "latin", "cut", "digits"],
)
def test_a_row_that_is_no_document_is_refused_by_its_line(tmp_path: Path, line: bytes, said: str):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n' + line + b"\n")
    assert said in refused(tmp_path / "a.jsonl")
    (tmp_path / "b.txt").write_text("two")
    assert said in refused(tmp_path), "also in a folder: a broken row is no reason to read less"


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(path))  # the name of a socket has at most 107 bytes


@pytest.mark.parametrize("make", [make_fifo, make_socket, lambda path: path.symlink_to("/dev/zero")], ids=["fifo", "socket", "device"])
def test_what_is_no_regular_file_is_never_opened(tmp_path: Path, make: Callable[[Path], None]):
    make(tmp_path / "a.txt")
    assert "it is a pipe, a socket or a device; save its content to a file" in refused(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("one")
    assert read(tmp_path) == (["one"], "cannot be read, left out: 1 (a.txt)")
    with pytest.raises(OSError, match="a pipe, a socket or a device"):
        files.read_regular(tmp_path / "a.txt", 10)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc")
def test_files_that_say_they_are_empty_are_not_opened():
    """Reading /proc/kmsg would wait for the kernel's next line."""
    assert "the file is empty" in refused(Path("/proc/self/environ"))
    assert content_facts(Path("/proc/self/environ")) == [["/proc/self/environ", "empty"]]
    assert files.read_regular(Path("/proc/self/environ"), 10) == b""


def test_a_file_too_large_for_memory_is_refused_before_it_is_read(tmp_path: Path):
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(10**10)  # takes no room on the disk
    message = refused(tmp_path / "a.txt")
    assert "has 10,000,000,000 bytes, more than the 4,294,967,296 that are read with --corpus; give its folder with --dataset" in message
    assert "10,000,000,000 bytes" in refused(tmp_path)
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(10**9)
    assert "is one document, but it has 1,000,000,000 bytes, more than the 268,435,456 that are read" in refused(tmp_path / "a.txt")


def test_a_row_too_long_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_files, "MAX_DOCUMENT_BYTES", 100)
    rows(tmp_path / "a.jsonl", "x", "y" * 200)
    assert "line 2: the line has more than 100 characters; cut its text into several rows" in refused(tmp_path / "a.jsonl")


def test_links_to_folders_are_not_followed_and_counted_and_loops_do_no_harm(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "z.txt").symlink_to("a.txt")
    texts, left_out = read(tmp_path)
    assert texts == ["one", "one"]
    assert left_out == "links to folders, left out: 1 (loop); cannot be read, left out: 2 (gone, self)"


def test_characters_of_names_that_do_not_print_are_shown_as_their_escapes(tmp_path: Path):
    (tmp_path / "b.txt").write_text("one")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[31m\n.txt")).write_bytes(LATIN)
    assert read(tmp_path)[1] == "not UTF-8 text, left out: 1 (\\udcff\\x1b[31m .txt)"


def build(path: Path, tokenizer, cache: Path) -> list[str]:
    notes: list[str] = []
    build_corpus(
        CorpusSpec(sources=(str(path),)), tokenizer, cache, progress=Progress(lambda event: notes.append(event.get("message", "")))
    )
    return notes


def test_every_job_notes_what_is_left_out_also_one_that_finds_the_shards_in_the_cache(tokenizer, tmp_path: Path):
    folder = tmp_path / "texts"
    folder.mkdir()
    rows(folder / "a.jsonl", "x = 1\n" * 50, None)
    (folder / "b.py").write_bytes(LATIN)
    wanted = [f"corpus {folder}: rows without text, left out: 1 (a.jsonl line 2); not UTF-8 text, left out: 1 (b.py)"]
    assert build(folder, tokenizer, tmp_path / "cache") == wanted
    assert build(folder, tokenizer, tmp_path / "cache") == wanted
    assert len(list((tmp_path / "cache" / "corpus").iterdir())) == 1


def test_text_is_known_by_its_content_not_by_size_and_time(tokenizer, tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("one = 1\n" * 50)
    before = content_facts(path)
    stamp = path.stat()
    path.write_text("two = 2\n" * 50)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert content_facts(path) != before
    path.write_text("one = 1\n" * 50)
    assert content_facts(path) == before, "a file that was only touched is the same text"


def test_what_is_too_large_to_be_hashed_is_known_by_a_time_that_cannot_be_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_files, "MAX_SOURCE_BYTES", 10)
    path = tmp_path / "a.txt"
    path.write_text("one = 1\n" * 50)
    before, stamp = content_facts(path), path.stat()
    path.write_text("two = 2\n" * 50)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert content_facts(path) != before


def test_a_file_that_changes_while_it_is_read_is_refused_and_nothing_is_kept(tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.txt"
    path.write_text("one = 1\n" * 50)
    plain, times = text_files._decoded, itertools.count()

    def change(content: bytes) -> str:
        path.write_text(f"two = {next(times)}\n" * 60)
        return plain(content)

    monkeypatch.setattr(text_files, "_decoded", change)
    with pytest.raises(SpecError, match="changed while they were read; run again"):
        build(path, tokenizer, tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_equal_documents_are_all_read_and_stay_on_one_side(tokenizer, tmp_path: Path):
    rows(tmp_path / "a.jsonl", *["x = 1\n"] * 5, "y = 2\n")
    assert read(tmp_path / "a.jsonl") == (["x = 1\n"] * 5 + ["y = 2\n"], "")

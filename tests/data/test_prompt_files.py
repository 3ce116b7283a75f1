"""Prompts are read from the files that people have, and what cannot be read is named by its place."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from interp.data import check_classes, load_class
from interp.data.prompts import PromptSet
from interp.errors import InterpWarning, PromptError

PROMPTS = ("What is the tide?", "Name a river, or two.")
OBJECTS = [{"id": i, "prompt": p} for i, p in enumerate(PROMPTS)]
LINES = "\n".join(map(json.dumps, OBJECTS))
TABLE = 'id,prompt\n0,"What is the tide?"\n1,"Name a river, or two."\n'


def chat(prompt: Any, *before: tuple[str, str], user: str = "user") -> list[dict[str, Any]]:
    turns = [*before, (user, prompt), ("assistant", "…")]
    return [{"role": role, "content": text} for role, text in turns]


def read(folder: Path, name: str, content: bytes | str, column: str = "") -> PromptSet:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_class(f"{path}{column}", "refuse")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.ndjson", LINES),
        ("a.JSONL", LINES),
        ("a.txt", LINES),
        ("a", LINES + "\n\n"),
        ("a.jsonl", "\ufeff" + LINES.replace("\n", "\r\n")),
        ("a.json", json.dumps(OBJECTS, indent=2)),
        ("a.jsonl", json.dumps(OBJECTS)),
        ("a.json", LINES),
        ("a.json", json.dumps({"version": 1, "data": OBJECTS})),
        ("a.json", json.dumps({"prompt": PROMPTS})),
        ("a.json", json.dumps(PROMPTS)),
        ("a.csv", TABLE),
        ("a.CSV", "\ufeff" + TABLE.replace(",", ";").replace("river;", "river,")),
        ("a.tsv", "id\tPrompt\n0\tWhat is the tide?\n1\tName a river, or two.\n"),
        ("a.csv", TABLE.encode("utf-16")),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("a.csv.bz2", bz2.compress(TABLE.encode())),
        ("a.txt", lzma.compress("\n".join(PROMPTS).encode())),
        ("a.txt", "\r\n".join(("", *PROMPTS, ""))),
        ("a.txt", "\r".join(PROMPTS)),
        ("a.csv", TABLE.replace("\n", "\r")),
        ("a.jsonl", LINES.replace("\n", "\r")),
        ("a.jsonl", "\n".join(json.dumps({"messages": chat(p)}) for p in PROMPTS)),
        ("a.jsonl", "\n".join(json.dumps(chat(p)) for p in PROMPTS)),
        ("a.jsonl", "\n".join(json.dumps({"prompt": json.dumps(chat(p))}) for p in PROMPTS)),
        ("a.json", json.dumps([{"conversations": [{"from": "human", "value": p}]} for p in PROMPTS])),
        ("a.json", json.dumps([{"prompt": chat([{"type": "text", "text": p}])} for p in PROMPTS])),
    ],
)  # fmt: skip
def test_the_same_prompts_in_any_file(tmp_path: Path, name: str, content: bytes | str) -> None:
    found = read(tmp_path, name, content)
    assert found.prompts == PROMPTS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES.replace("prompt", "q x")),
        ("a.csv", TABLE.replace("prompt", "q x")),
        ("a.txt", TABLE.replace("prompt", "q x")),
        ("a.json", json.dumps({"other": ["b"], "q x": PROMPTS})),
    ],
)
def test_a_column_is_selected(tmp_path: Path, name: str, content: str) -> None:
    assert read(tmp_path, name, content, "#q x").prompts == PROMPTS


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_pylist(OBJECTS), tmp_path / "a.parquet")
    assert load_class(f"{tmp_path}/a.parquet#prompt", "refuse").prompts == PROMPTS
    with pytest.raises(PromptError, match="columns: id, prompt"):
        load_class(f"{tmp_path}/a.parquet#x", "refuse")


@pytest.mark.parametrize(
    ("name", "content", "column", "says"),
    [
        ("a.jsonl", '{"prompt": "a"}\n\n{"prompt": null}\n', "", "line 3: 'prompt' is null"),
        ("a.jsonl", '{"prompt": "a"}\n{"x": 1}\n{"prompt": 3}', "", "line 2, line 3: 'prompt' is null"),
        ("a.jsonl", '{"prompt": 3}\n', "", "line 1: 'prompt' is a number"),
        ("a.jsonl", '{"prompt": " "}\n', "", "line 1: 'prompt' is empty"),
        ("a.jsonl", '{"prompt": "\\ud800"}\n', "", "half of a surrogate pair"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt"', "", "line 2 is not JSON"),
        ("a.ndjson", '"a"\n{"prompt": "a"}\n3', "", "line 2: every entry must be"),
        ("a.json", '[{"prompt": "a"}, {"prompt": {}}]', "", "entry 2: 'prompt' is an object"),
        ("a.json", json.dumps([{"messages": chat("a", user="system")}]), "", "entry 1: .* no user turn"),
        ("a.json", json.dumps([chat([{"type": "image_url"}])]), "", "part of type 'image_url'"),
        ("a.csv", "prompt\na,b\n", "", "line 2 has 2 fields, its first line 1"),
        ("a.csv", TABLE, "#goal", r"no column 'goal'; .*\(columns: id, prompt\)"),
        ("a.csv", "What is it?\nWho is it?\n", "", r"columns: What is it\?"),
        ("a.txt", "one\ntwo\n", "#prompt", "plain text .* no column 'prompt'"),
        ("a.jsonl", "", "", "holds no prompts"),
        ("a.csv", "", "", "holds no prompts"),
        ("a.json", "[]", "", "holds no prompts"),
        ("a.txt", b"good\nbad \xff\n", "", "not UTF-8 text .line 2"),
        ("a.txt", "good\nbad\0\n", "", "not UTF-8 text .line 2"),
        ("a.txt", "good\nbad\n".encode("utf-16-le"), "", "not UTF-8 text .line 1"),
        ("a.gz", gzip.compress(b"one two three", mtime=0)[:-9], "", "damaged archive"),
        ("a.xlsx", b"PK\x03\x04", "", "spreadsheet"),
        ("a.parquet", b"PAR1 and no more", "", "Parquet"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    tmp_path: Path, name: str, content: bytes | str, column: str, says: str
) -> None:
    with pytest.raises(PromptError, match=says):
        read(tmp_path, name, content, column)


def test_what_is_left_out_is_noted(tmp_path: Path) -> None:
    talk = [
        chat(
            "And it?", ("system", "Be kind."), ("user", "What is a river?"), ("assistant", "Water.")
        ),
        chat("Name it"),
        chat("name  it."),
    ]
    with pytest.warns(InterpWarning) as noted:
        found = read(tmp_path, "a.jsonl", "\n".join(map(json.dumps, talk)))
    assert found.prompts == ("And it?", "Name it")
    assert [str(note.message).partition(": ")[2] for note in noted] == [
        "system turns of 1 conversation left out",
        "earlier turns of 1 conversation left out",
        "1 of 3 prompts left out as repeats of others",
    ]


def test_an_input_beside_an_instruction_is_noted(tmp_path: Path) -> None:
    rows = [
        {"instruction": p, "input": more} for p, more in zip(PROMPTS, ("", "Rhine"), strict=True)
    ]
    with pytest.warns(InterpWarning, match="'input' of 1 of 2 instructions left out"):
        assert read(tmp_path, "a.json", json.dumps(rows)).prompts == PROMPTS


def test_a_prompt_is_in_one_class_only() -> None:
    refuse = [PromptSet(("a b?", "c"), "r"), PromptSet(("D",), "r")]
    check_classes(refuse, [PromptSet(("e", "ab"), "c")])
    with pytest.raises(
        PromptError, match=r"2 of 3 refuse prompts are comply prompts as well.*'a b"
    ):
        check_classes(refuse, [PromptSet(("A  B", "x"), "c"), PromptSet(("d!",), "c")])

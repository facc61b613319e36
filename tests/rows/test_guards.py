"""JSON, YAML, tables and archives that break programs: accepted, or one line that names the place."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import sys
import tracemalloc
from pathlib import Path

import pytest
from conftest import Cai, mistake

from cai_cli.errors import UserError
from cai_cli.importers.post_files import read_file
from cai_cli.importers.public_files import read_public_rows
from cai_cli.importers.reject import Reject
from cai_cli.rows.json_text import JsonError, load_json
from cai_cli.rows.jsonl import LONGEST_LINE, read_rows
from cai_cli.rows.yaml_text import load_yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

BROKEN = [
    ('{"a": ' * 100_000, "nested more than 100 levels"),
    ("[" * 101 + "]" * 101, "nested more than 100 levels"),
    ('{"a": ' * 200 + "1" + "}" * 200, "nested more than 100 levels"),
    ('{"a": ' + "9" * 400 + "}", "a number of 400 digits"),
    ('{"a": -' + "9" * 5000 + "}", "a number of 5000 digits"),
    ('{"a": 1e400}', "the number 1e400 is out of range"),
    ('{"a": NaN}', "NaN is no JSON"),
    ('{"a": [-Infinity]}', "-Infinity is no JSON"),
    ('{"a": 1, "b": 2, "a": 3}', "the key 'a' is given twice"),
    ('{"a": {"b": [{"c": "\\uD800"}]}}', "field `a.b[0].c`: holds half of a surrogate pair"),
    ('{"\\udfff": 1}', "field `\\udfff`: holds half"),
]


@pytest.mark.parametrize(("text", "problem"), BROKEN)
def test_json_that_could_not_be_written_again_is_refused(tmp_path, text, problem):
    with pytest.raises(JsonError) as error:
        load_json(text)
    assert problem in str(error.value)
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "q"}\n' + text + "\n")
    if text.startswith("{"):
        with pytest.raises(UserError) as told:
            list(read_rows(path))
        assert str(told.value).startswith(f"{path}:2: ") and problem in str(told.value)
    if "NaN" in text or "Infinity" in text:  # a missing value in public data
        assert [line for line, _ in read_public_rows(path)] == [1, 2]
        return
    _, reject = read_public_rows(path)
    assert isinstance(reject, Reject) and (reject.line, reject.reason) in {
        (2, "not_json"),
        (2, "broken_unicode"),
        (2, "not_an_object"),
    }


def test_json_of_sensible_size_comes_through():
    for value in ({"a": [1, -2.5, None, True, "🙂"]}, [[{}]] * 300, 10**300, json.loads("[" * 99 + "]" * 99)):
        assert load_json(json.dumps(value)) == value


def bomb(levels: int, width: int) -> str:
    lists = (f"k{n}: &x{n} [{', '.join([f'*x{n - 1}' if n else 'lol'] * width)}]" for n in range(levels))
    return "\n".join(lists)


YAML = [
    (bomb(9, 10), "unfolds to more than"),
    ("a: &x [*x]", ":1: not valid YAML: the alias *x stands inside of what it names"),
    ("b: 1\na: 2\na: 3", ":3: not valid YAML: the key 'a' is given twice"),
    ("on: 1", "the key on is read as bool"),
    ("1: 1", "the key 1 is read as int"),
    ("? [a]\n: 1", "the key [a sequence] is read as seq"),
    ("a: !!binary aGk=", "the tag tag:yaml.org,2002:binary is not read"),
    ("a: !!python/object/apply:os.system [id]", "is not read"),
    ("a: !!set {b}", "is not read"),
    ("[" * 100_000, "nested more than 100 levels"),
    ("{a: " * 5000, "nested more than 100 levels"),
    ("a: " + "9" * 400, "a number of 400 digits"),
    ("a: " + "9" * 5000, "a number of 5000 digits"),
    ("a: 1.0e+400", "out of range"),
    ("a: .nan", "is none, or out of range"),
    ('a: "\\ud800"', "half of a surrogate pair"),
    ('a: "\\UFFFFFFFF"', "not valid YAML"),
    ("a" * (1 << 20) + "b", "larger than 1 MiB"),
]


@pytest.mark.parametrize(("text", "problem"), YAML)
def test_yaml_that_surprises_is_refused_in_one_line(text, problem):
    with pytest.raises(UserError) as error:
        load_yaml(text, Path("x.yaml"))
    assert (
        str(error.value).startswith("x.yaml") and problem in str(error.value) and "\n" not in str(error.value)
    )


def test_yaml_that_people_write_is_read():
    text = (
        "day: 2024-01-01\nbase: &b {x: 1, y: [1.5, true, null]}\nown:\n  <<: *b\n  x: 2\n"
        "r: &r some text\nagain: *r\ns: !!str 3\n"
    )
    data = load_yaml(text, Path("x.yaml"))
    assert data == {
        "day": "2024-01-01",
        "base": {"x": 1, "y": [1.5, True, None]},
        "own": {"x": 2, "y": [1.5, True, None]},
        "r": "some text",
        "again": "some text",
        "s": "3",
    }


def test_the_commands_that_read_yaml_and_json_name_the_file(cai: Cai, tmp_path: Path) -> None:
    (tmp_path / "bomb.yaml").write_text(
        bomb(9, 10) + "\nprinciples: [{id: a, critique: c, revision: r, comparison: w}]\n"
    )
    mistake(
        cai("constitution", "check", tmp_path / "bomb.yaml", timeout=60),
        "bomb.yaml:5: not valid YAML: unfolds",
    )
    words = ("sample", "--model", tmp_path, "--prompts", tmp_path / "x", "--out", tmp_path / "o.jsonl")
    mistake(
        cai(*words, "--config", tmp_path / "bomb.yaml", timeout=60), "bomb.yaml:5: not valid YAML: unfolds"
    )
    (tmp_path / "date.yaml").write_text("chat-template-kwargs: {day: 2024-01-01}\n")
    mistake(cai(*words, "--config", tmp_path / "date.yaml"), "is not a model directory")
    (tmp_path / "c.json").write_text('{"a": ' * 100_000)
    mistake(
        cai("constitution", "check", tmp_path / "c.json"),
        "c.json:1: not valid JSON: nested more than 100 levels",
    )


# What a file is

ROW = b'{"prompt": "q"}\n'


def parquet() -> bytes:
    import pyarrow
    from pyarrow import parquet

    stream = io.BytesIO()
    parquet.write_table(pyarrow.table({"prompt": ["q"]}), stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (ROW.decode().encode("utf-16"), "is UTF-16 text (convert it: iconv -f UTF-16"),
        (ROW.decode().encode("utf-16-le"), "is UTF-16LE text without a byte order mark"),
        (ROW.decode().encode("utf-16-be"), "is UTF-16BE text without a byte order mark"),
        (ROW.decode().encode("utf-32"), "is UTF-32 text"),
        ('{"prompt": "déjà"}\n'.encode("latin-1"), ":1: not UTF-8 text at byte 14 of the line"),
        (lzma.compress(ROW), "is xz-compressed (unpack it first"),
        (bz2.compress(ROW), "is bzip2-compressed"),
        (b"\x28\xb5\x2f\xfd" + ROW, "is zstd-compressed"),
        (b"PK\x03\x04" + ROW, "is a zip archive"),
        (gzip.compress(gzip.compress(ROW, mtime=0), mtime=0), "is gzip in gzip"),
        (parquet, "is a parquet file (`cai import table"),
        (b'[{"prompt": "q"}]', "is a JSON array, not one JSON object a line (`cai import table"),
        (b'[\n{"prompt": "q"}\n]', "is a JSON array"),
        (b'{\n "prompt": "q"\n}', "is one JSON document over several lines"),
        (b"prompt,completion\nq,a\n", "is a table with columns separated by `,`"),
        (b"prompt;completion\nq;a\n", "is a table with columns separated by `;`"),
        (b"<posts></posts>", "is XML or HTML"),
        (b"How do I?\n", "is plain text"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, content, told):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content() if callable(content) else content)
    with pytest.raises(UserError) as error:
        list(read_rows(path))
    assert str(error.value).startswith(str(path)) and told in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.csv", "prompt;completion\n1;2\n", "x.csv:1: its columns are separated by `;`, not by commas"),
        (
            "x.csv",
            '"prompt";"completion"\n"1, or 2";"3"\n',
            "x.csv:1: its columns are separated by `;`, not by commas",
        ),
        ("x.csv", "prompt|completion\n1|2\n", "separated by `|`"),
        ("x.csv", "prompt\tcompletion\n1\t2\n", "separated by tabs, not by commas (name it .tsv)"),
        ("x.tsv", "prompt,completion\n1,2\n", "separated by commas, not by tabs (name it .csv)"),
        ("x.json", '{\n "data": [\n  {"prompt": "q"}\n ]\n}', "is one JSON document over several lines"),
        ("x.csv", "prompt\n" + "x" * (LONGEST_LINE + 1), "x.csv:2: a line of more than 16 MiB"),
    ],
)
def test_a_table_of_another_kind_is_named(tmp_path, name, content, told):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        list(read_public_rows(tmp_path / name))
    assert told in str(error.value)


def outcome(path: Path, content: str) -> list:
    path.write_text(content, encoding="utf-8")
    return [
        (item.line, item.reason) if isinstance(item, Reject) else tuple(item[1].values())
        for item in read_public_rows(path)
    ]


def test_quotes_of_a_tsv_are_text_unless_they_are_round_a_whole_cell(tmp_path):
    path = tmp_path / "x.tsv"
    assert outcome(path, 'p\tc\na\t"b\nc\td\ne\tf:"\n') == [("a", '"b'), ("c", "d"), ("e", 'f:"')]
    assert outcome(path, 'p\tc\na\t"b ""x"""\n"c\td"\te\nf\t5" pipe\n"g" h\t"i"j"\n') == [
        ("a", 'b "x"'),
        ("c\td", "e"),
        ("f", '5" pipe'),
        ('"g" h', '"i"j"'),
    ]
    assert outcome(path, 'p\tc\na\t"b\nb2"\nc\td\n') == [("a", "b\nb2"), ("c", "d")]
    assert outcome(path, 'p\tc\na\t"b\nshort\nc\td\ne\t"f"\n') == [
        (2, "open_quote"),
        (3, "wrong_number_of_cells"),
        ("c", "d"),
        ("e", "f"),
    ]
    assert outcome(path, 'p\tc\na\t"b') == [("a", '"b')]
    with pytest.raises(UserError, match=r"x\.tsv:2: a quote that is opened here is closed on line 3"):
        outcome(path, 'p\n"a\nb"\n')


def test_the_tail_of_a_broken_csv_cell_never_becomes_rows(tmp_path):
    path = tmp_path / "x.csv"
    broken = 'p,c\na,b\nq,"He said "hi\nthere, friend\nand, left",ok\nlast,1\n'
    assert outcome(path, broken) == [
        ("a", "b"),
        (3, "not_csv"),
        (4, "after_broken_quote"),
        (5, "after_broken_quote"),
        ("last", "1"),
    ]
    assert outcome(path, 'p,c\n"x"y,2\nlast,1\n') == [(2, "not_csv"), ("last", "1")]


def test_line_ends_of_other_systems_do_not_change_rows(tmp_path):
    for end in ("\n", "\r\n", "\r"):
        for name, separator in (("x.csv", ","), ("x.tsv", "\t")):
            (tmp_path / name).write_bytes(f"p{separator}c{end}a{separator}b{end}".encode())
            assert [item[1] for item in read_public_rows(tmp_path / name)] == [{"p": "a", "c": "b"}]


# Size


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.csv.gz", "x.tsv.gz", "x.xml.gz"])
def test_a_line_without_an_end_is_not_held_in_memory(tmp_path, name):
    heads = {
        "x.jsonl.gz": b'{"prompt": "',
        "x.csv.gz": b"p,c\n",
        "x.tsv.gz": b"p\tc\n",
        "x.xml.gz": b'<posts><row Body="',
    }
    with gzip.open(tmp_path / name, "wb", compresslevel=1) as stream:
        stream.write(heads[name])
        for _ in range(150):
            stream.write(b"a" * (1 << 20))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"more than 16 MiB|no row in 16 MiB"):
        list(read_file(tmp_path / name) if ".xml" in name else read_public_rows(tmp_path / name))
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


def test_a_hundred_thousand_blank_lines_are_no_rows(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b"\n" * 100_001 + ROW)
    with pytest.raises(UserError, match=r"x\.jsonl:100001: 100001 blank lines"):
        list(read_rows(tmp_path / "x.jsonl"))


def test_parquet_of_odd_types_is_text_or_rejected(tmp_path):
    import pyarrow
    from pyarrow import parquet

    def write(kinds: dict, *rows: dict) -> None:
        parquet.write_table(pyarrow.Table.from_pylist(list(rows), pyarrow.schema(kinds)), tmp_path / "x")

    kinds = {"prompt": pyarrow.binary(), "n": pyarrow.float64(), "m": pyarrow.list_(pyarrow.decimal128(5, 2))}
    write(
        kinds,
        {"prompt": b"q", "n": float("nan"), "m": [1]},
        {"prompt": b"\xff", "n": float("inf"), "m": None},
    )
    first, second = read_public_rows(tmp_path / "x")
    assert first == (1, {"prompt": "q", "n": None, "m": ["1.00"]})
    assert isinstance(second, Reject) and second.reason == "not_json"
    write({"m": pyarrow.map_(pyarrow.string(), pyarrow.decimal128(5, 2))}, {"m": [("k", 1)]})
    with pytest.raises(UserError, match="not a readable parquet file: Arrow type map"):
        list(read_public_rows(tmp_path / "x"))


# A short form of scripts/fuzz_readers.py


def test_no_reader_stumbles_over_generated_files():
    from fuzz_readers import fuzz

    counts = fuzz(cases=400, seed=7)
    assert counts["read"] > 40 and counts["refused"] > 100

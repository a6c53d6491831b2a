"""What trees of images mean: tables as Hugging Face's ImageFolder reads them, splits, depth, keys, notes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from diffbase.cli import InputError
from shards.checking.verifier import problems
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.read import ShardReader
from shards.schema import UNKNOWN
from shards.sources.base import KEY, Asked
from shards.sources.imagefolder import ImageFolder
from shards.sources.layout import key_of
from shards.table import Index
from tests.support.tiny_set import contents, png_of

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """``tree(*names, name=text)`` makes images, and files with a text."""

    def make(*images: str, texts: dict[str, str] | None = None) -> Path:
        root = tmp_path / "set"
        for name in images:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(png_of(name))
        for name, text in (texts or {}).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return root

    return make


def found(path: Path, **asked: object) -> dict[str, tuple[str | None, dict[str, str]]]:
    """Split and labels, by name, of each image."""
    source = ImageFolder(path, Asked(**asked))  # type: ignore[arg-type]
    said = {attribute.name: attribute.said for attribute in source.schema}
    return {
        str(PurePosixPath(sample.where).relative_to(path)): (
            sample.split,
            {name: said[name](variant) for name, variant in sample.labels.items()},
        )
        for sample in source.samples()
    }


def test_split_folders_with_classes(tree: Tree, tmp_path: Path) -> None:
    told = {"train": "train", "Validation": "val", "test": "test"}
    names = [f"{split}/{c}/{n}.png" for split in told for c in ("ant", "bee") for n in "12"]
    names.append("test/cow/1.png")
    path = tree(*names)
    places = {name: name.split("/") for name in names}
    assert found(path) == {
        name: (told[split], {"class": label}) for name, (split, label, _) in places.items()
    }
    pack(path, tmp_path / "out", Settings(size=4))
    index = Index.load(tmp_path / "out")
    assert {name: len(split) for name, split in index.splits.items()} == {"train": 4, "val": 4, "test": 5}
    assert index.header.split_by == "source" and list(problems(tmp_path / "out")) == []
    keys = [split.key(number) for split in index.splits.values() for number in range(len(split))]
    assert len(set(keys)) == 13 and "train__ant__1" in keys


def test_val_is_cut_from_train_where_there_is_none(tree: Tree, tmp_path: Path) -> None:
    path = tree(*(f"train/{n}.png" for n in range(40)), *(f"test/{n}.png" for n in range(5)))
    assert {split for split, _ in found(path).values()} == {None, "test"}
    pack(path, tmp_path / "out", Settings(size=4, val=0.3))
    counts = {name: len(split) for name, split in Index.load(tmp_path / "out").splits.items()}
    assert counts["test"] == 5 and counts["train"] + counts["val"] == 40 and counts["val"] > 3
    assert list(problems(tmp_path / "out")) == []


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["train/a.png", "test/a.png", "cat/a.png"], "the splits test, train lie beside cat/"),
        (["train/a.png", "val/a.png", "dev/a.png"], "two folders for one split"),
        (["val/a.png", "test/a.png"], "without train/: nothing to train on"),
        (["train/a.png", "val/a.png", "a.png"], "a.png lies beside the splits"),
        (["train/a/b.png", "val/b.png"], "mixed: b.png lies beside a/"),
        (["a/b/1.png"], "a/b: a folder inside a class folder; --depth 2 takes one more level"),
    ],
)
def test_trees_that_are_not_clear(tree: Tree, names: Sequence[str], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        ImageFolder(tree(*names))


def test_names_of_splits_alone_may_be_classes(tree: Tree) -> None:
    assert found(tree("train/1.png", "tram/2.png")) == {
        "train/1.png": (None, {"class": "train"}),
        "tram/2.png": (None, {"class": "tram"}),
    }


def test_depth(tree: Tree) -> None:
    path = tree("a/x/1.png", "a/y/1.png", "b/x/1.png")
    assert {name: labels["class"] for name, (_, labels) in found(path, depth=2).items()} == {
        "a/x/1.png": "a/x",
        "a/y/1.png": "a/y",
        "b/x/1.png": "b/x",
    }
    assert {s.key for s in ImageFolder(path, Asked(depth=2)).samples()} == {"a__x__1", "a__y__1", "b__x__1"}
    for depth, problem in ((1, "a/x: a folder inside"), (3, "1.png: at level 2"), (0, "allowed: 1 to 16")):
        with pytest.raises(InputError, match=problem):
            ImageFolder(path, Asked(depth=depth))
    for other in ({"columns": ("a",)}, {"bins": 4}, {"key": "a"}):
        with pytest.raises(InputError, match="not for a source of kind imagefolder without a table"):
            ImageFolder(path, Asked(**other))  # type: ignore[arg-type]


def test_hidden_files_are_counted(tree: Tree) -> None:
    path = tree("1.png", ".git/a.png", ".git/b/c.png", ".2.png", texts={".DS_Store": ""})
    source = ImageFolder(path)
    assert source.notes == ("3 hidden files or folders passed over",) and source.total == 1


def test_a_column_tells_the_split(tree: Tree) -> None:
    text = "file_name,Split,x\na.png,train,1\nb.png,VALIDATION,2\nc.png,test,3\n"
    path = tree("a.png", "b.png", "c.png", texts={"metadata.csv": text})
    assert found(path) == {
        "a.png": ("train", {"x": "1"}),
        "b.png": ("val", {"x": "2"}),
        "c.png": ("test", {"x": "3"}),
    }
    assert found(path, columns=("Split",))["a.png"] == (None, {"Split": "train"})
    for other, problem in (("extra", "c.png is 'extra'; allowed: train"), ("", "c.png is empty")):
        (path / "metadata.csv").write_text(text.replace("test", other))
        with pytest.raises(InputError, match=problem):
            ImageFolder(path)
    (path / "metadata.csv").write_text(text.replace("train", "val"))
    with pytest.raises(InputError, match="nothing to train on"):
        ImageFolder(path)


def test_one_table_a_split(tree: Tree) -> None:
    path = tree(
        "train/a.png",
        "train/deep/b.png",
        "test/a.png",
        texts={
            "train/metadata.csv": "file_name,x,y\na.png,1,p\ndeep/b.png,2,q\n",
            "test/metadata.jsonl": '{"file_name": "a.png", "x": 2}\n',
        },
    )
    assert found(path) == {
        "train/a.png": (None, {"x": "1", "y": "p"}),
        "train/deep/b.png": (None, {"x": "2", "y": "q"}),
        "test/a.png": ("test", {"x": "2", "y": "unknown"}),
    }
    (path / "test" / "metadata.csv").touch()
    with pytest.raises(InputError, match="two tables of labels; allowed: one in a folder"):
        ImageFolder(path)


def test_labels_from_elsewhere(tree: Tree, tmp_path: Path) -> None:
    path = tree("cat/1.png", "dog/2.png", texts={"my labels.tsv": "id\tx\n2\tb\n1\ta\n"})
    with pytest.raises(InputError, match=r"my labels.tsv: not an image by its name; .*--labels"):
        ImageFolder(path)
    expected = {"cat/1.png": (None, {"x": "a"}), "dog/2.png": (None, {"x": "b"})}
    assert found(path, labels=path / "my labels.tsv") == expected
    outside = (path / "my labels.tsv").rename(tmp_path / "labels.csv")
    assert found(path, labels=outside) == expected
    assert (
        "the folders' names are no labels where a table is" in ImageFolder(path, Asked(labels=outside)).notes
    )
    with pytest.raises(InputError, match="--depth: not for a source of kind imagefolder with a table"):
        ImageFolder(path, Asked(labels=outside, depth=1))


def test_digest_tells_other_labels(tree: Tree) -> None:
    path = tree("a.png", "b.png", texts={"metadata.csv": "file_name,x\na.png,1\nb.png,2\n"})
    before = ImageFolder(path).digest()
    assert ImageFolder(path).digest() == before
    (path / "metadata.csv").write_text("file_name,x\na.png,2\nb.png,1\n")
    assert ImageFolder(path).digest() != before


def test_a_link_to_a_folder_above_ends(tree: Tree) -> None:
    path = tree("a/1.png")
    (path / "a" / "again").symlink_to("..")
    with pytest.raises(InputError, match="a folder within itself"):
        ImageFolder(path)


parts = st.text("a_-. é", min_size=1, max_size=5).filter(lambda part: part not in (".", "..", ". "))


@settings(max_examples=300, deadline=None)
@given(st.sets(st.lists(parts, min_size=1, max_size=4).map(tuple), max_size=9))
def test_keys_of_any_depth(files: set[tuple[str, ...]]) -> None:
    keys = [key_of(PurePosixPath(*parts[:-1], f"{parts[-1]}.png"), any_depth=True) for parts in files]
    assert all(KEY.fullmatch(key) for key in keys) and len(set(keys)) == len(files)


words = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), max_size=8)
texts = words.map(lambda text: " ".join(text.split()))
cells = st.none() | texts.filter(lambda text: text.lower() not in ("nan", "null"))


@settings(max_examples=12, deadline=None, phases=[Phase.generate])
@given(data=st.data())
def test_a_table_is_what_hugging_face_reads(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The same rows, image by image, through a pack and back, from any form of table."""
    import datasets

    folder = tmp_path_factory.mktemp("table")
    reserved = {"file_name", "image", "split", "label"}
    named = texts.filter(lambda t: t and t.lower() not in reserved and not t.endswith("file_name"))
    columns = data.draw(st.lists(named, min_size=1, max_size=3, unique=True))
    rows = [
        {"file_name": f"{'deep/' * (n % 2)}{n} é.png", **{column: data.draw(cells) for column in columns}}
        for n in range(data.draw(st.integers(2, 6)))
    ]
    for row in rows:
        (folder / "set" / str(row["file_name"])).parent.mkdir(parents=True, exist_ok=True)
        (folder / "set" / str(row["file_name"])).write_bytes(png_of(str(row["file_name"])))
    form = data.draw(st.sampled_from(["csv", "jsonl", "parquet"]))
    write(folder / "set" / f"metadata.{form}", rows)

    pack(folder / "set", folder / "out", Settings(size=4, val=0), kind="imagefolder")
    assert list(problems(folder / "out")) == []
    with ShardReader(folder / "out", order="sequential") as reader:
        batch = reader.read(range(len(rows)))
        schema = reader.schema
    mine = {
        key: {a.name: a.said(v) for a, v in zip(schema, labels.tolist(), strict=True) if v != UNKNOWN}
        for key, labels in zip(batch.keys, batch.labels, strict=True)
    }
    stock = datasets.load_dataset(
        "imagefolder", data_dir=str(folder / "set"), split="train", cache_dir=str(folder / "cache")
    ).cast_column("image", datasets.Image(decode=False))
    theirs = {}
    for row in stock:
        name = PurePosixPath(row["image"]["path"]).relative_to(folder / "set")
        theirs[key_of(name, any_depth=True)] = {
            a.name: row[a.name] for a in schema if row[a.name] not in (None, "")
        }
    assert {k: {n: spoken(v) for n, v in row.items()} for k, row in theirs.items()} == {
        k: {n: spoken(v) for n, v in row.items()} for k, row in mine.items()
    }
    # A column that is not there says the same of every row, or nothing.
    for column in set(columns) - {a.name for a in schema}:
        assert len({row[column] for row in rows} - {None, ""}) <= 1


def spoken(cell: object) -> object:
    """A value in either's words: Hugging Face makes numbers and booleans of a CSV's text."""
    try:
        return {"yes": 1.0, "no": 0.0, "true": 1.0, "false": 0.0}.get(str(cell).lower()) or float(str(cell))
    except ValueError:
        return str(cell)


def write(path: Path, rows: list[dict[str, object]]) -> None:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(
            pa.table({n: pa.array([row[n] for row in rows], pa.string()) for n in rows[0]}), path
        )


def test_same_bytes_from_any_form_of_table(tree: Tree, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"file_name": f"{n}.png", "hair color": ["red", None, "blond"][n % 3], "big": str(n % 2)}
        for n in range(9)
    ]
    path = tree(*(f"{n}.png" for n in range(9)))
    for form in ("csv", "jsonl", "parquet"):
        write(path / f"metadata.{form}", rows)
        pack(path, tmp_path / form, Settings(size=4, val=0.2, shard_size=4), kind="imagefolder")
        (path / f"metadata.{form}").unlink()
    assert contents(tmp_path / "csv") == contents(tmp_path / "jsonl") == contents(tmp_path / "parquet")
    index = Index.load(tmp_path / "csv")
    assert index.header.variant_names == {"hair color": ("blond", "red"), "big": ("no", "yes")}
    assert index.header.unknown == ("hair color",)

"""Reading tables."""

import polars as pl
import pytest

from lightning_meta.data.tables import check_columns, check_output, names_of, read_table, write_table

ROWS = pl.DataFrame({"name": ["a", "b"], "value": [1.5, None]})


@pytest.mark.parametrize("ending", ["csv", "tsv", "data", "parquet", "json", "jsonl", "ndjson"])
def test_every_format_gives_the_same_table(tmp_path, ending):
    path = tmp_path / f"table.{ending}"
    if ending in ("csv", "tsv", "data"):
        ROWS.write_csv(path, separator="\t" if ending == "tsv" else ",")
    else:
        {"parquet": ROWS.write_parquet, "json": ROWS.write_json}.get(ending, ROWS.write_ndjson)(path)
    assert read_table(path).equals(ROWS)


def test_types_are_decided_by_all_rows(tmp_path):
    path = tmp_path / "late.csv"
    path.write_text("x\n" + "1\n" * 500 + "text\n")
    assert read_table(path)["x"].dtype == pl.String


def test_texts_for_missing_values(tmp_path):
    path = tmp_path / "gaps.csv"
    path.write_text("x,y\n1,2\nNA,3\n")
    assert read_table(path)["x"].to_list() == ["1", "NA"]
    assert read_table(path, missing=["", "NA"])["x"].to_list() == [1, None]


@pytest.mark.parametrize("missing", [("",), ("", "NA")])
def test_texts_are_kept_as_written(tmp_path, missing):
    path = tmp_path / "codes.csv"
    path.write_text("code,x\n07,1\n1.10,2\nTrue,NA\n,4\nNA,5\n")
    table = read_table(path, missing, texts=["code", "not there"])
    assert table.columns == ["code", "x"]
    assert table["code"].to_list() == ["07", "1.10", "True", None, "NA"]
    assert table["x"].to_list() == ([1, 2, None, 4, 5] if "NA" in missing else ["1", "2", "NA", "4", "5"])


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_columns_of_one_name_are_refused(tmp_path, ending):
    path = tmp_path / f"table.{ending}"
    path.write_text("x,y,x\n1,2,3\n".replace(",", "\t" if ending == "tsv" else ","))
    with pytest.raises(ValueError, match="several columns 'x': give each a name of its own"):
        read_table(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"x;y\n1;2\n", "is it separated by ';'. save it with commas"),
        ("a.csv", b"x;y\n0,1;2\n", "is it separated by ';'. save it with commas"),
        ("a.tsv", b"x;y\n1;2\n", "save it with tabs"),
        ("a.csv", "x,y\n1,2\n".encode("utf-16"), "the file is in UTF-16: save it in UTF-8"),
        ("a.csv", "x\n1\n".encode("utf-16"), "the file is in UTF-16: save it in UTF-8"),
        ("a.csv", "x,y\n\u00e9,2\n".encode("latin-1"), "the file is not in UTF-8 .*: save it in UTF-8"),
    ],
)
def test_separators_and_encodings_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("table.xlsx", b"x\n1\n", "does not end in one of .csv"),
        ("table.csv", b"", "cannot be read as a .csv table"),
        ("table.csv", b"x,y\n", "has no rows"),
        ("table.csv", b"x\n\xff\xfe\n", "cannot be read"),
        ("table.csv", b"x\n1\n2,3,4\n", "cannot be read"),
        ("table.parquet", b"no parquet", "cannot be read as a .parquet table"),
        ("table.json", b"{", "cannot be read as a .json table"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        read_table(tmp_path / "nowhere.csv")


def test_a_missing_column_is_named_with_the_closest():
    with pytest.raises(ValueError, match="target_column='valeu'.*did you mean 'value'.*'name', 'value'"):
        check_columns(ROWS, [("task_column", "name"), ("target_column", "valeu")], "table.csv")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, None, 2.0], ["1", None, "2"]),
        ([1.0, 1e300], ["1.0", "1e+300"]),
        (["1.0", None, "-20.0"], ["1", None, "-20"]),
        (["1.0", "1.10"], ["1.0", "1.10"]),
        (["01.0", "1.0"], ["01.0", "1.0"]),
        (["01", "1"], ["01", "1"]),
    ],
)
def test_names_are_the_same_for_whole_numbers_and_their_texts(values, expected):
    assert names_of(pl.Series(values)).to_list() == expected


class TestOutput:
    def test_a_link_is_kept_and_its_target_replaced(self, tmp_path):
        (tmp_path / "inner").mkdir()
        target, link = tmp_path / "inner/table.csv", tmp_path / "link.csv"
        target.write_text("old")
        link.symlink_to(target)
        with pytest.raises(FileExistsError, match="table.csv' exists"):
            check_output(link, overwrite=False)
        write_table(ROWS, check_output(link, overwrite=True))
        assert link.is_symlink()
        assert read_table(target).equals(ROWS)

    def test_a_link_to_nothing_is_checked_as_its_target(self, tmp_path):
        (tmp_path / "table.csv").symlink_to(tmp_path / "nowhere/table.csv")
        with pytest.raises(FileNotFoundError, match="there is no folder '.*nowhere'"):
            check_output(tmp_path / "table.csv", overwrite=True)
        (tmp_path / "other.csv").symlink_to(tmp_path / "script.sh")
        with pytest.raises(ValueError, match="script.sh' does not end in one of"):
            check_output(tmp_path / "other.csv", overwrite=True)

    def test_what_a_format_cannot_hold_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "table.csv"
        path.write_text("old")
        with pytest.raises(ValueError, match="table.csv' cannot be written: .*nested"):
            write_table(pl.DataFrame({"x": [[1, 2]]}), path)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

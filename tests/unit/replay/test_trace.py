"""A trace is read whole or not at all, and says which rows are wrong."""

import gzip

import pytest

from proxy.errors import ConfigurationError
from proxy.replay.trace import Row, read

HEADER = "t_s,input_tokens,output_tokens\n"


def written(tmp_path, text, name="trace.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("pack", [str.encode, lambda text: gzip.compress(text.encode())])
def test_plain_and_gzip_by_content_not_by_name(tmp_path, pack):
    path = written(tmp_path, pack(HEADER + "0.000,374,44\n4.315,396,109\n"), "trace.bin")
    assert read(path) == [Row(0.0, 374, 44), Row(4.315, 396, 109)]


def test_optional_columns_in_any_order_and_unknown_ones_ignored(tmp_path):
    text = "model,t_s,tokens_borrowed,client,output_tokens,input_tokens,prompt_id\nm-mid,1,1,c-3,39,356,p7\n"
    assert read(written(tmp_path, text)) == [Row(0.0, 356, 39, "m-mid", "c-3", "p7")]


def test_sorted_by_time_starting_at_zero(tmp_path):
    path = written(tmp_path, HEADER + "7,2,2\n5,1,1\n5,3,3\n")
    assert read(path) == [Row(0.0, 1, 1), Row(0.0, 3, 3), Row(2.0, 2, 2)]


def test_limit_takes_the_first_rows_and_looks_at_no_other(tmp_path):
    path = written(tmp_path, HEADER + "0,1,1\n1,2,2\nbroken\n")
    assert [row.input_tokens for row in read(path, 2)] == [1, 2]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("x,1,1", "t_s is 'x'"),
        ("nan,1,1", "t_s is 'nan'"),
        ("-1,1,1", "t_s is '-1'"),
        ("inf,1,1", "t_s is 'inf'"),
        ("1,1.5,1", "input_tokens is '1.5'"),
        ("1,-1,1", "input_tokens is '-1'"),
        ("1,1", "output_tokens is ''"),
        ("1,1,²", "output_tokens is '²'"),
        ("1,1,10000001", "more than 10000000"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path, row, said):
    path = written(tmp_path, f"{HEADER}0,1,1\n{row}\n")
    with pytest.raises(ConfigurationError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert said in str(error.value)


def test_the_first_few_bad_rows_are_all_named(tmp_path):
    with pytest.raises(ConfigurationError) as error:
        read(written(tmp_path, HEADER + "a,1,1\n" * 9))
    assert [line.split(":")[1] for line in str(error.value).splitlines()] == ["2", "3", "4", "5", "6"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no column t_s, input_tokens, output_tokens"),
        ("t_s,input_tokens\n0,1\n", "no column output_tokens"),
        (HEADER, "no requests"),
        (b"\x1f\x8bnot gzip after all", "cannot be read"),
        (b"t_s\xff\n", "cannot be read"),
    ],
)
def test_a_file_that_is_no_trace(tmp_path, content, said):
    with pytest.raises(ConfigurationError, match=said):
        read(written(tmp_path, content))


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read(tmp_path / "none.csv")

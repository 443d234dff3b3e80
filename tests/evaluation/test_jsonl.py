import pytest

from offload_jax.evaluation.jsonl import read_lines, write_lines


def test_what_is_written_is_read_back(tmp_path):
    rows = [{"a": 1, "b": None}, {"text": "line\nbreak and \u2028 separator, ü"}]
    write_lines(tmp_path / "new" / "rows.jsonl", rows)
    assert read_lines(tmp_path / "new" / "rows.jsonl") == rows


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_lines(path, [{"a": 1}])
    with pytest.raises(ValueError):
        write_lines(path, [{"a": 2}, {"a": float("nan")}])
    assert read_lines(path) == [{"a": 1}]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "bad", [b"{", b"[1]", b"NaN", b'{"a": NaN}', b"\xff\xfe", b"", b"\x00\x00", b"[" * 100_000]
)
def test_a_line_that_is_no_object_is_named_by_file_and_number(tmp_path, bad):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + bad + b'\n{"a": 3}\n')
    for drop_partial in (False, True):
        with pytest.raises(ValueError, match=r"rows\.jsonl, line 2"):
            read_lines(path, drop_partial)


def test_only_an_unfinished_last_line_is_forgiven_and_only_on_request(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": ')
    assert read_lines(path, drop_partial=True) == [{"a": 1}]
    with pytest.raises(ValueError, match="line 2"):
        read_lines(path)
    path.write_bytes(b'{"a": 1}\n{"a": \n')
    with pytest.raises(ValueError, match="line 2"):
        read_lines(path, drop_partial=True)

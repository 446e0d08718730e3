import pytest

from powermean.sizes import bytes_of, exact_size, size


def test_sizes_are_decimal() -> None:
    assert [size(n) for n in (0, 999, 1000, 537_000_000, 2_500_000_000_000)] == [
        "0 B", "999 B", "1.0 kB", "537.0 MB", "2.5 TB",
    ]  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 1000, 537_000_000, 2_500_000_000_000])
def test_what_is_written_reads_as_the_same(count: int) -> None:
    assert bytes_of(size(count)) == count


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (1_550_000_000_000, "1.55 TB"), (500 * 10**9, "500 GB"),
        (1_234_567_890, "1234567.89 kB"), (1_234_567_891, "1234567.891 kB"), (3 * 10**15, "3000 TB"),
    ],
)  # fmt: skip
def test_an_exact_size_loses_nothing(count: int, text: str) -> None:
    assert exact_size(count) == text
    assert bytes_of(text) == count


def test_sizes_are_read_in_any_case_and_with_or_without_a_space() -> None:
    assert bytes_of(" 200 gb ") == bytes_of("200GB") == 200_000_000_000


@pytest.mark.parametrize("text", ["", "200", "-1 GB", "1e3 GB", "GB", "1 GiB", "1 XB", "٣ GB", "1 GB 2 GB"])
def test_what_is_no_size_says_what_would_be(text: str) -> None:
    with pytest.raises(ValueError, match="such as 500 GB"):
        bytes_of(text)

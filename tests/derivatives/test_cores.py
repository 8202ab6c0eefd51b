import os
from pathlib import Path

import pytest

from nablad_server.derivatives.cores import cores

ALL = len(os.sched_getaffinity(0))


def version_2(directory: Path, text: str) -> Path:
    (directory / "cpu.max").write_text(text)
    return directory


def version_1(directory: Path, quota: str, period: str) -> Path:
    (directory / "cpu").mkdir()
    (directory / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (directory / "cpu" / "cpu.cfs_period_us").write_text(period)
    return directory


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000\n", ALL), ("50000 100000\n", 1), ("100000 100000\n", 1), ("150000 100000\n", min(2, ALL)),
     ("6400000 100000\n", min(64, ALL))],
)  # fmt: skip
def test_a_container_counts_its_share_of_the_cores(tmp_path: Path, text: str, expected: int) -> None:
    assert cores(version_2(tmp_path, text)) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1\n", ALL), ("50000\n", 1)])
def test_so_it_does_with_the_first_version_of_control_groups(tmp_path: Path, quota: str, expected: int) -> None:
    assert cores(version_1(tmp_path, quota, "100000\n")) == expected


def test_outside_of_containers_all_count_that_the_process_may_run_on(tmp_path: Path) -> None:
    assert cores(tmp_path) == ALL

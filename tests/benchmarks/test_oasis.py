"""The OASIS benchmark keeps subjects together, and cohorts of other sizes apart."""

import csv

import numpy as np
from oasis import by_subject, prepare

from medfusion.data.task import Task


def test_no_subject_is_on_both_sides_of_a_split():
    subjects = np.array([f"p{number // 2}" for number in range(40)])
    for train, test in by_subject(subjects):
        assert not set(subjects[train]) & set(subjects[test])
        assert len(train) + len(test) == 40
        assert len(test) > 0


def test_a_cohort_has_the_size_that_is_asked_for_also_the_second_time(tmp_path, monkeypatch):
    source = tmp_path / "oasis1"
    source.mkdir()
    ids = [f"OAS1_{number:04}_MR1" for number in range(100)]
    with (source / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ID", "subject", "Age", "M/F", "CDR", "Educ", "SES"])
        writer.writerows(
            [name, name[:9], 20 + number % 70, "FM"[number % 2], "", "", ""]
            for number, name in enumerate(ids)
        )
    volumes = np.zeros((100, 4, 4, 4), dtype=np.uint8)
    np.savez(source / "scans.npz", volumes=volumes, ids=np.array(ids))
    monkeypatch.setenv("MEDFUSION_DATA", str(tmp_path))
    for size in ([40, 48, 40], [20, 24, 20]):
        config = prepare(tmp_path / "out", "age", size)
        assert Task.load(config.parent / "task.toml").image.size == tuple(size)

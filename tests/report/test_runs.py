import pytest

from dml.report.runs import group_runs, read_runs


def test_finds_finished_runs_below_a_folder_and_no_others(tmp_path, write_run):
    write_run("b", seed=1)
    write_run("a", seed=0)
    (tmp_path / "unfinished").mkdir()
    assert [run.row["seed"] for run in read_runs([tmp_path])] == [0, 1]


def test_overlapping_folders_count_a_run_once(tmp_path, write_run):
    folder = write_run("a")
    assert len(read_runs([tmp_path, folder])) == 1


def test_no_finished_run_names_the_folder(tmp_path):
    with pytest.raises(ValueError, match=f"no finished run.*{tmp_path}"):
        read_runs([tmp_path])


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"metrics": {}, "row": {"method": "nra"}}'])
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=r"metrics\.json is not"):
        read_runs([tmp_path])


def test_groups_by_method_over_seeds(tmp_path, write_run):
    for name, method, seed in (("a", "nra", 0), ("b", "nra", 1), ("c", "lifted", 0)):
        write_run(name, method, seed)
    groups = group_runs(read_runs([tmp_path]))
    assert {group.label: len(runs) for group, runs in groups.items()} == {"nra": 2, "lifted": 1}


def test_data_sets_and_dimensions_are_never_averaged(tmp_path, write_run):
    write_run("a", data="cub200", dimension=64)
    write_run("b", data="cub200", dimension=512, batch=128)
    write_run("c", data="sop", dimension=64, optimizer={"lr": 1})
    assert list(group_runs(read_runs([tmp_path]))) == [
        ("nra", "cub200", 64),
        ("nra", "cub200", 512),
        ("nra", "sop", 64),
    ]


def test_a_seed_counts_once(tmp_path, write_run):
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        write_run(name, seed=seed)
    ((_, runs),) = group_runs(read_runs([tmp_path])).items()
    assert [run.folder.name for run in runs] == ["a", "b"]


def test_one_seed_by_two_versions_of_the_code_is_refused(tmp_path, write_run):
    write_run("a", code="one")
    write_run("b", code="two")
    with pytest.raises(ValueError, match=r"/a and .*/b are one run by two versions of the code"):
        group_runs(read_runs([tmp_path]))


def test_runs_that_stop_early_may_differ_in_their_steps(tmp_path, write_run):
    for seed in (0, 1):
        write_run(f"p{seed}", seed=seed, steps=100 + seed, protocol={"patience": 3})
    assert len(group_runs(read_runs([tmp_path]))) == 1
    for seed in (0, 1):
        write_run(f"q{seed}", "lifted", seed=seed, steps=100 + seed, protocol={"patience": None})
    with pytest.raises(ValueError, match="differ in steps"):
        group_runs(read_runs([tmp_path]))


def test_a_folder_without_a_run_among_others_is_named(tmp_path, write_run):
    run = write_run("a")
    (tmp_path / "typo").mkdir()
    with pytest.raises(ValueError, match=r"no finished run.*typo"):
        read_runs([run, tmp_path / "typo"])


def test_folds_are_averaged_with_what_follows_from_them(tmp_path, write_run):
    for fold, classes in enumerate((54, 55)):
        write_run(str(fold), split={"fold": fold, "folds": 5}, train_classes=classes, loss={"num_classes": classes})
    ((_, runs),) = group_runs(read_runs([tmp_path])).items()
    assert len(runs) == 2
    write_run("2", split={"fold": 1, "folds": 5}, seed=1, train_classes=54, loss={"num_classes": 55})
    write_run("3", split={"fold": 1, "folds": 5}, seed=2, train_classes=55, loss={"num_classes": 55})
    with pytest.raises(ValueError, match="differ in train_classes"):
        group_runs(read_runs([tmp_path / "2", tmp_path / "3"]))


def test_refuses_to_average_other_settings_and_names_the_key(tmp_path, write_run):
    write_run("a", optimizer={"lr": 0.1})
    write_run("b", seed=1, optimizer={"lr": 0.2})
    with pytest.raises(ValueError, match=r"differ in optimizer\.lr and cannot be averaged"):
        group_runs(read_runs([tmp_path]))


def test_a_key_that_only_one_run_has_differs(tmp_path, write_run):
    write_run("a")
    write_run("b", seed=1, crop=1)
    with pytest.raises(ValueError, match="differ in crop"):
        group_runs(read_runs([tmp_path]))


def test_by_gives_each_value_its_group(tmp_path, write_run):
    write_run("a", loss={"alpha": 1})
    write_run("b", loss={"alpha": 2})
    write_run("c", seed=1, loss={"alpha": 2})
    groups = group_runs(read_runs([tmp_path]), ["loss.alpha"])
    assert {group.label: len(runs) for group, runs in groups.items()} == {
        "nra, loss.alpha=1": 1,
        "nra, loss.alpha=2": 2,
    }
    with pytest.raises(ValueError, match=r"--by loss\.beta is no key"):
        group_runs(read_runs([tmp_path]), ["loss.beta"])


def test_by_shows_a_key_only_where_there_is_one(tmp_path, write_run):
    write_run("a")
    write_run("b", "triplet", loss={"mining": "hard"})
    labels = [group.label for group in group_runs(read_runs([tmp_path]), ["loss.mining"])]
    assert labels == ["nra", "triplet, loss.mining=hard"]


def test_jobs_of_a_sweep_come_by_number(tmp_path, write_run):
    for job in (10, 2, 1):
        write_run(str(job), seed=job)
    assert [run.row["seed"] for run in read_runs([tmp_path])] == [1, 2, 10]


def test_folders_come_in_the_order_given(tmp_path, write_run):
    b, a = write_run("b", seed=1), write_run("a", seed=2)
    assert [run.row["seed"] for run in read_runs([b, a])] == [1, 2]
    assert [run.row["seed"] for run in read_runs([b, tmp_path])] == [1, 2]


def test_a_value_from_a_file_and_from_the_command_line_is_one(tmp_path, write_run):
    write_run("a", loss={"alpha": 4.0})
    write_run("b", loss={"alpha": 4}, seed=1)
    assert [group.label for group in group_runs(read_runs([tmp_path]), ["loss.alpha"])] == ["nra, loss.alpha=4"]


def test_a_misspelt_key_or_folder_is_answered_with_what_there_is(tmp_path, write_run):
    write_run("a")
    write_run("b", "triplet", loss={"mining": "hard", "margin": 1.0})
    runs = read_runs([tmp_path])
    with pytest.raises(ValueError, match=r"--by lost\.mining is no key of these runs; there is loss\.mining"):
        group_runs(runs, ["lost.mining"])
    with pytest.raises(ValueError, match=r"there is loss\._target_, loss\.margin, loss\.mining$"):
        group_runs(runs, ["loss"])
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        read_runs([tmp_path / "nowhere"])

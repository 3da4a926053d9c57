"""The journal of a run: metrics without gap or repetition, alarms, trackers, the terminal, and the table of names."""

import importlib
import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from nbagent.errors import UsageError
from nbagent.report.gather import CURVES
from nbagent.runfolder import RunFolder
from nbagent_training import dashboard
from nbagent_training.alarms import ALARMS
from nbagent_training.dashboard import BRIEF, SHOWN, Dashboard, sparkline
from nbagent_training.journal import Journal
from nbagent_training.metrics import METRICS, known, markdown
from nbagent_training.trackers import Watch, check_trackers, open_trackers


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "run", "")


def silent(lines, alarms):
    pass


def test_a_resumed_phase_takes_back_what_it_will_say_again(run):
    run.log_metrics({"phase": "sft", "step": 7, "loss": 1.0})
    first = Journal(run, "grpo", silent)
    first.begin(0)
    for step in range(1, 6):
        first.add(step, {"reward": step / 10})
    with run.metrics.open("a") as file:
        file.write('{"phase": "grpo", "st')
    second = Journal(run, "grpo", silent)
    second.begin(3)
    assert [line["step"] for line in second.lines] == [1, 2, 3]
    second.add(4, {"reward": 0.9})
    assert [(line["phase"], line["step"]) for line in run.read_metrics()] == [
        ("sft", 7),
        ("grpo", 1),
        ("grpo", 2),
        ("grpo", 3),
        ("grpo", 4),
    ]


def test_numbers_are_finite_and_small_ones_are_kept(run):
    journal = Journal(run, "grpo", silent)
    journal.begin(0)
    journal.add(1, {"learning_rate": 1.23456789e-9, "kl": float("nan"), "ratio_max": float("inf"), "note": "x"})
    assert run.read_metrics() == [{"phase": "grpo", "step": 1, "learning_rate": 1.23457e-09}]


def test_alarms_stand_in_the_line_of_the_update_that_raised_them(run):
    said = []
    journal = Journal(run, "grpo", lambda lines, alarms: said.extend(alarms), checks=ALARMS)
    journal.begin(0)
    for step in range(1, 8):
        journal.add(step, {"share_mixed": 0.0, "share_all_1": 1.0})
    assert [line["step"] for line in run.read_metrics() if "alarms" in line] == [3]
    assert said == run.read_metrics()[2]["alarms"]
    assert said[0].startswith("no mixed groups")


def test_an_update_without_trained_tokens_has_no_means_over_them():
    assert known({"entropy": 0.0, "logp_gap": 0.0, "reward": 1.0, "tokens_trained": 0.0}) == {
        "reward": 1.0,
        "tokens_trained": 0.0,
    }
    assert known({"entropy": 0.5, "tokens_trained": 9.0}) == {"entropy": 0.5, "tokens_trained": 9.0}


def test_the_document_has_the_table():
    document = (Path(__file__).parents[2] / "training" / "WATCHING.md").read_text()
    assert markdown() in document
    assert all(check.__name__.split("_")[0] in document.lower() for check in ALARMS)


def test_what_the_terminal_and_the_report_show_has_a_name_there():
    shown = {*SHOWN, *BRIEF, *(name for phase, name, *_ in CURVES if phase == "grpo")}
    assert shown <= set(METRICS)


def test_names_are_said_once():
    assert all(metric.meaning and name == metric.name for name, metric in METRICS.items())


def test_a_tracker_that_is_not_installed_is_refused_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr("nbagent_training.trackers.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"trackio is not installed; `pip install trackio`"):
        check_trackers(Watch(report_to=("trackio",)))
    check_trackers(Watch())


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_gets_every_number_and_hides_what_a_kill_lost(run):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    watch = Watch(report_to=("tensorboard",))
    check_trackers(watch)
    for begin, rewards in ((0, {1: 0.1, 2: 0.2, 3: 0.3}), (2, {3: 0.5})):
        trackers = open_trackers(watch, run, {})
        journal = Journal(run, "grpo", silent, trackers)
        journal.begin(begin)
        for step, reward in rewards.items():
            journal.add(step, {"reward": reward})
        for tracker in trackers:
            tracker.close()
    seen = event_accumulator.EventAccumulator(str(run.path / "tensorboard" / "grpo"))
    seen.Reload()
    assert [(e.step, round(e.value, 3)) for e in seen.Scalars("reward")] == [(1, 0.1), (2, 0.2), (3, 0.5)]


WANDB = """
from types import SimpleNamespace
said, known, broken = [], True, ()


def setup():
    return SimpleNamespace(settings=SimpleNamespace(mode="online"))


def login(prompt=True, verify=True):
    assert not prompt
    return known


def define_metric(name, **more):
    said.append(("define_metric", name, more))
"""
SERVICE = """
def init(**about):
    if "init" in broken:
        raise RuntimeError("no such entity\\nand much more")
    said.append(("init", about["project"]))


def log(numbers):
    if "log" in broken:
        raise ConnectionError("tracker down")
    said.append(("log", numbers))


def finish():
    if "finish" in broken:
        raise ConnectionError("tracker down")
    said.append(("finish",))
"""


@pytest.fixture(params=["wandb", "trackio"])
def service(request, tmp_path, monkeypatch):
    """The module of a service, as far as it is used: the real ones want an account and a network."""
    (tmp_path / "site").mkdir()
    text = (WANDB if request.param == "wandb" else "said, broken = [], ()\n") + SERVICE
    (tmp_path / "site" / f"{request.param}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, request.param, raising=False)
    importlib.invalidate_caches()
    yield importlib.import_module(request.param)
    del sys.modules[request.param]


def followed(run, service, n=3):
    """A phase of n updates under that service's eyes."""
    watch = Watch(report_to=(service.__name__,))
    check_trackers(watch)
    trackers = open_trackers(watch, run, {})
    journal = Journal(run, "grpo", silent, trackers)
    journal.begin(0)
    for step in range(1, n + 1):
        journal.add(step, {"reward": step / 10})
    for tracker in trackers:
        tracker.close()
    return [line["step"] for line in run.read_metrics()]


def test_a_service_gets_every_number_at_its_phases_step(run, service):
    assert followed(run, service) == [1, 2, 3]
    axes = [("define_metric", "grpo/step", {}), ("define_metric", "grpo/*", {"step_metric": "grpo/step"})]
    logged = [("log", {"grpo/step": n, "grpo/reward": n / 10}) for n in (1, 2, 3)]
    assert service.said == [("init", "nbagent"), *(axes if service.__name__ == "wandb" else []), *logged, ("finish",)]


def test_a_service_that_fails_in_a_run_is_told_once_and_the_run_goes_on(run, service, caplog):
    service.broken = ("log", "finish")
    assert followed(run, service) == [1, 2, 3]
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"{service.__name__}: ConnectionError: tracker down; the run goes on")


def test_a_service_that_does_not_begin_is_one_line(run, service):
    service.broken = ("init",)
    with pytest.raises(
        UsageError, match=rf"{service.__name__} did not begin \(RuntimeError: no such entity\)"
    ) as raised:
        open_trackers(Watch(report_to=(service.__name__,)), run, {})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("service", ["wandb"], indirect=True)
def test_wandb_without_a_login_is_refused_before_there_is_a_run(service, monkeypatch):
    service.known = False
    with pytest.raises(UsageError, match="`wandb login`, or set WANDB_MODE=offline"):
        check_trackers(Watch(report_to=("wandb",)))


def lines(n):
    return [{"step": step, "reward": step / n, "entropy": 1 / step, "loss": 0.0} for step in range(1, n + 1)]


def test_where_there_is_no_terminal_a_log_is_not_flooded():
    said = io.StringIO()
    with Dashboard(Console(file=said, width=200), "grpo", 50) as board:
        for end in range(1, 51):
            board.show(lines(50)[:end], ["truncation: much; do less [of] it"] if end == 20 else [])
    words = said.getvalue().splitlines()
    assert words[0] == "grpo: 50 …"
    assert words[1].startswith("grpo 1/50")
    assert words[2] == "ALARM at grpo 20: truncation: much; do less [of] it"
    assert words[3].startswith("grpo 50/50")
    assert len(words) == 5


def test_on_a_terminal_there_is_a_table_with_small_curves():
    said = io.StringIO()
    with Dashboard(Console(file=said, width=100, force_terminal=True), "grpo", 8) as board:
        board.show(lines(8), [])
    assert "reward" in said.getvalue()
    assert "▁▂▃▄▅▆▇█" in said.getvalue()
    assert "8/8" in said.getvalue()


def test_the_time_left_is_told_by_the_steps_between_lines(monkeypatch):
    """A line may stand for many steps, and a phase that is resumed begins at any."""
    now = [100.0]
    monkeypatch.setattr(dashboard.time, "monotonic", lambda: now[0])
    said = io.StringIO()
    with Dashboard(Console(file=said, width=200), "warm start", 1300) as board:
        now[0] += 200
        board.show([{"step": 300}], [])
        now[0] += 20
        board.show([{"step": 300}, {"step": 320}], [])
        now[0] += 60
        board.show([{"step": 300}, {"step": 380}], [])
    assert "warm start 300/1300, 3:20 gone\n" in said.getvalue()
    assert "warm start 380/1300, 4:40 gone, about 15:20 left" in said.getvalue()


def test_sparklines_of_nothing_new_and_of_much():
    assert sparkline([3.0]) == "▁"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert len(sparkline(list(range(1000)))) == 40
    assert json.dumps(sparkline([0, 7]), ensure_ascii=False) == '"▁█"'

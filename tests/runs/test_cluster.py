"""Sweeps on Ray: what the driver does about every end of a run, and one real Ray with a worker killed on its way."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest
import yaml

from paraknow import __version__, cli_sweep, files, inject
from paraknow.errors import Cancelled, InputError, ResourceError, RunError
from paraknow.runs import cluster, sweep
from paraknow.runs.order import AGAIN
from paraknow.runs.store import Run
from tests.runs.test_sweep import CHEAP, RANKS, Fake, command, own  # noqa: F401 (command is a fixture)


class Killed(Exception):
    pass


class FakeRay:
    """Ray's calls as the driver uses them, answered at once in this process by `carry_out(run)`."""

    class exceptions:
        RayError = Killed
        RayTaskError = type("RayTaskError", (Killed,), {})

    def __init__(self, carry_out, about=("here", __version__)):
        self.asked, self.about_, self.killed = carry_out, about, 0

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 99.0}}]

    def remote(self, kind):
        ray = self

        class Call:
            def __init__(self, answer):
                self.remote = lambda *arguments: lambda: answer(*arguments)

        class Actor:
            def __init__(self):
                self.about = Call(ray._about)
                self.carry_out = Call(lambda folder, place, threads: ray.asked(Run(sweep.Path(folder))) or [])

        options = type("Options", (), {"remote": staticmethod(Actor)})
        return type("Remote", (), {"options": staticmethod(lambda **takes: options)})

    def _about(self):
        if isinstance(self.about_, Exception):
            raise self.about_
        return list(self.about_)

    def wait(self, calls, num_returns, timeout):
        return calls[:1], calls[1:]

    def get(self, call):
        return call()

    def kill(self, actor):
        self.killed += 1


def on(ray: FakeRay, values=RANKS, notes=None):
    joined = cluster.Cluster()
    joined.ray = ray
    return sweep.run(values, note=(notes if notes is not None else []).append, cluster=joined)


def done(run: Run) -> None:
    Fake()(run, {})


def test_a_sweep_is_the_same_sweep(runs):
    notes, ray = [], FakeRay(done)
    folder = on(ray, {**RANKS, "list": [{"tune.epochs": 2}]}, notes)
    assert notes[0] == "Ray on this machine: 2 at a time, 1 CPU thread each." and ray.killed == 2
    assert not sweep.unfinished(folder) and len(own()) == 3
    assert files.read_json(folder / "sweep.json")["threads"] == 1
    never = FakeRay(lambda run: pytest.fail("a point that is done is not carried out"))
    on(never, {**RANKS, "list": [{"tune.epochs": 2}]})
    fake = Fake()
    sweep.run(RANKS, execute=fake)
    assert not fake.calls and len(own()) == 3


def test_a_run_whose_worker_is_killed_is_taken_up_again(runs):
    notes, calls = [], []

    def sometimes(run):
        calls.append(run.id)
        if calls.count(run.id) <= AGAIN and run.config().method.settings()["rank"] == 2:
            raise Killed
        done(run)

    folder = on(FakeRay(sometimes), notes=notes)
    assert not sweep.unfinished(folder) and len(own()) == 2 and len(calls) == AGAIN + 2
    assert sum("was killed" in note for note in notes) == AGAIN


def test_not_for_ever_and_the_rest_goes_on(runs):
    def always(run):
        if run.config().method.settings()["rank"] == 2:
            raise Killed
        done(run)

    folder = on(FakeRay(always))
    first, *rest = sweep.rows(folder)
    assert first["state"] == "failed" and f"killed {AGAIN + 1} times" in first["error"]
    assert {row["state"] for row in rest} == {"done"}
    assert not sweep.unfinished(on(FakeRay(done)))


def test_a_point_that_fails_is_kept_as_failed(runs):
    def broken(run):
        if run.config().method.settings()["rank"] == 4:
            with contextlib.suppress(RunError):
                Fake({4: RunError("it broke.")})(run, {})
            return ["RunError", "it broke."]
        done(run)

    notes = []
    folder = on(FakeRay(broken), notes=notes)
    assert sweep.unfinished(folder) == [2] and notes[-1] == "point 2 failed: it broke."


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_the_sweep_and_the_next_call_goes_on(runs, number):
    before = signal.getsignal(number)

    def interrupted(run):
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        done(run)

    with pytest.raises(Cancelled, match="the same command goes on"):
        on(FakeRay(interrupted))
    folder = runs / "sweeps" / "ranks"
    assert signal.getsignal(number) is before and sweep.unfinished(folder)
    assert not sweep.unfinished(on(FakeRay(done)))


def test_a_cancelled_run_stops_the_sweep(runs):
    def cancelled(run):
        run.update(state="cancelled")
        return ["Cancelled", "run x was cancelled in stage tune."]

    with pytest.raises(Cancelled, match="stage tune"):
        on(FakeRay(cancelled))


@pytest.mark.parametrize(
    ("ray", "said"),
    [
        (FakeRay(lambda run: ["unseen", "far"]), "node far does not see .*share the runs folder"),
        (FakeRay(done, ("far", "0.0.1")), "node far has paraknow 0.0.1 and this machine"),
        (FakeRay(done, Killed("Traceback\nModuleNotFoundError: No module named 'paraknow'")), "No module named"),
    ],
)
def test_nodes_that_cannot_take_part(runs, ray, said):
    with pytest.raises(ResourceError, match=said) as refused:
        on(ray)
    assert "\n" not in str(refused.value) and ray.killed


# -- the command -------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({"base": CHEAP, "grid": {"method.rank": [2]}}))
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--ray-address", "127.0.0.1:1"], 3, "'127.0.0.1:1': no cluster can be reached there"),
        (["--ray-address", "somewhere"], 2, "expected auto, HOST:PORT or ray://HOST:PORT"),
        (["--ray-address", "auto", "--one-by-one"], 2, "leave out --ray-address"),
    ],
)
def test_addresses_that_cannot_be(command, runs, file, arguments, code, said):  # noqa: F811
    found, out, err = command("sweep", file, *arguments)
    assert found == code and said in err and out == "" and len(err.strip().splitlines()) == 1 and not runs.exists()


def test_without_the_extra_points_are_carried_out_one_after_the_other(command, runs, file, monkeypatch):  # noqa: F811
    def missing(name):
        raise cluster.PackageNotFoundError(name)

    monkeypatch.setattr(cluster, "version", missing)
    monkeypatch.setattr(cli_sweep, "carry_out", lambda run, warm: Fake()(run, warm))
    assert command("sweep", file)[0] == 0 and len(own()) == 1
    for option in (["--ray-address", "auto"], ["--workers", "2"]):
        code, _, err = command("sweep", file, *option)
        assert code == 2 and f'{option[0]}: Ray is not installed; pip install "paraknow[ray]" brings it.' in err


# -- a real Ray --------------------------------------------------------------------------------------------


def test_a_killed_worker_changes_no_result(runs, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    base = {**CHEAP, "controls": [], "evaluate": {"limit": 2, "resamples": 200}}
    values = {"name": "s", "base": base, "grid": {"method.rank": [2, 3]}}
    victims: list[int] = []

    def kill(title: str, status: dict | None) -> None:
        if not victims and status and title == "point 2" and status.get("stage") == "tune":
            victims.append(status["pid"])
            os.kill(status["pid"], signal.SIGKILL)

    notes: list[str] = []
    with cluster.Cluster(workers=2, show=kill) as joined:
        ours = sweep.run(values, runs / "a", note=notes.append, cluster=joined)
        session = joined.ray._private.worker._global_node.get_session_dir_path()
        assert {node["NodeManagerAddress"] for node in joined.ray.nodes()} == {"127.0.0.1"}
    assert victims and any("was killed" in note for note in notes), notes
    assert not os.path.exists(session) and "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.setattr(inject, "reload_check", lambda *_: {})  # two fresh processes, and the same numbers
    theirs = sweep.run(values, runs / "b")
    made = [Run(runs / "a" / row) for row in dict.fromkeys(r["run"] for r in sweep.rows(ours))]
    same = [Run(runs / "b" / row) for row in dict.fromkeys(r["run"] for r in sweep.rows(theirs))]
    for run, other in zip(made, same, strict=True):
        rows = [files.read_json(r.path("evaluate", "deltas.json"))["rows"] for r in (run, other)]
        assert rows[0] == rows[1], "to the last bit"
        for name in ("adapters/seeking/0/adapter_model.safetensors", "locate/blocks.safetensors"):
            assert run.path(name).read_bytes() == other.path(name).read_bytes()
    assert any("reused" in event for event in made[1].events()), "located once"


def test_cluster_needs_ray(monkeypatch):
    monkeypatch.setattr(cluster, "installed", lambda: False)
    with pytest.raises(InputError, match="is not installed"):
        cluster.Cluster("auto")

"""Studies as jobs of a cluster: what SLURM is asked for, what is submitted twice and what is not, how jobs end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mfpyg.cli import study
from mfpyg.errors import MFPyGError
from mfpyg.study import cluster
from mfpyg.study.cluster import Slurm, run_on_cluster
from mfpyg.study.jobs import Job

submitit = pytest.importorskip("submitit")
cloudpickle = pytest.importorskip("cloudpickle")

SLURM = '''#!{python}
"""sbatch, scontrol requeue, srun, squeue and sacct of a cluster with one node, which starts everything at once."""
import os, re, signal, subprocess, sys
from pathlib import Path

command, arguments = Path(sys.argv[0]).name, sys.argv[1:]
folder = Path(os.environ["FAKE_SLURM"])

def alive(path):
    text = path.read_text()
    if not text:
        return False
    try:
        os.kill(int(text), 0)
    except ProcessLookupError:
        return False
    return open(f"/proc/{{text}}/stat").read().split()[2] != "Z"

def tasks(script, number):
    array = re.search(r"--array=0-(\\d+)", script)
    if array is None:
        return [(str(number), {{}})]
    numbers = range(int(array[1]) + 1)
    own = lambda n: {{"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(n)}}
    return [(f"{{number}}_{{n}}", own(n)) for n in numbers]

def start(name, script, more):
    environment = {{**os.environ, "SLURM_JOB_ID": name, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", **more}}
    with open(folder / f"{{name}}.out", "ab") as out:
        started = subprocess.Popen(
            ["bash", "-c", script], env=environment, stdout=out, stderr=out, start_new_session=True
        )
    (folder / f"{{name}}.job").write_text(str(started.pid))

if command == "sbatch":
    if os.environ.get("FAKE_REFUSES"):
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    script = Path(arguments[0]).read_text()
    number = 100 + len(list(folder.glob("script-*")))
    (folder / f"script-{{number}}").write_text(script)
    for name, more in tasks(script, number):
        start(name, script, more)
    print(f"Submitted batch job {{number}}")
elif command == "scontrol":
    start(arguments[1], (folder / f"script-{{arguments[1].split('_')[0]}}").read_text(), {{}})
elif command == "srun":
    (folder / f"{{os.environ['SLURM_JOB_ID']}}.task").write_text(str(os.getpid()))
    rest = arguments[arguments.index(sys.executable):]
    os.execv(rest[0], rest)
elif command == "squeue":
    print("\\n".join(path.stem for path in folder.glob("*.job") if alive(path)))
elif command == "sacct":
    print("JobID|State|NodeList")
    for path in folder.glob("*.job"):
        print(f"{{path.stem}}|{{'RUNNING' if alive(path) else 'FAILED'}}|here")
'''

ENDS = "import pathlib, sys; f = pathlib.Path(sys.argv[1]); f.mkdir(parents=True); (f / 'metrics.json').touch()"
WAITS = """
import pathlib, sys, time
f = pathlib.Path(sys.argv[1])
while not (f.parent / "go").exists():
    time.sleep(0.05)
f.mkdir(); (f / "metrics.json").touch()
"""
STOPS = """
import os, pathlib, signal, sys, time
f = pathlib.Path(sys.argv[1])
f.mkdir(exist_ok=True)
if (f / "saved").exists():
    (f / "metrics.json").touch()
    sys.exit()
def save(number, frame):
    (f / "saved").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
(f / "ready").touch()
time.sleep(60)
"""
"""Is over when it has been stopped once, and begun again."""


@dataclass
class Script(Job):
    """Runs a script, which is given the folder."""

    code: str = ENDS

    def command(self) -> list[str]:
        return [sys.executable, "-c", self.code, str(self.folder)]


def scripts(folder: Path, *codes: str) -> list[Script]:
    return [Script(f"job {n}", folder / f"run{n}", [], code=code) for n, code in enumerate(codes)]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of what a cluster was asked for."""
    programs, folder = tmp_path / "bin", tmp_path / "cluster"
    programs.mkdir()
    folder.mkdir()
    for name in ("sbatch", "scontrol", "srun", "squeue", "sacct"):
        (programs / name).write_text(SLURM.format(python=sys.executable))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setattr(cluster, "_PAUSE", 0.05)
    return folder


@pytest.fixture(autouse=True)
def _by_value() -> Iterator[None]:
    """The class of the scripts travels with its jobs, whose processes do not know this file."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def executor(folder: Path, at_a_time: int | None = None) -> Any:
    return Slurm.parse(["time=30", "partition=gpu", "gpus_per_node=1", "mem=4GB"]).executor(folder, at_a_time)


def test_sbatch_is_asked_for_what_was_given(slurm: Path, tmp_path: Path) -> None:
    jobs = scripts(tmp_path, ENDS, "raise SystemExit('out of luck')", ENDS)
    run_on_cluster(jobs, executor(tmp_path, 2), tmp_path)
    assert [job.state for job in jobs] == ["done", "failed", "done"]
    assert jobs[1].error == "out of luck"
    (script,) = slurm.glob("script-*")
    lines = script.read_text().splitlines()
    for line in ("time=30", "partition=gpu", "gpus-per-node=1", "mem=4GB", "array=0-2%2", "job-name=mfpyg"):
        assert f"#SBATCH --{line}" in lines, lines
    assert json.loads((tmp_path / "slurm.json").read_text()) == {f"job {n}": f"100_{n}" for n in range(3)}


def test_only_what_is_not_in_the_queue_is_submitted(slurm: Path, tmp_path: Path) -> None:
    jobs = scripts(tmp_path, WAITS, "raise SystemExit('no')")

    def leave(jobs: list[Script]) -> None:
        if jobs[1].state == "failed":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_on_cluster(jobs, executor(tmp_path), tmp_path, leave)
    assert Slurm.to_cancel(jobs[:1]) == "scancel 100_0"
    jobs = scripts(tmp_path, WAITS, ENDS)
    run_on_cluster(jobs, executor(tmp_path), tmp_path, lambda _: (tmp_path / "go").touch())
    assert [job.state for job in jobs] == ["done", "done"], jobs[1].error
    assert len(list(slurm.glob("script-*"))) == 2
    assert "array" not in (slurm / "script-101").read_text()


def test_job_that_could_say_nothing(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = jobs = scripts(tmp_path, WAITS)

    def kill(jobs: list[Script]) -> None:
        if job.state == "running":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int((slurm / "100.job").read_text()), signal.SIGKILL)

    run_on_cluster(jobs, executor(tmp_path), tmp_path, kill)
    (tmp_path / "go").touch()  # what it had started, which a real cluster would have ended with it
    assert job.state == "failed"
    assert job.error.startswith("job 100 ended as FAILED; see ")


def test_refusals(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_REFUSES", "1")
    with pytest.raises(MFPyGError, match=r"sbatch refused the runs: .*invalid partition specified: nowhere; check"):
        run_on_cluster(scripts(tmp_path, ENDS), executor(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["partition"], "slurm is 'partition', expected a name and a value"),
        (["partiton=gpu"], "unknown parameter of slurm 'partiton' .*did you mean 'partition'"),
        (["nodes=2", "time=1"], "unknown parameter of slurm 'nodes'"),
        (["partition=gpu"], "slurm has time not given, expected the minutes"),
        (["time=1:00"], "slurm has time 1:00, expected the minutes"),
        (["time=60"], "sbatch was not found"),
    ],
)
def test_mistakes(given: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MFPyGError, match=message):
        Slurm.parse(given)


def test_without_submitit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MFPyGError, match=r"needs submitit; install it with: pip install 'mfpyg\[slurm\]'"):
        Slurm.parse(["time=60"])


def test_job_saves_at_its_time_limit_and_goes_on_in_the_next_turn(slurm: Path, tmp_path: Path) -> None:
    (job,) = jobs = scripts(tmp_path, STOPS)

    def signalled(jobs: list[Script]) -> None:
        if (job.folder / "ready").exists() and not (job.folder / "saved").exists():
            os.kill(int((slurm / "100.task").read_text()), signal.SIGUSR2)  # what --signal asks SLURM for
            (job.folder / "ready").unlink()

    run_on_cluster(jobs, executor(tmp_path), tmp_path, signalled)
    assert (job.state, job.error) == ("done", "")
    assert (job.folder / "saved").exists()
    assert len(list(slurm.glob("script-*"))) == 1


@pytest.mark.slow
def test_study_on_a_cluster(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=128"]
    command = [
        "SF-CC/E",
        "--members",
        "1",
        "--out",
        "new",
        "--epochs",
        "1",
        *tiny,
        "--accelerator=cpu",
        "--compile=off",
    ]
    study.main([*command, "--launcher", "slurm", "--slurm", "time=30", "cpus_per_task=1"])
    assert (tmp_path / "new" / "report.html").is_file()
    assert len(list((tmp_path / "new").glob("runs/*/*/*/metrics.json"))) == 1
    assert len(list(slurm.glob("script-*"))) == 1


@pytest.mark.slow
def test_labels_on_a_cluster(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels are shared by the jobs of an array; with the same command none is submitted twice."""
    import ase
    import ase.io

    from mfpyg.cli import label

    monkeypatch.chdir(tmp_path)
    frames = [ase.Atoms("Ar2", [[0, 0, 0], [0, 0, 1 + 0.1 * n]]) for n in range(5)]
    ase.io.write("in.xyz", frames, format="extxyz")
    command = ["in.xyz", "-o", "out.xyz", "--level", "lj=ase:lj:EF", "--launcher", "slurm", "--slurm", "time=30"]
    label.main([*command, "--jobs", "2"])
    assert len(ase.io.read("out.xyz", ":")) == 5
    (script,) = slurm.glob("script-*")
    assert "--array=0-1" in script.read_text()
    ase.io.write("in.xyz", [*frames, ase.Atoms("Ar2", [[0, 0, 0], [0, 0, 2]])], format="extxyz")
    label.main(command)
    assert len(ase.io.read("out.xyz", ":")) == 6
    assert len(list(slurm.glob("script-*"))) == 2
    assert "array" not in (slurm / "script-101").read_text()
    assert capsys.readouterr().out.count("train with: --dataset out.xyz:lj=lj_energy,lj_forces@eV") == 2

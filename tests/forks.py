"""Commands in forks of one process that has imported them, which takes six seconds, to be hit at chosen moments.

:class:`Forks` starts them. As a script this file is the server: it answers requests, each a line of JSON, with the
child's process id at once and with its wait status in the end. In the child, which is the command and nothing else, the
file ``phase`` says all the time what is being done; ``aim`` lets the child kill itself at a moment of writing:

    {"file": "last.ckpt", "moment": "half", "after": 3}

with the fourth ``last.ckpt`` half written. Moments are ``empty`` (the temporary file has been made), ``half``,
``whole`` (not yet moved to its name), ``moved``; of a ``step``, ``validation`` or ``table`` there is ``half``.
``signal`` is what it kills itself with, if not SIGKILL, and ``twice`` sends it once more; then the work goes on.
"""

from __future__ import annotations

import functools
import importlib
import json
import mmap
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTH = 64


@dataclass
class Ended:
    """How a command ended.

    Attributes:
        status: what it exited with, or the signal that killed it with a minus sign.
        output: what it printed, the errors included.
        phase: what it did when it was hit, or last.
        unfinished: files whose writing it had begun.
    """

    status: int
    output: str
    phase: str
    unfinished: list[str]


@dataclass
class Running:
    """A command that runs.

    Attributes:
        pid: its process.
        phase_file: what it does.
    """

    pid: int
    phase_file: Path

    def wait_for(self, phase: str) -> None:
        """Until it has come to a phase, or has ended."""
        while _phase(self.phase_file) != phase and self.alive():
            time.sleep(0.0005)  # a checkpoint is written within a few milliseconds

    def alive(self) -> bool:
        """Whether it has not ended."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    def send(self, number: signal.Signals) -> None:
        """A signal, if it is still there."""
        if self.alive():
            os.kill(self.pid, number)


class Forks:
    """Runs commands, ``mfpyg-train`` if no other is named.

    Args:
        folder: to run in.
        server: this file, as started by :meth:`serve`.
    """

    def __init__(self, folder: Path, server: subprocess.Popen[str]) -> None:
        self.folder, self._server = folder, server
        self._phase, self._output = folder / ".phase", folder / ".output"

    @staticmethod
    def serve() -> subprocess.Popen[str]:
        # One thread: sums in one order, and nothing that a fork loses.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return subprocess.Popen([sys.executable, __file__], text=True, env=environment, **pipes)

    def run(self, *arguments: str, hit: Callable[[Running], None] | None = None, **request: Any) -> Ended:
        """A command from start to end.

        Args:
            arguments: of the command.
            hit: called with the running process, to do something to it.
            request: ``command``, as ``evaluate``, or the path of a script; ``aim``; ``limit``, the largest size of a
                file in bytes; ``folder`` to run in; ``site``, a folder of more packages; ``backend`` of torch.compile.
        """
        self._phase.write_bytes(bytes(WIDTH))
        self._output.write_bytes(b"")
        values = {"command": "train", "folder": str(self.folder), **request, "environment": dict(os.environ)}
        values.update(output=str(self._output), phase=str(self._phase), arguments=arguments)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(values) + "\n")
        self._server.stdin.flush()
        running, done = Running(int(self._server.stdout.readline()), self._phase), False
        try:
            if hit is not None:
                hit(running)
            done = True
        finally:
            if not done:
                running.send(signal.SIGKILL)
            status = os.waitstatus_to_exitcode(int(self._server.stdout.readline()))
        unfinished = [path.name for path in Path(values["folder"]).glob("*/.*.tmp")]
        return Ended(status, self._output.read_text(), _phase(self._phase), unfinished)

    def whole(self, *arguments: str, **request: Any) -> str:
        """What a command prints that nothing happens to."""
        ended = self.run(*arguments, **request)
        assert ended.status == 0, ended.output
        return ended.output

    def killed(self, file: str, after: int, *arguments: str, moment: str = "moved", **request: Any) -> None:
        """Run ``mfpyg-train`` until it kills itself in writing a file after so many others of the name."""
        ended = self.run(*arguments, aim={"file": file, "moment": moment, "after": after}, **request)
        assert ended.status == -signal.SIGKILL, ended.output


def _phase(path: Path) -> str:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), WIDTH, access=mmap.ACCESS_READ)[:].rstrip(b"\0").decode()


class Watch:
    """What the child does at each moment, and the moment at which it kills itself."""

    def __init__(self, path: str, aim: dict[str, Any] | None) -> None:
        with open(path, "r+b") as file:
            self._shown = mmap.mmap(file.fileno(), WIDTH)
        self.aim, self.left = aim or {}, (aim or {}).get("after", 0)

    def say(self, phase: str) -> str:
        before = self._shown[:].rstrip(b"\0").decode()
        self._shown[:] = phase.encode().ljust(WIDTH, b"\0")[:WIDTH]
        return before

    def at(self, file: str, moment: str) -> bool:
        """Whether this is the one."""
        if (file, moment) != (self.aim.get("file"), self.aim.get("moment")):
            return False
        self.left -= 1
        return self.left == -1

    def strike(self) -> None:
        number = signal.Signals[self.aim.get("signal", "SIGKILL")]
        os.kill(os.getpid(), number)
        if self.aim.get("twice"):
            os.kill(os.getpid(), number)

    def install(self) -> None:
        """Let the parts of a training say what they do."""
        import mfpyg.files
        import mfpyg.training.callbacks
        import mfpyg.training.folder
        import mfpyg.training.run
        from mfpyg.training.module import MultiFidelityModule

        replace_file, append_text = mfpyg.files.replace_file, mfpyg.files.append_text
        training_step, validation_step = MultiFidelityModule.training_step, MultiFidelityModule.validation_step
        final_table = mfpyg.training.run.final_table

        def replace(path: Path, write: Callable[[str], Any]) -> None:
            def writing(name: str) -> None:
                if self.at(path.name, "empty"):
                    self.strike()
                write(name)
                if self.at(path.name, "half"):
                    if self.aim.get("signal") is None:  # as if it had come in the middle
                        os.truncate(name, os.path.getsize(name) // 2)
                    self.strike()
                if self.at(path.name, "whole"):
                    self.strike()

            before = self.say(f"writing {path.name}")
            try:
                replace_file(path, writing)
            finally:
                self.say(before)
            if self.at(path.name, "moved"):
                self.strike()

        def append(path: Path, text: str) -> None:
            before = self.say(f"writing {path.name}")
            if self.at(path.name, "half") or self.at(path.name, "empty") or self.at(path.name, "whole"):
                if self.aim.get("signal") is None:
                    with path.open("a") as file:
                        file.write(text[: len(text) // 2])
                self.strike()
            append_text(path, text)
            self.say(before)
            if self.at(path.name, "moved"):
                self.strike()

        def step(module: Any, *arguments: Any) -> Any:
            self.say("training step")
            result = training_step(module, *arguments)
            if self.at("step", "half"):
                self.strike()
            return result

        def validate(module: Any, *arguments: Any) -> Any:
            self.say("validation")
            if self.at("validation", "half"):
                self.strike()
            return validation_step(module, *arguments)

        def table(*arguments: Any) -> Any:
            self.say("final table")
            if self.at("table", "half"):
                self.strike()
            return final_table(*arguments)

        mfpyg.files.replace_file = mfpyg.training.folder.replace_file = replace
        mfpyg.training.callbacks.append_text = append
        MultiFidelityModule.training_step, MultiFidelityModule.validation_step = step, validate
        mfpyg.training.run.final_table = table


def child(request: dict[str, Any]) -> int:
    """The command, from its standard streams on; the exit status."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    streams = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(streams, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if "limit" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
    watch = Watch(request["phase"], request.get("aim"))
    watch.say("start")
    watch.install()
    if "backend" in request:
        import torch

        torch.compile = functools.partial(torch.compile, backend=request["backend"])  # type: ignore[assignment]
    sys.path[:0] = [request["site"]] if "site" in request else []
    command, arguments = request["command"], request["arguments"]
    try:
        if command.endswith(".py"):
            sys.argv[:] = [command, *arguments]
            runpy.run_path(command, run_name="__main__")
        else:
            importlib.import_module(f"mfpyg.cli.{command}").main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main() -> None:
    import torch

    for module in ("cli.train", "cli.evaluate", "cli.predict", "training.run", "inference.dataset"):
        importlib.import_module(f"mfpyg.{module}")
    torch.set_num_threads(1)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = child(json.loads(line))
            finally:
                os._exit(status)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(status, flush=True)


if __name__ == "__main__":
    main()

"""Runs mfpyg-train in children of a process that has imported everything already, to be killed at chosen moments.

Serves requests, one line of JSON each on its input: ``arguments``, ``folder`` to run in, ``output`` and ``phase``
(files), and optionally ``aim`` and ``limit``. It answers with the child's process id at once and with its wait status
in the end. In the child, which is the command ``mfpyg.cli.train.main`` and nothing else, the file ``phase`` says all
the time what is being done; ``aim`` lets the child kill itself at a moment of writing:

    {"file": "last.ckpt", "moment": "half", "after": 3}

with the fourth ``last.ckpt`` half written. Moments are ``empty`` (the temporary file has been made), ``half``,
``whole`` (not yet moved to its name), ``moved``; of a ``step``, ``validation`` or ``table``
there is ``half``. ``signal`` is what it kills itself with, if not SIGKILL, and ``twice`` sends it once more; then the
work goes on. ``limit`` is the largest size of a file in bytes.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mfpyg.files
import mfpyg.training.callbacks
import mfpyg.training.folder
import mfpyg.training.run
from mfpyg.cli import train
from mfpyg.training.module import MultiFidelityModule

WIDTH = 64


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


def watched(watch: Watch) -> None:
    """Let the parts of a training say what they do."""
    replace_file, append_text = mfpyg.files.replace_file, mfpyg.files.append_text
    training_step, validation_step = MultiFidelityModule.training_step, MultiFidelityModule.validation_step
    final_table = mfpyg.training.run.final_table

    def replace(path: Path, write: Callable[[str], Any]) -> None:
        def writing(name: str) -> None:
            if watch.at(path.name, "empty"):
                watch.strike()
            write(name)
            if watch.at(path.name, "half"):
                if watch.aim.get("signal") is None:  # as if it had come in the middle
                    os.truncate(name, os.path.getsize(name) // 2)
                watch.strike()
            if watch.at(path.name, "whole"):
                watch.strike()

        before = watch.say(f"writing {path.name}")
        try:
            replace_file(path, writing)
        finally:
            watch.say(before)
        if watch.at(path.name, "moved"):
            watch.strike()

    def append(path: Path, text: str) -> None:
        before = watch.say(f"writing {path.name}")
        if watch.at(path.name, "half") or watch.at(path.name, "empty") or watch.at(path.name, "whole"):
            if watch.aim.get("signal") is None:
                with path.open("a") as file:
                    file.write(text[: len(text) // 2])
            watch.strike()
        append_text(path, text)
        watch.say(before)
        if watch.at(path.name, "moved"):
            watch.strike()

    def step(self: Any, *arguments: Any) -> Any:
        watch.say("training step")
        result = training_step(self, *arguments)
        if watch.at("step", "half"):
            watch.strike()
        return result

    def validate(self: Any, *arguments: Any) -> Any:
        watch.say("validation")
        if watch.at("validation", "half"):
            watch.strike()
        return validation_step(self, *arguments)

    def table(*arguments: Any) -> Any:
        watch.say("final table")
        if watch.at("table", "half"):
            watch.strike()
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
    os.chdir(request["folder"])
    if "limit" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
    watch = Watch(request["phase"], request.get("aim"))
    watch.say("start")
    watched(watch)
    try:
        train.main(request["arguments"])
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

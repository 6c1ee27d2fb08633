"""Programs that write down how they were called, in the place of gcloud, kubectl and others."""

import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from absl import flags

from pixelrec_jax.launch.commands import program
from tests import subprocesses
from tests.tiny import ROOT

_FAKE = """#!{python} -SE
import json, sys
stdin = "" if sys.stdin.isatty() else sys.stdin.read()
name = {name!r}
with open({record!r}, "a") as file:
    file.write(json.dumps([[name, *sys.argv[1:]], stdin]) + "\\n")
sys.exit({codes!r}.get(next((a for a in sys.argv if a in {codes!r}), ""), {code}))
"""


@contextmanager
def _nothing_to_read() -> Iterator[None]:
    """What is started here has an empty input, whatever this process has, even none."""
    with ExitStack() as stack:
        try:
            before = os.dup(0)
        except OSError:  # closed
            stack.callback(os.close, 0)
        else:
            stack.callback(os.close, before)
            stack.callback(os.dup2, before, 0)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        if nothing:
            os.close(nothing)
        yield


class Fakes:
    """A folder of such programs, and what they were asked."""

    def __init__(self, folder: Path):
        self._folder, self._record = folder / "bin", folder / "record"
        self._folder.mkdir()

    def add(self, name: str, code: int = 0, codes: dict[str, int] | None = None) -> None:
        """A program that ends with `code`, or with that of an argument in `codes`."""
        text = _FAKE.format(
            python=sys.executable,
            name=name,
            record=str(self._record),
            codes=codes or {},
            code=code,
        )
        path = self._folder / name
        path.write_text(text)
        path.chmod(0o755)

    def calls(self) -> list[tuple[list[str], str]]:
        """Arguments and input of all calls since the last time."""
        text = self._record.read_text() if self._record.exists() else ""
        self._record.unlink(missing_ok=True)
        return [tuple(json.loads(line)) for line in text.splitlines()]

    def run(
        self, *argv: str, folder: Path = ROOT, **environment: str
    ) -> subprocess.CompletedProcess:
        """Runs a program in a folder; it finds these programs first."""
        path = {"PATH": f"{self._folder}:{os.environ['PATH']}"}
        return subprocesses.run(argv, cwd=folder, env=os.environ | path | environment)

    def launch(self, module: str, *arguments: str) -> subprocess.CompletedProcess:
        """Runs a launcher in this process, which is faster, with these programs only."""
        launcher = importlib.import_module(f"pixelrec_jax.launch.{module}")
        before = set(flags.FLAGS)
        argv = [f"pixelrec_jax.launch.{module}", *arguments]
        out, err = io.StringIO(), io.StringIO()
        try:
            with (
                _nothing_to_read(),
                mock.patch.object(sys, "argv", argv),
                mock.patch.dict(os.environ, {"PATH": str(self._folder)}),
                redirect_stdout(out),
                redirect_stderr(err),
            ):
                launcher.define_flags()
                program(launcher.main)
        except SystemExit as end:
            code = end.code or 0
            return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())
        finally:
            for name in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, name)
        raise AssertionError("a program ends by SystemExit")

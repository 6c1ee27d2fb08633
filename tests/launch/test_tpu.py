"""What is asked of Cloud TPU, and what its machines do."""

import os
import shlex
import shutil
import sys
import tarfile
from pathlib import Path

from tests import subprocesses
from tests.launch.lines import RUN, SWEEP, TPU, check_shell, options
from tests.tiny import ROOT

PACKED = Path.home() / ".cache" / "pixelrec" / "code.tar.gz"
WHERE = {"--project": "p", "--zone": "z-a"}


def asked(fakes, verb: str, *arguments: str) -> list[tuple[list[str], dict[str, str]]]:
    """Verb and words, and options, of the queued resources that the launcher asks gcloud for."""
    for name in ("gcloud", "git", "sh", "mkdir"):
        fakes.add(name)
    process = fakes.launch(*TPU, f"--do={verb}", *arguments, *RUN)
    assert process.returncode == 0, process.stderr
    # What costs money is said wherever there may be machines afterwards.
    assert ("--do=delete" in process.stdout) == (verb in ("create", "run", "recreate"))
    calls = [argv for argv, _ in fakes.calls() if argv[0] == "gcloud"]
    assert [argv[1:4] for argv in calls] == [["compute", "tpus", "queued-resources"]] * len(calls)
    return [
        ([word for word in argv[4:] if not word.startswith("--")], options(argv[4:]))
        for argv in calls
    ]


CREATED = {
    "--node-id": "first",
    "--accelerator-type": "v5litepod-16",
    "--runtime-version": "v2-alpha-tpuv5-lite",
    "--spot": "",
    "--reserved": "",
    **WHERE,
}
DELETED = {"--force": "", "--quiet": "", **WHERE}


def test_a_slice_is_created_recreated_and_deleted(fakes):
    create, delete = (["create", "first"], CREATED), (["delete", "first"], DELETED)
    spot = ("--spot", "--extra=--reserved")
    assert asked(fakes, "create", *spot) == [create]
    assert asked(fakes, "recreate", *spot) == [delete, create]
    assert asked(fakes, "delete") == [delete]


def test_several_slices_are_one_queued_resource(fakes):
    ((words, given),) = asked(fakes, "create", "--num_slices=2")
    assert words == ["create", "first"]
    assert (given["--node-count"], given["--node-prefix"]) == ("2", "first")
    assert "--node-id" not in given


def test_state_and_log_are_those_of_the_run(fakes):
    status = {"--format": "value(state.state)", **WHERE}
    assert asked(fakes, "status") == [(["describe", "first"], status)]
    ((words, given),) = asked(fakes, "logs")
    assert words == ["ssh", "first"]
    command = shlex.split(given.pop("--command"))
    assert given == {"--node": "0", "--worker": "0", **WHERE}  # the first process
    assert command[:2] == ["sudo", "journalctl"]
    assert {"--unit=pixelrec", "--follow"} < set(command)
    ((_, given), _) = asked(fakes, "logs", SWEEP)
    assert "--follow" not in given["--command"]


def test_a_run_is_copied_to_every_machine_and_started_there(fakes):
    (copied, where), (started, given) = asked(fakes, "run")
    everywhere = {"--node": "all", "--worker": "all", **WHERE}
    assert copied == ["scp", str(PACKED), "first:code.tar.gz"]
    assert where == everywhere
    assert started == ["ssh", "first"]
    check_shell(given.pop("--command"))  # another test runs it
    assert given == everywhere


def test_a_tpu_vm_starts_the_run_with_its_flags(fakes, tmp_path):
    for name in ("gcloud", "git", "sudo", "python3", "sh", "mkdir"):
        fakes.add(name)
    fakes.launch(*TPU, "--do=run", *RUN)
    (tmp_path / "bin" / "sh").unlink()
    (tmp_path / "bin" / "mkdir").unlink()
    command = fakes.calls()[-1][0][-3].removeprefix("--command=")
    home = tmp_path / "home"
    home.mkdir()
    (home / "pixelrec").mkdir()
    (home / "pixelrec" / "old").touch()
    with tarfile.open(home / "code.tar.gz", "w:gz") as code:
        for file in ("launch/tpu_vm.sh", "pyproject.toml", "requirements.txt"):
            code.add(ROOT / file, file)
    (home / ".local" / "bin").mkdir(parents=True)
    fakes.add("uv")
    (tmp_path / "bin" / "uv").rename(home / ".local" / "bin" / "uv")
    process = fakes.run("bash", "-c", command, folder=home, HOME=str(home))
    assert process.returncode == 0, process.stderr
    assert not (home / "pixelrec" / "old").exists()
    calls = [call for call, _ in fakes.calls()]
    assert calls[0] == ["sudo", "systemctl", "stop", "pixelrec"]
    assert [call[0] for call in calls[1:]] == ["python3", "uv", "uv", "sudo"]
    assert calls[-1][1:3] == ["systemd-run", "--unit=pixelrec"]
    started = calls[-1].index(f"{home}/venv/bin/python")
    assert {"--property=LimitMEMLOCK=infinity"} < set(calls[-1][:started])
    # systemd takes $NAME for a variable, and $$ for $.
    assert "--config.warm_start.run=gs://b/it's $$HOME" in calls[-1][-2]
    program = ["-m", "pixelrec_jax", "train", *RUN[1:], "--distributed=auto"]
    assert [flag.replace("$$", "$") for flag in calls[-1][started + 1 :]] == program


def test_a_failing_command_stops_its_job_only(fakes):
    for name in ("git", "sh", "mkdir"):
        fakes.add(name)
    fakes.add("gcloud", codes={"first-swin-t:code.tar.gz": 7})
    process = fakes.launch(*TPU, "--do=run", SWEEP, *RUN)
    assert process.returncode == 2
    error = process.stderr.splitlines()[-1]
    assert error == "error: 1 of 2 failed: first-swin-t (gcloud ended with 7); see above"
    verbs = [call[4:6] for call, _ in fakes.calls() if call[0] == "gcloud"]
    assert verbs == [
        ["scp", str(PACKED)],
        ["scp", str(PACKED)],
        ["ssh", "first-clip-vit-b32"],
    ]


def test_only_what_is_committed_goes_to_tpus(fakes, tmp_path):
    fakes.add("gcloud")
    clone, packed = tmp_path / "clone", tmp_path / ".cache" / "pixelrec" / "code.tar.gz"
    for part in ("configs", "launch", "pixelrec_jax"):
        shutil.copytree(ROOT / part, clone / part)
    for file in (".gitignore", "pyproject.toml"):
        shutil.copy(ROOT / file, clone)
    with (clone / ".gitignore").open("a") as ignored:
        ignored.write("mine/\n")
    me = ("-c", "user.name=me", "-c", "user.email=me@localhost")
    for arguments in (("init", "-q"), ("add", "."), (*me, "commit", "-q", "-m", "first")):
        subprocesses.run(["git", *arguments], cwd=clone, check=True)
    # As an editable installation has it: the launchers are beside the package.
    program = (
        "import runpy, sys, pixelrec_jax.launch; "
        "pixelrec_jax.launch.__path__ = ['launch']; sys.argv[0] = 'tpu'; "
        "runpy.run_path('launch/tpu.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", program, *TPU[1:], "--do=run"]

    def launch(*options):
        return fakes.run(*command, *options, folder=clone, HOME=str(tmp_path))

    def refused(*of_run):
        process = launch("--", *of_run)
        script = launch("--dry_run", "--", *of_run).stdout
        assert fakes.run("bash", "-c", script, folder=clone).returncode == 1
        assert (process.returncode, fakes.calls()) == (2, [])
        return process.stderr.splitlines()[-1]

    script = launch("--dry_run", *RUN).stdout
    assert not packed.exists()
    assert fakes.run("bash", "-c", script).returncode == 0  # from any folder
    with tarfile.open(packed) as code:
        assert {"configs/pixelrec.py", "launch/tpu_vm.sh"} < set(code.getnames())
    assert [call[4] for call, _ in fakes.calls()] == ["scp", "ssh"]
    packed.unlink()
    assert launch(*RUN).returncode == 0
    assert packed.exists()
    assert [call[4] for call, _ in fakes.calls()] == ["scp", "ssh"]

    shutil.copytree(clone / "configs", clone / "mine")
    mine = [RUN[1].replace("=pixelrec:", "=mine/pixelrec.py:"), *RUN[2:]]
    assert "error: mine/pixelrec.py is not committed" in refused(*mine)
    (clone / "configs" / "new.py").touch()
    assert "files that are not committed" in refused(*RUN[1:])
    (clone / "configs" / "new.py").unlink()
    with (clone / "configs" / "pixelrec.py").open("a") as file:
        file.write("# changed\n")
    assert "there are changes" in refused(*RUN[1:])


def test_an_installed_package_goes_to_tpus_with_the_list_of_its_needs(fakes, installed, tmp_path):
    for name in ("gcloud", "sudo", "python3"):
        fakes.add(name)
    home, vm = tmp_path / "home", tmp_path / "vm"
    environment = {"PYTHONPATH": str(installed), "HOME": str(home)}
    command = [str(installed / "bin" / "pixelrec"), "launch", *TPU, "--do=run", *RUN]
    process = fakes.run(*command, folder=tmp_path, **environment)
    assert process.returncode == 0, process.stderr
    start = fakes.calls()[-1][0][-3].removeprefix("--command=")
    (vm / ".local" / "bin").mkdir(parents=True)
    shutil.copy(home / ".cache" / "pixelrec" / "code.tar.gz", vm)
    fakes.add("uv")
    (tmp_path / "bin" / "uv").rename(vm / ".local" / "bin" / "uv")
    process = fakes.run("bash", "-c", start, folder=vm, HOME=str(vm))
    assert process.returncode == 0, process.stderr
    flags = [flag.replace("$", "$$") for flag in RUN[1:]]
    expected = ["-m", "pixelrec_jax", "train", *flags, "--distributed=auto"]
    assert fakes.calls()[-1][0][-len(expected) :] == expected
    needs = (vm / "pixelrec" / "requirements.txt").read_text()
    assert "\njax<" in needs
    assert "extra" not in needs
    found = subprocesses.run(
        [sys.executable, "-c", "import pixelrec_jax.launch as x; print(x.__file__)"],
        cwd=vm / "pixelrec",
        env=os.environ | {"PYTHONPATH": ""},
        check=True,
    )
    assert found.stdout.startswith(str(vm))
    process = fakes.run(
        *command[:-4], "--", "--config=mine.py:item=id", *RUN[2:], folder=tmp_path, **environment
    )
    assert process.returncode == 2
    assert not fakes.calls()

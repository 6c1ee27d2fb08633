"""The commit of the code that runs."""

from pixelrec_jax.system.machine import code_commit
from tests import subprocesses


def test_the_commit_is_that_of_the_clone_and_says_whether_files_changed(tmp_path):
    def git(*arguments):
        name = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *name, *arguments]
        return subprocesses.run(command, check=True).stdout.strip()

    code, installed = tmp_path / "code.py", tmp_path / "site-packages"
    code.write_text("1")
    installed.mkdir()
    assert code_commit(tmp_path) is None
    git("init", "--quiet")
    git("add", "code.py")
    git("commit", "--quiet", "--message=first")
    git("tag", "--annotate", "--message=tag", "v1")
    head = git("rev-parse", "HEAD")
    assert code_commit(tmp_path) == head
    assert code_commit(installed) is None  # in a clone, but not the clone's code
    code.write_text("2")
    assert code_commit(tmp_path) == f"{head}-dirty"


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    assert code_commit(tmp_path) is None  # damaged
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_commit(tmp_path) is None

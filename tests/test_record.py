"""The record beside a figure: enough to repeat it, and nothing private about the machine."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

from smalti.common import record

ROOT = Path(__file__).resolve().parents[1]


def test_a_command_line_keeps_of_absolute_paths_the_last_name():
    shown = record.command_without_paths("prior/evaluate.py", ["/home/me/runs/cats", "--batch_size", "64"])
    assert shown == "python prior/evaluate.py .../cats --batch_size 64"
    assert record.command_without_paths("benchmarks.board", ["write"]) == "python -m benchmarks.board write"


def test_a_path_behind_an_equals_sign_is_kept_private_and_words_stay_whole():
    shown = record.command_without_paths("a.py", ["--output=/home/alice/secret/out", "--label", "two words"])
    assert shown == "python a.py --output=.../out --label 'two words'"


def test_the_record_names_machine_versions_and_date():
    found = record.record("prior/evaluate.py", arguments=[])
    assert found["versions"].keys() >= {"python", "torch", "datasets"} and found["machine"]["cores"] >= 1
    assert "node" not in found["machine"] and len(found["date"]) == 10


def test_code_that_lies_in_somebody_elses_checkout_names_no_commit(tmp_path):
    """Installed into a virtual environment inside a user's checkout, it would have named the user's commit as ours."""
    installed = tmp_path / "site-packages/common/record.py"
    installed.parent.mkdir(parents=True)
    shutil.copy(ROOT / "common/record.py", installed)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    spec = importlib.util.spec_from_file_location("installed_record", installed)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.commit() is None

"""Files of a run with what no config or record has, such as depths beyond Python's."""

import pytest

from pixelrec_jax.runs import run_folder
from pixelrec_jax.system.errors import UserError

DEEP = '{"step":' * 100_000


@pytest.mark.parametrize("text", [DEEP, '{"train": {"a.b": 1}}'])
def test_a_config_that_cannot_be_one_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        run_folder.read_config(tmp_path)


def test_a_deep_line_is_not_a_record(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(DEEP + '\n{"step": 3, "loss": 1.0}\n')
    with run_folder.MetricsLog(tmp_path, continue_from=4) as log:
        assert log.kept == {"step": 3, "loss": 1.0}

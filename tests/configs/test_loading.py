"""A file that does not make a whole config is one line."""

import pytest

from pixelrec_jax.configs.keys import KEYS
from pixelrec_jax.configs.loading import load_config
from pixelrec_jax.system.errors import UserError


@pytest.mark.parametrize("section", KEYS)
def test_a_config_without_a_section_is_refused(tmp_path, section):
    file = tmp_path / "own.py"
    file.write_text(
        "from pixelrec_jax.configs import pixelrec\n"
        "def get_config(words=''):\n"
        "    config = pixelrec.get_config(words).unlock()\n"
        f"    del config[{section!r}]\n"
        "    return config\n"
    )
    with pytest.raises(UserError, match=rf"own\.py' is not a config .it lacks {section}."):
        load_config(f"{file}:user=mf,item=id")


def test_a_file_that_returns_something_else_is_refused(tmp_path):
    (tmp_path / "own.py").write_text("def get_config(words=''):\n    return {'seed': 1}\n")
    with pytest.raises(UserError, match=r"own\.py' is not a config"):
        load_config(f"{tmp_path}/own.py")

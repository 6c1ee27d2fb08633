"""What --mode=describe prints."""

import pytest

from pixelrec_jax.configs.checks import meaning
from pixelrec_jax.items.vision import VISION_ENCODERS
from pixelrec_jax.system.config import flatten
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.describe import describe_config
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.state import count_parameters
from tests.tiny import tiny_config


@pytest.mark.parametrize("item", ["id", "vit_toy"])
def test_every_key_has_its_value_and_meaning(toy_dataset, item):
    config = tiny_config(f"user=sasrec,item={item},dataset=toy", toy_dataset)
    lines = describe_config(config).splitlines()
    for key, value in flatten(config.to_dict()).items():
        (line,) = [x for x in lines if x.startswith(f"{key} = ")]
        assert line.startswith(f"{key} = {value!r} ")
        assert line.endswith(f"  # {meaning(key)}")


def test_the_model_and_the_training_have_their_sizes(toy_dataset):
    config = tiny_config("user=sasrec,item=vit_toy,dataset=toy", toy_dataset)
    config.item.trainable, config.train.epochs, config.train.batch_size = "last:1", 3, 32
    text, experiment = describe_config(config), build_experiment(config)
    total, trained = count_parameters(experiment)
    assert 0 < trained < total
    assert f"\nparameters: {total:,}, {trained:,} of them trained" in text
    blocks = VISION_ENCODERS["vit_toy"].backbone(pool="mean").blocks
    assert f"\ntrained blocks: {', '.join(blocks[-2:])}\n" in text  # one and the final norm
    assert f"\nfrozen blocks: {', '.join(blocks[:-2])}\n" in text
    steps = -(-len(experiment.batches.task) // 32)
    assert f"\nsteps an epoch: {steps} of 32 examples\n" in text
    assert f"\nsteps: {3 * steps} at most, 3 epochs\n" in text


def test_ids_have_no_blocks(toy_dataset):
    text = describe_config(tiny_config("user=mf,item=id,dataset=toy", toy_dataset))
    assert "blocks" not in text.partition("\n\n")[2]


def test_a_config_that_no_run_could_start_with_is_an_error(toy_dataset):
    config = tiny_config("user=sasrec,item=id,dataset=toy", toy_dataset)
    config.user.heads = 3
    with pytest.raises(UserError, match="not divisible"):
        describe_config(config)

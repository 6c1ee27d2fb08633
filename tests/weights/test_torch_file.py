"""Files of PyTorch against `torch.load`."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from pixelrec_jax.weights.torch_file import read_torch
from tests.weights.pickles import FORMATS, Inner, assert_same, save, tensor_pickle, zip_of

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Outer(nn.Module):
    """Nested modules, a list of them, a buffer, a half-precision parameter and plain attributes."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Inner(), nn.ReLU(), Inner())
        self.scale = nn.Parameter(torch.rand(3).half())
        self.register_buffer("shift", torch.arange(3))
        self.sizes, self.names, self.rate = [1, 2], {"a": 1}, 0.5

    def forward(self, x):
        return self.blocks(x) * self.scale + self.shift + self.sizes[0] + self.names["a"]


def test_state_dict_of_a_module(tmp_path, form):
    module = Outer()
    path = save(module.state_dict(), tmp_path / "x.pth", form)
    assert_same(read_torch(path), torch.load(path, weights_only=True))
    assert_same(read_torch(path), module.state_dict())


def test_every_type_and_shape(tmp_path, form):
    floats = torch.float64, torch.float32, torch.float16, torch.bfloat16
    others = torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool
    tensors = {str(dtype): torch.tensor([[0, 1], [2, 3]]).to(dtype) for dtype in floats + others}
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3)}
    tensors["parameter"] = nn.Parameter(torch.rand(2))
    path = save(tensors, tmp_path / "x.pth", form)
    assert_same(read_torch(path), tensors)


def test_views_that_share_a_storage(tmp_path, form):
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "whole": whole,
        "transposed": whole.T,
        "strided": whole[1::2, ::3],
        "row": whole[2],
        "expanded": whole[0, :1].expand(5, 1),
    }
    path = save(tensors, tmp_path / "x.pth", form)
    assert_same(read_torch(path), tensors)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_weights_within_a_checkpoint(tmp_path, form, wrapper):
    weights = OrderedDict(weight=torch.rand(2), note="text", number=3, nothing=None)
    checkpoint = {
        wrapper: weights,
        "epoch": 3,
        "size": torch.Size([2]),
        "device": torch.device("cpu"),
        "optimizer": {"state": {0: {"momentum": torch.rand(2)}}, "lr": [0.1]},
        0: torch.rand(1),
        "temperature": torch.rand(1),
    }
    path = save(checkpoint, tmp_path / "x.pth", form)
    assert_same(read_torch(path), {"weight": weights["weight"]})


def test_a_tensor_beside_plain_values(tmp_path, form):
    path = save(
        {"model": "resnet", "weight": torch.ones(1), 0: torch.ones(1)}, tmp_path / "x", form
    )
    assert_same(read_torch(path), {"weight": torch.ones(1)})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols_of_pickle(tmp_path, form, protocol):
    tensors = {"weight": torch.rand(2, 3)}
    torch.save(
        tensors,
        tmp_path / "x.pth",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=FORMATS[form],
    )
    assert_same(read_torch(tmp_path / "x.pth"), tensors)


@pytest.mark.parametrize("how", ["scripted", "traced"])
def test_torchscript(tmp_path, how):
    module = Outer().eval()
    script = (
        torch.jit.script(module) if how == "scripted" else torch.jit.trace(module, torch.ones(2, 3))
    )
    script.save(tmp_path / "x.pt")
    ours = read_torch(tmp_path / "x.pt")
    theirs = torch.jit.load(tmp_path / "x.pt").state_dict()
    assert {"blocks.2.bn.running_var", "scale", "shift"} < set(theirs) == set(module.state_dict())
    assert_same({name: ours.pop(name) for name in theirs}, theirs)
    assert not ours


def test_attributes_of_a_dictionary_change_nothing(tmp_path):
    fields = {"dtype": "FloatStorage", "key": "0", "size": 6, "offset": 0}
    tensor = tensor_pickle(**fields, shape=(6,), strides=(1,)).removeprefix(b"(Vw\n")[:-2]
    names = b"get", b"items", b"__setstate__"
    build = b"(" + b"".join(b"V%b\nctorch\ndevice\n" % name for name in names) + b"db"
    # REDUCE OrderedDict, SETITEM, and BUILD twice, the second time by what the first one set
    content = b"ccollections\nOrderedDict\n(tRVw\n" + tensor + b"s" + build * 2
    members = {"archive/data.pkl": content + b".", "archive/data/0": bytes(24)}
    assert_same(read_torch(zip_of(tmp_path / "x", members)), {"w": torch.zeros(6)})


def test_small_tensors_may_repeat_their_elements(tmp_path):
    whole = torch.rand(8, 1).expand(8, 2**17)
    assert_same(read_torch(save({"x": whole}, tmp_path / "x", "zip")), {"x": whole})

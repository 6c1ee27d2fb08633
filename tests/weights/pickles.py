"""Files of PyTorch as it writes them, or made by hand around a pickle."""

import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from pixelrec_jax.system.errors import UserError
from pixelrec_jax.weights.torch_file import read_torch

FORMATS = {"zip": True, "legacy": False}


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.bn = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.bn(self.fc(x))


def save(content, path, form):
    torch.save(content, path, _use_new_zipfile_serialization=FORMATS[form])
    return path


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].shape == tuple(tensor.shape)
        if tensor.dtype == torch.bfloat16:
            assert ours[name].dtype.name == "bfloat16"
            ours[name], tensor = ours[name].view(np.int16), tensor.view(torch.int16)
        expected = tensor.detach().numpy()
        assert ours[name].dtype == expected.dtype
        np.testing.assert_array_equal(ours[name], expected)


def zip_of(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def file_with(content, path, form):
    """A file of the form that holds the pickle `content` where the checkpoint belongs."""
    match form:
        case "zip":
            zip_of(path, {"archive/data.pkl": content})
        case "torchscript":
            torch.jit.script(Inner()).save(path)
            root = next(iter(members_of(path))).split("/")[0]
            zip_of(path, members_of(path) | {f"{root}/data.pkl": content})
        case "legacy":
            path.write_bytes(legacy_start() + content + pickle.dumps([]))
    return path


def legacy_start(*, little=True):
    start = 0x1950A86A20F9469CFC6C, 1001, {"little_endian": little}
    return b"".join(pickle.dumps(part, 2) for part in start)


def refusal(path):
    with pytest.raises(UserError) as caught:
        read_torch(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def tensor_pickle(*, dtype, key, size, offset, shape, strides):
    """The pickle of {"w": tensor} by hand, in the text opcodes of pickle's protocol 0."""

    def plain(value):
        match value:
            case bool():
                return f"I0{value:d}\n"
            case int():
                return f"I{value}\n"
            case str():
                return f"V{value}\n"
            case bytes():
                return f"C{chr(len(value))}{value.decode()}"
        return f"({''.join(map(plain, value))}t"

    storage = f"(Vstorage\nctorch\n{dtype}\n{plain(key)}Vcpu\n{plain(size)}tQ"
    fields = f"{storage}{plain(offset)}{plain(shape)}{plain(strides)}"
    return f"(Vw\nctorch._utils\n_rebuild_tensor_v2\n({fields}I00\nNtRd.".encode()

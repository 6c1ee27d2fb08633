"""Small pictures, and files that hold them."""

import io
import tarfile

import lmdb
import numpy as np
from PIL import Image


def picture(seed, size=(9, 7)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue(), pixels


def write_lmdb(path, values, *, subdir=False):
    with lmdb.open(str(path), subdir=subdir, map_size=2**24) as env, env.begin(write=True) as txn:
        for key, value in values.items():
            txn.put(key.encode(), value)


def tar_of(path, names, mtime=0):
    with tarfile.open(path, "w") as archive:
        for seed, name in enumerate(names):
            member = tarfile.TarInfo(name)
            content, _ = picture(seed)
            member.size, member.mtime = len(content), mtime
            archive.addfile(member, io.BytesIO(content))
    return bytearray(path.read_bytes())

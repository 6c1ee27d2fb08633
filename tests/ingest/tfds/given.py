"""Small sources of the TFDS builder, and what is built of them."""

import hashlib
import os
from pathlib import Path

import tensorflow_datasets as tfds

# Users and items in no order; two ties of u2 at 7, b before a; quotes, a blank line, no newline at
# the end; u3 has a name that is not ASCII.
CSV = """timestamp,item_id,user_id,device
9,b,u2,x
7,b,u2,x
3,c,u1,x

7,a,u2,x
-5,"d",ü3,"x,y"
1,a,u1,x
8,c,u2,x"""
HISTORIES = {
    "u1": (["a", "c"], [1, 3]),
    "u2": (["b", "a", "c", "b"], [7, 7, 8, 9]),
    "ü3": (["d"], [-5]),
}
INFO = """item_id,title,view_number,coin_number,year
a,"Zwei, ""gute""
Zeilen",5,-3,1999
c,视频,,7,1999
z,not in the interactions,1,1,1999
"""
TOLD = {  # What INFO says of the items of CSV; d and b are not in it.
    "a": {"title": 'Zwei, "gute"\nZeilen', "view_number": 5, "coin_number": -3},
    "c": {"title": "视频", "coin_number": 7},
}
NUMBERS = ["view", "comment", "thumbup", "share", "coin", "favorite", "barrage"]
SKIP = {"image": tfds.decode.SkipDecoding()}


def sources(raw, **changed):
    """Arguments of `build`; a source that is changed to None is not given."""
    given = {"interactions": "x.csv", "images": "images", "item_info": "info.csv"} | changed
    return {name: path and os.path.join(raw, path) for name, path in given.items()}


def read(out, config, split, **options):
    """Examples by key, read as a stranger does: without our builder."""
    name = f"pixelrec/{config}"
    return list(tfds.data_source(name, split=split, data_dir=out, **options))


def digests(folder: Path):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
